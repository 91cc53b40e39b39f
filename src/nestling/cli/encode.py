"""`nestling encode`."""

import time
from pathlib import Path
from typing import Any

import click

from nestling.cli.inputs import open_encoder_and_corpus, talk_about
from nestling.cli.options import (
    OutputPath,
    bad_rows_option,
    debug_option,
    encoder_options,
    json_option,
    model_option,
)
from nestling.cli.terminal import print_json, progress_bars
from nestling.core import Dtype
from nestling.encode import encode_corpus


@click.command(
    name="encode",
    epilog="""\b
Examples:
  nestling encode --model static:wordllama --corpus builtin --out vectors
  nestling encode --model st:sentence-transformers/all-MiniLM-L6-v2 --corpus docs/ --out vectors
  nestling encode --model openai:text-embedding-3-large --base-url https://api.openai.com/v1 \\
      --corpus articles.jsonl --out vectors

Run the same command again after a crash or a kill: what is on disk is not encoded again.
Run it after the corpus changed: only texts with new content are encoded.""",
)
@model_option(required=True)
@click.option(
    "--corpus",
    required=True,
    metavar="TASK|FILE",
    help="A task's corpus, a file, or a folder of texts.",
)
@click.option(
    "--out", required=True, type=OutputPath(), metavar="VECTORS", help="Vector folder to write."
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="Number format on disk.",
)
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace vectors of a corpus that shares no text with this one.",
)
@encoder_options
@bad_rows_option
@json_option
@debug_option
def command(
    model: str,
    corpus: str,
    out: Path,
    dtype: str,
    overwrite: bool,
    bad_rows: Any,
    as_json: bool,
    **encoder: Any,
) -> None:
    """Encode a corpus at full width into a vector folder."""
    started_s = time.perf_counter()
    with progress_bars() as progress:
        opened, documents = open_encoder_and_corpus(model, corpus, progress=progress, **encoder)
        encoded = encode_corpus(
            opened,
            documents,
            out,
            dtype=Dtype(dtype),
            bad_rows=bad_rows,
            overwrite=overwrite,
            progress=progress,
        )
    seconds = time.perf_counter() - started_s
    talk_about(encoded, documents, encoder=opened)
    folder = encoded.folder
    report = {
        "out": str(out),
        "num_documents": len(folder),
        "embed_dim": folder.embed_dim,
        "dtype": dtype,
        "bytes": folder.vectors.nbytes,
        "num_encoded": encoded.num_encoded,
        "num_reused": encoded.num_reused,
        "num_resumed": encoded.num_resumed,
        "num_dropped": len(encoded.dropped_ids),
        "seconds": round(seconds, 3),
        "corpus_hash": folder.corpus_hash,
        "fingerprint": folder.fingerprint.to_json(),
    }
    if as_json:
        print_json(report)
    else:
        click.echo(
            f"{len(folder):,} documents x {folder.embed_dim} dims in {dtype} "
            f"({folder.vectors.nbytes / 1e6:,.1f} MB) -> {out} in {seconds:.1f} s: {encoded.num_encoded:,} encoded, "
            f"{encoded.num_resumed:,} there already, {encoded.num_reused:,} copied from unchanged or equal texts"
        )
