"""Each compiled loop of the nested engine against its NumPy twin."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit, types
from numba.extending import intrinsic

from nestling.search.nested import _kernels as kernels
from nestling.search.nested import _products
from nestling.search.nested._products import FETCHED_ROWS
from nestling.search.nested.bands import LEVELS, SLOTS, WORDS, Bands, fit_bands
from nestling.search.nested.proof import GRID, unit_rows
from tests.search.test_nested import exact_scores, float_tier, nested_rows


def slots_of(records: np.ndarray) -> np.ndarray:
    """The nibbles of records, by slot."""
    words = records[:, : WORDS - 2].astype(np.int64)
    return np.concatenate([words >> 4 * k & 15 for k in range(4)], axis=1)


def weights_by_slot(weights: np.ndarray) -> np.ndarray:
    return weights[:, : WORDS - 2].reshape(-1).astype(np.int64)


def random_records(num_rows: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 1 << 16, (num_rows, WORDS), np.uint16)


def random_weights(num_queries: int, num_bands: int) -> np.ndarray:
    shape = (num_queries, num_bands, 4, WORDS)
    weights = np.random.default_rng(1).integers(-32_767, 32_768, shape).astype(np.int16)
    weights[..., WORDS - 2 :] = 0
    return weights


def twin_bounds(
    records: np.ndarray, weights: np.ndarray, terms: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    sums = slots_of(records) @ weights_by_slot(weights)
    scores = terms[kernels.FACTOR] * sums + terms[kernels.OFFSET]
    widths = (
        terms[kernels.ERROR_FACTOR] * records[:, -2] + terms[kernels.REST_FACTOR] * records[:, -1]
    )
    return scores, scores + widths + terms[kernels.SLACK]


TERMS = np.array([1e-7, 0.1, 1e-6, 2e-6, 1e-4])


@pytest.mark.parametrize("num_rows", [1, 5, kernels.TILE_ROWS, kernels.TILE_ROWS + 3])
def test_scan_band(num_rows: int) -> None:
    records, weights = random_records(num_rows), random_weights(3, 2)
    scores, bounds = np.full((2, 4, num_rows), np.nan, np.float32)
    kernels.scan_band(records, weights, np.tile(TERMS, (3, 2, 1)), scores, bounds)
    for q in range(3):
        expected = twin_bounds(records, weights[q, 0], TERMS)
        np.testing.assert_allclose(scores[q], expected[0], atol=1e-6)
        np.testing.assert_allclose(bounds[q], expected[1], atol=1e-6)
    assert np.isnan(scores[3]).all()


@pytest.mark.parametrize("num_rows", [0, 1, 40, kernels.TILE_ROWS + 9])
def test_scan_rows(num_rows: int) -> None:
    records, weights = random_records(4000), random_weights(1, 1)[0, 0]
    chosen = np.sort(np.random.default_rng(2).choice(4000, num_rows, replace=False))
    before = np.random.default_rng(3).random(num_rows).astype(np.float32)
    room = num_rows + FETCHED_ROWS
    rows, scores, bounds = (
        np.zeros(room, np.int64),
        np.zeros(room, np.float32),
        np.zeros(room, np.float32),
    )
    rows[:num_rows], scores[:num_rows] = chosen, before
    added, widened = twin_bounds(records[chosen], weights, TERMS)
    expected = (before + added, before + widened)
    threshold = float(np.median(expected[1])) if num_rows else 0.0
    num_kept, largest = kernels.scan_rows(
        records, weights, TERMS, threshold, rows, num_rows, scores, bounds, -np.inf
    )
    is_kept = expected[1].astype(np.float32) >= np.float32(threshold)
    assert abs(num_kept - is_kept.sum()) <= 1
    kept = np.isin(chosen, rows[:num_kept])
    np.testing.assert_allclose(scores[:num_kept], expected[0][kept], atol=1e-6)
    np.testing.assert_allclose(bounds[:num_kept], expected[1][kept], atol=1e-6)
    dropped = expected[1][~kept]
    assert largest == pytest.approx(dropped.max() if len(dropped) else -np.inf)


@given(
    bounds=st.lists(st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 1.0]), max_size=40),
    threshold=st.sampled_from([-2.0, 0.0, 0.7, 3.0]),
)
def test_what_reaches_the_threshold_is_kept(bounds: list[float], threshold: float) -> None:
    given_bounds = np.array(bounds, np.float32)
    given_scores = np.arange(len(bounds), dtype=np.float32)
    room = len(bounds) + 1
    work = np.zeros(room, np.int64), np.zeros(room, np.float32), np.zeros(room, np.float32)
    num_kept, largest = kernels.keep_reaching(threshold, given_scores, given_bounds, *work)
    expected = np.flatnonzero(given_bounds >= threshold)
    np.testing.assert_array_equal(work[0][:num_kept], expected)
    np.testing.assert_array_equal(work[1][:num_kept], given_scores[expected])
    np.testing.assert_array_equal(work[2][:num_kept], given_bounds[expected])
    assert largest == max((each for each in bounds if each < threshold), default=-np.inf)
    again, _ = kernels.keep_left(0.6, *work, num_kept, -np.inf)
    np.testing.assert_array_equal(work[0][:again], expected[given_bounds[expected] >= 0.6])


@given(
    scores=st.lists(st.integers(-3, 3), max_size=400),
    num_best=st.integers(1, 90),
    seed=st.integers(0, 9),
)
def test_best_places(scores: list[int], num_best: int, seed: int) -> None:
    values = np.array(scores, np.float32)
    values[np.random.default_rng(seed).random(len(values)) < 0.1] = -np.inf
    found = kernels.best_places(values, num_best)
    expected = np.lexsort((np.arange(len(values)), -values))[:num_best]
    np.testing.assert_array_equal(np.sort(found), np.sort(expected))


@pytest.mark.parametrize("dim", [1, 31, 32, 33, 200])
def test_score_rows(dim: int) -> None:
    rows = nested_rows(50, dim)
    rows[7] = 0
    query = nested_rows(1, dim, seed=1)
    places = np.array([7, 3, 3, 49])
    scores = np.empty(4)
    square = 0.0
    for value in query[0].tolist():
        square += value * value
    rows.flags.writeable = False
    query.flags.writeable = False
    kernels.score_rows(rows, places, query[0], square**0.5, scores)
    np.testing.assert_array_equal(scores, exact_scores(rows, query)[0, places])


def decode(records: np.ndarray, bands: Bands) -> np.ndarray:
    """Coordinates that the records of all bands stand for."""
    values = np.tile(bands.centres, (records.shape[1], 1))
    coarse = fine = 0
    for band in range(bands.num_bands):
        steps = slots_of(records[band]) - kernels.HALF
        num_coarse = bands.coarse_ends[band] - coarse
        num_fine = bands.fine_ends[band] - fine
        axes = slice(coarse, coarse + num_coarse)
        values[:, axes] += steps[:, :num_coarse] * bands.steps[axes]
        axes = slice(fine, fine + num_fine)
        values[:, axes] += steps[:, num_coarse : num_coarse + num_fine] * bands.steps[axes] / LEVELS
        coarse, fine = bands.coarse_ends[band], bands.fine_ends[band]
    return values


def test_records_decode_and_state_what_they_leave_out() -> None:
    rows = nested_rows(300, 200)
    rows[5] = 0
    bands = fit_bands(float_tier(rows), 2)
    unit, squares = unit_rows(rows)
    coordinates = unit @ bands.basis.astype(np.float64)
    records = np.zeros((2, 300, WORDS), np.uint16)
    kernels.write_records(
        coordinates.copy(),
        squares,
        bands.centres,
        bands.steps,
        bands.coarse_ends,
        bands.fine_ends,
        1e-6,
        1e-12,
        records,
    )
    errors = np.linalg.norm(decode(records, bands) - coordinates, axis=1)
    outside = np.sqrt(np.maximum(0, squares - (coordinates**2).sum(axis=1)) + 1e-6)
    for stated, length in ((records[1, :, -2], errors), (records[1, :, -1], outside)):
        assert (stated * GRID >= length).all()
        assert (stated * GRID <= length + 1.01 * GRID + 1e-9).all()


def test_prepared_weights_stand_for_the_query() -> None:
    rows, query = nested_rows(300, 200), nested_rows(1, 200, seed=2)
    query.flags.writeable = False
    bands = fit_bands(float_tier(rows), 2)
    turned = np.empty(bands.basis.shape[1])
    weights = np.empty((2, 4, WORDS), np.int16)
    terms = np.empty((2, kernels.NUM_TERMS))
    length = kernels.prepare(
        query[0],
        bands.basis,
        bands.centres,
        bands.steps,
        bands.coarse_ends,
        bands.fine_ends,
        1e-6,
        1e-5,
        turned,
        weights,
        terms,
    )
    unit = query[0].astype(np.float64) / np.linalg.norm(query[0].astype(np.float64))
    assert length == pytest.approx(np.linalg.norm(query[0].astype(np.float64)))
    np.testing.assert_allclose(turned, unit @ bands.basis.astype(np.float64), atol=1e-12)
    assert (weights[..., WORDS - 2 :] == 0).all()
    records = np.random.default_rng(0).integers(0, 1 << 16, (2, 50, WORDS), np.uint16)
    scores = sum(twin_bounds(records[band], weights[band], terms[band])[0] for band in (0, 1))
    expected = decode(records, bands) @ turned
    assert (np.abs(scores - expected) <= terms[1, kernels.SLACK]).all()
    inside = [(turned[:end] ** 2).sum() for end in bands.coarse_ends]
    np.testing.assert_allclose(terms[:, kernels.ERROR_FACTOR] / GRID, np.sqrt(np.add(inside, 1e-6)))
    rest = np.sqrt(1 - np.array(inside) + 1e-6)
    np.testing.assert_allclose(terms[:, kernels.REST_FACTOR] / GRID, rest)
    assert 1e-5 < terms[0, kernels.SLACK] < terms[1, kernels.SLACK] < 1e-3
    assert SLOTS == 4 * (WORDS - 2)


def test_the_plain_product_of_pairs_is_that_of_one_instruction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Machines without the instruction take the other way, which is compiled here in any case."""
    monkeypatch.setattr(_products, "_FEATURES", {})

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        records, weights, num_rows, sums, lengths = arguments
        _products._write_loop(builder, records, weights, None, num_rows, sums, lengths)
        return context.get_dummy_value()

    def typed(_: Any, records: Any, weights: Any, num_rows: Any, sums: Any, lengths: Any) -> Any:
        return types.void(*[types.intp] * 5), write

    multiply = intrinsic(typed)

    def run(records: Any, weights: Any, sums: Any, lengths: Any) -> None:
        multiply(
            records.ctypes.data,
            weights.ctypes.data,
            len(records),
            sums.ctypes.data,
            lengths.ctypes.data,
        )

    records, weights = random_records(50), random_weights(1, 1)[0, 0]
    sums, lengths = np.zeros(50, np.int32), np.zeros(50, np.uint32)
    njit(run)(records, weights, sums, lengths)
    np.testing.assert_array_equal(sums, slots_of(records) @ weights_by_slot(weights))
    np.testing.assert_array_equal(
        lengths, records[:, -2] + (records[:, -1].astype(np.uint32) << 16)
    )
