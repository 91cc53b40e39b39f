import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nestling.data.vectors import is_vectors, read_vectors
from nestling.errors import DataError, VectorError


@pytest.fixture
def matrix() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)


def fvecs_bytes(matrix: np.ndarray) -> bytes:
    """The format, spelled out."""
    content = b""
    for row in matrix:
        content += struct.pack("<i", len(row))
        for value in row:
            content += struct.pack("<f", value)
    return content


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_npy_is_memory_mapped(tmp_path: Path, matrix: np.ndarray, dtype: Any) -> None:
    np.save(tmp_path / "a.npy", matrix.astype(dtype))
    vectors, ids = read_vectors(tmp_path / "a.npy")
    assert isinstance(vectors, np.memmap)
    assert not vectors.flags.writeable
    assert vectors.dtype == dtype
    np.testing.assert_array_equal(vectors, matrix.astype(dtype))
    assert ids is None


@pytest.mark.parametrize("dtype", ["<f8", ">f4", ">f2"])
def test_other_floats_are_converted(tmp_path: Path, matrix: np.ndarray, dtype: str) -> None:
    np.save(tmp_path / "a.npy", matrix.astype(dtype))
    vectors, _ = read_vectors(tmp_path / "a.npy")
    assert vectors.dtype == (np.float16 if dtype == ">f2" else np.float32)
    assert vectors.dtype.isnative
    np.testing.assert_array_equal(vectors, matrix.astype(dtype).astype(vectors.dtype))


def test_fvecs_is_memory_mapped(tmp_path: Path, matrix: np.ndarray) -> None:
    (tmp_path / "a.fvecs").write_bytes(fvecs_bytes(matrix))
    vectors, ids = read_vectors(tmp_path / "a.fvecs")
    assert isinstance(vectors, np.memmap)
    np.testing.assert_array_equal(vectors, matrix)
    assert vectors.dtype == np.float32
    assert ids is None


@pytest.mark.parametrize(
    ("names", "has_ids"),
    [
        (["whatever"], False),
        (["vectors", "other"], False),
        (["embeddings", "ids"], True),
        (["x", "doc_ids"], True),
    ],
)
def test_npz(tmp_path: Path, matrix: np.ndarray, names: list[str], has_ids: bool) -> None:
    arrays: dict[str, Any] = {names[0]: matrix}
    if len(names) > 1:
        arrays[names[1]] = np.arange(7)
    np.savez(tmp_path / "a.npz", **arrays)
    vectors, ids = read_vectors(tmp_path / "a.npz")
    np.testing.assert_array_equal(vectors, matrix)
    assert ids == ([str(row) for row in range(7)] if has_ids else None)


