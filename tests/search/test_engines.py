"""Every engine in the table, judged by a full sort of all cosines."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.core import (
    Dtype,
    Int4Codec,
    Int8Codec,
    TopK,
    cosine_scores,
    random_rotation,
    top_k,
    unpack_nibbles,
    unpack_signs,
)
from nestling.errors import FormatError, MissingExtraError
from nestling.search import Engine, Tier, derive_tier, engine_class, open_tier
from nestling.search.engines import DEFAULT_ENGINE, ENGINES
from nestling.search.engines.flat import RunningTopK
from tests.search.support import DTYPES, random_rows, tied_rows

DIM = 16
NUM_ROWS = 300


def make_tier(rows: np.ndarray, folder: Path, dtype: Dtype, dim: int = DIM) -> Tier:
    if len(rows) == 0:
        rows = rows.reshape(0, rows.shape[1])
    folder.mkdir(parents=True, exist_ok=True)
    derive_tier(rows, folder, dim=dim, dtype=dtype)
    return open_tier(rows, folder, dim=dim, dtype=dtype)


def judge(tier: Tier, queries: np.ndarray, k: int) -> TopK:
    """The naive twin: decode everything, score everything, sort everything."""
    if tier.dtype is Dtype.BINARY:
        values = unpack_signs(tier.codes, tier.dim)
    elif tier.dtype is Dtype.ROTATED_BINARY:
        values = unpack_signs(tier.codes, tier.dim)
        queries = queries[:, : tier.dim] @ random_rotation(tier.dim)
    elif tier.dtype is Dtype.INT4:
        assert tier.scale is not None
        values = Int4Codec(tier.scale).decode(unpack_nibbles(tier.codes, tier.dim))
    elif tier.scale is not None:
        values = Int8Codec(tier.scale).decode(tier.codes)
    else:
        values = tier.codes.astype(np.float32)
    return top_k(cosine_scores(queries[:, : tier.dim], values, tier.dim), k)


def assert_same_best(found: TopK, expected: TopK, *, atol: float) -> None:
    np.testing.assert_allclose(found.scores, expected.scores, atol=atol)
    # Where two neighbours score the same but for rounding, either may come first.
    gaps = np.diff(expected.scores, axis=1, append=-np.inf, prepend=np.inf)
    clear = (np.abs(gaps[:, 1:]) > 2 * atol) & (np.abs(gaps[:, :-1]) > 2 * atol)
    clear |= expected.rows < 0
    assert clear.mean() > 0.5
    np.testing.assert_array_equal(found.rows[clear], expected.rows[clear])


@pytest.fixture(params=sorted(ENGINES))
def engine(request: pytest.FixtureRequest) -> type[Engine]:
    return engine_class(request.param)


@pytest.fixture(params=DTYPES)
def tier(request: pytest.FixtureRequest, tmp_path: Path) -> Tier:
    return make_tier(random_rows(NUM_ROWS, 40), tmp_path / "tier", request.param)


def tolerance(tier: Tier) -> float:
    # The rounding of a float16 row changes its length a little, which its stored form ignores.
    return 1e-3 if tier.dtype is Dtype.FLOAT16 else 1e-6


def test_finds_what_a_full_sort_finds(engine: type[Engine], tier: Tier) -> None:
    queries = random_rows(7, 40, seed=1)
    found = engine.build(tier).search(queries, 10)
    assert found.rows.shape == found.scores.shape == (7, 10)
    assert found.rows.dtype == np.int64
    assert found.scores.dtype == np.float32
    if "binary" in tier.dtype:  # 2^16 possible rows: ties everywhere, judged below
        np.testing.assert_allclose(found.scores, judge(tier, queries, 10).scores, atol=1e-6)
    elif tier.dtype is Dtype.FLOAT16:
        np.testing.assert_allclose(found.scores, judge(tier, queries, 10).scores, atol=1e-3)
    else:
        assert_same_best(found, judge(tier, queries, 10), atol=1e-6)


def test_borrowed_rows_of_any_length_are_compared_by_angle(
    engine: type[Engine], tmp_path: Path
) -> None:
    rows, queries = random_rows(NUM_ROWS, 40), random_rows(7, 40, seed=1)
    tier = make_tier(rows, tmp_path / "tier", Dtype.FLOAT32, dim=40)
    assert tier.is_borrowed
    assert_same_best(engine.build(tier).search(queries, 10), judge(tier, queries, 10), atol=1e-6)


@pytest.mark.parametrize("k", [1, 10, NUM_ROWS - 1, NUM_ROWS, NUM_ROWS + 5])
def test_places_beyond_the_rows_are_empty(engine: type[Engine], tier: Tier, k: int) -> None:
    queries = random_rows(3, 40, seed=1)
    found = engine.build(tier).search(queries, k)
    num_found = min(k, NUM_ROWS)
    assert found.rows.shape == (3, k)
    assert (found.rows[:, :num_found] >= 0).all()
    assert (found.rows[:, num_found:] == -1).all()
    assert np.isneginf(found.scores[:, num_found:]).all()
    assert all(len(set(rows[:num_found])) == num_found for rows in found.rows)
    np.testing.assert_allclose(found.scores, judge(tier, queries, k).scores, atol=tolerance(tier))


@pytest.mark.parametrize("dtype", DTYPES)
def test_ties_go_to_the_lower_row(engine: type[Engine], dtype: Dtype, tmp_path: Path) -> None:
    # Exact are int4 steps of 1, as rows of 7 have them, and a rotation in one dimension.
    size = 7.0 if dtype is Dtype.INT4 else 1.0
    dim = 1 if dtype is Dtype.ROTATED_BINARY else DIM
    tier = make_tier(size * tied_rows(NUM_ROWS, DIM), tmp_path / "tier", dtype, dim)
    queries = tied_rows(20, DIM, seed=1)
    if dtype is Dtype.INT8:  # its norms are not exact, but equal codes score the same
        tier = make_tier(np.repeat(tied_rows(3, DIM), 100, axis=0), tmp_path / "few", dtype)
        rows = engine.build(tier).search(queries, 100).rows
        assert (np.sort(rows % 100) == np.arange(100)).all()
        np.testing.assert_array_equal(rows, np.sort(rows))
        return
    for k in (1, 10, 200):
        found = engine.build(tier).search(queries, k)
        expected = judge(tier, queries, k)
        np.testing.assert_array_equal(found.scores, expected.scores)
        np.testing.assert_array_equal(found.rows, expected.rows)


def test_one_query_finds_what_it_finds_in_a_batch(engine: type[Engine], tier: Tier) -> None:
    queries = random_rows(600, 40, seed=1)
    built = engine.build(tier)
    batch = built.search(queries, 10)
    for number in (0, 255, 256, 599):
        alone = built.search(queries[number : number + 1], 10)
        np.testing.assert_allclose(alone.scores[0], batch.scores[number], atol=1e-6)
    again = built.search(queries, 10)
    np.testing.assert_array_equal(again.rows, batch.rows)


def test_no_queries_find_nothing(engine: type[Engine], tier: Tier) -> None:
    found = engine.build(tier).search(np.empty((0, 40), np.float32), 10)
    assert found.rows.shape == found.scores.shape == (0, 10)


def test_a_prefix_is_query_enough(engine: type[Engine], tier: Tier) -> None:
    queries = random_rows(5, 40, seed=1)
    built = engine.build(tier)
    wide, narrow = built.search(queries, 10), built.search(queries[:, :DIM].copy(), 10)
    np.testing.assert_array_equal(wide.rows, narrow.rows)


def test_queries_are_not_written_to(engine: type[Engine], tier: Tier) -> None:
    queries = random_rows(5, 40, seed=1)
    before = queries.copy()
    engine.build(tier).search(queries, 10)
    np.testing.assert_array_equal(queries, before)


@pytest.mark.parametrize("num_first", [0, 1, 150, NUM_ROWS])
def test_added_rows_are_found_as_if_built_at_once(
    engine: type[Engine], tier: Tier, num_first: int
) -> None:
    first = Tier(
        dim=tier.dim,
        dtype=tier.dtype,
        codes=tier.codes[:num_first],
        norms=None if tier.norms is None else tier.norms[:num_first],
        scale=tier.scale,
    )
    queries = random_rows(7, 40, seed=1)
    grown = engine.build(first)
    grown.search(queries, 10)
    grown.add(tier)
    at_once = engine.build(tier)
    np.testing.assert_array_equal(grown.search(queries, 10).rows, at_once.search(queries, 10).rows)


def test_adding_nothing_changes_nothing(engine: type[Engine], tier: Tier) -> None:
    queries = random_rows(7, 40, seed=1)
    built = engine.build(tier)
    before = built.search(queries, 10)
    built.add(tier)
    np.testing.assert_array_equal(built.search(queries, 10).rows, before.rows)


def test_saved_and_loaded_finds_the_same(engine: type[Engine], tier: Tier, tmp_path: Path) -> None:
    queries = random_rows(7, 40, seed=1)
    built = engine.build(tier)
    names = built.save(tmp_path)
    assert all((tmp_path / name).is_file() for name in names)
    loaded = engine.load(tmp_path, tier)
    for one, other in zip(built.search(queries, 10), loaded.search(queries, 10), strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_engine_is_named_as_in_the_table() -> None:
    assert {name: engine_class(name).name for name in ENGINES} == {name: name for name in ENGINES}
    assert DEFAULT_ENGINE in ENGINES


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(FormatError, match=r"`engine` must be one of flat, got 'warp'"):
        engine_class("warp")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {"flat": ("no_such_package", "FlatEngine", "fast")}
    monkeypatch.setattr("nestling.search.engines.ENGINES", table)
    with pytest.raises(MissingExtraError, match=r"no_such_package.*nestling\[fast\]"):
        engine_class("flat")


@given(
    scores=st.lists(st.lists(st.integers(-3, 3), min_size=3, max_size=3), max_size=60),
    k=st.integers(1, 20),
    cuts=st.lists(st.integers(0, 60), max_size=6),
)
def test_running_top_k_equals_a_full_sort(scores: list[list[int]], k: int, cuts: list[int]) -> None:
    matrix = np.array(scores, dtype=np.float32).reshape(-1, 3).T
    best = RunningTopK(3, k)
    for start, stop in itertools.pairwise(sorted({0, *cuts, 60})):
        best.offer(matrix[:, start:stop], start)
    found, expected = best.result(), top_k(matrix, k)
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.scores, expected.scores)


def test_running_top_k_keeps_scores_to_the_last_bit() -> None:
    scores = np.concatenate([[0.0, -0.0, 1e-45, -1e-45], np.random.default_rng(0).normal(size=96)])
    best = RunningTopK(1, 100)
    best.offer(scores.astype(np.float32)[None], 0)
    found, expected = best.result(), top_k(scores.astype(np.float32)[None], 100)
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(found.rows, expected.rows)


def test_running_top_k_takes_ever_better_scores() -> None:
    scores = np.arange(5000, dtype=np.float32)[None].repeat(2, axis=0)
    best = RunningTopK(2, 7)
    for start in range(0, 5000, 500):
        best.offer(scores[:, start : start + 500], start)
    np.testing.assert_array_equal(best.result().rows, top_k(scores, 7).rows)
