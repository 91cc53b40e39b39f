"""A checksum per row, fast enough to be taken whenever a row is read for the first time."""

from functools import lru_cache

import numpy as np
from jaxtyping import Int64, Shaped, UInt8, UInt64

FIRST_SUM = np.uint64(0x9E3779B97F4A7C15)
"""The sum of no words. It is not 0, so that a hole in a file, which reads as zeros, matches no sum of zeros."""

_WORD_BYTES = 4


def row_sums(rows: Shaped[np.ndarray, "rows width"]) -> UInt64[np.ndarray, " rows"]:
    """Return a 64-bit checksum of the bytes of every row.

    The row is read as little-endian 32-bit words, the last one zero-padded. To a fixed number is added
    the product of word i and the i-th of a fixed sequence of odd 64-bit numbers (SplitMix64, Steele et
    al. 2014, doi:10.1145/2660193.2660195), modulo 2^64. A product with an odd number loses nothing, so
    that any change within one word, such as a flipped byte, changes the sum for certain; of other
    changes at most about one in 2^32 does not.

    Args:
        rows: Any dtype.
    """
    # Here and not above: numba takes a third of a second to import.
    from nestling.core import _row_sums

    content = as_bytes(rows)
    sums = np.empty(len(content), np.uint64)
    _row_sums.sum_rows(content, multipliers(content.shape[1]), FIRST_SUM, sums)
    return sums


def as_bytes(rows: Shaped[np.ndarray, "rows width"]) -> UInt8[np.ndarray, "rows bytes"]:
    """Return the bytes of every row as a read-only view; a copy if rows do not lie back to back.

    The functions here take what this returns at the least cost.
    """
    if rows.dtype == np.uint8 and rows.flags.c_contiguous and not rows.flags.writeable:
        return rows
    content = np.ascontiguousarray(rows).view(np.uint8)
    content.flags.writeable = False
    return content


def first_damaged(
    rows: Shaped[np.ndarray, "rows width"],
    sums: UInt64[np.ndarray, " rows"],
    seen: UInt8[np.ndarray, " rows"],
    wanted: Int64[np.ndarray, "*places"],
) -> int:
    """Return the first of the wanted rows whose bytes differ from its sum; -1 if none does.

    Rows marked in `seen` are not read again. Threads may call this at the same time: at worst both
    read a row.

    Args:
        rows: All rows, back to back.
        sums: What `row_sums` returned for them.
        seen: Not 0 where a row was found to be sound; updated.
        wanted: Row numbers, in any order, some perhaps twice; -1 is passed over.
    """
    from nestling.core import _row_sums

    content = as_bytes(rows)
    factors = multipliers(content.shape[1])
    places = wanted if wanted.ndim == 1 else wanted.reshape(-1)
    return int(_row_sums.check_rows(content, sums, seen, places, factors, FIRST_SUM))


def first_damaged_between(
    rows: Shaped[np.ndarray, "rows width"],
    sums: UInt64[np.ndarray, " rows"],
    seen: UInt8[np.ndarray, " rows"],
    start: int,
    stop: int,
) -> int:
    """Do the same as `first_damaged` for the rows from `start` to `stop` - 1."""
    from nestling.core import _row_sums

    content = as_bytes(rows)
    factors = multipliers(content.shape[1])
    return int(_row_sums.check_span(content, sums, seen, start, stop, factors, FIRST_SUM))


@lru_cache(maxsize=64)
def multipliers(num_bytes: int) -> UInt64[np.ndarray, " words"]:
    """Return the odd numbers that the words of a row of so many bytes are multiplied with."""
    num_words = -(-num_bytes // _WORD_BYTES)
    state = np.arange(1, num_words + 1, dtype=np.uint64) * FIRST_SUM
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (state ^ (state >> np.uint64(31))) | np.uint64(1)
