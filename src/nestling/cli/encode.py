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
from nestling.cli.terminal import print_json, progress_bars, talk
from nestling.core import Dtype
from nestling.core.progress import Progress
from nestling.encode import AdaptedEncoder, Encoded, adapt_vectors, encode_corpus, open_encoder


@click.command(
    name="encode",
    epilog="""\b
Examples:
  nestling encode --model static:wordllama --corpus builtin --out vectors
  nestling encode --model st:sentence-transformers/all-MiniLM-L6-v2 --corpus docs/ --out vectors
  nestling encode --model openai:text-embedding-3-large --base-url https://api.openai.com/v1 \\
      --corpus articles.jsonl --out vectors
  nestling encode --model nest:adapter --vectors vectors --out adapted

Run the same command again after a crash or a kill: what is on disk is not encoded again.
Run it after the corpus changed: only texts with new content are encoded.
With --vectors no text is read: an adapter maps vectors that its parent model has made.""",
)
@model_option(required=True)
@click.option(
    "--corpus",
    metavar="TASK|FILE",
    help="A task's corpus, a file, or a folder of texts.",
)
@click.option(
    "--vectors",
    type=click.Path(path_type=Path),
    metavar="VECTORS",
    help="Instead of --corpus: a vector folder or vector file, to be mapped by an adapter.",
)
@click.option(
    "--out", required=True, type=OutputPath(), metavar="VECTORS", help="Vector folder to write."
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="Number format on disk, of adapted vectors too: whatever --vectors are kept in.",
)
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace vectors of a corpus that shares nothing with this one.",
)
@encoder_options
@bad_rows_option
@json_option
@debug_option
def command(
    model: str,
    corpus: str | None,
    vectors: Path | None,
    out: Path,
    dtype: str,
    overwrite: bool,
    bad_rows: Any,
    as_json: bool,
    **encoder: Any,
) -> None:
    """Encode a corpus at full width into a vector folder, or adapt vectors that exist."""
    if (corpus is None) == (vectors is None):
        raise click.UsageError(
            f"give either --corpus or --vectors, got {'both' if corpus else 'neither'}."
        )
    started_s = time.perf_counter()
    options = {"bad_rows": bad_rows, "overwrite": overwrite}
    with progress_bars() as progress:
        if vectors is not None:
            encoded = _adapt(model, vectors, out, dtype, progress, options, **encoder)
        else:
            encoded = _encode(model, corpus, out, dtype, progress, options, **encoder)
    seconds = time.perf_counter() - started_s
    folder = encoded.folder
    report = {
        "out": str(out),
        "num_documents": len(folder),
        "embed_dim": folder.embed_dim,
        "dtype": str(folder.manifest.dtype),
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
        return
    made, done, equal = (
        ("documents", "encoded", "texts") if vectors is None else ("vectors", "adapted", "inputs")
    )
    click.echo(
        f"{len(folder):,} {made} x {folder.embed_dim} dims in {folder.manifest.dtype} "
        f"({folder.vectors.nbytes / 1e6:,.1f} MB) -> {out} in {seconds:.1f} s: {encoded.num_encoded:,} {done}, "
        f"{encoded.num_resumed:,} there already, {encoded.num_reused:,} copied from unchanged or equal {equal}"
    )


def _encode(
    model: str,
    corpus: Any,
    out: Path,
    dtype: str,
    progress: Progress,
    options: dict[str, Any],
    **encoder: Any,
) -> Encoded:
    opened, documents = open_encoder_and_corpus(model, corpus, progress=progress, **encoder)
    encoded = encode_corpus(
        opened, documents, out, dtype=Dtype(dtype), progress=progress, **options
    )
    talk_about(encoded, documents, encoder=opened)
    return encoded


def _adapt(
    model: str,
    vectors: Path,
    out: Path,
    dtype: str,
    progress: Progress,
    options: dict[str, Any],
    *,
    base_url: str | None,
    max_tokens: int | None,
) -> Encoded:
    if base_url is not None or max_tokens is not None:
        raise click.UsageError(
            "--base-url and --max-tokens do not go with --vectors, for no text is read. Leave them out."
        )
    adapter = open_encoder(model) if model.startswith("nest:") else None
    if not isinstance(adapter, AdaptedEncoder):
        raise click.UsageError(
            f"--vectors needs an adapter as --model, nest:DIR, that nestling train adapter wrote; got {model}."
        )
    encoded = adapt_vectors(adapter, vectors, out, dtype=Dtype(dtype), progress=progress, **options)
    if not vectors.is_dir():
        talk(
            f"{vectors} does not say which model made it: taken for vectors of {adapter.parent.space.model}"
        )
    talk_about(encoded, None, encoder=None)
    return encoded
