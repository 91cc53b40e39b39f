"""The best rows so far, judged by a full sort."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nestling.core import top_k
from nestling.search.engines.running_top_k import RunningTopK


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


@given(
    scores=st.lists(st.lists(st.integers(-3, 3), min_size=2, max_size=2), max_size=60),
    k=st.integers(1, 20),
    cut=st.integers(0, 60),
)
def test_two_halves_are_merged(scores: list[list[int]], k: int, cut: int) -> None:
    matrix = np.array(scores, dtype=np.float32).reshape(-1, 2).T
    first, second = RunningTopK(2, k), RunningTopK(2, k)
    first.offer(matrix[:, :cut], 0)
    second.offer(matrix[:, cut:], min(cut, matrix.shape[1]))
    second.merge(first)
    expected = top_k(matrix, k)
    np.testing.assert_array_equal(second.result().rows, expected.rows)


def test_a_score_of_minus_infinity_never_enters() -> None:
    scores = np.full((1, 50), -np.inf, dtype=np.float32)
    scores[0, [7, 9]] = 1.0
    best = RunningTopK(1, 5)
    best.offer(scores, 0)
    best.offer(scores, 50)
    assert best.result().rows[0].tolist() == [7, 9, 57, 59, -1]
