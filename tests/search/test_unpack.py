import numpy as np
import pytest

from nestling.core import unpack_nibbles, unpack_signs
from nestling.search.unpack import spread_nibbles, spread_signs, widen_float16


def test_every_finite_float16_is_widened_exactly() -> None:
    numbers = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = numbers[np.isfinite(numbers)]
    widened = widen_float16(finite)
    np.testing.assert_array_equal(widened.view(np.int32), finite.astype(np.float32).view(np.int32))


@pytest.mark.parametrize("dim", [1, 7, 8, 9, 64])
@pytest.mark.parametrize("num_rows", [0, 1, 300])
def test_signs_are_spread_as_the_slow_way_does(num_rows: int, dim: int) -> None:
    packed = np.random.default_rng(0).integers(0, 256, (num_rows, (dim + 7) // 8), dtype=np.uint8)
    np.testing.assert_array_equal(spread_signs(packed, dim), unpack_signs(packed, dim))


@pytest.mark.parametrize("dim", [1, 2, 7, 8, 65])
@pytest.mark.parametrize("num_rows", [0, 1, 300])
def test_nibbles_are_spread_as_the_slow_way_does(num_rows: int, dim: int) -> None:
    packed = np.random.default_rng(0).integers(0, 256, (num_rows, (dim + 1) // 2), dtype=np.uint8)
    spread = spread_nibbles(packed, dim)
    assert spread.dtype == np.float32
    np.testing.assert_array_equal(spread, unpack_nibbles(packed, dim))
