"""Open what the options name."""

import shlex
import sys
from pathlib import Path

import click

from nestling.cli.terminal import talk
from nestling.core.progress import Progress
from nestling.data import Chunking, Corpus, SelfTask, Task, open_corpus, open_task
from nestling.encode import Encoded, Encoder, open_encoder, truncation_notes

CHUNK_TOKENS = 256
"""Length of a chunk for encoders without a limit: a few paragraphs that are about one thing."""

DOCUMENTS_KEY = "nestling.documents"


def open_documents_once(corpus: str, *, chunking: Chunking | None, progress: Progress) -> Corpus:
    """Open a corpus, and keep it for a task of the same run: the built-in one takes long to read."""
    documents = open_corpus(corpus, chunking=chunking, progress=progress)
    click.get_current_context().meta[DOCUMENTS_KEY] = documents
    return documents


def open_task_once(task: str, *, progress: Progress) -> Task:
    """Open a task, over the documents that this run has opened already if they are its own."""
    documents = click.get_current_context().meta.get(DOCUMENTS_KEY)
    return open_task(task, corpus=documents, progress=progress)


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
    has_vectors = isinstance(opened, SelfTask) and opened.vectors is not None
    if encoder is None and not has_vectors:
        raise click.UsageError(
            f"--task {task} holds texts or images: name a --model to encode them with."
        )
    return encoder, opened


def talk_about(encoded: Encoded, corpus: Corpus | None, *, encoder: Encoder | None) -> None:
    """Say what people should know about an encoded corpus: its size, and what was left out."""
    notes = [] if corpus is None else [*corpus.notes]
    if corpus is not None and encoder is not None and encoded.num_encoded:
        notes += truncation_notes(encoder, corpus.texts, name="documents")
    if encoded.dropped_ids:
        named = ", ".join(map(repr, encoded.dropped_ids[:5]))
        notes.append(f"left out {len(encoded.dropped_ids):,} zero, NaN or infinite rows: {named}")
    for note in notes:
        talk(note)


def chunking_for(encoder: Encoder) -> Chunking:
    """Return how a folder of texts is cut for an encoder: to its limit, an eighth overlapping."""
    max_tokens = encoder.max_tokens or CHUNK_TOKENS
    return Chunking(
        count_tokens=encoder.count_tokens, max_tokens=max_tokens, overlap_tokens=max_tokens // 8
    )


def command_line() -> str:
    """Return what was typed, for the record of a run."""
    return shlex.join(["nestling", *sys.argv[1:]])
