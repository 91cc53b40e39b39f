"""`nestling compact`."""

import time
from pathlib import Path

import click

from nestling.cli.options import debug_option, json_option
from nestling.cli.terminal import print_json, progress_bars
from nestling.core.sizes import format_bytes
from nestling.search import Index


@click.command(
    name="compact",
    epilog="""\b
Examples:
  nestling compact index

Whoever searches the index meanwhile goes on with the state it opened.""",
)
@click.argument("index_folder", metavar="INDEX", type=click.Path(path_type=Path))
@json_option
@debug_option
def command(index_folder: Path, as_json: bool) -> None:
    """Write an index anew without deleted documents, its engine over all that are left."""
    started_s = time.perf_counter()
    with Index.open(index_folder) as index, progress_bars() as progress:
        before_bytes, num_rows = index.full_bytes, index.num_rows
        is_changed = index.compact(progress=progress)
        report = {
            "is_changed": is_changed,
            "num_documents": len(index),
            "num_dropped": num_rows - index.num_rows,
            "full_bytes_before": before_bytes,
            "full_bytes": index.full_bytes,
            "generation": index.generation,
            "seconds": round(time.perf_counter() - started_s, 3),
        }
    if as_json:
        print_json(report)
    elif not is_changed:
        click.echo(
            f"nothing to do: no dead rows, and the engine knows all {len(index):,} documents"
        )
    else:
        click.echo(
            f"{report['num_documents']:,} documents; dropped {report['num_dropped']:,} dead rows, "
            f"full vectors {format_bytes(before_bytes)} -> {format_bytes(index.full_bytes)} "
            f"in {report['seconds']:.1f} s"
        )
