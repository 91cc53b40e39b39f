"""Ids, texts and metadata of an index, by row, in SQLite."""

import json
import sqlite3
import weakref
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, final

from nestling.errors import DataError, FormatError, WriteError

IDS_AT_ONCE = 500
"""Placeholders in one statement; every SQLite takes at least 999."""


class Entry(NamedTuple):
    """What the catalogue holds of one row; `metadata` is JSON."""

    doc_id: str
    text: str | None
    metadata: str | None

    def extend(self, checksum: int) -> int:
        """Return the CRC-32 that continues `checksum` with this entry."""
        return zlib.crc32(json.dumps(self).encode(), checksum)


def make_entries(
    doc_ids: Sequence[str],
    texts: Sequence[str] | None,
    metadata: Sequence[Mapping[str, Any]] | None,
) -> list[Entry]:
    """Return the entries of new rows.

    Raises:
        DataError: If the lists differ in length, an id or a text is no string or not valid
            Unicode, or metadata is not JSON; the message names the document.
    """
    for name, values in (("texts", texts), ("metadata", metadata)):
        if values is not None and len(values) != len(doc_ids):
            raise DataError(
                f"`{name}` must hold one value per document: {len(doc_ids)}, got {len(values)}. "
                f"Pass as many as there are `doc_ids`, or None."
            )
    entries = []
    for place, doc_id in enumerate(doc_ids):
        text = None if texts is None else texts[place]
        try:
            plain = None if metadata is None else json.dumps(dict(metadata[place]), allow_nan=False)
            "".join((doc_id, "" if text is None else text)).encode()
        except (TypeError, ValueError) as error:
            raise DataError(
                f"ids and texts must be Unicode and metadata must be JSON, got {error} in document {doc_id!r}. "
                f"Mend this document."
            ) from error
        entries.append(Entry(doc_id, text, plain))
    return entries


@contextmanager
def _naming_refusals(path: Path) -> Iterator[None]:
    """Turn what SQLite says while writing into a `WriteError` that names the file."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise WriteError(
            f"cannot write {path}: {error}. Free some space, or name a folder you may write to."
        ) from error


@contextmanager
def _naming_damage(path: Path) -> Iterator[None]:
    """Turn what SQLite says while reading into a `FormatError` that names the file."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise FormatError(
            f"cannot read {path}: {error}. Build the index again, or restore the file from a copy."
        ) from error


@final
class Catalogue:
    """The documents of an index by row.

    Rows behind what the manifest counts were never acknowledged; `cut` removes them. May be used
    from several threads, but not across a fork.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with _naming_damage(path):
            # The mode keeps SQLite from making an empty file where one is missing.
            self._connection = sqlite3.connect(
                f"{path.resolve().as_uri()}?mode=rw",
                uri=True,
                isolation_level=None,
                check_same_thread=False,
                timeout=60.0,
            )
        self.close = weakref.finalize(self, self._connection.close)

    @classmethod
    def open(cls, path: Path, *, num_rows: int) -> "Catalogue":
        """Open the catalogue of an index of `num_rows` documents.

        Raises:
            FormatError: If it is missing, is not one, or has fewer documents.
        """
        catalogue = cls(path)
        with _naming_damage(path):
            ((last,),) = catalogue._connection.execute("SELECT max(row) FROM documents").fetchall()
        found = 0 if last is None else last + 1
        if found < num_rows:
            raise FormatError(
                f"{path} must hold {num_rows:,} documents, it has {found:,}. "
                f"Build the index again, or restore the file from a copy."
            )
        return catalogue

    @classmethod
    def create(cls, path: Path) -> "Catalogue":
        """Make an empty catalogue in a new file."""
        with _naming_refusals(path):
            path.touch(exist_ok=False)
            catalogue = cls(path)
            catalogue._connection.execute(
                "CREATE TABLE documents "
                "(row INTEGER PRIMARY KEY, doc_id TEXT NOT NULL UNIQUE, text TEXT, metadata TEXT)"
            )
        return catalogue

    def cut(self, num_rows: int) -> None:
        """Remove what lies behind the first `num_rows` rows."""
        with _naming_refusals(self._path):
            self._connection.execute("DELETE FROM documents WHERE row >= ?", (num_rows,))

    def append(self, entries: Iterable[Entry], *, first_row: int, checksum: int) -> int:
        """Write entries to the disk, all or none, as rows `first_row`, `first_row` + 1, ...

        Returns:
            The checksum, continued with the new entries.
        """

        def numbered() -> Iterator[tuple[int, str, str | None, str | None]]:
            nonlocal checksum
            for row, entry in enumerate(entries, start=first_row):
                checksum = entry.extend(checksum)
                yield (row, *entry)

        with _naming_refusals(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._connection.executemany(
                    "INSERT INTO documents VALUES (?, ?, ?, ?)", numbered()
                )
                self._connection.execute("COMMIT")
            except BaseException:
                # On a full disk SQLite has rolled back by itself.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
        return checksum

    def lookup(self, rows: Sequence[int]) -> dict[int, Entry]:
        """Return the entries of some rows, in one question."""
        with _naming_damage(self._path):
            found = self._connection.execute(
                "SELECT row, doc_id, text, metadata FROM documents "
                "WHERE row IN (SELECT value FROM json_each(?))",
                (json.dumps(rows),),
            ).fetchall()
        return {row: Entry(*fields) for row, *fields in found}

    def find_known(self, doc_ids: Sequence[str], *, num_rows: int) -> list[str]:
        """Return which of `doc_ids` are in the first `num_rows` rows already."""
        known: list[str] = []
        for start in range(0, len(doc_ids), IDS_AT_ONCE):
            asked = doc_ids[start : start + IDS_AT_ONCE]
            places = ",".join("?" * len(asked))
            question = f"SELECT doc_id FROM documents WHERE row < ? AND doc_id IN ({places})"  # noqa: S608
            with _naming_damage(self._path):
                found = self._connection.execute(question, (num_rows, *asked)).fetchall()
            known.extend(doc_id for (doc_id,) in found)
        return known

    def measure(self, num_rows: int) -> tuple[int, int]:
        """Return how many of the first `num_rows` rows are there, and their checksum.

        Raises:
            FormatError: If SQLite cannot read the file.
        """
        checksum = count = 0
        with _naming_damage(self._path):
            rows = self._connection.execute(
                "SELECT doc_id, text, metadata FROM documents WHERE row < ? ORDER BY row",
                (num_rows,),
            )
            for fields in rows:
                count += 1
                checksum = Entry(*fields).extend(checksum)
        return count, checksum
