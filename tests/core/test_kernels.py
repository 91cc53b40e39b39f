"""Each compiled loop against its NumPy twin."""

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.core import _kernels, prefix_norms
from nestling.core._candidates import Best, Queries, split_keys
from nestling.core._kernels import BLOCK, GROUP, LANES

WIDTHS = np.array([3, 8, 21])
FULL = 24
TILE = 2 * BLOCK


def draw_vectors(seed: int, rows: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, FULL), dtype=np.float32)
    vectors[rows // 2] = 0
    return vectors


def inverse_norms(vectors: np.ndarray) -> np.ndarray:
    norms = prefix_norms(vectors, WIDTHS.tolist()).T
    return np.divide(np.float32(1), norms, out=np.zeros_like(norms), where=norms > 0)


def nested_dots(queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.stack([queries[:, :width] @ rows[:, :width].T for width in WIDTHS])


def lay_out(queries: np.ndarray) -> Queries:
    num_groups = -(-len(queries) // GROUP)
    panels = np.zeros((num_groups, FULL, GROUP), np.float32)
    for q, query in enumerate(queries):
        panels[q // GROUP, :, q % GROUP] = query
    return Queries(queries, panels[:, : WIDTHS[-1]].copy(), inverse_norms(queries))


def empty_best(num_queries: int, capacity: int) -> Best:
    shape = (len(WIDTHS), num_queries)
    return Best(
        np.zeros((*shape, capacity), np.uint64),
        np.zeros(shape, np.int64),
        np.full(shape, -np.inf, np.float32),
    )


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("num_rows", [1, LANES - 1, TILE])
def test_pack_rows_turns_rows_over_and_takes_norms(num_rows: int) -> None:
    rows = draw_vectors(0, num_rows)
    panels = np.full((TILE // LANES, WIDTHS[-1], LANES), np.nan, np.float32)
    norms = np.full((len(WIDTHS), TILE), np.nan, np.float32)
    _kernels.pack_rows(read_only(rows), WIDTHS, panels, norms)
    turned = panels.transpose(0, 2, 1).reshape(TILE, WIDTHS[-1])
    np.testing.assert_array_equal(turned[:num_rows], rows[:, : WIDTHS[-1]])
    np.testing.assert_allclose(norms[:, :num_rows], inverse_norms(rows), rtol=1e-6)
    assert np.isnan(norms[:, num_rows:]).all()


def test_multiply_group_adds_a_band_of_products_and_touches_nothing_else() -> None:
    rows = np.random.default_rng(1).standard_normal((TILE, FULL), dtype=np.float32)
    queries = np.random.default_rng(2).standard_normal((3 * GROUP, FULL), dtype=np.float32)
    panels = rows.reshape(TILE // LANES, LANES, FULL).transpose(0, 2, 1).copy()
    query_panels = queries.reshape(3, GROUP, FULL).transpose(0, 2, 1).copy()
    dots = np.full((GROUP, TILE), 10, np.float32)
    num_panels = TILE // LANES - 1
    _kernels.multiply_group(panels, num_panels, query_panels, 1, 3, 20, dots)
    expected = np.full((GROUP, TILE), 10, np.float32)
    used = num_panels * LANES
    expected[:, :used] += queries[GROUP : 2 * GROUP, 3:20] @ rows[:used, 3:20].T
    np.testing.assert_allclose(dots, expected, atol=1e-5)
    np.testing.assert_array_equal(dots[:, used:], 10)


@pytest.mark.parametrize("depth", [1, 8, 300])
def test_equal_rows_get_equal_bits_in_every_lane(depth: int) -> None:
    row = np.random.default_rng(3).standard_normal((1, depth), dtype=np.float32)
    query = np.random.default_rng(4).standard_normal((1, depth), dtype=np.float32)
    panels = np.tile(row[..., None], (TILE // LANES, 1, LANES))
    query_panels = np.tile(query[..., None], (1, 1, GROUP))
    dots = np.zeros((GROUP, TILE), np.float32)
    _kernels.multiply_group(panels, TILE // LANES, query_panels, 0, 0, depth, dots)
    assert len(np.unique(dots)) == 1


@pytest.mark.parametrize("num_queries", [1, 4])
def test_dot_rows_takes_nested_products_and_norms(num_queries: int) -> None:
    rows, queries = draw_vectors(5, 100), draw_vectors(6, num_queries)
    dots = np.full((len(WIDTHS), num_queries, TILE), np.nan, np.float32)
    norms = np.full((len(WIDTHS), TILE), np.nan, np.float32)
    _kernels.dot_rows(read_only(rows), read_only(queries), WIDTHS, dots, norms)
    np.testing.assert_allclose(dots[:, :, :100], nested_dots(queries, rows), atol=1e-5)
    np.testing.assert_allclose(norms[:, :100], inverse_norms(rows), rtol=1e-6)


Candidate = tuple[float, int]
candidates = st.tuples(
    st.floats(-2, 2, width=32).map(lambda score: score + 0.0), st.integers(0, (1 << 32) - 1)
)


@given(candidates, candidates)
def test_keys_sort_by_score_and_then_by_lower_row(left: Candidate, right: Candidate) -> None:
    left_key, right_key = (_kernels.make_key(np.float32(s), row) for s, row in (left, right))
    better = (left[0], -left[1]) > (right[0], -right[1])
    assert (left_key > right_key) == better
    assert _kernels.score_of_key(np.uint64(left_key)) == np.float32(left[0])


@given(st.lists(candidates, min_size=1, max_size=20))
def test_split_keys_undoes_make_key(drawn: list[Candidate]) -> None:
    keys = np.array([[_kernels.make_key(np.float32(s), row) for s, row in drawn]], np.uint64)
    best = split_keys(keys)
    assert best.rows[0].tolist() == [row for _, row in drawn]
    assert best.scores[0].tolist() == [np.float32(score) for score, _ in drawn]


def test_an_empty_place_is_row_minus_one() -> None:
    best = split_keys(np.zeros((1, 1), np.uint64))
    assert best.rows.tolist() == [[-1]]
    assert best.scores.tolist() == [[-np.inf]]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=60), st.data())
def test_keep_best_selects_as_a_sort_would(numbers: list[int], data: st.DataObject) -> None:
    keys = np.array(numbers, np.uint64)
    num_kept = data.draw(st.integers(1, len(numbers)))
    _kernels.keep_best(keys, num_kept)
    ranked = sorted(numbers, reverse=True)
    assert sorted(keys[:num_kept].tolist(), reverse=True) == ranked[:num_kept]
    assert keys[num_kept - 1] == ranked[num_kept - 1]
    assert sorted(keys.tolist(), reverse=True) == ranked


@given(
    st.lists(st.sampled_from([-1.0, -0.0, 0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=TILE),
    st.integers(1, 10),
)
def test_scan_scores_keeps_what_a_sort_would(scores: list[float], num_kept: int) -> None:
    w, q = 1, 2
    dots = np.full((1, TILE), np.inf, np.float32)
    dots[0, : len(scores)] = np.array(scores, np.float32) * 4
    norms = np.full((len(WIDTHS), TILE), np.nan, np.float32)
    norms[w] = 0.5
    query_norms = np.full((len(WIDTHS), 3), np.nan, np.float32)
    query_norms[w, q] = 0.5
    best = empty_best(3, num_kept + 4)
    for first_row in (100, 100 + len(scores)):
        _kernels.scan_scores(dots, norms, query_norms, q, first_row, len(scores), best, w, num_kept)
    twice = scores + scores
    found = split_keys(np.sort(best.keys[w, q : q + 1, : best.counts[w, q]])[:, ::-1])
    order = sorted(range(len(twice)), key=lambda column: (-twice[column], column))[:num_kept]
    assert found.rows[0, :num_kept].tolist() == [100 + column for column in order]
    assert found.scores[0, :num_kept].tolist() == [twice[column] for column in order]
    assert best.counts.sum() == best.counts[w, q]


@pytest.mark.parametrize("kernel", [_kernels.score_few, _kernels.score_many])
@pytest.mark.parametrize("num_queries", [1, GROUP, GROUP + 1])
def test_the_two_ways_to_score_find_what_a_sort_finds(
    kernel: Callable[..., None], num_queries: int
) -> None:
    rows, queries = draw_vectors(7, 2 * TILE + 5), draw_vectors(8, num_queries)
    best = empty_best(num_queries, 40)
    kernel(read_only(rows), 1000, TILE, lay_out(read_only(queries)), WIDTHS, best, 7)
    cosines = nested_dots(queries, rows) * inverse_norms(queries)[:, :, None]
    cosines *= inverse_norms(rows)[:, None, :]
    for w in range(len(WIDTHS)):
        for q in range(num_queries):
            keys = np.sort(best.keys[w, q, : best.counts[w, q]])[::-1][:7]
            found = split_keys(keys[None])
            expected = np.sort(cosines[w, q])[::-1][:7]
            np.testing.assert_allclose(found.scores[0], expected, atol=1e-6)
            own = cosines[w, q, found.rows[0] - 1000]
            np.testing.assert_allclose(found.scores[0], own, atol=1e-6)


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout


def test_numba_is_imported_only_when_something_is_scored() -> None:
    assert run_python("import nestling.core, sys; print('numba' in sys.modules)") == "False\n"


def test_where_compiled_code_cannot_be_kept_it_is_compiled_anew() -> None:
    code = """
import numba.core.caching as caching
caching.CacheImpl._locator_classes = []
import numpy as np
from nestling.core import View, nested_top_k
corpus = np.eye(3, dtype=np.float32)
print(nested_top_k(corpus, [View(name="v", queries=corpus)], (3,), 1)["v"].by_dim[3].rows.tolist())
"""
    assert run_python(code) == "[[0], [1], [2]]\n"
