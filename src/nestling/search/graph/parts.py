"""What a graph is made of, and the memory that walking it takes."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
from jaxtyping import Float32, Int32, UInt64

from nestling.core.files import fsync_folder
from nestling.search.rowfile import aligned_empty

NEIGHBOURS, ENTRIES, TWINS = "neighbours.bin", "entries.bin", "twins.bin"

SPARE_KEYS = 8
"""Keys before the window, and behind it: what moves at once."""


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GraphParts:
    """A directed graph whose nodes are the rows that equal no lower row.

    Attributes:
        neighbours: Near rows of each node, in the order of the nodes' rows; shorter lists are filled up
            with the row itself.
        entries: Rows from which every node can be reached.
        twins: The next higher row that equals each row, or -1; empty if no two rows are equal.
        slots: Where each node's neighbours are listed, by row; empty if no two rows are equal.
    """

    neighbours: Int32[np.ndarray, "nodes degree"]
    entries: Int32[np.ndarray, " entries"]
    twins: Int32[np.ndarray, " twins"]
    slots: Int32[np.ndarray, " twins"]

    @property
    def num_bytes(self) -> int:
        """RAM that the graph takes."""
        parts = (self.neighbours, self.entries, self.twins, self.slots)
        return sum(part.nbytes for part in parts)

    def save(self, folder: Path) -> tuple[str, ...]:
        """Write the graph into a folder, and flush it; return the names of the files."""
        parts = {NEIGHBOURS: self.neighbours, ENTRIES: self.entries, TWINS: self.twins}
        for name, part in parts.items():
            with (folder / name).open("wb") as file:
                file.write(part.reshape(-1).view(np.uint8).data)
                file.flush()
                os.fsync(file.fileno())
        fsync_folder(folder)
        return tuple(parts)

    @classmethod
    def load(cls, folder: Path, *, degree: int) -> "GraphParts":
        """Read what `save` wrote."""
        twins = _read(folder / TWINS)
        return cls(
            neighbours=_read(folder / NEIGHBOURS).reshape(-1, degree),
            entries=_read(folder / ENTRIES),
            twins=twins,
            slots=number_nodes(twins),
        )


def number_nodes(twins: Int32[np.ndarray, " twins"]) -> Int32[np.ndarray, " twins"]:
    """Return the number of each row among the rows that are nodes; of the others it means nothing."""
    is_node = np.ones(len(twins), dtype=bool)
    is_node[twins[twins >= 0]] = False
    return np.cumsum(is_node, dtype=np.int32) - np.int32(1)


def _read(path: Path) -> Int32[np.ndarray, " numbers"]:
    with path.open("rb") as file:
        numbers = aligned_empty((path.stat().st_size // 4,), np.int32)
        file.readinto(numbers.view(np.uint8).data)
    return numbers


@final
class WalkRoom:
    """What one thread overwrites while it walks.

    Attributes:
        window: Rows that a window may hold.
        seen: One bit per row.
        keys: A window, with room around it.
        rows: Room for the entries, and for two lists of neighbours.
        scores: Of these rows.
        best: Another window.
    """

    def __init__(self, parts: GraphParts, num_rows: int, window: int) -> None:
        self.window = window
        self.seen: UInt64[np.ndarray, " words"] = np.zeros(num_rows // 64 + 1, np.uint64)
        self.keys, self.best = _empty_window(window), _empty_window(window)
        num_listed = max(len(parts.entries), 2 * parts.neighbours.shape[1]) + 1
        self.rows: Int32[np.ndarray, " listed"] = np.zeros(num_listed, np.int32)
        self.scores: Float32[np.ndarray, " listed"] = np.zeros(num_listed, np.float32)


def _empty_window(window: int) -> UInt64[np.ndarray, " keys"]:
    keys = aligned_empty((window + 2 * SPARE_KEYS,), np.uint64)
    keys[:] = np.iinfo(np.uint64).max
    return keys
