import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.core import normalize, prefix_norms, take_prefix
from nestling.errors import DimensionError
from tests.core.strategies import float32_matrices, vectors_and_dims


@given(vectors_and_dims(), st.booleans())
def test_a_prefix_of_a_prefix_is_a_prefix(
    drawn: tuple[np.ndarray, list[int]], renormalize: bool
) -> None:
    vectors, dims = drawn
    wide = take_prefix(vectors, dims[-1], renormalize=renormalize)
    once = take_prefix(vectors, dims[0], renormalize=renormalize)
    twice = take_prefix(wide, dims[0], renormalize=renormalize)
    # Coordinates that are faint beside the rest of a wide prefix lose digits in it.
    np.testing.assert_allclose(twice, once, atol=1e-6)


@given(float32_matrices())
def test_normalize_gives_unit_rows_and_leaves_zero_rows(vectors: np.ndarray) -> None:
    vectors[0] = 0
    before = vectors.copy()
    unit = normalize(vectors)
    norms = np.linalg.norm(unit.astype(np.float64), axis=1)
    np.testing.assert_allclose(norms, vectors.any(axis=1).astype(float), atol=1e-6)
    np.testing.assert_array_equal(vectors, before)
    assert unit.dtype == np.float32


def test_a_prefix_is_a_copy() -> None:
    vectors = np.ones((2, 4), np.float32)
    take_prefix(vectors, 2, renormalize=False)[:] = 7
    np.testing.assert_array_equal(vectors, 1)


def test_leading_axes_are_kept() -> None:
    vectors = np.arange(24, dtype=np.float64).reshape(2, 3, 4)
    np.testing.assert_array_equal(take_prefix(vectors, 2, renormalize=False), vectors[..., :2])
    with pytest.raises(DimensionError, match="got 5"):
        take_prefix(vectors, 5, renormalize=True)


def test_float16_rows_whose_squares_overflow_are_normalized_all_the_same() -> None:
    vectors = np.array([[300.0, 400.0], [3e-4, 4e-4]], np.float16)
    assert normalize(vectors).dtype == np.float16
    np.testing.assert_allclose(normalize(vectors), np.array([[0.6, 0.8]] * 2), atol=1e-3)
    expected = np.array([[300, 500], [3e-4, 5e-4]])
    np.testing.assert_allclose(prefix_norms(vectors, [1, 2]), expected, rtol=2e-3)


@given(vectors_and_dims(), st.sampled_from(["float16", "float32", "float64"]))
def test_prefix_norms_equal_the_norm_of_each_prefix(
    drawn: tuple[np.ndarray, list[int]], dtype: str
) -> None:
    vectors, dims = drawn
    vectors = vectors.astype(dtype)
    norms = prefix_norms(vectors, dims)
    assert norms.dtype == (np.float64 if dtype == "float64" else np.float32)
    for column, dim in enumerate(dims):
        expected = np.linalg.norm(vectors[:, :dim].astype(np.float64), axis=1)
        np.testing.assert_allclose(norms[:, column], expected, rtol=1e-5, atol=1e-6)
