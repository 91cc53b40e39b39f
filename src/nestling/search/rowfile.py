"""Files of equally long rows that only ever grow, with a checksum that grows along.

CRC-32 can be continued where it was left, so that appending to a file of any size costs only the
new bytes; it finds every single flipped byte.
"""

import os
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from nestling.errors import FormatError

CHUNK_VALUES = 4 << 20
"""Rows are read and converted in chunks of about this many numbers (16 MB of float32)."""


class FileState(NamedTuple):
    """What of a file counts: bytes behind `num_bytes` were never acknowledged.

    Attributes:
        num_bytes: Committed length.
        checksum: CRC-32 of these bytes.
    """

    num_bytes: int
    checksum: int


NOTHING = FileState(num_bytes=0, checksum=0)
"""The state of a file that does not exist yet."""


class RowWriter:
    """Append rows behind the committed part of a file; anything else behind it is cut off first.

    A context manager; leaving it without an error flushes the file to the disk. Nothing counts until
    a manifest names the new `state`.
    """

    def __init__(self, path: Path, state: FileState = NOTHING) -> None:
        self.state = state
        self._file = path.open("r+b" if state.num_bytes else "wb")
        self._file.truncate(self.state.num_bytes)
        self._file.seek(self.state.num_bytes)

    def write(self, rows: Shaped[np.ndarray, "..."]) -> None:
        """Append an array in its own dtype."""
        content = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data
        self._file.write(content)
        self.state = FileState(
            self.state.num_bytes + len(content), zlib.crc32(content, self.state.checksum)
        )

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())
        finally:
            self._file.close()


def measure_file(path: Path, num_bytes: int | None = None) -> FileState:
    """Return the length and checksum of a file, or of at most its first `num_bytes` bytes."""
    left = path.stat().st_size if num_bytes is None else num_bytes
    state = NOTHING
    with path.open("rb") as file:
        while left > 0 and (content := file.read(min(left, 4 * CHUNK_VALUES))):
            state = FileState(state.num_bytes + len(content), zlib.crc32(content, state.checksum))
            left -= len(content)
    return state


def check_size(path: Path, state: FileState) -> None:
    """Refuse a file that is missing or shorter than its committed part.

    Raises:
        FormatError: Naming the file, the bytes it should have and the bytes it has.
    """
    found = path.stat().st_size if path.exists() else None
    if found is None or found < state.num_bytes:
        has = "it is missing" if found is None else f"it has {found:,}"
        raise FormatError(
            f"{path} must hold {state.num_bytes:,} bytes, {has}. "
            f"Build the index again, or restore the file from a copy."
        )


def map_rows(path: Path, shape: tuple[int, ...], dtype: Any) -> Shaped[np.ndarray, "..."]:
    """Return the first rows of a file as a read-only memory map."""
    # A plain view: the memmap subclass makes every slice several times slower.
    return np.asarray(np.memmap(path, dtype=dtype, mode="r", shape=shape))


def read_rows(path: Path, shape: tuple[int, ...], dtype: Any) -> Shaped[np.ndarray, "..."]:
    """Return the first rows of a file as an array in RAM."""
    return np.fromfile(path, dtype=dtype, count=int(np.prod(shape))).reshape(shape)


def rows_per_chunk(width: int) -> int:
    """Return how many rows of `width` numbers make a chunk."""
    return max(1, CHUNK_VALUES // width)
