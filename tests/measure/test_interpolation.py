import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.errors import DataError, DimensionError
from nestling.measure.interpolation import InterpolatedWidth, check_interpolation

VALUES = {8: 0.5, 12: 0.6, 16: 0.7, 20: 0.45, 24: 0.72, 32: 0.69, 48: 0.9}


def test_each_untrained_width_is_judged_by_its_neighbours():
    found = {each.dim: each for each in check_interpolation(VALUES, (8, 16, 32), tolerance=0.02)}
    # 48 is above the widest: it has one neighbour only.
    assert list(found) == [12, 20, 24]
    assert found[12] == InterpolatedWidth(
        dim=12, value=0.6, below=(8, 0.5), above=(16, 0.7), excess=0.0, is_between=True
    )
    # The neighbours of 20 and 24 fall, from 0.7 to 0.69.
    assert found[20].excess == pytest.approx(0.45 - 0.69)
    assert not found[20].is_between
    assert found[24].excess == pytest.approx(0.02)
    assert check_interpolation(VALUES, (8, 16, 32), tolerance=0.019)[2].is_between is False


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.5))
def test_between_means_within_the_tolerance_of_the_two(low, value, high, tolerance):
    (found,) = check_interpolation({2: low, 3: value, 4: high}, (2, 4), tolerance=tolerance)
    distance = max(min(low, high) - value, value - max(low, high), 0.0)
    assert found.is_between == (distance <= tolerance)
    assert abs(found.excess) == distance


@pytest.mark.parametrize(
    ("values", "tolerance", "message"),
    [
        ({8: 0.5, 12: 0.6}, 0.0, "`values` must hold .* got none for 16. Measure"),
        ({8: 0.5, 12: math.nan, 16: 0.5}, 0.0, "finite"),
        ({8: 0.5, 16: 0.5}, -0.1, "`tolerance` at least 0, got -0.1"),
    ],
)
def test_bad_values_are_refused(values, tolerance, message):
    with pytest.raises(DataError, match=message):
        check_interpolation(values, (8, 16), tolerance=tolerance)


def test_nesting_dims_must_ascend():
    with pytest.raises(DimensionError, match="ascend"):
        check_interpolation({8: 0.5, 16: 0.5}, (16, 8), tolerance=0.1)
