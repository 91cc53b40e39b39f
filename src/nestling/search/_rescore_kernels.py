"""The compiled loops of `rescore`; importing this module imports numba.

While one row is scored, the next ones are fetched: a shortlist is in no order that the processor could
guess. The NumPy twins that judge these loops stand in `tests/search/test_rescore.py`.
"""

from typing import no_type_check

import numpy as np

from nestling.core._kernels import _compile, keep_best, make_key, score_of_key
from nestling.search._row_kernels import (
    BLOCK_DIMS,
    TAIL_BYTES,
    Layout,
    address_of,
    fetch_row,
    lay_out,
    score_row,
)

FETCHED_BYTES = 8192
"""How far ahead rows are fetched: what memory delivers while it is waited for."""

_LAST_ROW = (1 << 32) - 1


@_compile()
@no_type_check
def fold_queries(queries: np.ndarray, scale: np.ndarray, factor: float, folded: np.ndarray) -> None:
    """Write query prefixes of unit length, times a factor and the scale (which may be empty)."""
    dim = folded.shape[1]
    for q in range(len(queries)):
        square = 0.0
        for j in range(np.uint64(dim)):
            square += np.float64(queries[q, j]) * np.float64(queries[q, j])
        inverse = np.float32(factor / np.sqrt(square)) if square > 0 else np.float32(0)
        for j in range(np.uint64(dim)):
            folded[q, j] = queries[q, j] * inverse
        if len(scale) > 0:
            for j in range(np.uint64(dim)):
                folded[q, j] *= scale[j]


