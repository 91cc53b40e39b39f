"""Vectors to measure: encoded now, taken from the cache, or read from a file."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from nestling.core import BadRowPolicy, Fingerprint, check_rows, check_same_space
from nestling.core.progress import Progress
from nestling.data import Corpus, Inputs, read_vectors
from nestling.encode import Encoder, Role, VectorFolder, embed, open_encoder, truncation_notes
from nestling.errors import DataError, VectorError


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """Vectors of one side of a task: its corpus, its queries, or all its inputs.

    Attributes:
        name: What people call it, e.g. "documents".
        vectors: Full-width rows; may be memory-mapped.
        ids: One per row.
        kept: Which input each row belongs to, ascending; all unless bad rows were dropped.
        fingerprint: What made them.
        has_known_space: Whether the fingerprint tells a model, not just a file.
        notes: Inputs cut short, rows dropped.
        corpus_hash: As in `Results`, where it is read from a file; "" for what was encoded now.
    """

    name: str
    vectors: Float[np.ndarray, "rows embed_dim"]
    ids: Sequence[str]
    kept: Int[np.ndarray, " rows"]
    fingerprint: Fingerprint
    has_known_space: bool = True
    notes: tuple[str, ...] = ()
    corpus_hash: str = ""

    def take(
        self, rows: Int[np.ndarray, " taken"], *, name: str, note: str | None = None
    ) -> "Side":
        """Return some of the rows, copied, under a name and with a note of their own."""
        return replace(
            self,
            name=name,
            vectors=self.vectors[rows],
            ids=[self.ids[row] for row in rows],
            kept=self.kept[rows],
            notes=() if note is None else (note,),
        )


def encode_side(
    encoder: Encoder,
    inputs: Inputs,
    ids: Sequence[str],
    *,
    name: str,
    role: Role,
    cache: Path | None,
    bad_rows: BadRowPolicy,
    progress: Progress,
) -> Side:
    """Encode one side of a task, or take it from the cache.

    Raises:
        VectorError: If a row is bad and `bad_rows` is "error".
        EncoderError: If the model fails.
    """
    embedded = embed(
        encoder,
        inputs,
        role=role,
        ids=ids,
        cache=cache,
        bad_rows=bad_rows,
        progress=progress,
    )
    dropped = sorted(set(range(len(ids))) - set(embedded.kept.tolist()))
    notes = truncation_notes(encoder, inputs, name=name)
    notes += _dropped_notes([ids[row] for row in dropped], len(ids), name=name)
    return Side(
        name=name,
        vectors=embedded.vectors,
        ids=[ids[row] for row in embedded.kept],
        kept=embedded.kept,
        fingerprint=encoder.fingerprint,
        notes=notes,
    )


def read_side(path: Path, *, name: str, bad_rows: BadRowPolicy) -> Side:
    """Read vectors that exist already, from a vector folder or a vector file.

    Raises:
        DataError: If the file cannot be read.
        FormatError: If the folder is damaged or unfinished.
        VectorError: If a row is bad and `bad_rows` is "error", or all rows are bad.
    """
    stored_ids: Sequence[str] | None
    vectors: Float[np.ndarray, "rows embed_dim"]
    if path.is_dir():
        folder = VectorFolder.open(path)
        folder.verify()
        vectors, stored_ids, fingerprint = folder.vectors, folder.doc_ids, folder.fingerprint
        corpus_hash = folder.corpus_hash
    else:
        vectors, stored_ids = read_vectors(path)
        fingerprint = open_encoder(f"vectors:{path}").fingerprint
        corpus_hash = fingerprint.space.revision  # a hash of the file
    ids = [str(row) for row in range(len(vectors))] if stored_ids is None else stored_ids
    keep = check_rows(vectors, ids, policy=bad_rows)
    kept = np.flatnonzero(keep)
    if len(kept) == 0:
        raise VectorError(
            f"vectors must be finite and not all zero, got {len(ids)} bad of {len(ids)} in {path}. "
            f"Encode the inputs again."
        )
    dropped = [ids[row] for row in np.flatnonzero(~keep)]
    return Side(
        name=name,
        vectors=vectors if not dropped else vectors[kept],
        ids=[ids[row] for row in kept],
        kept=kept,
        fingerprint=fingerprint,
        has_known_space=path.is_dir(),
        corpus_hash=corpus_hash,
        notes=_dropped_notes(dropped, len(ids), name=name),
    )


def hash_inputs(inputs: Inputs, ids: Sequence[str]) -> str:
    """Return a hash of every id and input in order, as `Corpus.corpus_hash` is for texts."""
    if not isinstance(inputs, np.ndarray):
        return Corpus(doc_ids=ids, texts=inputs, source="").corpus_hash
    digest = hashlib.blake2b(f"{inputs.shape}".encode(), digest_size=16)
    for name, image in zip(ids, inputs, strict=True):
        digest.update(f"{len(name)}:{name}".encode() + image.tobytes())
    return digest.hexdigest()


def check_comparable(corpus: Side, queries: Side) -> None:
    """Refuse sides of two spaces or widths; a plain vector file tells its width only.

    Raises:
        FingerprintError: If both sides tell their space and the spaces differ.
        DataError: If the widths differ.
    """
    if corpus.has_known_space and queries.has_known_space:
        check_same_space(
            corpus.fingerprint,
            queries.fingerprint,
            left_name=f"the space of the {corpus.name}",
            right_name=f"that of the {queries.name}",
        )
    widths = corpus.vectors.shape[1], queries.vectors.shape[1]
    if widths[0] != widths[1]:
        raise DataError(
            f"{corpus.name} and {queries.name} must be equally wide, got {widths[0]} and {widths[1]}. "
            f"Encode both with the same model."
        )


def _dropped_notes(dropped: Sequence[str], total: int, *, name: str) -> tuple[str, ...]:
    if not dropped:
        return ()
    named = ", ".join(map(repr, dropped[:5])) + (" ..." if len(dropped) > 5 else "")
    return (f"{len(dropped):,} of {total:,} {name} were left out: zero or not finite ({named})",)
