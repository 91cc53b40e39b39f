"""The compiled loop of `ids`; importing this module imports numba."""

from typing import no_type_check

import numpy as np

from nestling.core._kernels import _compile


@_compile()
@no_type_check
def gather_bytes(
    text: np.ndarray, ends: np.ndarray, rows: np.ndarray, gathered_ends: np.ndarray
) -> np.ndarray:
    """Return the bytes of some rows back to back, and write where each one's end.

    Args:
        text: Of all rows, back to back.
        ends: One after the last byte of each row in `text`.
        rows: Row numbers.
        gathered_ends: Written: one after the last byte of each in what is returned.
    """
    num_bytes = 0
    for i in range(len(rows)):
        row = rows[i]
        num_bytes += ends[row] - (ends[row - 1] if row > 0 else 0)
        gathered_ends[i] = num_bytes
    gathered = np.empty(num_bytes, np.uint8)
    place = 0
    for i in range(len(rows)):
        row = rows[i]
        for j in range(ends[row - 1] if row > 0 else 0, ends[row]):
            gathered[place] = text[j]
            place += 1
    return gathered
