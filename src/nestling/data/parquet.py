"""Parquet files: texts by column name, and columns of vectors."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from nestling.data.lines import open_bytes
from nestling.data.records import ID_FIELDS, Record
from nestling.errors import DataError, MissingExtraError, VectorError

TEXT_FIELDS = (*ID_FIELDS, "title", "text")
VECTOR_COLUMNS = ("vector", "vectors", "embedding", "embeddings")


def has_text_column(path: Path) -> bool:
    """Return whether a Parquet file has a column `text`; without one it may hold vectors.

    Raises:
        DataError: If it is not a Parquet file.
        MissingExtraError: If pyarrow is not installed.
    """
    return "text" in column_names(path)


def column_names(path: Path) -> list[str]:
    """Return the names of the columns.

    Raises:
        DataError: If it is not a Parquet file.
        MissingExtraError: If pyarrow is not installed.
    """
    return list(_open(path).schema_arrow.names)


def read_columns(path: Path, columns: Sequence[str]) -> Iterator[Record]:
    """Yield one record per row with some columns as they are stored, lists among them.

    Raises:
        DataError: If it is not a Parquet file.
        MissingExtraError: If pyarrow is not installed.
    """
    file = _open(path)
    with _naming_damage(path):
        batches = file.iter_batches(columns=list(columns))
        for number, row in enumerate(row for batch in batches for row in batch.to_pylist()):
            yield Record(f"row {number}", row)


def read_parquet(path: Path) -> Iterator[Record]:
    """Yield one record per row; columns of lists (vectors) are left unread.

    Raises:
        DataError: If it is not a Parquet file or has no column `text`.
        MissingExtraError: If pyarrow is not installed.
    """
    file = _open(path)
    schema = file.schema_arrow
    if "text" not in schema.names:
        raise DataError(
            f"{path} must have a column `text`, got the columns {', '.join(map(repr, schema.names))}. "
            f"Name the column with the texts `text`."
        )
    columns = [field.name for field in schema if not _is_list(field.type)]
    number = 0
    with _naming_damage(path):
        for batch in file.iter_batches(columns=columns):
            for row in batch.to_pylist():
                # Dates and decimals become strings: metadata must fit into JSON. Where a text is
                # due, bytes and dates are left to be refused.
                plain = json.loads(json.dumps(row, default=str))
                as_stored = {name: row[name] for name in TEXT_FIELDS if name in row}
                yield Record(f"row {number}", plain | as_stored)
                number += 1


def read_vector_column(path: Path) -> tuple[np.ndarray, list[Any] | None]:
    """Return the vectors of a Parquet file, of shape (rows, dim), and the ids beside them.

    The vectors are the column named vector, vectors, embedding or embeddings, or else the only
    column of lists; the ids are the column `_id` or `id`.

    Raises:
        DataError: If it is not a Parquet file or has no such column.
        VectorError: If vectors are missing or differ in width.
        MissingExtraError: If pyarrow is not installed.
    """
    file = _open(path)
    schema = file.schema_arrow
    lists = [field.name for field in schema if _is_list(field.type)]
    named = [name for name in VECTOR_COLUMNS if name in lists] or (lists if len(lists) == 1 else [])
    if not named:
        raise DataError(
            f"{path} must have one column of vectors, or one named {', '.join(VECTOR_COLUMNS)}; got the "
            f"columns {', '.join(map(repr, schema.names))}."
        )
    id_fields = [name for name in ID_FIELDS if name in schema.names]
    with _naming_damage(path):
        table = file.read(columns=[named[0], *id_fields])
        ids = table[id_fields[0]].to_pylist() if id_fields else None
    return _to_matrix(table[named[0]], path), ids


def _to_matrix(column: Any, path: Path) -> np.ndarray:
    array = column.combine_chunks()
    values = array.flatten()
    if array.null_count or values.null_count or len(array) == 0 or len(values) % len(array):
        _refuse_ragged(path)
    dim = len(values) // len(array)
    offsets = getattr(array, "offsets", None)
    if offsets is not None and (np.diff(offsets.to_numpy()) != dim).any():
        _refuse_ragged(path)
    return values.to_numpy(zero_copy_only=False).reshape(len(array), dim)


def _refuse_ragged(path: Path) -> None:
    raise VectorError(
        f"vectors in {path} must all be there and equally wide, got missing or ragged ones. "
        f"Encode the corpus again, or remove these rows."
    )


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _open(path: Path) -> Any:
    with open_bytes(path):
        pass
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "parquet") from error
    with _naming_damage(path):
        return parquet.ParquetFile(path)


@contextmanager
def _naming_damage(path: Path) -> Iterator[None]:
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} must be a Parquet file, got something else or a part of one: {error}. "
            f"Copy it again, or end its name in what it is."
        ) from error
