"""`nestling delete`."""

import time
from collections.abc import Iterable
from pathlib import Path

import click

from nestling.cli.options import debug_option, json_option
from nestling.cli.terminal import print_json
from nestling.search import Index


@click.command(
    name="delete",
    epilog="""\b
Examples:
  nestling delete index os.path.join os.path.split
  nestling delete index --ids-from gone.txt

Nothing is deleted if an id is not in the index. The bytes go with `nestling compact`.""",
)
@click.argument("index_folder", metavar="INDEX", type=click.Path(path_type=Path))
@click.argument("doc_ids", metavar="[ID]...", nargs=-1)
@click.option(
    "--ids-from",
    type=click.File(encoding="utf-8"),
    metavar="FILE",
    help="Ids, one per line, empty lines aside; - for stdin.",
)
@json_option
@debug_option
def command(
    index_folder: Path,
    doc_ids: tuple[str, ...],
    ids_from: Iterable[str] | None,
    as_json: bool,
) -> None:
    """Delete documents from an index; they are gone for good when it returns."""
    ids = [*doc_ids, *filter(None, (line.rstrip("\r\n") for line in ids_from or ()))]
    if not ids:
        raise click.UsageError("name the documents to delete, or give --ids-from.")
    with Index.open(index_folder) as index:
        num_before = len(index)
        started_s = time.perf_counter()
        num_deleted = index.delete(ids)
        report = {
            "num_deleted": num_deleted,
            "num_documents": len(index),
            "generation": index.generation,
            "seconds": round(time.perf_counter() - started_s, 3),
        }
    if as_json:
        print_json(report)
    else:
        click.echo(
            f"deleted {num_deleted:,} of {num_before:,} documents in {report['seconds']:.3f} s "
            f"(generation {report['generation']})"
        )
