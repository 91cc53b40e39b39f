"""The compiled inner loops of `nested_top_k`; importing this module imports numba.

A best-so-far list holds one 64-bit key per candidate: the score's bits, rearranged so that they
sort as unsigned integers, above the inverted row number. The larger of two keys is the better
candidate, equal scores going to the lower row, so that one comparison decides and the outcome does
not depend on the order of the comparisons.

The NumPy twins that judge these loops stand in `tests/core/test_kernels.py`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, no_type_check

import numpy as np
from jaxtyping import UInt64
from numba import njit

from nestling.core._multiply import GROUP, LANES, add_products
from nestling.core.topk import TopK

BLOCK = 64
"""Scores that are compared with a threshold together; the rows of a tile are a multiple of it."""

_TURNED = 128
_SIGN_BIT = np.uint32(1 << 31)
_LOW_32_BITS = (1 << 32) - 1
# Sums of products may be reordered (vector lanes); NaN and infinity keep their meaning.
_REORDER = frozenset({"reassoc", "contract", "nsz"})

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _compile(*, fastmath: frozenset[str] = frozenset()) -> Callable[[_Function], _Function]:
    def compile_function(function: _Function) -> _Function:
        options = {"nogil": True, "error_model": "numpy", "fastmath": set(fastmath) or False}
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:
            # Neither the package's folder nor a home can be written (a locked-down container):
            # the machine code cannot be kept, so every process compiles it once.
            return njit(**options)(function)

    return compile_function


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


@_compile()
@no_type_check
def invert_norms(squares: np.ndarray) -> None:
    """Turn squared norms of shape (widths, tile) into one over the norm, 0 staying 0."""
    for w in range(len(squares)):
        row = squares[w]
        for i in range(len(row)):
            row[i] = np.float32(1) / np.sqrt(row[i]) if row[i] > 0 else np.float32(0)


@_compile(fastmath=_REORDER)
@no_type_check
def dot_band(left: np.ndarray, right: np.ndarray, start: int, stop: int) -> float:
    """Return the dot product of coordinates `start` to `stop`."""
    dot = np.float32(0)
    # Unsigned numbers cannot count from the end, which a signed index would be checked for.
    for j in range(np.uint64(start), np.uint64(stop)):
        dot += left[j] * right[j]
    return dot


@_compile()
@no_type_check
def pack_rows(rows: np.ndarray, widths: np.ndarray, panels: np.ndarray, norms: np.ndarray) -> None:
    """Lay `rows` out as the product reads them, and take the prefix norms on the way.

    Args:
        rows: Float32, of shape (n, full).
        widths: Ascending prefix widths.
        panels: Written: of shape (tile / LANES, widest, LANES). Places of rows beyond n keep what
            they held.
        norms: Written: one over the prefix norms, of shape (widths, tile), likewise.
    """
    for i in range(len(rows)):
        row = rows[i]
        square, start = np.float32(0), 0
        for w in range(len(widths)):
            square += dot_band(row, row, start, widths[w])
            norms[w, i] = square
            start = widths[w]
    invert_norms(norms[:, : len(rows)])
    # Turned over piece by piece: a piece of a panel stays in the fastest cache.
    for first in range(0, len(rows), LANES):
        panel = panels[first // LANES]
        for start in range(0, widths[-1], _TURNED):
            for i in range(first, min(first + LANES, len(rows))):
                row = rows[i]
                for k in range(start, min(start + _TURNED, widths[-1])):
                    panel[k, i - first] = row[k]


@_compile()
@no_type_check
def multiply_group(
    panels: np.ndarray, query_panel: np.ndarray, start: int, stop: int, dots: np.ndarray
) -> None:
    """Add the products of coordinates `start` to `stop` to `dots`.

    Args:
        panels: Rows, of shape (tile / LANES, widest, LANES).
        query_panel: Queries, of shape (widest, GROUP).
        start: First coordinate.
        stop: One after the last coordinate.
        dots: Updated: of shape (GROUP, tile).
    """
    for p in range(len(panels)):
        add_products(
            panels[p, start:].ctypes.data,
            query_panel[start:].ctypes.data,
            stop - start,
            dots[:, p * LANES :].ctypes.data,
            dots.shape[1],
        )


@_compile()
@no_type_check
def dot_rows(
    rows: np.ndarray, queries: np.ndarray, widths: np.ndarray, dots: np.ndarray, norms: np.ndarray
) -> None:
    """Take all nested dot products and norms in one reading of `rows`.

    Args:
        rows: Float32, of shape (n, full).
        queries: Float32, of shape (queries, full).
        widths: Ascending prefix widths.
        dots: Written: of shape (widths, queries, tile), the first n places of a tile.
        norms: Written: one over the prefix norms, of shape (widths, tile), likewise.
    """
    for i in range(len(rows)):
        row = rows[i]
        square, start = np.float32(0), 0
        for w in range(len(widths)):
            square += dot_band(row, row, start, widths[w])
            norms[w, i] = square
            start = widths[w]
        for q in range(len(queries)):
            query = queries[q]
            dot, start = np.float32(0), 0
            for w in range(len(widths)):
                dot += dot_band(row, query, start, widths[w])
                dots[w, q, i] = dot
                start = widths[w]
    invert_norms(norms[:, : len(rows)])


@_compile()
@no_type_check
def make_key(score: float, row: int) -> int:
    """Return the key of a candidate."""
    bits = np.float32(score).view(np.uint32)
    bits = ~bits if bits & _SIGN_BIT else bits | _SIGN_BIT
    return (np.uint64(bits) << np.uint64(32)) | np.uint64(_LOW_32_BITS - row)


@_compile()
@no_type_check
def score_of_key(key: int) -> float:
    """Return the score in a key."""
    bits = np.uint32(key >> np.uint64(32))
    bits = bits ^ _SIGN_BIT if bits & _SIGN_BIT else ~bits
    return np.uint32(bits).view(np.float32)


def split_keys(keys: UInt64[np.ndarray, "queries k"]) -> TopK:
    """Return the rows and scores in some keys, in the same places; key 0 is an empty place."""
    bits = (keys >> np.uint64(32)).astype(np.uint32)
    scores = np.where(bits & _SIGN_BIT, bits ^ _SIGN_BIT, ~bits).view(np.float32)
    rows = _LOW_32_BITS - (keys & np.uint64(_LOW_32_BITS)).astype(np.int64)
    is_empty = keys == 0
    return TopK(np.where(is_empty, -1, rows), np.where(is_empty, np.float32(-np.inf), scores))


@_compile()
@no_type_check
def keep_best(keys: np.ndarray, num_kept: int) -> None:
    """Move the `num_kept` largest keys to the front, the smallest of them last (Hoare 1961)."""
    low, high = 0, len(keys) - 1
    while low < high:
        pivot = keys[(low + high) >> 1]
        i, j = low, high
        while i <= j:
            while keys[i] > pivot:
                i += 1
            while keys[j] < pivot:
                j -= 1
            if i <= j:
                keys[i], keys[j] = keys[j], keys[i]
                i += 1
                j -= 1
        if num_kept - 1 <= j:
            high = j
        elif num_kept - 1 >= i:
            low = i
        else:
            return


@_compile()
@no_type_check
def scan_scores(
    dots: np.ndarray,
    norms: np.ndarray,
    query_norm: float,
    first_row: int,
    num_rows: int,
    best: Best,
    w: int,
    q: int,
    num_kept: int,
) -> None:
    """Offer the scores of one query and tile to its best-so-far list, `BLOCK` at a time.

    Args:
        dots: Dot products with the rows of the tile, of shape (tile,), a multiple of `BLOCK`.
        norms: One over the norms of these rows.
        query_norm: One over the norm of the query.
        first_row: Corpus row of the first score. Rows must come in ascending order from call to
            call: a later row that only equals the threshold has lost the tie.
        num_rows: Scores that count; the rest is padding.
        best: Updated at (w, q).
        w: Which width.
        q: Which query.
        num_kept: Candidates kept when the list is full.
    """
    keys = best.keys[w, q]
    count = best.counts[w, q]
    threshold = best.thresholds[w, q]
    for start in range(0, num_rows, BLOCK):
        block = dots[start : start + BLOCK]
        scales = norms[start : start + BLOCK]
        num_above = np.int32(0)
        for j in range(BLOCK):
            num_above += np.int32(block[j] * scales[j] * query_norm > threshold)
        if num_above == 0:
            continue
        for j in range(min(BLOCK, num_rows - start)):
            # Adding zero turns -0 into 0, which must tie with it.
            score = block[j] * scales[j] * query_norm + np.float32(0)
            if score > threshold:
                keys[count] = make_key(score, first_row + start + j)
                count += 1
                if count == len(keys):
                    keep_best(keys, num_kept)
                    count = num_kept
                    threshold = score_of_key(keys[num_kept - 1])
    best.counts[w, q] = count
    best.thresholds[w, q] = threshold


@_compile()
@no_type_check
def score_many(
    chunk: np.ndarray,
    first_row: int,
    tile: int,
    queries: Queries,
    widths: np.ndarray,
    best: Best,
    num_kept: int,
) -> None:
    """Score every row of `chunk` at every width, tile by tile, and update `best`.

    The rows of a tile stay in the second-level cache while every group of queries meets them; the
    scores of one group never leave the first.

    Args:
        chunk: Float32, read-only, of shape (rows, full).
        first_row: Corpus row of the first row of `chunk`.
        tile: Rows per tile, a multiple of `BLOCK`.
        queries: The queries.
        widths: Ascending prefix widths.
        best: Updated.
        num_kept: Candidates kept when a list is full.
    """
    panels = np.zeros((tile // LANES, widths[-1], LANES), np.float32)
    norms = np.zeros((len(widths), tile), np.float32)
    dots = np.empty((GROUP, tile), np.float32)
    num_queries = queries.norms.shape[1]
    for tile_start in range(0, len(chunk), tile):
        rows = chunk[tile_start : tile_start + tile]
        pack_rows(rows, widths, panels, norms)
        used = panels[: (len(rows) + LANES - 1) // LANES]
        for group in range(len(queries.panels)):
            first_query = group * GROUP
            dots[:] = 0
            start = 0
            for w in range(len(widths)):
                multiply_group(used, queries.panels[group], start, widths[w], dots)
                start = widths[w]
                for q in range(first_query, min(first_query + GROUP, num_queries)):
                    scan_scores(
                        dots[q - first_query],
                        norms[w],
                        queries.norms[w, q],
                        first_row + tile_start,
                        len(rows),
                        best,
                        w,
                        q,
                        num_kept,
                    )


@_compile()
@no_type_check
def score_few(
    chunk: np.ndarray,
    first_row: int,
    tile: int,
    queries: Queries,
    widths: np.ndarray,
    best: Best,
    num_kept: int,
) -> None:
    """Do the same as `score_many` in one plain reading of `chunk`, for a handful of queries."""
    num_queries = queries.norms.shape[1]
    dots = np.zeros((len(widths), num_queries, tile), np.float32)
    norms = np.zeros((len(widths), tile), np.float32)
    for tile_start in range(0, len(chunk), tile):
        rows = chunk[tile_start : tile_start + tile]
        dot_rows(rows, queries.rows, widths, dots, norms)
        for w in range(len(widths)):
            for q in range(num_queries):
                scan_scores(
                    dots[w, q],
                    norms[w],
                    queries.norms[w, q],
                    first_row + tile_start,
                    len(rows),
                    best,
                    w,
                    q,
                    num_kept,
                )
