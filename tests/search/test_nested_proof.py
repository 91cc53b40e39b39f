"""The bound of every row and band against its float64 score."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling.search.nested import _kernels as kernels
from nestling.search.nested._products import FETCHED_ROWS
from nestling.search.nested.bands import SLOTS, Bands, fit_bands, most_bands
from nestling.search.nested.finder import Finder, Prepared
from nestling.search.nested.proof import measure_excess, unit_rows
from nestling.search.nested.records import empty_records, encode_rows
from tests.search.test_nested import exact_scores, float_tier, judge, nested_rows


def make_finder(bands: Bands, rows: np.ndarray) -> Finder:
    tier = float_tier(rows)
    records = empty_records(bands.num_bands, len(rows))
    encode_rows(tier, bands, records, 0)
    return Finder(tier, bands, records)


def all_bounds(
    finder: Finder, queries: np.ndarray, *, with_slack: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and bounds of shape (bands, queries, rows)."""
    queries.flags.writeable = False
    prepared = finder.prepare(queries)
    if not with_slack:
        prepared.terms[:, :, kernels.SLACK] = 0.0
    num_rows, num_bands = finder.num_rows, finder.bands.num_bands
    scores = np.empty((num_bands, len(queries), num_rows + FETCHED_ROWS), np.float32)
    bounds = np.empty_like(scores)
    for q in range(len(queries)):
        so_far = np.zeros(num_rows + FETCHED_ROWS, np.float32)
        for band in range(num_bands):
            kept, _ = kernels.scan_rows(
                finder.records[band],
                prepared.weights[q, band],
                prepared.terms[q, band],
                -np.inf,
                np.arange(num_rows + FETCHED_ROWS),
                num_rows,
                so_far,
                bounds[band, q],
                -np.inf,
            )
            assert kept == num_rows
            scores[band, q] = so_far
    return scores[:, :, :num_rows], bounds[:, :, :num_rows]


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    dim=st.sampled_from([1, 2, 3, 8, 31, 119, 125, 250]),
    num_fitted=st.sampled_from([0, 1, 5, 300]),
    spread=st.sampled_from([0.0, 1.0, 3.0]),
)
def test_no_bound_is_below_its_score(seed: int, dim: int, num_fitted: int, spread: float) -> None:
    generator = np.random.default_rng(seed)
    scales = np.exp(spread * generator.standard_normal(dim))
    rows = (generator.standard_normal((200, dim)) * scales).astype(np.float32)
    rows[0] = 0
    fitted = (generator.standard_normal((num_fitted, dim)) * scales).astype(np.float32)
    queries = np.concatenate([rows[1:5], fitted[:3], -rows[5:6]])
    finder = make_finder(fit_bands(float_tier(fitted), 64), rows)
    _, bounds = all_bounds(finder, queries)
    assert (bounds >= exact_scores(rows, queries)[None]).all()


def test_bounds_close_in_band_by_band() -> None:
    rows, queries = nested_rows(500, 300), nested_rows(5, 300, seed=1)
    finder = make_finder(fit_bands(float_tier(rows), 64), rows)
    scores, bounds = all_bounds(finder, queries)
    widths = (bounds - scores).mean(axis=(1, 2))
    assert (np.diff(widths) < 0).all()
    assert widths[-1] < 0.05
    assert (np.abs(scores - exact_scores(rows, queries)) <= bounds - scores).all()


def test_a_basis_that_is_not_orthogonal_is_paid_for() -> None:
    rows = nested_rows(500, 40)
    bands = fit_bands(float_tier(rows), 64)
    longer = (bands.basis * 1.03).astype(np.float32)
    told = replace(bands, basis=longer, excess=measure_excess(longer))
    queries = -rows[:50]
    expected = exact_scores(rows, queries)
    assert (all_bounds(make_finder(told, rows), queries.copy())[1] >= expected).all()
    untold = replace(told, excess=0.0)
    assert (all_bounds(make_finder(untold, rows), queries.copy())[1] < expected).any()


def test_without_the_slack_a_best_row_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((20_000, 2)).astype(np.float32)
    queries = generator.standard_normal((200, 2)).astype(np.float32)
    bands = fit_bands(float_tier(rows), 1)
    # A row whose bound misses its score, and one that scores in between and looks better at first.
    scores, bounds = (
        part[0] for part in all_bounds(make_finder(bands, rows), queries, with_slack=False)
    )
    exact = exact_scores(rows, queries)
    pairs = []
    for q in range(len(queries)):
        lost = int(np.argmax(exact[q] - bounds[q]))
        between = (exact[q] > bounds[q, lost]) & (exact[q] < exact[q, lost])
        pairs += [
            (q, lost, int(row)) for row in np.flatnonzero(between & (scores[q] > scores[q, lost]))
        ]
    q, lost, rival = pairs[0]
    case = np.concatenate([np.repeat(rows[rival : rival + 1], 100, axis=0), rows[lost : lost + 1]])
    query = queries[q : q + 1].copy()
    np.testing.assert_array_equal(judge(case, query, 1)[0], [[100]])
    finder = make_finder(bands, case)
    np.testing.assert_array_equal(finder.find(query, 1, None).rows, [[100]])
    prepare = Finder.prepare

    def prepare_without(self: Finder, given: np.ndarray) -> Prepared:
        prepared = prepare(self, given)
        prepared.terms[:, :, kernels.SLACK] = 0.0
        return prepared

    monkeypatch.setattr(Finder, "prepare", prepare_without)
    np.testing.assert_array_equal(finder.find(query, 1, None).rows, [[0]])


@pytest.mark.parametrize(("dim", "num_bands"), [(1, 1), (60, 1), (61, 2), (256, 2), (256, 5)])
def test_bands_hold_every_nibble_once(dim: int, num_bands: int) -> None:
    bands = fit_bands(float_tier(nested_rows(400, dim)), num_bands)
    assert bands.num_bands == num_bands
    held = bands.coarse_ends + bands.fine_ends
    np.testing.assert_array_equal(held, np.minimum(SLOTS * np.arange(1, num_bands + 1), 2 * dim))
    assert (np.diff(bands.coarse_ends, prepend=0) >= 0).all()
    assert (bands.fine_ends <= bands.coarse_ends).all()
    assert bands.basis.shape == (dim, bands.coarse_ends[-1])
    assert (num_bands == most_bands(dim)) == (held[-1] == 2 * dim)


def test_the_basis_is_orthonormal_but_for_its_excess() -> None:
    basis = fit_bands(float_tier(nested_rows(400, 90)), 2).basis
    excess = measure_excess(basis)
    wide = basis.astype(np.float64)
    assert np.linalg.norm(wide.T @ wide - np.eye(basis.shape[1]), 2) <= excess < 1e-5


def test_unit_rows_and_zero_rows() -> None:
    rows = np.array([[3, 4], [0, 0], [1e-30, 0], [1e30, 1e30]], np.float32)
    unit, squares = unit_rows(rows)
    np.testing.assert_array_equal(squares, [1, 0, 1, 1])
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), squares, atol=1e-15)
