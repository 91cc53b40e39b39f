"""The rows that an adapter is fitted on, and those it is judged by."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Int

from nestling.core import (
    BadRowPolicy,
    Fingerprint,
    check_rows,
    check_same_space,
    distinct_rows,
    normalize,
)
from nestling.core.progress import Progress, silent
from nestling.data import Corpus, read_vectors
from nestling.encode import Encoder, VectorFolder, embed, open_encoder, truncation_notes
from nestling.errors import DataError, VectorError

ONE_HELD_OUT_IN = 5
"""One row in so many is held out, and one group of pairs."""

FEWEST_HELD_OUT = 50
MOST_HELD_OUT = 2_000


@dataclass(frozen=True, kw_only=True)
class FitSource:
    """Vectors that an adapter is to be fitted to.

    Attributes:
        vectors: Full-width rows, of any length; may be memory-mapped.
        ids: One per row.
        parent: What made them, or makes their like.
        name: Where they come from, for people.
        corpus_hash: Of what they were encoded from; for a plain file, of its bytes.
        notes: What people should know.
    """

    vectors: Float[np.ndarray, "rows embed_dim"]
    ids: Sequence[str]
    parent: Fingerprint
    name: str
    corpus_hash: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Distinct unit rows, in two parts that share none.

    Attributes:
        fit: To fit maps on.
        held_out: To judge them by; they seek their neighbours among all rows of both parts.
        notes: What people should know.
    """

    fit: Float32[np.ndarray, "fit embed_dim"]
    held_out: Float32[np.ndarray, "held_out embed_dim"]
    notes: tuple[str, ...] = ()


def encode_source(
    encoder: Encoder,
    corpus: Corpus,
    *,
    sample_rows: int,
    seed: int,
    cache: Path | None,
    bad_rows: BadRowPolicy = "error",
    progress: Progress = silent,
) -> FitSource:
    """Encode documents to fit on; of many, a sample of the distinct texts.

    Args:
        encoder: Makes the vectors.
        corpus: Documents.
        sample_rows: Encode at most so many.
        seed: Of the draw.
        cache: As for `embed`.
        bad_rows: As for `embed`.
        progress: Told as texts are encoded.

    Raises:
        DataError: If the corpus is empty.
        EncoderError: If the model fails.
        VectorError: If a vector is bad and `bad_rows` is "error", or all are bad.
    """
    places = _draw_texts(corpus.texts, sample_rows, seed=seed)
    texts = [corpus.texts[place] for place in places]
    ids = [corpus.doc_ids[place] for place in places]
    embedded = embed(
        encoder,
        texts,
        role="document",
        ids=ids,
        cache=cache,
        bad_rows=bad_rows,
        progress=progress,
    )
    return FitSource(
        vectors=embedded.vectors,
        ids=[ids[row] for row in embedded.kept],
        parent=encoder.fingerprint,
        name=corpus.source,
        corpus_hash=corpus.corpus_hash,
        notes=(
            *truncation_notes(encoder, texts, name="documents"),
            *_left_out(len(ids) - len(embedded.kept)),
        ),
    )


def read_source(path: Path, *, made_by: Encoder | None = None) -> FitSource:
    """Open vectors that exist already.

    Args:
        path: A vector folder, or a .npy, .npz, .fvecs or .parquet file.
        made_by: The model that made them. A plain file does not say so itself and is taken at its
            word; without a model, the adapter belongs to the vectors of this file. A folder does
            say so, and must agree.

    Raises:
        DataError: If the file cannot be read.
        FingerprintError: If a folder was made by another model.
        FormatError: If the folder is damaged or unfinished.
        VectorError: If the file is of another width than the model makes.
    """
    if path.is_dir():
        folder = VectorFolder.open(path)
        folder.verify()
        if made_by is not None:
            check_same_space(
                folder.fingerprint,
                made_by.fingerprint,
                left_name=str(path),
                right_name="the model named",
            )
        return FitSource(
            vectors=folder.vectors,
            ids=folder.doc_ids,
            parent=folder.fingerprint if made_by is None else made_by.fingerprint,
            name=str(path),
            corpus_hash=folder.corpus_hash,
        )
    stored = read_vectors(path)
    own = open_encoder(f"vectors:{path}").fingerprint
    parent, notes = own, (f"{path} does not say which model made it: it is taken at its word",)
    if made_by is not None:
        parent, width = made_by.fingerprint, stored.vectors.shape[1]
        if width != made_by.embed_dim:
            raise VectorError(
                f"vectors of {path} must be as wide as those of {parent.space.model}, which are "
                f"{made_by.embed_dim} wide, got {width}. Name the model that made them."
            )
    ids = [str(row) for row in range(len(stored.vectors))] if stored.ids is None else stored.ids
    return FitSource(
        vectors=stored.vectors,
        ids=ids,
        parent=parent,
        name=str(path),
        corpus_hash=own.space.revision,
        notes=notes,
    )


