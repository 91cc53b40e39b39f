"""What the kernels of `nested_top_k` are handed, and what they keep.

A best-so-far list holds one 64-bit key per candidate: the score's bits, rearranged so that they
sort as unsigned integers, above the inverted row number. The larger of two keys is the better
candidate, equal scores going to the lower row, so that one comparison decides and the outcome does
not depend on the order of the comparisons.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt64

from nestling.core.topk import TopK

SIGN_BIT = np.uint32(1 << 31)
LOW_32_BITS = (1 << 32) - 1


class Best(NamedTuple):
    """The best candidates so far, per width and query.

    Attributes:
        keys: Keys of shape (widths, queries, capacity), the first `counts` of them in use.
        counts: Keys in use, of shape (widths, queries).
        thresholds: What a score must exceed to be among the best, of shape (widths, queries).
    """

    keys: np.ndarray
    counts: np.ndarray
    thresholds: np.ndarray


class Queries(NamedTuple):
    """Some queries, ready to be scored.

    Attributes:
        rows: As they are, of shape (queries, full).
        panels: As the product reads them, of shape (groups, widest, GROUP), zero-padded.
        norms: One over the prefix norms, of shape (widths, queries); 0 for a zero prefix.
    """

    rows: np.ndarray
    panels: np.ndarray
    norms: np.ndarray


def read_only(rows: Float32[np.ndarray, "rows full"]) -> Float32[np.ndarray, "rows full"]:
    """Return a read-only view: kernels are compiled once per kind of array, so all take this one."""
    view = rows.view()
    view.flags.writeable = False
    return view


def split_keys(keys: UInt64[np.ndarray, "queries k"]) -> TopK:
    """Return the rows and scores in some keys, in the same places; key 0 is an empty place."""
    bits = (keys >> np.uint64(32)).astype(np.uint32)
    scores = np.where(bits & SIGN_BIT, bits ^ SIGN_BIT, ~bits).view(np.float32)
    rows = LOW_32_BITS - (keys & np.uint64(LOW_32_BITS)).astype(np.int64)
    is_empty = keys == 0
    return TopK(np.where(is_empty, -1, rows), np.where(is_empty, np.float32(-np.inf), scores))