def test_parquet(tmp_path: Path, matrix: np.ndarray) -> None:
    table = pa.table({"id": list("abcdefg"), "embedding": matrix.tolist()})
    pq.write_table(table, tmp_path / "a.parquet")
    vectors, ids = read_vectors(tmp_path / "a.parquet")
    np.testing.assert_array_equal(vectors, matrix)
    assert vectors.dtype == np.float32
    assert ids == list("abcdefg")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3), np.int8), "must be floating-point numbers, got int8 in .* Decode codes"),
        (
            np.zeros(3, np.float32),
            r"must be a matrix of at least one row and one column, got the shape \(3,\)",
        ),
        (np.zeros((0, 3), np.float32), r"got the shape \(0, 3\)"),
        (np.zeros((3, 0), np.float32), r"got the shape \(3, 0\)"),
    ],
)
def test_not_a_matrix_of_floats(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(VectorError, match=message):
        read_vectors(tmp_path / "a.npy")


def test_npz_without_a_clear_matrix(tmp_path: Path, matrix: np.ndarray) -> None:
    np.savez(tmp_path / "a.npz", left=matrix, right=matrix)
    with pytest.raises(
        DataError,
        match=r"must hold one array of vectors, or one named vectors, .*; got 'left', 'right'",
    ):
        read_vectors(tmp_path / "a.npz")


def test_ids_that_do_not_match(tmp_path: Path, matrix: np.ndarray) -> None:
    np.savez(tmp_path / "a.npz", vectors=matrix, ids=np.arange(6))
    with pytest.raises(DataError, match="must hold one id per vector, got 6 for 7 vectors"):
        read_vectors(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", vectors=matrix, ids=np.zeros(7, int))
    with pytest.raises(DataError, match=r"ids in .*a\.npz must be unique, got 1 repeated: '0'"):
        read_vectors(tmp_path / "a.npz")


@pytest.mark.parametrize("ids", [[b"a", b"b"], [1.0, 2.0]], ids=["bytes", "floats"])
def test_ids_of_another_type(tmp_path: Path, matrix: np.ndarray, ids: list[Any]) -> None:
    np.savez(tmp_path / "a.npz", vectors=matrix[:2], ids=ids)
    with pytest.raises(DataError, match=r"ids in .*a\.npz must be strings or whole numbers, got"):
        read_vectors(tmp_path / "a.npz")


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
@pytest.mark.parametrize("content", [b"", b"hello", b"\x93NUMPY\x01\x00", b"PK\x03\x04...."])
def test_not_a_numpy_file(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        DataError,
        match=rf"must be a {name[1:]} file of numbers, got something else or a part of one",
    ):
        read_vectors(tmp_path / name)


def test_truncated_npy(tmp_path: Path, matrix: np.ndarray) -> None:
    path = tmp_path / "a.npy"
    np.save(path, matrix)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DataError, match="a part of one"):
        read_vectors(path)


def test_damaged_headers_and_archives(tmp_path: Path, matrix: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", matrix)
    content = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(content.replace(b"}", b" ", 1))
    np.savez_compressed(tmp_path / "a.npz", vectors=np.zeros((100, 100), np.float32))
    content = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(content[:60] + b"\xff" * 20 + content[80:])
    for name in ("a.npy", "a.npz"):
        with pytest.raises(DataError, match="got something else or a part of one"):
            read_vectors(tmp_path / name)


def test_pickles_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[object()]]), allow_pickle=True)
    with pytest.raises(DataError, match=r"must be a \.npy file of numbers"):
        read_vectors(tmp_path / "a.npy")


def test_npy_named_npz(tmp_path: Path, matrix: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", matrix)
    (tmp_path / "a.npy").rename(tmp_path / "a.npz")
    with pytest.raises(
        DataError, match=r"must be a \.npz archive, got a single array\. Name it \.npy"
    ):
        read_vectors(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must hold at least one vector, got 0 bytes"),
        (struct.pack("<iff", 2, 1, 1)[:-1], "a part of one"),
        (struct.pack("<ifff", 2, 1, 1, 1), "got a first width of 2 in 4 32-bit words"),
        (struct.pack("<if", -1, 1), "got a first width of -1"),
        (
            struct.pack("<iffiff", 2, 1, 1, 3, 1, 1),
            "must hold vectors of one width, got 2 and others",
        ),
    ],
)
def test_damaged_fvecs(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.fvecs").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_vectors(tmp_path / "a.fvecs")


def test_other_kinds_of_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}")
    with pytest.raises(
        DataError,
        match=r"vectors must be in a file named \.npy, \.npz, \.fvecs, \.parquet, got .*a\.jsonl",
    ):
        read_vectors(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="`path` must exist"):
        read_vectors(tmp_path / "b.npy")


def test_is_vectors(tmp_path: Path, matrix: np.ndarray) -> None:
    pq.write_table(pa.table({"text": ["x"], "vector": [[1.0]]}), tmp_path / "texts.parquet")
    pq.write_table(pa.table({"vector": [[1.0]]}), tmp_path / "vectors.parquet")
    assert is_vectors(Path("a.npy"))
    assert is_vectors(Path("a.FVECS"))
    assert is_vectors(tmp_path / "vectors.parquet")
    assert not is_vectors(tmp_path / "texts.parquet")
    assert not is_vectors(Path("a.jsonl"))
    assert not is_vectors(tmp_path)
    (tmp_path / "vectors.json").write_text("{}")
    assert is_vectors(tmp_path)
