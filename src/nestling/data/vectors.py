"""Vectors that exist already: .npy, .npz, .fvecs and .parquet files."""

import zipfile
import zlib
from pathlib import Path
from tokenize import TokenError
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float16, Float32

from nestling.core import check_unique_ids
from nestling.data.lines import check_exists, kind_of
from nestling.data.parquet import has_text_column, read_vector_column
from nestling.errors import DataError, VectorError

VECTOR_SUFFIXES = (".npy", ".npz", ".fvecs", ".parquet")
VECTOR_FOLDER_FILE = "vectors.json"
"""What a folder of vectors that nestling wrote holds."""
MATRIX_NAMES = ("vectors", "vector", "embeddings", "embedding")
ID_NAMES = ("ids", "doc_ids", "_id", "id")
ROWS_PER_CHECK = 1 << 16
DAMAGE = (zipfile.BadZipFile, zlib.error, TokenError)
"""What NumPy lets through of the parts it reads archives and headers with."""


class Vectors(NamedTuple):
    """Vectors as a file holds them.

    Attributes:
        vectors: Memory-mapped, read-only, for .npy and .fvecs in float32 or float16; of those
            dtypes in any case. The stride of .fvecs rows is one value longer than the row.
        ids: One per row, or None if the file has none.
    """

    vectors: Float32[np.ndarray, "rows dim"] | Float16[np.ndarray, "rows dim"]
    ids: list[str] | None


def is_vectors(path: Path) -> bool:
    """Return whether a path holds vectors rather than texts: a vector file or a vector folder.

    A Parquet file with a column `text` counts as texts.
    """
    if path.is_dir():
        return (path / VECTOR_FOLDER_FILE).is_file()
    if path.suffix.lower() == ".parquet":
        return not has_text_column(path)
    return path.suffix.lower() in VECTOR_SUFFIXES


def read_vectors(path: Path) -> Vectors:
    """Read a vector file.

    float64 becomes float32. A .npz holds one matrix, or one named vectors or embeddings, and
    optionally ids. A .fvecs file is rows of a 32-bit width and as many float32 values, little
    endian. NaN, infinite and zero rows are left to the caller.

    Raises:
        DataError: If the file is missing, of another kind, damaged, or repeats an id.
        VectorError: If it does not hold a matrix of floating-point rows.
        MissingExtraError: If a .parquet file is read without pyarrow.
    """
    check_exists(path)
    readers = {".npy": _read_npy, ".npz": _read_npz, ".fvecs": _read_fvecs}
    kind = kind_of(path)
    if kind == ".parquet":
        matrix, ids = read_vector_column(path)
    elif kind in readers and path.suffix.lower() == kind:
        try:
            matrix, ids = readers[kind](path)
        except (ValueError, EOFError, OSError, *DAMAGE) as error:
            if isinstance(error, DataError | VectorError):
                raise
            raise DataError(
                f"{path} must be a {kind} file of numbers, got something else or a part of one: {error}. "
                f"Write it again, or end its name in what it is."
            ) from error
    else:
        raise DataError(
            f"vectors must be in a file named {', '.join(VECTOR_SUFFIXES)}, got {path}. "
            f"Texts are turned into vectors with `nestling encode`."
        )
    vectors = _check_matrix(matrix, path)
    return Vectors(vectors, None if ids is None else _check_ids(ids, len(vectors), path))


def _check_ids(ids: list[Any], num_vectors: int, path: Path) -> list[str]:
    if len(ids) != num_vectors:
        raise DataError(
            f"{path} must hold one id per vector, got {len(ids)} for {num_vectors} vectors."
        )
    if odd := [name for name in ids if not isinstance(name, str | int)]:
        raise DataError(
            f"ids in {path} must be strings or whole numbers, got {odd[0]!r}. Write them as such."
        )
    names = [str(name) for name in ids]
    check_unique_ids(names, source=str(path))
    return names


def _read_npy(path: Path) -> tuple[np.ndarray, None]:
    return np.lib.format.open_memmap(path, mode="r"), None


def _read_npz(path: Path) -> tuple[np.ndarray, list[Any] | None]:
    with path.open("rb") as file:
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataError(f"{path} must be a .npz archive, got a single array. Name it .npy.")
        names = archive.files
        named = [name for name in MATRIX_NAMES if name in names]
        others = [name for name in names if name not in ID_NAMES]
        if not named and len(others) != 1:
            raise DataError(
                f"{path} must hold one array of vectors, or one named {', '.join(MATRIX_NAMES)}; got "
                f"{', '.join(map(repr, names)) or 'nothing'}."
            )
        ids = next((archive[name] for name in ID_NAMES if name in names), None)
        matrix = archive[(named or others)[0]]
    return matrix, None if ids is None else ids.tolist()


def _read_fvecs(path: Path) -> tuple[np.ndarray, None]:
    if path.stat().st_size < 8:
        raise DataError(f"{path} must hold at least one vector, got {path.stat().st_size} bytes.")
    values = np.memmap(path, dtype="<i4", mode="r")
    dim = int(values[0])
    if dim < 1 or len(values) % (dim + 1):
        raise DataError(
            f"{path} must hold rows of a width and as many float32 values, got a first width of {dim} "
            f"in {len(values)} 32-bit words. It is damaged or of another kind."
        )
    rows = values.reshape(-1, dim + 1)
    for start in range(0, len(rows), ROWS_PER_CHECK):
        if (rows[start : start + ROWS_PER_CHECK, 0] != dim).any():
            raise DataError(
                f"{path} must hold vectors of one width, got {dim} and others. It is damaged or of another kind."
            )
    return rows[:, 1:].view("<f4"), None


def _check_matrix(matrix: np.ndarray, path: Path) -> np.ndarray:
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise VectorError(
            f"vectors must be a matrix of at least one row and one column, got the shape {matrix.shape} in "
            f"{path}."
        )
    if not np.issubdtype(matrix.dtype, np.floating):
        raise VectorError(
            f"vectors must be floating-point numbers, got {matrix.dtype} in {path}. "
            f"Decode codes to float32 first."
        )
    wanted = np.float16 if matrix.dtype.itemsize == 2 else np.float32
    return matrix if matrix.dtype == wanted else matrix.astype(wanted)
