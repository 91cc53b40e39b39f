"""`nestling add`."""

import time
from pathlib import Path
from typing import Any

import click

from nestling.cli.documents import encode_documents, find_encoder, open_documents
from nestling.cli.options import (
    bad_rows_option,
    debug_option,
    encoder_options,
    json_option,
    model_option,
)
from nestling.cli.terminal import print_json, progress_bars, talk
from nestling.core.progress import Progress
from nestling.data import Corpus
from nestling.encode import Encoded, open_encoder
from nestling.search import Index
from nestling.search.build import match_entries

ROWS_AT_ONCE = 4096


@click.command(
    name="add",
    epilog="""\b
Examples:
  nestling add index --corpus new.jsonl
  nestling add index --corpus changed.jsonl --upsert
  nestling add index --vectors vectors --corpus new.jsonl

A vector file does not say which model made it: --model does, as when the index was built.

Documents are on the disk when they are counted, 4,096 at a time. Killed halfway, run the same command
with --upsert.""",
)
@click.argument("index_folder", metavar="INDEX", type=click.Path(path_type=Path))
@click.option(
    "--corpus", metavar="TASK|FILE", help="Documents to encode, or the texts of --vectors."
)
@click.option(
    "--vectors", type=click.Path(path_type=Path), help="Vector folder or vector file that exists."
)
@click.option("--upsert", is_flag=True, help="Replace documents whose ids are there already.")
@model_option(required=False)
@encoder_options
@bad_rows_option
@json_option
@debug_option
def command(
    index_folder: Path,
    corpus: str | None,
    vectors: Path | None,
    upsert: bool,
    model: str | None,
    bad_rows: Any,
    as_json: bool,
    **encoder: Any,
) -> None:
    """Add documents to an index, encoded by the model that encoded the others."""
    if corpus is None and vectors is None:
        raise click.UsageError("give --corpus, or --vectors.")
    with Index.open(index_folder) as index, progress_bars() as progress:
        encoded, documents = _read(index, corpus, vectors, model, bad_rows, progress, **encoder)
        started_s = time.perf_counter()
        num_before = len(index)
        num_clipped = _add(index, encoded, documents, upsert=upsert, progress=progress)
        report = {
            "num_added": len(encoded.folder.doc_ids),
            "num_new": len(index) - num_before,
            "num_dropped": len(encoded.dropped_ids),
            "num_clipped": num_clipped,
            "num_documents": len(index),
            "generation": index.generation,
            "seconds": round(time.perf_counter() - started_s, 3),
        }
    if num_clipped:
        talk(
            f"{num_clipped:,} values lie outside the int8 range that was fitted when the head was made, "
            f"and were clipped. `nestling resize` to another width or format fits a range anew."
        )
    if as_json:
        print_json(report)
    else:
        click.echo(
            f"added {report['num_added']:,} documents, {report['num_new']:,} of them new, in "
            f"{report['seconds']:.2f} s; {report['num_documents']:,} in all "
            f"(generation {report['generation']})"
        )


def _read(
    index: Index,
    corpus: str | None,
    vectors: Path | None,
    model: str | None,
    bad_rows: Any,
    progress: Progress,
    **encoder: Any,
) -> tuple[Encoded, Corpus | None]:
    if vectors is not None:
        if model is None and vectors.is_file():
            raise click.UsageError(
                f"{vectors} does not say which model made it. Name it with --model, as when the index was "
                f"built; vectors:FILE if it was built from FILE alone."
            )
        made_by = None if model is None else open_encoder(model, **encoder)
        return open_documents(
            vectors, corpus, made_by=made_by, bad_rows=bad_rows, progress=progress, **encoder
        )
    opened = find_encoder(model, index.fingerprint, **encoder)
    if opened is None or corpus is None:
        raise click.UsageError(
            f"{index.path} does not say which model made its vectors. Name it with --model."
        )
    index.check_encoder(opened.fingerprint)
    return encode_documents(opened, corpus, bad_rows=bad_rows, progress=progress)


def _add(
    index: Index, encoded: Encoded, documents: Corpus | None, *, upsert: bool, progress: Progress
) -> int:
    folder = encoded.folder
    folder.verify()
    match_entries(folder, documents)  # refuses what a build refuses
    put = index.upsert if upsert else index.add
    metadata = (
        None
        if documents is None or documents.metadata is None
        else dict(zip(documents.doc_ids, documents.metadata, strict=True))
    )
    texts = (
        None if documents is None else dict(zip(documents.doc_ids, documents.texts, strict=True))
    )
    num_clipped = 0
    for start in range(0, len(folder.doc_ids), ROWS_AT_ONCE):
        doc_ids = folder.doc_ids[start : start + ROWS_AT_ONCE]
        added = put(
            folder.vectors[start : start + ROWS_AT_ONCE],
            doc_ids=doc_ids,
            fingerprint=folder.fingerprint,
            texts=None if texts is None else [texts[doc_id] for doc_id in doc_ids],
            metadata=None if metadata is None else [metadata[doc_id] for doc_id in doc_ids],
        )
        num_clipped += added.num_clipped
        progress("add", start + len(doc_ids), len(folder.doc_ids))
    return num_clipped
