"""`nestling verify`."""

import time
from pathlib import Path

import click

from nestling.cli.options import debug_option, json_option
from nestling.cli.terminal import print_json, progress_bars
from nestling.search import Index
from nestling.search.manifest import Manifest


@click.command(
    name="verify",
    epilog="""\b
Examples:
  nestling verify index
  nestling verify index --json

Exits with 1 and names every damaged file if a byte is not what was written.""",
)
@click.argument("index_folder", metavar="INDEX", type=click.Path(path_type=Path))
@json_option
@debug_option
def command(index_folder: Path, as_json: bool) -> None:
    """Read every byte of an index and compare it with its checksums."""
    started_s = time.perf_counter()
    with progress_bars() as progress:
        Index.verify_folder(index_folder, progress=progress)
    manifest = Manifest.load(index_folder)
    report = {
        "verified": True,
        "num_documents": manifest.num_live,
        "generation": manifest.generation,
        "seconds": round(time.perf_counter() - started_s, 3),
    }
    if as_json:
        print_json(report)
    else:
        click.echo(
            f"{index_folder}: all {report['num_documents']:,} documents are as they were written "
            f"(generation {report['generation']}, {report['seconds']:.1f} s)"
        )
