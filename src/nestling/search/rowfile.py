"""Files of equally long rows that only ever grow, with checksums that grow along.

CRC-32 can be continued where it was left, so that appending to a file of any size costs only the
new bytes; it finds every single flipped byte. It vouches for what is read whole. What is only mapped
has a sum per row beside it, which is compared when a row is read for the first time.
"""

import math
import os
import zlib
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, final

import numpy as np
from jaxtyping import Int64, Shaped

from nestling.core.row_sums import as_bytes, first_damaged, first_damaged_between
from nestling.errors import FormatError

CHUNK_VALUES = 4 << 20
"""Rows are read and converted in chunks of about this many numbers (16 MB of float32)."""

MEASURED_AT_ONCE = 1 << 20

SPARE = 8
"""A file in RAM may grow by one eighth before what it holds is copied to a larger place."""

SPARE_BYTES = 1 << 20
"""And by this much in any case. Memory that was never written to takes no RAM."""

LINE_BYTES = 64
"""Of a cache line."""

RESTORE = "Restore the file from a copy, or build the index again."


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
        is_new = state.num_bytes == 0 and not path.exists()
        self._file = path.open("wb" if is_new else "r+b")
        size = self._file.seek(0, os.SEEK_END)
        if size > state.num_bytes:
            self._file.truncate(state.num_bytes)
        # A file that nothing is written to needs no flush.
        self._is_changed = is_new or size != state.num_bytes
        self._file.seek(state.num_bytes)

    def write(self, rows: Shaped[np.ndarray, "..."]) -> None:
        """Append an array in its own dtype."""
        content = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data
        self._file.write(content)
        self._is_changed |= len(content) > 0
        self.state = FileState(
            self.state.num_bytes + len(content), zlib.crc32(content, self.state.checksum)
        )

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None and self._is_changed:
                self._file.flush()
                os.fsync(self._file.fileno())
        finally:
            self._file.close()


@final
class CheckedRows:
    """A memory map whose rows are compared with their sums when they are first asked for.

    Whoever reads `rows` asks with `ensure` or `ensure_span` before. Several threads may ask.

    Attributes:
        path: The mapped file.
        status: Of the file when it was mapped, to know it again by.
        rows: Its rows, read-only.
    """

    def __init__(
        self,
        path: Path,
        sums_path: Path,
        shape: tuple[int, int],
        dtype: Any,
        *,
        known: "CheckedRows | None" = None,
    ) -> None:
        """Map a file, or what of it counts.

        Args:
            path: The file.
            sums_path: The file of `row_sums`; it needs no check of its own: a damaged sum fits no row.
            shape: Rows that count, and their width.
            dtype: Of the numbers in a row.
            known: The same file when it had fewer rows; what was found sound is not read again.
        """
        self.path = path
        with path.open("rb") as file:
            self.status = os.fstat(file.fileno())
            self.rows = map_rows(file, shape, dtype)
        self._content = as_bytes(self.rows)
        self._sums = map_rows(sums_path, shape[:1], np.uint64)
        self._seen = np.zeros(len(self.rows), np.uint8)
        self._sound = 0  # all rows before this one were seen
        if known is not None:
            self._seen[: len(known.rows)] = known._seen
            self._sound = known._sound

    def ensure(self, rows: Int64[np.ndarray, "*places"]) -> None:
        """Check the rows named, in any order; -1 names none.

        Raises:
            FormatError: If a row differs from its sum; the message names the file.
        """
        if self._sound < len(self.rows):
            self._refuse(first_damaged(self._content, self._sums, self._seen, rows))

    def ensure_span(self, start: int, stop: int) -> None:
        """Check the rows from `start` to `stop` - 1.

        Raises:
            FormatError: If a row differs from its sum; the message names the file.
        """
        if stop <= self._sound:
            return
        self._refuse(first_damaged_between(self._content, self._sums, self._seen, start, stop))
        if start <= self._sound:
            self._sound = stop

    def _refuse(self, row: int) -> None:
        if row >= 0:
            raise FormatError(f"{self.path} is damaged: row {row} differs from its sum. {RESTORE}")


