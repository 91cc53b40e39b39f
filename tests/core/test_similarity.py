import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.core import cosine_scores, nested_pair_cosines, rescore
from nestling.errors import DimensionError
from tests.core.strategies import vectors_and_dims


def cosine(left: np.ndarray, right: np.ndarray) -> float:
    norms = np.linalg.norm(left) * np.linalg.norm(right)
    return float(left @ right / norms) if norms > 0 else 0.0


@given(vectors_and_dims())
def test_cosine_scores_compare_every_pair_of_prefixes(
    drawn: tuple[np.ndarray, list[int]],
) -> None:
    vectors, dims = drawn
    queries, corpus = vectors[::-1], vectors.copy()
    corpus[-1] = 0
    for dim in dims:
        scores = cosine_scores(queries, corpus, dim)
        exact = [
            [cosine(q[:dim], row[:dim]) for row in corpus.astype(np.float64)]
            for q in queries.astype(np.float64)
        ]
        np.testing.assert_allclose(scores, exact, atol=1e-5)


@given(vectors_and_dims())
def test_nested_pair_cosines_equal_each_width_by_itself(
    drawn: tuple[np.ndarray, list[int]],
) -> None:
    left, dims = drawn
    right = left[::-1].copy()
    right[0] = 0
    cosines = nested_pair_cosines(left, right, dims)
    for column, dim in enumerate(dims):
        expected = np.diag(cosine_scores(left, right, dim))
        np.testing.assert_allclose(cosines[:, column], expected, atol=1e-5)


def test_float16_pairs_are_summed_in_float32() -> None:
    left = np.full((1, 4096), 100, np.float16)
    cosines = nested_pair_cosines(left, left, [1, 4096])
    assert cosines.dtype == np.float32
    np.testing.assert_allclose(cosines, 1, atol=1e-6)


def test_widths_are_checked() -> None:
    vectors = np.ones((2, 4), np.float32)
    with pytest.raises(DimensionError, match="got 5"):
        nested_pair_cosines(vectors, vectors, [2, 5])
    with pytest.raises(DimensionError, match="got 5"):
        cosine_scores(vectors, vectors, 5)


@given(vectors_and_dims(), st.integers(0, 5), st.integers(0, 9))
def test_rescore_gathers_what_cosine_scores_computes(
    drawn: tuple[np.ndarray, list[int]], kept: int, seed: int
) -> None:
    corpus, dims = drawn
    corpus[0] = 0
    generator = np.random.default_rng(seed)
    queries = generator.standard_normal((7, corpus.shape[1]), dtype=np.float32)
    shortlist = generator.integers(-1, len(corpus), (7, kept))
    for dim in dims:
        scores = rescore(queries, corpus, shortlist, dim)
        every = cosine_scores(queries, corpus, dim)
        expected = np.where(
            shortlist < 0, -np.inf, np.take_along_axis(every, np.maximum(shortlist, 0), axis=1)
        )
        np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_rescore_gives_the_same_in_many_chunks() -> None:
    generator = np.random.default_rng(0)
    corpus = generator.standard_normal((50, 1024), dtype=np.float32)
    queries = generator.standard_normal((40, 1024), dtype=np.float32)
    shortlist = generator.integers(0, 50, (40, 300))
    scores = rescore(queries, corpus, shortlist, 1024)
    every = cosine_scores(queries, corpus, 1024)
    np.testing.assert_allclose(scores, np.take_along_axis(every, shortlist, axis=1), atol=1e-5)
