"""The compiled loops of the nested engine; importing this module imports numba.

A record is 32 words of 16 bits. Word w < 30 holds four nibbles, nibble k being slot 30 k + w; words 30
and 31 hold the lengths of `proof`. All 32 words take part in the product, the last two times zero: a
row's product is four shifts and four multiplications of one register, and no row needs a
mask. Sums of integers are exact in any order. NumPy twins stand in `tests/search/test_nested_kernels.py`.
"""

import math
from typing import no_type_check

import numpy as np

from nestling.core._kernels import _compile, keep_best, make_key, score_of_key
from nestling.search.nested._products import FETCHED_ROWS, multiply_records, multiply_scattered
from nestling.search.nested.bands import LEVELS, SLOT_WORDS, SLOTS, WORDS
from nestling.search.nested.proof import GRID

HALF = (LEVELS - 1) / 2
"""The middle of a nibble: a nibble n stands for n - HALF steps."""

NUM_NIBBLES = 4
"""In a word."""

MOST_WEIGHT = 32_767
FACTOR, OFFSET, ERROR_FACTOR, REST_FACTOR, SLACK = range(5)
"""What `prepare` writes per band: score += FACTOR * sum + OFFSET; the rest widens the bound."""

NUM_TERMS = 5
LANES = 32
"""Sums that a float64 score is taken in, side by side, before they are added up."""

TILE_ROWS = 1024
_LOW_32_BITS = (1 << 32) - 1