@final
class LoadedRows:
    """Rows of a file in RAM, checked.

    Attributes:
        rows: All of them.
    """

    def __init__(
        self,
        place: Shaped[np.ndarray, " bytes"],
        state: FileState,
        shape: tuple[int, ...],
        dtype: Any,
    ) -> None:
        self._place = place
        self._state = state
        self.rows = place[: state.num_bytes].view(dtype).reshape(shape)
        self.rows.flags.writeable = False

    @classmethod
    def load(
        cls,
        path: Path,
        state: FileState,
        shape: tuple[int, ...],
        dtype: Any,
        *,
        known: "LoadedRows | None" = None,
    ) -> "LoadedRows":
        """Read the committed part of a file.

        Args:
            path: The file.
            state: What of it counts.
            shape: Of the rows in it.
            dtype: Of the numbers in it.
            known: The same file when it had fewer rows. It stays usable and shares its memory with
                the new one: bytes behind the end of either are not its own.

        Raises:
            FormatError: If the content does not fit its checksum; the message names the file.
        """
        start = NOTHING if known is None else known._state
        if known is not None and state.num_bytes <= len(known._place):
            place = known._place
        else:
            place = aligned_empty((state.num_bytes + state.num_bytes // SPARE + SPARE_BYTES,))
            if known is not None:
                place[: start.num_bytes] = known._place[: start.num_bytes]
        added = place[start.num_bytes : state.num_bytes].data
        with path.open("rb") as file:
            file.seek(start.num_bytes)
            num_read = file.readinto(added)
        if num_read < len(added) or zlib.crc32(added, start.checksum) != state.checksum:
            raise unfit(path)
        return cls(place, state, shape, dtype)


def read_only(array: Shaped[np.ndarray, "*shape"]) -> Shaped[np.ndarray, "*shape"]:
    """Return a contiguous read-only view: kernels are compiled once per kind of array, so all take this."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


def aligned_empty(shape: tuple[int, ...], dtype: Any = np.uint8) -> Shaped[np.ndarray, "..."]:
    """Return an array that starts with a cache line, so that a row of whole lines takes no line more."""
    num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    place = np.empty(num_bytes + LINE_BYTES, np.uint8)
    start = -place.ctypes.data % LINE_BYTES
    return place[start : start + num_bytes].view(dtype).reshape(shape)


def map_checked(
    path: Path,
    state: FileState,
    dtype: Any,
    *,
    known: FileState = NOTHING,
) -> Shaped[np.ndarray, " rows"]:
    """Return the committed part of a file as a read-only memory map, checked.

    Args:
        path: The file.
        state: What of it counts.
        dtype: Of the numbers in it.
        known: What of it was checked before.

    Raises:
        FormatError: If the content does not fit its checksum; the message names the file.
    """
    rows = map_rows(path, (state.num_bytes // np.dtype(dtype).itemsize,), dtype)
    if zlib.crc32(rows.view(np.uint8)[known.num_bytes :].data, known.checksum) != state.checksum:
        raise unfit(path)
    return rows


def unfit(path: Path) -> FormatError:
    """Return the error that says that a file is damaged."""
    return FormatError(f"{path} is damaged: its content does not fit its checksum. {RESTORE}")


def measure_file(path: Path, num_bytes: int | None = None) -> FileState:
    """Return the length and checksum of a file, or of at most its first `num_bytes` bytes."""
    left = path.stat().st_size if num_bytes is None else num_bytes
    done = checksum = 0
    # One small place, which stays in the processor's cache.
    place = memoryview(bytearray(MEASURED_AT_ONCE))
    with path.open("rb", buffering=0) as file:
        while left > done and (num_read := file.readinto(place[: left - done])):
            checksum = zlib.crc32(place[:num_read], checksum)
            done += num_read
    return FileState(done, checksum)


def check_size(path: Path, state: FileState) -> None:
    """Refuse a file that is missing or shorter than its committed part.

    Raises:
        FormatError: Naming the file, the bytes it should have and the bytes it has.
    """
    found = path.stat().st_size if path.exists() else None
    if found is None or found < state.num_bytes:
        has = "it is missing" if found is None else f"it has {found:,}"
        raise FormatError(f"{path} must hold {state.num_bytes:,} bytes, {has}. {RESTORE}")


def map_rows(
    path: Path | BinaryIO, shape: tuple[int, ...], dtype: Any
) -> Shaped[np.ndarray, "..."]:
    """Return the first rows of a file as a read-only memory map."""
    if 0 in shape:
        return np.empty(shape, dtype)  # nothing cannot be mapped
    # A plain view: the memmap subclass makes every slice several times slower.
    return np.asarray(np.memmap(path, dtype=dtype, mode="r", shape=shape))


def rows_per_chunk(width: int) -> int:
    """Return how many rows of `width` numbers make a chunk."""
    return max(1, CHUNK_VALUES // width)
