"""`nestling search`."""

import textwrap
import time
from pathlib import Path
from typing import Any

import click

from nestling.cli.options import debug_option, encoder_options, json_option, model_option
from nestling.cli.terminal import print_json, talk
from nestling.encode import open_encoder, reopen_encoder
from nestling.search import Hit, Index

SNIPPET_CHARS = 160


@click.command(
    name="search",
    epilog="""\b
Examples:
  nestling search index "read a file line by line"
  nestling search index "open a socket" --top-k 3 --json""",
)
@click.argument("index_folder", metavar="INDEX", type=click.Path(path_type=Path))
@click.argument("query")
@click.option(
    "--top-k", type=click.IntRange(min=1), default=10, show_default=True, help="Results to return."
)
@model_option(required=False)
@encoder_options
@json_option
@debug_option
def command(
    index_folder: Path, query: str, top_k: int, model: str | None, as_json: bool, **encoder: Any
) -> None:
    """Search an index; the query is encoded by the model that encoded the documents."""
    index = Index.open(index_folder)
    if not query.strip():
        raise click.UsageError("QUERY must not be empty.")
    opened = (
        open_encoder(model, **encoder) if model else reopen_encoder(index.fingerprint, **encoder)
    )
    if opened is None:
        raise click.UsageError(
            f"{index.path} does not say which model made its vectors. Build it again with --model, naming it."
        )
    index.check_encoder(opened.fingerprint)
    vector = opened.encode([query], role="query")
    started_s = time.perf_counter()
    (hits,) = index.search(vector, top_k=top_k)
    search_ms = 1000 * (time.perf_counter() - started_s)
    if as_json:
        print_json({"hits": [_hit_json(hit) for hit in hits]})
        return
    for rank, hit in enumerate(hits, start=1):
        click.echo(f"{rank:3}. {hit.score:.4f}  {_title(hit)}")
        if snippet := _snippet(hit):
            click.echo(f"             {snippet}")
    talk(
        f"{len(hits)} of {len(index):,} documents by {index.plan.describe()} in {search_ms:.1f} ms"
    )


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
