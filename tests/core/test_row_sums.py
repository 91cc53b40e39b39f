"""The compiled sums against their NumPy twin."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.core.row_sums import (
    FIRST_SUM,
    as_bytes,
    first_damaged,
    first_damaged_between,
    multipliers,
    row_sums,
)


def slow_sums(rows: np.ndarray) -> np.ndarray:
    """Every row as 32-bit words, times the odd numbers."""
    content = np.ascontiguousarray(rows).view(np.uint8)
    padded = np.zeros((len(content), -(-content.shape[1] // 4) * 4), np.uint8)
    padded[:, : content.shape[1]] = content
    words = padded.view("<u4").astype(np.uint64)
    return FIRST_SUM + (words * multipliers(content.shape[1])).sum(axis=1, dtype=np.uint64)


def random_bytes(num_rows: int, num_bytes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num_rows, num_bytes), dtype=np.uint8)


@given(num_rows=st.integers(0, 5), num_bytes=st.integers(1, 600), seed=st.integers(0, 2**16))
def test_sums_are_what_the_twin_says(num_rows: int, num_bytes: int, seed: int) -> None:
    rows = random_bytes(num_rows, num_bytes, seed)
    np.testing.assert_array_equal(row_sums(rows), slow_sums(rows))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8, np.uint8])
def test_any_dtype_is_summed_by_its_bytes(dtype: type) -> None:
    rows: np.ndarray = random_bytes(7, 96).view(dtype)
    np.testing.assert_array_equal(row_sums(rows), slow_sums(random_bytes(7, 96)))


def test_rows_that_do_not_lie_back_to_back_are_summed_alike() -> None:
    rows = random_bytes(7, 96)
    np.testing.assert_array_equal(row_sums(rows[:, :50]), slow_sums(rows[:, :50]))
    np.testing.assert_array_equal(row_sums(rows[::2]), slow_sums(rows[::2]))


@pytest.mark.parametrize("num_bytes", [3, 64, 131, 300])
def test_every_flipped_bit_changes_the_sum(num_bytes: int) -> None:
    row = random_bytes(1, num_bytes)
    flips = np.packbits(np.eye(8 * num_bytes, dtype=bool), axis=1)
    assert (row_sums(row ^ flips) != row_sums(row)).all()


def test_rows_and_sums_that_are_holes_do_not_match() -> None:
    rows, sums, seen = np.zeros((3, 64), np.uint8), np.zeros(3, np.uint64), np.zeros(3, np.uint8)
    assert first_damaged_between(rows, sums, seen, 0, 3) == 0


def test_words_that_changed_places_change_the_sum() -> None:
    row = random_bytes(1, 64).view(np.uint32)
    assert row_sums(row[:, ::-1].copy()) != row_sums(row)


def test_the_factors_never_change() -> None:
    # Sums lie in files: other factors would call every one of these damaged.
    assert multipliers(12).tolist() == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F5,
        0x06C45D188009454F,
    ]
    assert (multipliers(40_000) & np.uint64(1)).all()


@given(
    damaged=st.sets(st.integers(0, 19), max_size=3),
    wanted=st.lists(st.integers(-1, 19), max_size=30),
    seed=st.integers(0, 100),
)
def test_the_first_damaged_of_the_wanted_rows_is_found(
    damaged: set[int], wanted: list[int], seed: int
) -> None:
    rows = random_bytes(20, 150, seed)
    sums, seen = row_sums(rows), np.zeros(20, np.uint8)
    for row in damaged:
        rows[row, row * 7] ^= 4
    expected = next((row for row in wanted if row in damaged), -1)
    assert first_damaged(rows, sums, seen, np.array(wanted, dtype=np.int64)) == expected
    before = wanted if expected < 0 else wanted[: wanted.index(expected)]
    assert set(np.flatnonzero(seen)) == {row for row in before if row >= 0}


def test_a_span_is_checked_from_start_to_stop() -> None:
    rows = random_bytes(20, 150)
    sums, seen = row_sums(rows), np.zeros(20, np.uint8)
    rows[5, 0] ^= 1
    assert first_damaged_between(rows, sums, seen, 6, 20) == -1
    assert np.flatnonzero(seen).tolist() == list(range(6, 20))
    assert first_damaged_between(rows, sums, seen, 0, 20) == 5


def test_rows_seen_before_are_not_read_again() -> None:
    rows = random_bytes(4, 64)
    sums, seen = row_sums(rows), np.array([1, 0, 1, 1], np.uint8)
    rows[:] ^= 1
    assert first_damaged(rows, sums, seen, np.array([[0, 2], [3, -1]])) == -1
    assert first_damaged_between(rows, sums, seen, 2, 4) == -1
    assert first_damaged(rows, sums, seen, np.array([0, 1])) == 1


def test_the_bytes_of_bytes_are_themselves() -> None:
    content = as_bytes(random_bytes(4, 64).view(np.float32))
    assert content.shape == (4, 64)
    assert not content.flags.writeable
    assert as_bytes(content) is content
