"""Ids, texts and metadata of an index, by row and generation, in SQLite."""

import json
import sqlite3
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
from jaxtyping import Int64

from nestling.core.files import naming_write_errors
from nestling.errors import FormatError
from nestling.search.catalogue_file import (
    ADVICE,
    connect,
    connected,
    naming_damage,
    naming_refusals,
    transaction,
)
from nestling.search.entries import Entry
from nestling.search.filter import CompiledFilter
from nestling.search.rowset import RowSet

CATALOGUE_VERSION = 2
IDS_AT_ONCE = 500
"""Placeholders in one statement; every SQLite takes at least 999."""
ROWS_AT_ONCE = 1000
"""Entries held in memory while many are written."""

_SCHEMA = f"""
PRAGMA user_version = {CATALOGUE_VERSION};
CREATE TABLE documents (
    row INTEGER PRIMARY KEY, doc_id TEXT NOT NULL, metadata TEXT,
    born INTEGER NOT NULL, died INTEGER, checksum INTEGER NOT NULL);
CREATE TABLE texts (row INTEGER PRIMARY KEY, text TEXT NOT NULL);
CREATE UNIQUE INDEX live_ids ON documents (doc_id) WHERE died IS NULL;
CREATE INDEX deaths ON documents (died) WHERE died IS NOT NULL;
"""
_WHOLE = (
    "SELECT documents.row, born, checksum, doc_id, text, metadata, died "
    "FROM documents LEFT JOIN texts ON texts.row = documents.row "
)
_MASK = (1 << 64) - 1
_ODD = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xBF58476D1CE4E5B9], dtype=np.uint64)


class CatalogueState(NamedTuple):
    """What a catalogue holds at one generation; the manifest keeps it.

    Attributes:
        num_rows: Rows, dead ones included.
        num_dead: Rows that are dead.
        content_sum: Sum of the checksums of all rows, modulo 2^64.
        dead_sum: Sum of a checksum of each dead row and when it died, modulo 2^64.
    """

    num_rows: int = 0
    num_dead: int = 0
    content_sum: int = 0
    dead_sum: int = 0


EMPTY = CatalogueState()
"""The state of a catalogue that was just created."""


class _Stored(NamedTuple):
    """A row as `_WHOLE` reads it."""

    row: int
    born: int
    checksum: int
    doc_id: str
    text: str | None
    metadata: str | None
    died: int | None

    def check(self, path: Path) -> Entry:
        """Return the entry, or raise a `FormatError` if it differs from its checksum."""
        entry = Entry(self.doc_id, self.text, self.metadata)
        try:
            is_sound = entry.checksum(row=self.row, born=self.born) == self.checksum
        except TypeError:  # a damaged row may hold a number where it held a string
            is_sound = False
        if not is_sound:
            raise FormatError(
                f"{path} is damaged: row {self.row} differs from its checksum. {ADVICE}"
            )
        return entry


