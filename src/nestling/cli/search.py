"""`nestling search`."""

import json
import textwrap
from pathlib import Path
from typing import Any

import click

from nestling.cli.documents import find_encoder
from nestling.cli.options import debug_option, encoder_options, json_option, model_option
from nestling.cli.tables import trace_table
from nestling.cli.terminal import print_json, print_table, talk
from nestling.search import Hit, Index

SNIPPET_CHARS = 160


@click.command(
    name="search",
    epilog="""\b
Examples:
  nestling search index "read a file line by line"
  nestling search index "open a socket" --top-k 3 --json
  nestling search index "open a socket" --where 'year >= 2020 and lang == "en"'
  nestling search index "open a socket" --offset 10 --explain""",
)
@click.argument("index_folder", metavar="INDEX", type=click.Path(path_type=Path))
@click.argument("query")
@click.option(
    "--top-k", type=click.IntRange(min=1), default=10, show_default=True, help="Results to return."
)
@click.option(
    "--offset",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Results to skip: the page after --top-k 10 is --offset 10.",
)
@click.option(
    "--where",
    metavar="FILTER",
    help="Only documents whose metadata pass, e.g. 'lang == \"en\" and year >= 2020'.",
)
@click.option(
    "--explain", is_flag=True, help="Say what each stage scored and read, and what is proven."
)
@model_option(required=False)
@encoder_options
@json_option
@debug_option
def command(
    index_folder: Path,
    query: str,
    top_k: int,
    offset: int,
    where: str | None,
    explain: bool,
    model: str | None,
    as_json: bool,
    **encoder: Any,
) -> None:
    """Search an index; the query is encoded by the model that encoded the documents."""
    if not query.strip():
        raise click.UsageError("QUERY must not be empty.")
    with Index.open(index_folder) as index:
        opened = find_encoder(model, index.fingerprint, **encoder)
        if opened is None:
            raise click.UsageError(
                f"{index.path} does not say which model made its vectors. Build it again with --model, "
                f"naming it."
            )
        index.check_encoder(opened.fingerprint)
        vector = opened.encode([query], role="query")
        (hits,) = index.search(vector, top_k=top_k, offset=offset, where=where)
        trace = None
        if explain:
            # A second time: the first search of a process loads compiled code.
            trace = index.explain(vector, top_k=top_k, offset=offset, where=where).trace
    if as_json:
        traced = {} if trace is None else {"trace": trace.to_json()}
        print_json({"hits": [_hit_json(hit) for hit in hits], **traced})
        return
    for rank, hit in enumerate(hits, start=offset + 1):
        click.echo(f"{rank:3}. {hit.score:.4f}  {_title(hit)}")
        if snippet := _snippet(hit):
            click.echo(f"             {snippet}")
    talk(f"{len(hits)} of {len(index):,} documents by {index.plan.describe()}")
    if trace is not None:
        print_table(trace_table(trace))
        if trace.certificate is not None:
            click.echo(json.dumps(trace.certificate))


def _title(hit: Hit) -> str:
    heading = (hit.metadata or {}).get("heading")
    return f"{hit.doc_id}  {heading}" if heading else hit.doc_id


def _snippet(hit: Hit) -> str:
    text = (hit.metadata or {}).get("snippet") or hit.text or ""
    return textwrap.shorten(text, SNIPPET_CHARS, placeholder=" ...")


def _hit_json(hit: Hit) -> dict[str, Any]:
    data: dict[str, Any] = {"id": hit.doc_id, "score": round(float(hit.score), 6)}
    if hit.text is not None:
        data["text"] = hit.text
    if hit.metadata:
        data["metadata"] = dict(hit.metadata)
    return data