def draw_sample(
    source: FitSource,
    *,
    widest_dim: int,
    sample_rows: int,
    seed: int,
    bad_rows: BadRowPolicy = "error",
) -> Sample:
    """Draw distinct rows, and hold a fifth of them out: at least 50, at most 2,000.

    Rows that are equal up to their length count once. Only rows that are drawn are read and checked.

    Args:
        source: The vectors.
        widest_dim: Widest width to fit below the full one: as many rows are needed at least, or
            the last of these coordinates would mean nothing.
        sample_rows: Draw at most so many.
        seed: Of the draw and of what is held out.
        bad_rows: "error" refuses NaN, infinite and zero rows by id; "drop" leaves them out.

    Raises:
        DataError: If there are too few distinct rows, or `sample_rows` is too small for the width.
        VectorError: If a row is bad and `bad_rows` is "error".
    """
    needed = widest_dim + max(FEWEST_HELD_OUT, (widest_dim - 1) // (ONE_HELD_OUT_IN - 1))
    if sample_rows < needed:
        raise DataError(
            f"`sample_rows` must be at least {needed:,} to fit {widest_dim} dims and to hold rows out, got "
            f"{sample_rows:,}. Raise it, or ask for narrower widths."
        )
    generator = np.random.default_rng(seed)
    unit, num_dropped = np.empty((0, source.vectors.shape[1]), np.float32), 0
    for places in _in_parts(generator.permutation(len(source.vectors)), sample_rows):
        drawn = np.asarray(source.vectors[places], dtype=np.float32)
        keep = check_rows(drawn, [source.ids[place] for place in places], policy=bad_rows)
        num_dropped += int((~keep).sum())
        unit = distinct_rows(np.concatenate([unit, normalize(drawn[keep])]))
        if len(unit) >= sample_rows:
            break
    if len(unit) > sample_rows:
        # The last part is in the order of the file, whose end must not be what is cut off.
        unit = unit[np.sort(generator.choice(len(unit), sample_rows, replace=False))]
    _check_enough(len(unit), source, widest_dim=widest_dim, needed=needed)
    num_held_out = min(MOST_HELD_OUT, max(FEWEST_HELD_OUT, len(unit) // ONE_HELD_OUT_IN))
    order = generator.permutation(len(unit))
    return Sample(
        fit=unit[np.sort(order[num_held_out:])],
        held_out=unit[np.sort(order[:num_held_out])],
        notes=_left_out(num_dropped),
    )


def _draw_texts(texts: Sequence[str], sample_rows: int, *, seed: int) -> list[int]:
    if len(texts) <= sample_rows:
        return list(range(len(texts)))
    first_places = list({text: place for place, text in reversed([*enumerate(texts)])}.values())
    generator = np.random.default_rng(seed)
    kept = min(sample_rows, len(first_places))
    return sorted(generator.choice(first_places, kept, replace=False).tolist())


def _left_out(num_dropped: int) -> tuple[str, ...]:
    return (f"left out {num_dropped:,} zero, NaN or infinite rows",) if num_dropped else ()


def _in_parts(order: Int[np.ndarray, " rows"], size: int) -> Iterator[Int[np.ndarray, " part"]]:
    for start in range(0, len(order), size):
        # Ascending, so that a memory-mapped file is read from front to back.
        yield np.sort(order[start : start + size])


def _check_enough(num_distinct: int, source: FitSource, *, widest_dim: int, needed: int) -> None:
    if num_distinct >= needed:
        return
    got = f"{num_distinct:,} of {len(source.vectors):,} rows"
    if num_distinct == 1:
        got = f"the same one {len(source.vectors):,} times"
    raise DataError(
        f"`fit_on` must hold at least {needed:,} distinct vectors to fit {widest_dim} dims, {widest_dim} to fit on "
        f"and the rest to judge by, got {got} in {source.name}. Fit on more documents, or ask for narrower widths."
    )