@final
class Catalogue:
    """The documents of an index by row, as every generation since it was created saw them.

    A row is there in generation g if it was born in g or before, and had not died by then; dead
    rows stay until the index is compacted. What a writer left that died before its manifest was
    switched belongs to a later generation than any reader asks for, and the next `write` removes it.

    May be used from several threads, but not across a fork. While a process has a catalogue open,
    it must not open the file in any other way: closing it would drop SQLite's locks.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with naming_damage(path):
            self._connection = connect(path)
        self._lock = threading.Lock()
        self.close = weakref.finalize(self, self._connection.close)

    @classmethod
    def open(cls, path: Path, *, num_rows: int) -> "Catalogue":
        """Open the catalogue of an index of `num_rows` rows; the folder need not be writable.

        Raises:
            FormatError: If it is missing, is not one, is of another version, or has fewer rows.
        """
        catalogue = cls(path)
        ((version,),) = catalogue._ask("PRAGMA user_version")
        if version != CATALOGUE_VERSION:
            raise FormatError(
                f"{path} must be a catalogue of version {CATALOGUE_VERSION}, got version {version}. {ADVICE}"
            )
        ((last,),) = catalogue._ask("SELECT max(row) FROM documents")
        found = 0 if last is None else last + 1
        if found < num_rows:
            raise FormatError(f"{path} must hold {num_rows:,} rows, it has {found:,}. {ADVICE}")
        return catalogue

    @classmethod
    def create(cls, path: Path) -> "Catalogue":
        """Make an empty catalogue in a new file.

        Raises:
            WriteError: If it cannot be written.
        """
        with naming_write_errors(path), naming_refusals(path):
            path.touch(exist_ok=False)
            catalogue = cls(path)
            with transaction(catalogue._connection):
                for statement in _SCHEMA.split(";"):
                    catalogue._connection.execute(statement)
        return catalogue

    def write(
        self,
        state: CatalogueState,
        *,
        generation: int,
        entries: Iterable[Entry] = (),
        buried: Sequence[int] = (),
    ) -> CatalogueState:
        """Write a generation to the disk, all of it or nothing, in one transaction.

        What a dead writer left behind the generation before is removed first.

        Args:
            state: What the generation before held.
            generation: The generation to write.
            entries: New rows `state.num_rows`, `state.num_rows` + 1, ... None of their ids may
                be alive but in a row that is buried now.
            buried: Rows that die, each alive until now.

        Returns:
            What this generation holds.

        Raises:
            WriteError: If the file cannot be written, or a new id is alive already.
            FormatError: If a row to bury is not alive.
        """
        num_rows, num_dead, content_sum, dead_sum = state

        def numbered() -> Iterator[tuple[int, Entry]]:
            nonlocal num_rows
            for entry in entries:
                yield num_rows, entry
                num_rows += 1

        # On a connection of its own: other threads go on reading.
        with (
            naming_refusals(self._path),
            connected(self._path) as connection,
            transaction(connection),
        ):
            _cut(connection, generation - 1)
            self._bury(connection, buried, generation)
            content_sum += _insert(connection, numbered(), born=generation)
        rows = np.asarray(buried, dtype=np.int64)
        dead_sum += _sum_of_deaths(rows, np.full(len(rows), generation, dtype=np.int64))
        return CatalogueState(num_rows, num_dead + len(rows), content_sum & _MASK, dead_sum & _MASK)

    def lookup(self, rows: Sequence[int]) -> dict[int, Entry]:
        """Return the entries of some rows, dead or not, each compared with its checksum.

        Raises:
            FormatError: If a row is not there, or is damaged.
        """
        question = f"{_WHOLE}WHERE documents.row IN (SELECT value FROM json_each(?))"  # noqa: S608
        found = map(_Stored._make, self._ask(question, (json.dumps(list(rows)),)))
        entries = {stored.row: stored.check(self._path) for stored in found}
        if missing := [row for row in rows if row not in entries]:
            raise FormatError(
                f"{self._path} must hold every row of the index, it lacks row {missing[0]}. {ADVICE}"
            )
        return entries

    def find_live(self, doc_ids: Sequence[str], *, generation: int) -> dict[str, int]:
        """Return the rows of those of `doc_ids` that are there in a generation."""
        rows: dict[str, int] = {}
        for start in range(0, len(doc_ids), IDS_AT_ONCE):
            asked = doc_ids[start : start + IDS_AT_ONCE]
            places = ",".join("?" * len(asked))
            rows.update(
                self._ask(
                    "SELECT doc_id, row FROM documents "  # noqa: S608
                    f"WHERE died IS NULL AND doc_id IN ({places}) AND born <= ?",
                    (*asked, generation),
                )
            )
        # Few: what died since a reader opened the index, or was buried by a writer that died.
        died_later = self._ask(
            "SELECT doc_id, row FROM documents WHERE died > ? AND born <= ?",
            (generation, generation),
        )
        wanted = set(doc_ids) if died_later else set()
        rows.update((doc_id, row) for doc_id, row in died_later if doc_id in wanted)
        return rows

    def select(self, wanted: CompiledFilter, *, generation: int, num_rows: int) -> RowSet:
        """Return the rows that are there in a generation and that a filter wants.

        What it reads is not compared with checksums: a damaged row that is found for that reason
        is refused by `lookup`, one that is missed for that reason is named by `measure`.

        Args:
            wanted: The filter.
            generation: The generation.
            num_rows: Rows of the index in that generation.

        Raises:
            FormatError: If SQLite cannot read the file.
        """
        question = (
            f"SELECT row FROM documents WHERE row < ? AND born <= ? "  # noqa: S608
            f"AND (died IS NULL OR died > ?) AND ({wanted.sql})"
        )
        bounds = (num_rows, generation, generation)
        # All metadata is read, while other threads go on looking rows up.
        with naming_damage(self._path), connected(self._path) as connection:
            found = connection.execute(question, (*bounds, *wanted.parameters)).fetchall()
        rows = np.fromiter((row for (row,) in found), dtype=np.int64, count=len(found))
        return RowSet.of_rows(rows, num_rows)

    def measure(self, *, generation: int) -> CatalogueState:
        """Read everything, and return what a generation holds.

        Every row is compared with its checksum, every index of SQLite with its table, and the
        pages of the file with each other. What may be flipped without being noticed is only what
        carries nothing: free pages, free space within a page, and in the first 100 bytes, SQLite's
        header, the fields that change nothing of what is read, such as its count of changes.

        Raises:
            FormatError: If the file is damaged.
        """
        num_rows = num_dead = content_sum = 0
        deaths: list[tuple[int, int]] = []
        with naming_damage(self._path), connected(self._path) as connection:
            ((verdict,),) = connection.execute("PRAGMA integrity_check(1)").fetchall()
            if verdict != "ok":
                raise FormatError(f"{self._path} is damaged: {verdict}. {ADVICE}")
            question = f"{_WHOLE}WHERE born <= ? ORDER BY documents.row"
            for stored in map(_Stored._make, connection.execute(question, (generation,))):
                stored.check(self._path)
                num_rows += 1
                content_sum += stored.checksum
                if stored.died is not None and stored.died <= generation:
                    num_dead += 1
                    deaths.append((stored.row, stored.died))
        dead_sum = _sum_of_deaths(*np.array(deaths, dtype=np.int64).reshape(-1, 2).T)
        return CatalogueState(num_rows, num_dead, content_sum & _MASK, dead_sum)

    def copy(self, path: Path, *, generation: int) -> None:
        """Write a copy that holds nothing beyond a generation, while others read and write.

        Raises:
            WriteError: If the copy cannot be written.
            FormatError: If this file cannot be read.
        """
        with naming_write_errors(path), naming_refusals(path, source=self._path):
            path.touch(exist_ok=False)
            with connected(path) as copy:
                # Over the connection that is open: a writer may have removed the file by now.
                with self._lock:
                    self._connection.backup(copy)
                with transaction(copy):
                    _cut(copy, generation)

    def copy_live(self, path: Path, *, generation: int, born: int) -> CatalogueState:
        """Write the living rows of a generation into a new catalogue, numbered anew from 0.

        Args:
            path: The new file.
            generation: Which generation.
            born: The generation that the rows get.

        Returns:
            What the new catalogue holds.

        Raises:
            WriteError: If it cannot be written.
            FormatError: If this one is damaged.
        """
        copy = Catalogue.create(path)
        try:
            return copy.write(EMPTY, generation=born, entries=self._living(generation))
        finally:
            copy.close()

    def _bury(self, connection: sqlite3.Connection, rows: Sequence[int], died: int) -> None:
        changed = connection.executemany(
            "UPDATE documents SET died = ? WHERE row = ? AND died IS NULL",
            ((died, int(row)) for row in rows),
        ).rowcount
        if len(rows) and changed != len(rows):
            raise FormatError(
                f"{self._path} must hold {len(rows):,} living rows to delete, it has {changed:,}. {ADVICE}"
            )

    def _living(self, generation: int) -> Iterator[Entry]:
        question = f"{_WHOLE}WHERE born <= ? AND (died IS NULL OR died > ?) ORDER BY documents.row"
        with naming_damage(self._path), connected(self._path) as connection:
            for fields in connection.execute(question, (generation, generation)):
                yield _Stored._make(fields).check(self._path)

    def _ask(self, question: str, parameters: Sequence[object] = ()) -> list[Any]:
        with self._lock, naming_damage(self._path):
            return self._connection.execute(question, parameters).fetchall()


def _cut(connection: sqlite3.Connection, generation: int) -> None:
    """Remove the rows born after a generation, then bring those back that died after it."""
    # Rows are born in order, so that this looks at no more of them than it removes.
    last = connection.execute(
        "SELECT row FROM documents WHERE born <= ? ORDER BY row DESC LIMIT 1", (generation,)
    ).fetchone()
    first = 0 if last is None else last[0] + 1
    for table in ("documents", "texts"):
        connection.execute(f"DELETE FROM {table} WHERE row >= ?", (first,))  # noqa: S608
    connection.execute("UPDATE documents SET died = NULL WHERE died > ?", (generation,))


def _insert(
    connection: sqlite3.Connection, numbered: Iterable[tuple[int, Entry]], *, born: int
) -> int:
    """Insert entries as rows of these numbers, and return the sum of their checksums."""
    total = 0
    numbered = iter(numbered)
    while batch := list(islice(numbered, ROWS_AT_ONCE)):
        sums = [entry.checksum(row=row, born=born) for row, entry in batch]
        total += sum(sums)
        connection.executemany(
            "INSERT INTO documents VALUES (?, ?, ?, ?, NULL, ?)",
            (
                (row, entry.doc_id, entry.metadata, born, checksum)
                for (row, entry), checksum in zip(batch, sums, strict=True)
            ),
        )
        connection.executemany(
            "INSERT INTO texts VALUES (?, ?)",
            ((row, entry.text) for row, entry in batch if entry.text is not None),
        )
    return total


def _sum_of_deaths(rows: Int64[np.ndarray, " dead"], died: Int64[np.ndarray, " dead"]) -> int:
    """Return a sum that every change of one row or generation changes for certain."""
    # Products with odd numbers and shifted exclusive ors lose nothing, modulo 2^64.
    mixed = rows.astype(np.uint64) * _ODD[0] + died.astype(np.uint64) * _ODD[1]
    mixed ^= mixed >> np.uint64(29)
    mixed *= _ODD[2]
    mixed ^= mixed >> np.uint64(32)
    return int(mixed.sum(dtype=np.uint64))
