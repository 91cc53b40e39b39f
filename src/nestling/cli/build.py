"""`nestling build`."""

import time
from pathlib import Path
from typing import Any

import click

from nestling.cli.inputs import chunking_for, open_encoder_and_corpus, talk_about
from nestling.cli.options import (
    OutputPath,
    bad_rows_option,
    debug_option,
    encoder_options,
    json_option,
    model_option,
    overwrite_option,
)
from nestling.cli.terminal import format_bytes, print_json, progress_bars
from nestling.core.progress import Progress
from nestling.data import Corpus, open_corpus
from nestling.encode import (
    Encoded,
    cache_folder,
    cache_root,
    encode_corpus,
    open_encoder,
    open_stored,
    reopen_encoder,
)
from nestling.errors import WriteError
from nestling.search import Index, Plan

TEXT_SUFFIXES = (".txt", ".md", ".markdown")


@click.command(
    name="build",
    epilog="""\b
Examples:
  nestling build --model static:wordllama --corpus builtin --plan plan.json --out index
  nestling build --vectors vectors --corpus articles.jsonl --out index
  nestling build --vectors embeddings.npy --model openai:text-embedding-3-large --out index

A vector file does not say which model made it: --model does, and then text can be searched.
Without --plan the index searches the full width exactly, in one stage.""",
)
@model_option(required=False)
@click.option(
    "--corpus",
    metavar="TASK|FILE",
    help="Documents: encoded by --model, or the texts that --vectors stand for.",
)
@click.option(
    "--vectors",
    type=click.Path(path_type=Path),
    help="Vector folder or vector file that exists already.",
)
@click.option(
    "--plan",
    "plan_file",
    type=click.Path(path_type=Path),
    metavar="PLAN.json",
    help="From `nestling choose`.",
)
@click.option(
    "--out", required=True, type=OutputPath(), metavar="INDEX", help="Index folder to write."
)
@overwrite_option
@encoder_options
@bad_rows_option
@json_option
@debug_option
def command(
    model: str | None,
    corpus: str | None,
    vectors: Path | None,
    plan_file: Path | None,
    out: Path,
    overwrite: bool,
    bad_rows: Any,
    as_json: bool,
    **encoder: Any,
) -> None:
    """Build a two-tier index: a small head in RAM, full vectors on disk."""
    if vectors is None and (model is None or corpus is None):
        raise click.UsageError("give --model and --corpus, or --vectors.")
    if out.exists() and not overwrite:
        raise WriteError(
            f"{out} exists and is never overwritten silently. Pass --overwrite or another --out."
        )
    started_s = time.perf_counter()
    plan = None if plan_file is None else Plan.load(plan_file)
    with progress_bars() as progress:
        documents: Corpus | None
        if vectors is None:
            encoded, documents = _encode(model, corpus, bad_rows, progress, **encoder)
        else:
            encoded, documents = _open(
                vectors, model, corpus, bad_rows=bad_rows, progress=progress, **encoder
            )
        index = Index.build(
            out, encoded.folder, documents, plan=plan, overwrite=overwrite, progress=progress
        )
    report = {
        "out": str(out),
        "num_documents": len(index),
        "num_dropped": len(encoded.dropped_ids),
        "plan": index.plan.describe(),
        "head_bytes": index.head_bytes,
        "full_bytes": index.full_bytes,
        "seconds": round(time.perf_counter() - started_s, 3),
    }
    if as_json:
        print_json(report)
    else:
        click.echo(
            f"{len(index):,} documents -> {out} in {report['seconds']:.1f} s\n"
            f"plan: {index.plan.describe()}\n"
            f"head tier in RAM {format_bytes(index.head_bytes)}, "
            f"full vectors on disk {format_bytes(index.full_bytes)}"
        )


def _encode(
    model: Any, corpus: Any, bad_rows: Any, progress: Progress, **encoder: Any
) -> tuple[Encoded, Corpus]:
    # Into the cache that `measure` uses too: what was measured is not encoded again.
    opened, documents = open_encoder_and_corpus(model, corpus, progress=progress, **encoder)
    cached = cache_folder(opened.fingerprint, documents.corpus_hash, "document")
    encoded = encode_corpus(opened, documents, cached, bad_rows=bad_rows, progress=progress)
    talk_about(encoded, documents, encoder=opened)
    return encoded, documents


def _open(
    vectors: Path,
    model: str | None,
    corpus: str | None,
    *,
    bad_rows: Any,
    progress: Progress,
    **encoder: Any,
) -> tuple[Encoded, Corpus | None]:
    made_by = None if model is None else open_encoder(model, **encoder)
    encoded = open_stored(
        vectors, cache=cache_root(), made_by=made_by, bad_rows=bad_rows, progress=progress
    )
    documents = None
    if corpus is not None:
        # A folder of texts must be cut as it was when it was encoded.
        needs_cutting = Path(corpus).is_dir() or Path(corpus).suffix in TEXT_SUFFIXES
        reader = made_by
        if needs_cutting and reader is None:
            reader = reopen_encoder(encoded.folder.fingerprint, **encoder)
        chunking = None if reader is None else chunking_for(reader)
        documents = open_corpus(corpus, chunking=chunking, progress=progress)
    talk_about(encoded, documents, encoder=None)
    return encoded, documents
