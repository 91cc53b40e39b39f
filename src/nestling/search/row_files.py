"""The files that hold what is known of every row: its vector, the sum of it, its id, its death."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, final

import numpy as np
from jaxtyping import Float, Int64

from nestling.core.row_sums import row_sums
from nestling.search.ids import ID_ENDS, IDS, RowIds, pack_ids
from nestling.search.manifest import DEAD, SUMS, VECTORS, Manifest
from nestling.search.rowfile import (
    NOTHING,
    CheckedRows,
    FileState,
    LoadedRows,
    RowWriter,
    map_checked,
)
from nestling.search.rowset import RowSet
from nestling.search.tier import STORED_AS


@final
class RowsWriter:
    """Append rows, and deaths, to the files of an index; a context manager that flushes them.

    Attributes:
        states: What of each file will count, by name.
    """

    def __init__(self, folder: Path, states: Mapping[str, FileState]) -> None:
        """Open the files.

        Args:
            folder: Where they are, or will be.
            states: What counts of each file by now, by name; none if the folder is empty.
        """
        self.states = dict(states)
        self._folder = folder
        self._writers: dict[str, RowWriter] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "RowsWriter":
        for name in (VECTORS, SUMS, IDS, ID_ENDS, DEAD):
            writer = RowWriter(self._folder / name, self.states.get(name, NOTHING))
            self._writers[name] = self._stack.enter_context(writer)
        return self

    def __exit__(self, *failure: Any) -> None:
        self._stack.__exit__(*failure)
        self.states = {name: writer.state for name, writer in self._writers.items()}

    def write(self, vectors: Float[np.ndarray, "rows full"]) -> None:
        """Append vectors in the format in which they are stored."""
        self._writers[VECTORS].write(vectors)
        self._writers[SUMS].write(row_sums(vectors))

    def write_ids(self, doc_ids: Sequence[str]) -> None:
        """Append ids, one per row."""
        packed = pack_ids(doc_ids, num_bytes=self._writers[IDS].state.num_bytes)
        self._writers[IDS].write(packed.text)
        self._writers[ID_ENDS].write(packed.ends)

    def bury(self, rows: Int64[np.ndarray, " dead"]) -> None:
        """Append the numbers of rows that died."""
        self._writers[DEAD].write(rows)


def open_vectors(path: Path, manifest: Manifest, known: CheckedRows | None = None) -> CheckedRows:
    """Map the stored vectors; each is checked when it is first read.

    Args:
        path: Of the index.
        manifest: Of the generation.
        known: The same file when it had fewer rows.
    """
    folder = path / manifest.rows
    return CheckedRows(
        folder / VECTORS,
        folder / SUMS,
        (manifest.num_rows, manifest.embed_dim),
        STORED_AS[manifest.vector_dtype],
        known=known,
    )


def open_ids(path: Path, manifest: Manifest, known: Manifest | None = None) -> RowIds:
    """Map the ids of all rows, after checking what was not checked for `known`.

    Raises:
        FormatError: If a file is damaged; the message names it.
    """
    text, ends = (
        map_checked(
            path / manifest.rows / name,
            manifest.state(manifest.rows, name),
            dtype,
            known=NOTHING if known is None else known.state(known.rows, name),
        )
        for name, dtype in ((IDS, np.uint8), (ID_ENDS, np.int64))
    )
    return RowIds(text, ends)


def open_dead(path: Path, manifest: Manifest, known: LoadedRows | None = None) -> LoadedRows:
    """Read which rows are dead, in the order of their deaths.

    Raises:
        FormatError: If the file is damaged; the message names it.
    """
    state = manifest.state(manifest.rows, DEAD)
    return LoadedRows.load(
        path / manifest.rows / DEAD, state, (manifest.num_dead,), np.int64, known=known
    )


def living(num_rows: int, dead: Int64[np.ndarray, " dead"]) -> RowSet | None:
    """Return the rows that are not dead; None if all live."""
    if len(dead) == 0:
        return None
    # A byte and not a truth value per eight rows: this is done at every change.
    bits = np.full((num_rows + 7) // 8, 0xFF, np.uint8)
    if num_rows % 8:
        bits[-1] = (1 << num_rows % 8) - 1
    np.bitwise_and.at(bits, dead >> 3, ~np.left_shift(np.uint8(1), (dead & 7).astype(np.uint8)))
    return RowSet(bits, num_rows)
