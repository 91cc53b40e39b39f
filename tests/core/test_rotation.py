from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling.core import cosine_scores, pack_signs, random_rotation, rotate_prefix, unpack_signs
from nestling.core.rotation import MOST_BYTES, RotationCache
from nestling.errors import DimensionError


@given(st.integers(1, 80), st.integers(0, 5))
@settings(max_examples=30)
def test_a_random_rotation_is_orthogonal(dim: int, seed: int) -> None:
    rotation = random_rotation(dim, seed)
    assert rotation.dtype == np.float32
    wide = rotation.astype(np.float64)
    np.testing.assert_allclose(wide.T @ wide, np.eye(dim), atol=1e-6)


def test_it_is_the_same_for_ever() -> None:
    # An index on disk holds signs of rows that were turned by these numbers.
    np.testing.assert_allclose(
        random_rotation(3),
        [
            [0.42716035, 0.55802363, 0.71143776],
            [0.87685335, -0.4476283, -0.17537703],
            [0.22059515, 0.69874066, -0.680514],
        ],
        atol=1e-6,
    )
    assert np.abs(random_rotation(64, 1) - random_rotation(64)).max() > 0.1


def test_it_favours_no_direction() -> None:
    # Without the sign fix the diagonal would lean to one side.
    turned = np.array([np.diagonal(random_rotation(8, seed)) for seed in range(400)])
    assert (np.abs(turned.mean(axis=0)) < 4 / np.sqrt(8 * 400)).all()


def test_it_is_kept_and_cannot_be_written_to() -> None:
    assert random_rotation(16) is random_rotation(16)
    with pytest.raises(ValueError, match="read-only"):
        random_rotation(16)[0, 0] = 0.0


def test_those_that_are_kept_take_a_bounded_amount_of_memory() -> None:
    kept = RotationCache(most_bytes=8 * 3 * 16**2)
    one, two, three = (kept.get(16, seed) for seed in range(3))
    assert kept.num_bytes == 8 * 3 * 16**2
    assert kept.get(16, 0) is one
    assert kept.get(12, 0).matrix.shape == (12, 12), "the one unused for longest makes room"
    assert kept.num_bytes == 8 * (2 * 16**2 + 12**2)
    assert kept.get(16, 0) is one
    assert kept.get(16, 2) is three
    assert kept.get(16, 1) is not two
    wide = kept.get(40, 0)
    assert kept.get(40, 0) is wide, "the last one is kept, whatever it takes"
    assert kept.num_bytes == 8 * 40**2


def test_threads_share_one_rotation() -> None:
    kept = RotationCache(most_bytes=1 << 20)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: kept.get(32, 5), range(64)))
    assert len({id(projection) for projection in found}) == 1
    assert kept.num_bytes == 8 * 32**2


def test_halved_widths_of_a_wide_model_are_all_kept() -> None:
    # Training for rotated-binary codes goes through all of them at every step.
    dims = [3072 // 2**power for power in range(8)]
    assert sum(8 * dim**2 for dim in dims) <= MOST_BYTES


@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_a_rotated_prefix_is_the_plain_product_and_keeps_every_cosine(dim: int, seed: int) -> None:
    rows = np.random.default_rng(seed).standard_normal((9, 40)).astype(np.float32)
    rotated = rotate_prefix(rows, dim)
    plain = rows[:, :dim].astype(np.float64) @ random_rotation(dim).astype(np.float64)
    np.testing.assert_allclose(rotated, plain, atol=1e-5)
    np.testing.assert_allclose(
        cosine_scores(rotated, rotated, dim), cosine_scores(rows, rows, dim), atol=1e-5
    )


def test_a_row_gets_the_same_bits_whatever_is_beside_it() -> None:
    rows = np.random.default_rng(0).standard_normal((700, 40)).astype(np.float32)
    whole = rotate_prefix(rows, 33)
    pieces = [rotate_prefix(rows[start : start + 13], 33) for start in range(0, 700, 13)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_signs_say_more_about_a_sloping_prefix_once_it_is_rotated(
    nested_vectors: np.ndarray, nested_queries: np.ndarray
) -> None:
    # Variance falls by coordinate as 1 / position: bare signs spend most bits on what matters least.
    slope = 1 / np.sqrt(np.arange(1, 65, dtype=np.float32))
    corpus, queries = nested_vectors * slope, nested_queries * slope
    exact = cosine_scores(queries, corpus, 64).ravel()
    bare = cosine_scores(queries, unpack_signs(pack_signs(corpus), 64), 64).ravel()
    rotated = cosine_scores(
        rotate_prefix(queries, 64), unpack_signs(pack_signs(rotate_prefix(corpus, 64)), 64), 64
    ).ravel()
    assert np.corrcoef(rotated, exact)[0, 1] > np.corrcoef(bare, exact)[0, 1] + 0.05


@pytest.mark.parametrize("dim", [0, -3])
def test_a_width_below_one_is_refused(dim: int) -> None:
    with pytest.raises(DimensionError, match=f"`dim` must be at least 1, got {dim}"):
        random_rotation(dim)


def test_a_width_beyond_the_rows_is_refused() -> None:
    with pytest.raises(DimensionError, match=r"`dim` must lie in \[1, 4\].*got 5"):
        rotate_prefix(np.zeros((2, 4), np.float32), 5)
