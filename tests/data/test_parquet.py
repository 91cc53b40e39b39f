import datetime
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nestling.data.parquet import has_text_column, read_parquet, read_vector_column
from nestling.data.records import build_corpus
from nestling.errors import DataError, MissingExtraError, VectorError


def save(path: Path, columns: dict[str, Any]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_rows_become_records_and_vectors_stay_unread(tmp_path: Path) -> None:
    path = save(
        tmp_path / "a.parquet",
        {
            "id": [1, 2],
            "text": ["x", "y"],
            "day": [datetime.date(2024, 1, 2)] * 2,
            "embedding": [[0.5, 1.0]] * 2,
        },
    )
    found = list(read_parquet(path))
    assert [record.place for record in found] == ["row 0", "row 1"]
    assert found[1].fields == {"id": 2, "text": "y", "day": "2024-01-02"}
    assert has_text_column(path)


def test_missing_text_column(tmp_path: Path) -> None:
    path = save(tmp_path / "a.parquet", {"body": ["x"]})
    with pytest.raises(DataError, match="must have a column `text`, got the columns 'body'"):
        list(read_parquet(path))


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float32()), pa.large_list(pa.float32()), pa.list_(pa.float32(), 3)]
)
def test_vectors_of_every_list_type(tmp_path: Path, kind: Any) -> None:
    wanted = np.arange(12, dtype=np.float32).reshape(4, 3)
    column = pa.array(wanted.tolist(), type=kind)
    path = save(tmp_path / "a.parquet", {"_id": ["a", "b", "c", "d"], "anything": column})
    vectors, ids = read_vector_column(path)
    np.testing.assert_array_equal(vectors, wanted)
    assert vectors.dtype == np.float32
    assert ids == ["a", "b", "c", "d"]
    assert not has_text_column(path)


def test_vectors_in_several_row_groups(tmp_path: Path) -> None:
    wanted = np.arange(40, dtype=np.float32).reshape(20, 2)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"vector": wanted.tolist()}), path, row_group_size=3)
    vectors, ids = read_vector_column(path)
    np.testing.assert_array_equal(vectors, wanted)
    assert ids is None


def test_known_name_wins_over_other_lists(tmp_path: Path) -> None:
    path = save(tmp_path / "a.parquet", {"tags": [["x"]], "embedding": [[1.0, 2.0]]})
    assert read_vector_column(path)[0].tolist() == [[1.0, 2.0]]


def test_no_vector_column(tmp_path: Path) -> None:
    path = save(tmp_path / "a.parquet", {"left": [[1.0]], "right": [[1.0]]})
    with pytest.raises(
        DataError,
        match=r"must have one column of vectors, or one named vector, .*; got the columns 'left', 'right'",
    ):
        read_vector_column(path)


@pytest.mark.parametrize("rows", [[[1.0], None], [[1.0], [1.0, 2.0, 3.0]], [[1.0, None]], []])
def test_ragged_or_missing_vectors(tmp_path: Path, rows: list[Any]) -> None:
    column = pa.array(rows, type=pa.list_(pa.float64()))
    path = save(tmp_path / "a.parquet", {"vector": column})
    with pytest.raises(
        VectorError, match="must all be there and equally wide, got missing or ragged ones"
    ):
        read_vector_column(path)


def test_not_a_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_text("hello, this is not Parquet")
    with pytest.raises(
        DataError, match=r"must be a Parquet file, got something else or a part of one"
    ):
        list(read_parquet(path))


def test_truncated_parquet_file(tmp_path: Path) -> None:
    path = save(tmp_path / "a.parquet", {"text": ["x"] * 100})
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="a part of one"):
        list(read_parquet(path))


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.parquet", {"text": ["x"]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'nestling\[parquet\]'"):
        list(read_parquet(path))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": [b"hello"]}, "`text` must be a string, got b'hello' in row 0"),
        ({"text": ["x"], "id": [b"1"]}, "`id` must be a string or a whole number, got b'1'"),
    ],
)
def test_bytes_are_not_taken_for_text(
    tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    path = save(tmp_path / "a.parquet", columns)
    with pytest.raises(DataError, match=message):
        build_corpus(read_parquet(path), path)


@pytest.mark.parametrize(
    "columns", [{"text": ["x"] * 2}, {"vector": [[1.0, 2.0]], "id": [1]}], ids=["text", "vector"]
)
def test_damaged_pages_are_named(tmp_path: Path, columns: dict[str, Any]) -> None:
    path = save(tmp_path / "a.parquet", columns)
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\xff" * 30 + content[34:])
    with pytest.raises(DataError, match=r"a\.parquet must be a Parquet file, got something else"):
        list(read_parquet(path)) if "text" in columns else read_vector_column(path)
