"""The ids of all rows in two plain files, so that a search needs no catalogue to name its hits."""

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple, final

import numpy as np
from jaxtyping import Int64, UInt8

from nestling.search.rowfile import read_only

IDS = "ids.bin"
"""UTF-8 of the ids, back to back."""
ID_ENDS = "id_ends.bin"
"""int64 per row: where its id ends in `IDS`, in bytes."""


class PackedIds(NamedTuple):
    """Ids as they are appended to the two files."""

    text: UInt8[np.ndarray, " bytes"]
    ends: Int64[np.ndarray, " rows"]


def pack_ids(doc_ids: Sequence[str], *, num_bytes: int) -> PackedIds:
    """Return what to append for new rows, when `IDS` holds `num_bytes` already."""
    encoded = [doc_id.encode() for doc_id in doc_ids]
    lengths = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
    text = np.frombuffer(b"".join(encoded), dtype=np.uint8)
    return PackedIds(text, num_bytes + np.cumsum(lengths, dtype=np.int64))


@final
class RowIds:
    """The id of every row, dead ones included.

    Args:
        text: What `IDS` holds.
        ends: What `ID_ENDS` holds.
    """

    def __init__(self, text: UInt8[np.ndarray, " bytes"], ends: Int64[np.ndarray, " rows"]) -> None:
        self._text = read_only(text)
        self._ends = read_only(ends)

    def __len__(self) -> int:
        return len(self._ends)

    def lookup(self, rows: Int64[np.ndarray, " found"]) -> list[str]:
        """Return the ids of some rows, each at least 0 and below the number of rows."""
        ends = np.empty(len(rows), np.int64)
        gathered = self._gather_bytes(self._text, self._ends, read_only(rows), ends).tobytes()
        bounds = [0, *ends.tolist()]
        if gathered.isascii():  # then a place among the bytes is one among the characters
            text = gathered.decode()
            return [text[start:end] for start, end in pairwise(bounds)]
        return [gathered[start:end].decode() for start, end in pairwise(bounds)]

    @cached_property
    def _gather_bytes(self) -> Callable[..., UInt8[np.ndarray, " bytes"]]:
        # Here and not above: numba takes a third of a second to import.
        from nestling.search._id_kernels import gather_bytes

        return gather_bytes
