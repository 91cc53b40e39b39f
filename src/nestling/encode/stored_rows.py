"""Rows of vectors that exist already, read a few at a time."""

import hashlib
import mmap
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32

from nestling.core import Fingerprint, normalize
from nestling.core.progress import Progress
from nestling.data.types import Corpus
from nestling.data.vectors import read_vectors
from nestling.encode.protocol import Role
from nestling.encode.vector_folder import VectorFolder

PIECE_ROWS = 4096
"""Rows that are hashed between two calls of the progress."""


@runtime_checkable
class StoredRows(Protocol):
    """Vectors to be mapped; no inheritance needed."""

    @property
    def vectors(self) -> Float[np.ndarray, "rows embed_dim"]:
        """All rows, memory-mapped where the file allows."""

    @property
    def ids(self) -> Sequence[str]:
        """One per row."""

    @property
    def contents(self) -> Sequence[str]:
        """A hash per row of what it was made from."""

    @property
    def corpus_hash(self) -> str:
        """Hash of every id and content, in order."""

    @property
    def made_by(self) -> Fingerprint:
        """What made the rows."""

    @property
    def role(self) -> Role:
        """As what they were encoded."""

    def read(self, places: Sequence[int]) -> Float32[np.ndarray, "taken embed_dim"]:
        """Return the rows at some ascending places, ready to be mapped."""


class FolderRows:
    """The rows of a vector folder, each block checked when it is first read."""

    role: Role

    def __init__(self, folder: VectorFolder) -> None:
        self._folder = folder
        self._num_checked = 0
        self.vectors = folder.vectors
        self.ids = folder.doc_ids
        self.contents = folder.content_hashes
        self.made_by = folder.fingerprint
        self.role = folder.manifest.role

    @property
    def corpus_hash(self) -> str:
        """That of the folder, unless rows of its corpus were dropped when it was encoded."""
        is_whole = len(self.ids) == self._folder.manifest.num_inputs
        return self._folder.corpus_hash if is_whole else _hash_rows(self.ids, self.contents)

    def read(self, places: Sequence[int]) -> Float32[np.ndarray, "taken embed_dim"]:
        """Return rows as they are stored.

        Raises:
            FormatError: If they are damaged.
        """
        stop = places[-1] + 1
        self._folder.verify(range(max(places[0], self._num_checked), stop))
        self._num_checked = max(self._num_checked, stop)
        return _take(self.vectors, places)


class FileRows:
    """The rows of a vector file, made by the model of the adapter's parent if one is to believe it."""

    role: Role = "document"

    def __init__(self, path: Path, *, made_by: Fingerprint, progress: Progress) -> None:
        self.vectors, ids = read_vectors(path)
        self.ids = ids or [str(row) for row in range(len(self.vectors))]
        # The file vouches for no text: `backend` says so to whoever would compare with some.
        self.made_by = replace(made_by, encoder={"backend": "vectors"})
        self._progress = progress

    @cached_property
    def contents(self) -> list[str]:
        """The hash of each row's bytes: the file does not say what it was made from."""
        hashes: list[str] = []
        total = len(self.vectors)
        for start in range(0, total, PIECE_ROWS):
            rows = np.ascontiguousarray(self.vectors[start : start + PIECE_ROWS])
            hashes += [hashlib.blake2b(row, digest_size=16).hexdigest() for row in rows]
            _let_go(self.vectors)
            self._progress("reading vectors", len(hashes), total)
        return hashes

    @property
    def corpus_hash(self) -> str:
        """Hash of every id and row."""
        return _hash_rows(self.ids, self.contents)

    def read(self, places: Sequence[int]) -> Float32[np.ndarray, "taken embed_dim"]:
        """Return rows of unit length; zero rows stay zero, and what is not finite stays so."""
        with np.errstate(invalid="ignore", over="ignore"):
            return normalize(_take(self.vectors, places))


def _take(
    vectors: Float[np.ndarray, "rows embed_dim"], places: Sequence[int]
) -> Float32[np.ndarray, "taken embed_dim"]:
    """Copy some rows out of a file, and let go of the memory that mapped it."""
    is_run = places[-1] - places[0] + 1 == len(places)
    rows = vectors[places[0] : places[-1] + 1] if is_run else vectors[list(places)]
    taken = np.array(rows, dtype=np.float32)
    _let_go(vectors)
    return taken


def _let_go(vectors: np.ndarray) -> None:
    """Give back the memory of a file that has been read; otherwise it adds up to the whole file."""
    base: Any = vectors
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap):
        with suppress(AttributeError, OSError):  # not every system can be advised
            base.madvise(mmap.MADV_DONTNEED)


def _hash_rows(ids: Sequence[str], contents: Sequence[str]) -> str:
    return Corpus(doc_ids=ids, texts=contents, source="").corpus_hash