@_compile()
@no_type_check
def write_records(
    coordinates: np.ndarray,
    squares: np.ndarray,
    centres: np.ndarray,
    steps: np.ndarray,
    coarse_ends: np.ndarray,
    fine_ends: np.ndarray,
    spare: float,
    eta: float,
    records: np.ndarray,
) -> None:
    """Cut the coordinates of unit rows into nibbles, and take what they leave out.

    Args:
        coordinates: Float64, of shape (n, axes); what is not decoded is left in its place.
        squares: Squared length of each row: 1, or 0 for a zero row.
        centres: Per axis.
        steps: Per axis.
        coarse_ends: Per band.
        fine_ends: Per band.
        spare: What the square of a length outside the axes may be larger by.
        eta: What the length of an error may be larger by.
        records: Written: uint16, all zero, of shape (bands, n, WORDS).
    """
    for i in range(len(coordinates)):
        row = coordinates[i]
        inside, coarse, fine = 0.0, 0, 0
        for band in range(len(coarse_ends)):
            slot = 0
            record = records[band, i]
            while coarse < coarse_ends[band]:
                inside += row[coarse] * row[coarse]
                error = row[coarse] - centres[coarse]
                nibble = min(max(math.floor(error / steps[coarse]) + LEVELS / 2, 0.0), LEVELS - 1.0)
                row[coarse] = error - steps[coarse] * (nibble - HALF)
                record[slot % SLOT_WORDS] |= np.uint16(
                    np.uint16(nibble) << (4 * (slot // SLOT_WORDS))
                )
                coarse += 1
                slot += 1
            while fine < fine_ends[band]:
                step = steps[fine] / LEVELS
                nibble = min(max(math.floor(row[fine] / step) + LEVELS / 2, 0.0), LEVELS - 1.0)
                row[fine] -= step * (nibble - HALF)
                record[slot % SLOT_WORDS] |= np.uint16(
                    np.uint16(nibble) << (4 * (slot // SLOT_WORDS))
                )
                fine += 1
                slot += 1
            error = 0.0
            for axis in range(coarse):
                error += row[axis] * row[axis]
            outside = max(0.0, squares[i] - inside) + spare
            record[SLOT_WORDS] = np.uint16(math.ceil((math.sqrt(error) + eta) / GRID))
            record[SLOT_WORDS + 1] = np.uint16(math.ceil((math.sqrt(outside) + eta) / GRID))


@_compile()
@no_type_check
def prepare(
    query: np.ndarray,
    basis: np.ndarray,
    centres: np.ndarray,
    steps: np.ndarray,
    coarse_ends: np.ndarray,
    fine_ends: np.ndarray,
    spare: float,
    slack: float,
    turned: np.ndarray,
    weights: np.ndarray,
    terms: np.ndarray,
) -> float:
    """Turn a query to the axes, and return its length.

    Args:
        query: Float32, of shape (dim,), of any length.
        basis: Float32, of shape (dim, axes).
        centres: Per axis.
        steps: Per axis.
        coarse_ends: Per band.
        fine_ends: Per band.
        spare: As in `write_records`.
        slack: What every bound is widened by.
        turned: Written: the unit query's coordinates, float64, of shape (axes,).
        weights: Written: int16, of shape (bands, 4, WORDS).
        terms: Written: float64, of shape (bands, NUM_TERMS).
    """
    square = 0.0
    for j in range(len(query)):
        square += np.float64(query[j]) * np.float64(query[j])
    length = math.sqrt(square)
    turned[:] = 0.0
    if length > 0.0:
        for j in range(np.uint64(len(query))):
            factor = np.float64(query[j]) / length
            row = basis[j]
            for axis in range(np.uint64(len(turned))):
                turned[axis] += factor * np.float64(row[axis])
    inside, coarse, fine = 0.0, 0, 0
    values = np.zeros(SLOTS)
    for band in range(len(coarse_ends)):
        slot, offset = 0, 0.0
        values[:] = 0.0
        while coarse < coarse_ends[band]:
            inside += turned[coarse] * turned[coarse]
            offset += turned[coarse] * centres[coarse]
            values[slot] = turned[coarse] * steps[coarse]
            coarse += 1
            slot += 1
        while fine < fine_ends[band]:
            values[slot] = turned[fine] * (steps[fine] / LEVELS)
            fine += 1
            slot += 1
        largest = 0.0
        for j in range(SLOTS):
            largest = max(largest, abs(values[j]))
        factor = largest / MOST_WEIGHT if largest > 0.0 else 1.0
        total = 0
        weights[band] = 0
        for j in range(SLOTS):
            weight = math.floor(values[j] / factor + 0.5)
            slack += HALF * abs(values[j] - factor * weight)
            total += weight
            weights[band, j // SLOT_WORDS, j % SLOT_WORDS] = np.int16(weight)
        terms[band, FACTOR] = factor
        terms[band, OFFSET] = offset - HALF * factor * total
        terms[band, ERROR_FACTOR] = GRID * math.sqrt(inside + spare)
        terms[band, REST_FACTOR] = GRID * math.sqrt(max(0.0, 1.0 - inside) + spare)
        terms[band, SLACK] = slack
    return length


@_compile()
@no_type_check
def add_sums(
    sums: np.ndarray,
    lengths: np.ndarray,
    num_rows: int,
    terms: np.ndarray,
    scores: np.ndarray,
    bounds: np.ndarray,
    start: int,
) -> None:
    """Turn products into scores and bounds.

    Args:
        sums: Int32, the products.
        lengths: Uint32, the last two words of each record.
        num_rows: How many count.
        terms: Of the query and the band, float64, of shape (NUM_TERMS,).
        scores: Float32; updated from `start` on.
        bounds: Float32; written from `start` on.
        start: The place of the first row in `scores` and `bounds`.
    """
    factor, offset, slack = terms[FACTOR], terms[OFFSET], terms[SLACK]
    error_factor, rest_factor = terms[ERROR_FACTOR], terms[REST_FACTOR]
    first = np.uint64(start)
    for i in range(np.uint64(num_rows)):
        score = np.float64(scores[first + i]) + (factor * np.float64(sums[i]) + offset)
        error = error_factor * np.float64(np.int32(lengths[i] & np.uint32(0xFFFF)))
        rest = rest_factor * np.float64(np.int32(lengths[i] >> np.uint32(16)))
        scores[first + i] = np.float32(score)
        bounds[first + i] = np.float32(score + (error + rest + slack))


@_compile()
@no_type_check
def scan_band(
    records: np.ndarray,
    weights: np.ndarray,
    terms: np.ndarray,
    scores: np.ndarray,
    bounds: np.ndarray,
) -> None:
    """Score the first band of every row for some queries, tile by tile.

    Args:
        records: Uint16, of shape (rows, WORDS).
        weights: Int16, of shape (queries, bands, 4, WORDS).
        terms: Float64, of shape (queries, bands, NUM_TERMS).
        scores: Written: float32, of shape (queries or more, rows): what the band adds to the score.
        bounds: Written, likewise: what the score cannot exceed.
    """
    sums, lengths = np.empty(TILE_ROWS, np.int32), np.empty(TILE_ROWS, np.uint32)
    for start in range(0, len(records), TILE_ROWS):
        num_rows = min(TILE_ROWS, len(records) - start)
        for q in range(len(weights)):
            # Addresses, and no slices: counting the references to a slice costs more than the call.
            multiply_records(
                records.ctypes.data + 2 * WORDS * start,
                weights[q].ctypes.data,
                num_rows,
                sums.ctypes.data,
                lengths.ctypes.data,
            )
            scores[q, start : start + num_rows] = 0.0
            add_sums(sums, lengths, num_rows, terms[q, 0], scores[q], bounds[q], start)


@_compile()
@no_type_check
def scan_rows(
    records: np.ndarray,
    weights: np.ndarray,
    terms: np.ndarray,
    threshold: float,
    rows: np.ndarray,
    num_rows: int,
    scores: np.ndarray,
    bounds: np.ndarray,
    largest_dropped: float,
) -> tuple[int, float]:
    """Score one more band of some rows, and keep those whose bound reaches the threshold.

    Args:
        records: Of the band, uint16, of shape (all rows, WORDS).
        weights: Of the band, int16, of shape (4, WORDS).
        terms: Of the band, float64, of shape (NUM_TERMS,).
        threshold: What a bound must reach.
        rows: Int64, with `FETCHED_ROWS` places more than rows; those kept move to the front.
        num_rows: How many rows.
        scores: Float32, of the bands before; updated, and moved alike.
        bounds: Float32; written, and moved alike.
        largest_dropped: The largest bound that missed a threshold so far.

    Returns:
        How many were kept, and the new `largest_dropped`.
    """
    sums, lengths = np.empty(TILE_ROWS, np.int32), np.empty(TILE_ROWS, np.uint32)
    rows[num_rows : num_rows + FETCHED_ROWS] = 0
    num_kept = 0
    for start in range(0, num_rows, TILE_ROWS):
        num_here = min(TILE_ROWS, num_rows - start)
        multiply_scattered(
            records.ctypes.data,
            weights.ctypes.data,
            rows.ctypes.data + 8 * start,
            num_here,
            sums.ctypes.data,
            lengths.ctypes.data,
        )
        add_sums(sums, lengths, num_here, terms, scores, bounds, start)
        for i in range(start, start + num_here):
            bound = bounds[i]
            rows[num_kept], scores[num_kept], bounds[num_kept] = rows[i], scores[i], bound
            is_kept = bound >= threshold
            num_kept += is_kept
            largest_dropped = max(largest_dropped, -np.inf if is_kept else np.float64(bound))
    return num_kept, largest_dropped


@_compile()
@no_type_check
def keep_reaching(
    threshold: float,
    all_scores: np.ndarray,
    all_bounds: np.ndarray,
    rows: np.ndarray,
    scores: np.ndarray,
    bounds: np.ndarray,
) -> tuple[int, float]:
    """Gather the rows whose bound reaches the threshold.

    Args:
        threshold: What a bound must reach.
        all_scores: Float32, per row.
        all_bounds: Float32, per row; minus infinity for a row that is out.
        rows: Written: int64, as long as there are rows.
        scores: Written, likewise.
        bounds: Written, likewise.

    Returns:
        How many were gathered, and the largest bound that was not.
    """
    num_kept, largest_dropped = 0, np.float32(-np.inf)
    for row in range(len(all_bounds)):
        bound = all_bounds[row]
        rows[num_kept], scores[num_kept], bounds[num_kept] = row, all_scores[row], bound
        is_kept = bound >= threshold
        num_kept += is_kept
        largest_dropped = max(largest_dropped, np.float32(-np.inf) if is_kept else bound)
    return num_kept, np.float64(largest_dropped)


@_compile()
@no_type_check
def keep_left(
    threshold: float,
    rows: np.ndarray,
    scores: np.ndarray,
    bounds: np.ndarray,
    num_rows: int,
    largest_dropped: float,
) -> tuple[int, float]:
    """Keep those of some rows whose bound reaches the threshold, as `scan_rows` does."""
    num_kept = 0
    for i in range(num_rows):
        bound = bounds[i]
        rows[num_kept], scores[num_kept], bounds[num_kept] = rows[i], scores[i], bound
        is_kept = bound >= threshold
        num_kept += is_kept
        largest_dropped = max(largest_dropped, -np.inf if is_kept else np.float64(bound))
    return num_kept, largest_dropped


@_compile()
@no_type_check
def best_places(scores: np.ndarray, num_best: int) -> np.ndarray:
    """Return the places of the largest of some float32 scores, in no order; the lower one wins a tie."""
    num_best = min(num_best, len(scores))
    keys = np.empty(num_best + max(64, num_best), np.uint64)
    count, threshold = 0, np.float32(-np.inf)
    block = np.uint64(64)
    for start in range(np.uint64(0), np.uint64(len(scores)), block):
        stop = min(start + block, np.uint64(len(scores)))
        num_above = np.int32(0)
        for i in range(start, stop):
            num_above += np.int32(scores[i] >= threshold)
        if num_above == 0:
            continue
        for i in range(start, stop):
            if scores[i] >= threshold:
                keys[count] = make_key(scores[i], i)
                count += 1
                if count == len(keys):
                    keep_best(keys, num_best)
                    count = num_best
                    threshold = score_of_key(keys[num_best - 1])
    if count > num_best:
        keep_best(keys[:count], num_best)
    places = np.empty(num_best, np.int64)
    for j in range(num_best):
        places[j] = _LOW_32_BITS - np.int64(keys[j] & np.uint64(_LOW_32_BITS))
    return places


@_compile()
@no_type_check
def score_rows(
    matrix: np.ndarray, rows: np.ndarray, query: np.ndarray, length: float, scores: np.ndarray
) -> None:
    """Write the float64 cosines of some rows and a query, 0 where either is zero.

    Products of float32 numbers are exact in float64, and their sums are taken in one order: in `LANES`
    lanes, which are added up from the first to the last. Equal rows score the same.

    Args:
        matrix: Float32, read-only, of shape (all rows, dim or more).
        rows: Int64.
        query: Float32, of shape (dim,).
        length: Of the query.
        scores: Written: float64, per row.
    """
    dots, squares = np.zeros(LANES), np.zeros(LANES)
    dim = np.uint64(len(query))
    whole = dim - dim % np.uint64(LANES)
    for i in range(len(rows)):
        row = matrix[rows[i]]
        dots[:] = 0.0
        squares[:] = 0.0
        for start in range(np.uint64(0), whole, np.uint64(LANES)):
            for lane in range(np.uint64(LANES)):
                value = np.float64(row[start + lane])
                dots[lane] += value * np.float64(query[start + lane])
                squares[lane] += value * value
        for j in range(whole, dim):
            value = np.float64(row[j])
            dots[j - whole] += value * np.float64(query[j])
            squares[j - whole] += value * value
        dot, square = 0.0, 0.0
        for lane in range(np.uint64(LANES)):
            dot += dots[lane]
            square += squares[lane]
        lengths = math.sqrt(square) * length
        scores[i] = dot / lengths if lengths > 0.0 else 0.0
