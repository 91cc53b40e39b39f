"""The ids of all rows in two plain files, so that a search needs no catalogue to name its hits."""

from collections.abc import Sequence
from typing import NamedTuple, final

import numpy as np
from jaxtyping import Int64, UInt8

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
        self._text = text.data
        self._ends = ends

    def __len__(self) -> int:
        return len(self._ends)

    def lookup(self, rows: Int64[np.ndarray, " found"]) -> list[str]:
        """Return the ids of some rows, each at least 0 and below the number of rows."""
        text = self._text
        ends = self._ends[rows].tolist()
        starts = self._ends[rows - 1]
        starts[rows == 0] = 0  # there, the line above took the last row's end
        return [
            str(text[start:end], "utf-8") for start, end in zip(starts.tolist(), ends, strict=True)
        ]
