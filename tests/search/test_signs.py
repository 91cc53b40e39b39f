"""The compiled scan of packed signs, judged by NumPy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.core import pack_signs
from nestling.search.engines._signs_kernels import scan_signs
from nestling.search.engines.signs import code_query

NO_BITS = np.empty(0, np.uint8)


def random_signs(num_rows: int, dim: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Signs as numbers 0 or 1, and packed into words."""
    values = np.random.default_rng(seed).standard_normal((num_rows, dim)).astype(np.float32)
    packed = pack_signs(values)
    words = np.pad(packed, ((0, 0), (0, -packed.shape[1] % 8))).view(np.uint64)
    words.flags.writeable = False
    return (values > 0).astype(np.int64), words


def sums(is_set: np.ndarray, folded: np.ndarray) -> np.ndarray:
    """The naive twin: add up the codes at the set bits."""
    codes = np.rint(folded / (np.abs(folded).max() / 127)).astype(np.int64)
    return is_set @ codes


@pytest.mark.parametrize("dim", [1, 8, 63, 64, 65, 256, 1000])
@pytest.mark.parametrize("slack", [0, 25])
def test_finds_all_rows_in_reach_of_the_kth(dim: int, slack: int) -> None:
    is_set, words = random_signs(5000, dim)
    folded = np.random.default_rng(1).standard_normal(dim).astype(np.float32)
    planes = code_query(folded, words.shape[1]).planes
    expected = sums(is_set, folded)
    for num_wanted in (1, 10, 2000, 5000):
        least = np.sort(expected)[-num_wanted] - slack
        found = scan_signs(words, planes, NO_BITS, 0, 5000, num_wanted, slack)
        np.testing.assert_array_equal(np.sort(found), np.flatnonzero(expected >= least))


def test_rows_outside_the_span_or_the_bitmap_are_passed_over() -> None:
    is_set, words = random_signs(3000, 64)
    folded = np.random.default_rng(1).standard_normal(64).astype(np.float32)
    planes = code_query(folded, 1).planes
    mask = np.random.default_rng(2).random(3000) < 0.5
    bits = np.packbits(mask, bitorder="little")
    mask[:100] = mask[2900:] = False
    expected = np.where(mask, sums(is_set, folded), -(1 << 40))
    found = scan_signs(words, planes, bits, 100, 2900, 10, 0)
    np.testing.assert_array_equal(
        np.sort(found), np.flatnonzero(expected >= np.sort(expected)[-10])
    )


def test_thousands_of_equal_rows_are_all_in_reach() -> None:
    _, words = random_signs(1, 64)
    many = np.repeat(words, 20_000, axis=0)
    many.flags.writeable = False
    planes = code_query(np.ones(64, np.float32), 1).planes
    found = scan_signs(many, planes, NO_BITS, 0, 20_000, 3, 0)
    np.testing.assert_array_equal(np.sort(found), np.arange(20_000))


@given(
    values=st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=80),
    seed=st.integers(0, 1000),
)
def test_no_two_sums_are_further_from_the_order_of_the_scores_than_stated(
    values: list[float], seed: int
) -> None:
    folded = np.array(values, dtype=np.float32)
    num_words = -(-len(folded) // 64)
    slack = code_query(folded, num_words).slack
    is_set = np.random.default_rng(seed).integers(0, 2, (2, len(folded)))
    scores = (2 * is_set - 1) @ folded.astype(np.float64)
    if not folded.any():
        return
    codes = sums(is_set, folded)
    if scores[0] >= scores[1]:
        assert codes[0] >= codes[1] - slack