@_compile()
@no_type_check
def score_shortlists(
    layout: Layout,
    norms: np.ndarray,
    folded: np.ndarray,
    shortlists: np.ndarray,
    scores: np.ndarray,
) -> int:
    """Score the rows on the shortlist of every query.

    Args:
        layout: Where and how rows lie.
        norms: Of all rows; empty if they are 1, or taken on the way.
        folded: Queries, of shape (queries, dim).
        shortlists: Row numbers, of shape (queries, kept); -1 marks an empty place.
        scores: Written, of the same shape; minus infinity for an empty place.

    Returns:
        How many rows were scored; -1 if there is no row of some number.
    """
    laid_out, constants = lay_out(layout.kind, folded)
    num_blocks = np.uint64(folded.shape[1] // BLOCK_DIMS[layout.kind])
    tail = np.zeros(TAIL_BYTES, np.uint8)
    norms_at = address_of(norms)
    ahead = max(1, FETCHED_BYTES // max(1, layout.num_bytes))
    num_scored = 0
    for q in range(len(shortlists)):
        # Addresses are taken inside of the loop: behind its last use an array is given back.
        query = np.uint64(laid_out.ctypes.data) + np.uint64(4 * q * laid_out.shape[1])
        tail_at = np.uint64(tail.ctypes.data)
        for i in range(-ahead, shortlists.shape[1]):
            if i + ahead < shortlists.shape[1]:
                next_row = shortlists[q, i + ahead]
                if next_row >= layout.num_rows:
                    return -1
                if next_row >= 0:
                    fetch_row(layout, norms_at, next_row)
            if i >= 0:
                row = shortlists[q, i]
                if row < 0:
                    scores[q, i] = -np.inf
                else:
                    scores[q, i] = score_row(
                        layout, norms_at, row, query, constants[q], num_blocks, tail_at
                    )
                    num_scored += 1
    return num_scored


@_compile()
@no_type_check
def write_best(keys: np.ndarray, num_keys: int, rows: np.ndarray, scores: np.ndarray) -> None:
    """Write the rows and scores of the greatest keys, the greatest first, and fill up with none."""
    k = len(rows)
    num_kept = min(k, num_keys)
    if 0 < num_kept < num_keys:
        keep_best(keys[:num_keys], num_kept)
    kept = keys[:num_kept]
    kept.sort()
    for i in range(num_kept):
        key = kept[num_kept - 1 - i]
        rows[i] = np.int64(_LAST_ROW) - np.int64(key & np.uint64(_LAST_ROW))
        scores[i] = score_of_key(key)
    rows[num_kept:] = -1
    scores[num_kept:] = -np.inf


@_compile()
@no_type_check
def pick_best(
    shortlists: np.ndarray, scores: np.ndarray, best_rows: np.ndarray, best_scores: np.ndarray
) -> None:
    """Write the best rows of every shortlist, best first, ties to the lower row.

    Args:
        shortlists: Row numbers, of shape (queries, kept); -1 marks an empty place.
        scores: Theirs.
        best_rows: Written, of shape (queries, k); -1 behind the last.
        best_scores: Written, likewise; minus infinity behind the last.
    """
    keys = np.empty(shortlists.shape[1], np.uint64)
    for q in range(len(shortlists)):
        num_keys = 0
        for i in range(shortlists.shape[1]):
            if shortlists[q, i] >= 0:
                # Adding zero turns -0 into 0, which must tie with it.
                keys[num_keys] = make_key(scores[q, i] + np.float32(0), shortlists[q, i])
                num_keys += 1
        write_best(keys, num_keys, best_rows[q], best_scores[q])


@_compile()
@no_type_check
def rank_products(
    queries: np.ndarray,
    norms: np.ndarray,
    shortlists: np.ndarray,
    products: np.ndarray,
    best_rows: np.ndarray,
    best_scores: np.ndarray,
) -> None:
    """Turn products of queries and rows into cosines, and write the best as `pick_best` does.

    Args:
        queries: Not zero, of any length.
        norms: Of all rows; empty if they are 1.
        shortlists: Row numbers, of shape (queries, kept); -1 marks an empty place, and so does a 0
            behind the first.
        products: Of a query and each row on its shortlist.
        best_rows: Written, of shape (queries, k); -1 behind the last.
        best_scores: Written, likewise; minus infinity behind the last.
    """
    keys = np.empty(shortlists.shape[1], np.uint64)
    for q in range(len(queries)):
        square = 0.0
        for j in range(np.uint64(queries.shape[1])):
            square += np.float64(queries[q, j]) * np.float64(queries[q, j])
        inverse = np.float32(1 / np.sqrt(square))
        num_keys = num_zeros = 0
        for i in range(shortlists.shape[1]):
            row = shortlists[q, i]
            num_zeros += row == 0
            if row > 0 or (row == 0 and num_zeros == 1):
                score = products[q, i] * inverse
                if len(norms) > 0:
                    score /= norms[row]
                keys[num_keys] = make_key(score + np.float32(0), row)
                num_keys += 1
        write_best(keys, num_keys, best_rows[q], best_scores[q])


@_compile()
@no_type_check
def rank_shortlists(
    layout: Layout,
    norms: np.ndarray,
    folded: np.ndarray,
    shortlists: np.ndarray,
    best_rows: np.ndarray,
    best_scores: np.ndarray,
) -> int:
    """Do what `score_shortlists` does and then `pick_best`: one call, which counts for one query."""
    scores = np.empty(shortlists.shape, np.float32)
    num_scored = score_shortlists(layout, norms, folded, shortlists, scores)
    if num_scored >= 0:
        pick_best(shortlists, scores, best_rows, best_scores)
    return num_scored


@_compile()
@no_type_check
def scan_rows(
    layout: Layout,
    norms: np.ndarray,
    folded: np.ndarray,
    chosen: np.ndarray,
    start: int,
    stop: int,
    best_rows: np.ndarray,
    best_scores: np.ndarray,
) -> None:
    """Write the best of some rows for every query, best first, ties to the lower row.

    Each row is read once for all queries.

    Args:
        layout: Where and how rows lie.
        norms: Of all rows; empty if they are 1, or taken on the way.
        folded: Queries, of shape (queries, dim).
        chosen: Row numbers, ascending; empty for all rows.
        start: First place in `chosen`, or first row.
        stop: One after the last.
        best_rows: Written, of shape (queries, k); -1 behind the last.
        best_scores: Written, likewise; minus infinity behind the last.
    """
    laid_out, constants = lay_out(layout.kind, folded)
    num_blocks = np.uint64(folded.shape[1] // BLOCK_DIMS[layout.kind])
    tail = np.zeros(TAIL_BYTES, np.uint8)
    norms_at = address_of(norms)
    ahead = max(1, FETCHED_BYTES // max(1, layout.num_bytes))
    num_queries, k = best_rows.shape
    capacity = 2 * k
    keys = np.empty((num_queries, capacity), np.uint64)
    counts = np.zeros(num_queries, np.int64)
    thresholds = np.full(num_queries, -np.inf, np.float32)
    for i in range(start, stop):
        if i + ahead < stop:
            fetch_row(layout, norms_at, chosen[i + ahead] if len(chosen) > 0 else i + ahead)
        row = chosen[i] if len(chosen) > 0 else i
        tail_at = np.uint64(tail.ctypes.data)
        for q in range(num_queries):
            query = np.uint64(laid_out.ctypes.data) + np.uint64(4 * q * laid_out.shape[1])
            score = score_row(layout, norms_at, row, query, constants[q], num_blocks, tail_at)
            score += np.float32(0)
            if score > thresholds[q]:
                keys[q, counts[q]] = make_key(score, row)
                counts[q] += 1
                if counts[q] == capacity:
                    keep_best(keys[q], k)
                    counts[q] = k
                    thresholds[q] = score_of_key(keys[q, k - 1])
    for q in range(num_queries):
        write_best(keys[q], counts[q], best_rows[q], best_scores[q])
