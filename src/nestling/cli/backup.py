"""`nestling backup`."""

import time
from pathlib import Path

import click

from nestling.cli.options import OutputPath, debug_option, json_option
from nestling.cli.terminal import print_json, progress_bars
from nestling.errors import WriteError
from nestling.search import Index


@click.command(
    name="backup",
    epilog="""\b
Examples:
  nestling backup index --out /mnt/copies/index-monday

The copy is an index like any other. Others may search and write the original meanwhile.""",
)
@click.argument("index_folder", metavar="INDEX", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=OutputPath(), metavar="COPY", help="Folder to write.")
@json_option
@debug_option
def command(index_folder: Path, out: Path, as_json: bool) -> None:
    """Copy one consistent state of an index into a new folder."""
    if out.exists():
        raise WriteError(f"{out} exists and is never overwritten. Name another --out.")
    started_s = time.perf_counter()
    with Index.open(index_folder) as index, progress_bars() as progress:
        index.backup(out, progress=progress)
        report = {
            "out": str(out),
            "num_documents": len(index),
            "generation": index.generation,
            "seconds": round(time.perf_counter() - started_s, 3),
        }
    if as_json:
        print_json(report)
    else:
        click.echo(
            f"{report['num_documents']:,} documents (generation {report['generation']}) -> {out} "
            f"in {report['seconds']:.1f} s"
        )
