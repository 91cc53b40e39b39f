"""`vectors:<file or folder>`: vectors that exist already, looked up instead of made."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32

from nestling.core import Fingerprint, Space, check_same_space
from nestling.data.types import Inputs
from nestling.data.vectors import is_vectors, read_vectors
from nestling.encode.batches import hash_files
from nestling.encode.normalization import apply_normalization
from nestling.encode.protocol import Role
from nestling.encode.vector_folder import MANIFEST_FILE, VectorFolder
from nestling.errors import DataError, EncoderError, VectorError

SIDES: dict[Role, str] = {"document": "corpus", "query": "queries"}


@dataclass(frozen=True, kw_only=True)
class StoredVectors:
    """A vector file or vector folder.

    Attributes:
        path: Where it is.
        vectors: Its rows, memory-mapped where the format allows.
        ids: One per row, or None if the file has none.
        fingerprint: What made them, or None if the file does not say.
    """

    path: Path
    vectors: Float[np.ndarray, "rows dim"]
    ids: Sequence[str] | None
    fingerprint: Fingerprint | None

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Row number of each id."""
        return {name: row for row, name in enumerate(self.ids or ())}

    @property
    def content_file(self) -> Path:
        """The file whose bytes are the vectors."""
        return self.path / "vectors.bin" if self.path.is_dir() else self.path


class VectorsEncoder:
    """Returns stored vectors for ids; the inputs themselves are not read.

    A file with ids is asked by id. A file without takes row i for the i-th input, and only when it
    has exactly as many rows as there are inputs. A folder with `corpus.*` and `queries.*` in it
    (files, or vector folders named `corpus` and `queries`) has one of them for each role.

    A plain file does not say which model made it. `made_by` says so, and is believed: the vectors
    are then comparable with what that model encodes.
    """

    def __init__(
        self, name: str, *, max_tokens: int | None = None, made_by: Fingerprint | None = None
    ) -> None:
        if max_tokens is not None:
            raise EncoderError(f"`max_tokens` does not fit vectors:{name}, which reads no text.")
        path = Path(name)
        if path.is_dir() and not (path / MANIFEST_FILE).exists():
            self._sides = {role: _open(_find(path, side)) for role, side in SIDES.items()}
        else:
            self._sides = dict.fromkeys(SIDES, _open(path))
        self._fingerprint = _common_fingerprint(path, self._sides["document"], self._sides["query"])
        if made_by is not None:
            self._fingerprint = _vouched(self._fingerprint, made_by, path)

    @property
    def fingerprint(self) -> Fingerprint:
        """What a vector folder says made it; for plain files, the hash of their bytes."""
        return self._fingerprint

    @property
    def embed_dim(self) -> int:
        """Width of the rows."""
        return self._fingerprint.space.embed_dim

    @property
    def nesting_dims(self) -> None:
        """None: a file does not say."""
        return None

    @property
    def max_tokens(self) -> None:
        """None: no text is read, so none is cut."""
        return None

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return zeros: no text is read."""
        return [0] * len(texts)

    def encode(
        self, inputs: Inputs, *, role: Role, ids: Sequence[str] | None = None
    ) -> Float32[np.ndarray, "inputs {self.embed_dim}"]:
        """Return the stored vector of each input, scaled to unit L2 norm; zero rows stay zero.

        Raises:
            DataError: If an id has no vector, or the counts of a file without ids differ.
        """
        stored = self._sides[role]
        if stored.ids is None:
            if len(inputs) != len(stored.vectors):
                raise DataError(
                    f"{stored.path} has no ids, so it must have one row per input in their order, got "
                    f"{len(stored.vectors)} rows for {len(inputs)} inputs. Add ids (a .npz or .parquet with a "
                    f"column `ids`), or name the file that belongs to these inputs."
                )
            return apply_normalization(np.asarray(stored.vectors), "l2")
        names = [str(number) for number in range(len(inputs))] if ids is None else ids
        missing = [name for name in names if name not in stored.row_of]
        if missing:
            raise DataError(
                f"every input must have a vector in {stored.path}, got none for {len(missing)} of "
                f"{len(names)}: {', '.join(map(repr, missing[:5]))}. Encode these, too."
            )
        rows = [stored.row_of[name] for name in names]
        return apply_normalization(np.asarray(stored.vectors[rows]), "l2")


def _find(folder: Path, side: str) -> Path:
    found = [path for path in sorted(folder.iterdir()) if path.stem == side and is_vectors(path)]
    if len(found) != 1:
        raise DataError(
            f"{folder} must hold one vector file or folder named {side}.*, got "
            f"{', '.join(path.name for path in found) or 'none'}. Name a file, or put corpus.* and queries.* there."
        )
    return found[0]


def _open(path: Path) -> StoredVectors:
    if path.is_dir():
        folder = VectorFolder.open(path)
        folder.verify()
        return StoredVectors(
            path=path,
            vectors=folder.vectors,
            ids=folder.doc_ids,
            fingerprint=folder.fingerprint,
        )
    read = read_vectors(path)
    return StoredVectors(path=path, vectors=read.vectors, ids=read.ids, fingerprint=None)


def _common_fingerprint(path: Path, corpus: StoredVectors, queries: StoredVectors) -> Fingerprint:
    widths = corpus.vectors.shape[1], queries.vectors.shape[1]
    if widths[0] != widths[1]:
        raise VectorError(
            f"vectors of both sides must be equally wide, got {widths[0]} in {corpus.path} and {widths[1]} in "
            f"{queries.path}. Encode both with the same model."
        )
    if corpus.fingerprint is not None and queries.fingerprint is not None:
        check_same_space(
            corpus.fingerprint,
            queries.fingerprint,
            left_name=str(corpus.path),
            right_name=str(queries.path),
        )
        return corpus.fingerprint
    return Fingerprint(
        space=Space(
            model=path.resolve().name,
            revision=hash_files({corpus.content_file, queries.content_file}),
            pooling="as stored",
            normalization="l2",
            embed_dim=widths[0],
        ),
        encoder={"backend": "vectors"},
    )


def _vouched(stored: Fingerprint, made_by: Fingerprint, path: Path) -> Fingerprint:
    if stored.space.embed_dim != made_by.space.embed_dim:
        raise VectorError(
            f"vectors of {path} must be as wide as those of {made_by.space.model}, which are "
            f"{made_by.space.embed_dim} wide, got {stored.space.embed_dim}. Name the model that made them."
        )
    return Fingerprint(
        space=made_by.space,
        # The hash tells two files apart that the same model made.
        encoder={"backend": "vectors", "file": stored.space.revision},
        origin=made_by.origin,
    )
