"""The compiled scores against NumPy."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.core import Dtype, TopK, top_k
from nestling.core.row_sums import row_sums
from nestling.errors import FormatError
from nestling.search import _rescore_kernels as kernels
from nestling.search import rescore
from nestling.search.rescore import RowScorer, norms_of, pick_best, rank_products
from nestling.search.rowfile import CheckedRows
from nestling.search.tier import Tier, derive_tier, raw_tier
from nestling.search.unpack import widen_float16

DTYPES = tuple(Dtype)
WIDTHS = [1, 7, 8, 13, 16, 31, 32, 64, 65, 100, 200]


def random_rows(num_rows: int, dim: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((num_rows, dim)) * generator.uniform(0.5, 2.0, (num_rows, 1))
    return rows.astype(np.float32)


def slow_scores(tier: Tier, folded: np.ndarray, shortlists: np.ndarray) -> np.ndarray:
    """Unpack everything, multiply in float64, divide by the norms."""
    values = tier.unpack(0, len(tier)).astype(np.float64)
    scores = folded.astype(np.float64) @ values.T
    if tier.norms is not None:
        scores /= tier.norms
    if tier.is_raw:
        norms = np.linalg.norm(values, axis=1)
        scores /= np.where(norms == 0, 1.0, norms)
    chosen = np.take_along_axis(scores, np.maximum(shortlists, 0), axis=1)
    return np.where(shortlists < 0, -np.inf, chosen)


def tiers(dim: int, num_rows: int = 60) -> dict[str, Tier]:
    rows = random_rows(num_rows, 200)
    rows[3] = 0.0
    halves = rows.astype(np.float16)
    derived = {dtype.value: derive_tier(rows, dim=dim, dtype=dtype) for dtype in DTYPES}
    return derived | {
        "raw float32": raw_tier(rows, dim),
        "raw float16": raw_tier(halves, dim),
        "borrowed float32": derive_tier(rows[:, :dim].copy(), dim=dim, dtype=Dtype.FLOAT32),
        "borrowed float16": derive_tier(halves[:, :dim].copy(), dim=dim, dtype=Dtype.FLOAT16),
    }


@pytest.mark.parametrize("dim", WIDTHS)
def test_scores_are_what_numpy_says(dim: int) -> None:
    queries = random_rows(3, 200, seed=1)
    shortlists = np.random.default_rng(2).integers(-1, 60, (3, 25))
    for name, tier in tiers(dim).items():
        folded = tier.fold(queries)
        scores = RowScorer(tier).score(folded, shortlists)
        expected = slow_scores(tier, folded, shortlists)
        np.testing.assert_allclose(scores, expected, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("dim", [1, 13, 64, 200])
def test_the_best_are_the_best_of_all_scores(dim: int) -> None:
    queries = random_rows(3, 200, seed=1)
    shortlists = np.argsort(np.random.default_rng(2).random((3, 60)), axis=1)[:, :30]
    shortlists[1, 5:20] = -1
    shortlists[2] = -1
    for name, tier in tiers(dim).items():
        scorer, folded = RowScorer(tier), tier.fold(queries)
        for k in (1, 10, 30, 40):
            found, num_scored = scorer.best(folded, shortlists, k)
            expected = top_k(scorer.score(folded, shortlists), k, rows=shortlists)
            np.testing.assert_array_equal(found.rows, expected.rows, err_msg=name)
            np.testing.assert_array_equal(found.scores, expected.scores, err_msg=name)
            assert num_scored == 30 + 15


@pytest.mark.parametrize("dim", [8, 13, 64])
@pytest.mark.parametrize("num_queries", [1, 3])
def test_a_scan_finds_the_best_of_the_rows_it_is_given(dim: int, num_queries: int) -> None:
    queries = random_rows(num_queries, 200, seed=1)
    chosen = np.flatnonzero(np.random.default_rng(3).random(400) < 0.3)
    for name, tier in tiers(dim, num_rows=400).items():
        scorer, folded = RowScorer(tier), tier.fold(queries)
        everything = np.broadcast_to(np.arange(400), (num_queries, 400))
        scores = scorer.score(folded, everything)
        for k in (1, 7, 500):
            parts = {
                "all": (scorer.scan(folded, k), everything),
                "span": (scorer.scan(folded, k, start=30, stop=390), everything[:, 30:390]),
                "rows": (scorer.scan(folded, k, rows=chosen), everything[:, chosen]),
                "some": (scorer.scan(folded, k, rows=chosen, start=9), everything[:, chosen[9:]]),
                "none": (scorer.scan(folded, k, start=7, stop=7), everything[:, :0]),
            }
            for part, (found, rows) in parts.items():
                expected = top_k(np.take_along_axis(scores, rows, axis=1), k, rows=rows)
                np.testing.assert_array_equal(found.rows, expected.rows, err_msg=f"{name} {part}")
                np.testing.assert_array_equal(found.scores, expected.scores)


def test_equal_rows_score_equally_wherever_they_are_and_the_lower_one_wins() -> None:
    rows = np.repeat(random_rows(1, 200), 60, axis=0)
    for dtype in DTYPES:
        tier = derive_tier(rows, dim=77, dtype=dtype)
        scorer, folded = RowScorer(tier), tier.fold(random_rows(1, 200, seed=1))
        shuffled = np.random.default_rng(0).permutation(60)[None]
        found, _ = scorer.best(folded, shuffled, 20)
        np.testing.assert_array_equal(found.rows, np.arange(20)[None])
        assert len(np.unique(found.scores)) == 1
        np.testing.assert_array_equal(scorer.scan(folded, 20).rows, np.arange(20)[None])


@given(
    scores=st.lists(st.sampled_from([-2.5, -1.0, -0.0, 0.0, 0.5, 1.0]), min_size=1, max_size=40),
    k=st.integers(1, 50),
    data=st.data(),
)
def test_picking_is_a_full_sort(scores: list[float], k: int, data: st.DataObject) -> None:
    places = data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)))
    rows = np.random.default_rng(k).permutation(1000)[: len(scores)]
    rows = np.where(places, rows, -1)[None].astype(np.int64)
    numbers = np.array([scores], np.float32)
    found, expected = pick_best(rows, numbers, k), top_k(numbers, k, rows=rows)
    assert isinstance(found, TopK)
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.scores, expected.scores)


def test_products_become_cosines() -> None:
    rows, queries = random_rows(60, 32), random_rows(3, 32, seed=1)
    tier = derive_tier(rows, dim=32, dtype=Dtype.FLOAT32)
    shortlists = (
        np.random.default_rng(2).permuted(np.tile(np.arange(60), (3, 1)), axis=1)[:, :25].copy()
    )
    shortlists[1, 4:7] = -1
    products = np.take_along_axis(queries @ rows.T, shortlists, axis=1)
    found = rank_products(queries, norms_of(tier), shortlists, products, 9)
    unit = tier.fold(queries)
    expected = top_k(slow_scores(tier, unit, shortlists).astype(np.float32), 9, rows=shortlists)
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)
    query = 2 * np.eye(1, 8, dtype=np.float32)
    shortlists, products = np.array([[9, 0, -1, 5, 0]]), np.array([[0.5, 1, 9, 3, 9]], np.float32)
    found = rank_products(query, rescore._NO_NORMS, shortlists, products, 4)
    assert found.rows.tolist() == [[5, 0, 9, -1]]
    assert found.scores[0, :3].tolist() == [1.5, 0.5, 0.25]


def test_the_largest_row_number_is_kept() -> None:
    rows = np.array([[(1 << 32) - 1, 5]])
    found = pick_best(rows, np.array([[1.0, 1.0]], np.float32), 2)
    assert found.rows.tolist() == [[5, (1 << 32) - 1]]


def test_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rescore, "BYTES_PER_THREAD", 1)
    queries = random_rows(7, 200, seed=1)
    shortlists = np.random.default_rng(2).integers(-1, 60, (7, 25))
    for tier in tiers(64).values():
        scorer, folded = RowScorer(tier), tier.fold(queries)
        one, three = (scorer.score(folded, shortlists, num_threads=n) for n in (1, 3))
        np.testing.assert_array_equal(one, three)
        found, other = (scorer.scan(folded, 9, num_threads=n) for n in (1, 3))
        np.testing.assert_array_equal(found.rows, other.rows)
        assert (
            scorer.best(folded, shortlists, 5, num_threads=3).num_scored == (shortlists >= 0).sum()
        )


def test_every_finite_half_is_widened_exactly() -> None:
    numbers = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    halves = numbers[np.isfinite(numbers)][:, None]
    tier = raw_tier(halves, 1)
    weighed = Tier(dim=1, dtype=Dtype.FLOAT16, codes=tier.codes)  # of length 1, it is told
    scores = RowScorer(weighed).score(
        np.ones((1, 1), np.float32), np.arange(len(halves), dtype=np.int64)[None]
    )
    np.testing.assert_array_equal(scores[0], widen_float16(halves)[:, 0])


def test_a_row_that_is_not_there_is_refused() -> None:
    tier = derive_tier(random_rows(10, 16), dim=16, dtype=Dtype.INT8)
    folded = tier.fold(random_rows(1, 16))
    with pytest.raises(FormatError, match=r"found row 10, but there are 10 rows.*build the index"):
        RowScorer(tier).best(folded, np.array([[3, 10]]), 2)


def test_mapped_rows_are_checked_before_they_are_scored(tmp_path: Path) -> None:
    rows = random_rows(20, 32)
    row_sums(rows).tofile(tmp_path / "sums.bin")
    rows[7, 3] += 1.0
    rows.tofile(tmp_path / "vectors.bin")
    checked = CheckedRows(tmp_path / "vectors.bin", tmp_path / "sums.bin", rows.shape, np.float32)
    tier = raw_tier(checked.rows, 16, checked=checked)
    scorer, folded = RowScorer(tier), tier.fold(random_rows(1, 32))
    scorer.best(folded, np.array([[3, 19, -1]]), 2)
    scorer.scan(folded, 3, start=8)
    scorer.scan(folded, 3, rows=np.array([1, 2, 9]))
    with pytest.raises(FormatError, match=r"vectors\.bin is damaged: row 7"):
        scorer.best(folded, np.array([[3, 7]]), 2)
    with pytest.raises(FormatError, match=r"vectors\.bin is damaged: row 7"):
        scorer.scan(folded, 3)
    with pytest.raises(FormatError, match=r"vectors\.bin is damaged: row 7"):
        scorer.scan(folded, 3, rows=np.array([5, 7]))


def test_kernels_are_compiled_for_one_kind_of_arrays() -> None:
    for tier in tiers(16).values():
        scorer, queries = RowScorer(tier), random_rows(4, 200)
        queries.flags.writeable = False
        folded = tier.fold(queries[::2])
        shortlists = np.broadcast_to(np.arange(9), (2, 9))
        scorer.best(folded, shortlists, 4)
        scorer.scan(folded, 4, rows=shortlists[0])
        scorer.score(folded, shortlists)
        pick_best(shortlists, np.broadcast_to(np.float32(0.5), (2, 9)), 4)
        rank_products(
            queries[::2],
            norms_of(tier),
            np.ascontiguousarray(shortlists),
            np.ones((2, 9), np.float32),
            4,
        )
    for kernel in (
        kernels.fold_queries,
        kernels.pick_best,
        kernels.rank_products,
        kernels.rank_shortlists,
        kernels.scan_rows,
        kernels.score_shortlists,
    ):
        assert len(kernel.signatures) == 1, kernel
