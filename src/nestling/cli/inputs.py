"""Open what the options name."""

import shlex
import sys
from pathlib import Path

import click

from nestling.core.progress import Progress
from nestling.data import Chunking, Corpus, Task, open_corpus, open_task
from nestling.encode import Encoder, open_encoder

CHUNK_TOKENS = 256
"""Length of a chunk for encoders without a limit: a few paragraphs that are about one thing."""


def open_encoder_and_corpus(
    model: str, corpus: str, *, progress: Progress, base_url: str | None, max_tokens: int | None
) -> tuple[Encoder, Corpus]:
    """Open a model and a corpus; a folder of texts is chunked to the model's token limit."""
    encoder = open_encoder(model, base_url=base_url, max_tokens=max_tokens)
    return encoder, open_corpus(corpus, chunking=chunking_for(encoder), progress=progress)


def open_encoder_and_task(
    model: str | None,
    task: str,
    *,
    queries: Path | None,
    progress: Progress,
    base_url: str | None,
    max_tokens: int | None,
) -> tuple[Encoder | None, Task]:
    """Open a model and a task; only vectors that exist already need no model."""
    encoder = (
        None if model is None else open_encoder(model, base_url=base_url, max_tokens=max_tokens)
    )
    chunking = None if encoder is None else chunking_for(encoder)
    opened = open_task(task, chunking=chunking, queries=queries, progress=progress)
    if encoder is None and getattr(opened, "vectors", None) is None:
        raise click.UsageError(
            f"--task {task} holds texts or images: name a --model to encode them with."
        )
    return encoder, opened


def chunking_for(encoder: Encoder) -> Chunking:
    """Return how a folder of texts is cut for an encoder: to its limit, an eighth overlapping."""
    max_tokens = encoder.max_tokens or CHUNK_TOKENS
    return Chunking(
        count_tokens=encoder.count_tokens, max_tokens=max_tokens, overlap_tokens=max_tokens // 8
    )


def command_line() -> str:
    """Return what was typed, for the record of a run."""
    return shlex.join(["nestling", *sys.argv[1:]])
