import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.core import Dtype, Int8Codec, bytes_per_vector, pack_signs, unpack_signs
from nestling.errors import VectorError
from tests.core.strategies import float32_matrices, vectors_and_dims


@given(float32_matrices(max_rows=20))
def test_int8_is_off_by_at_most_half_a_step_within_range(vectors: np.ndarray) -> None:
    codec = Int8Codec.calibrate(vectors)
    codes, num_clipped = codec.encode(vectors)
    assert num_clipped == 0
    assert codes.dtype == np.int8
    error = np.abs(codec.decode(codes) - vectors)
    assert (error <= codec.scale * 0.5 * (1 + 1e-4)).all()
    largest = np.abs(vectors).max(axis=0)
    np.testing.assert_array_equal(np.abs(codes).max(axis=0), np.where(largest > 0, 127, 0))


@given(float32_matrices(), st.floats(1.5, 10, width=32))
def test_values_outside_the_range_are_clipped_and_counted(
    vectors: np.ndarray, factor: float
) -> None:
    codec = Int8Codec.calibrate(vectors)
    codes, num_clipped = codec.encode(vectors * np.float32(factor))
    beyond = np.abs(vectors * np.float32(factor)) > codec.scale * 127.5
    assert num_clipped == beyond.sum()
    assert np.abs(codes.astype(int)).max(initial=0) <= 127
    np.testing.assert_array_equal(np.sign(codes[beyond]), np.sign(vectors[beyond]))


@given(vectors_and_dims())
def test_codes_nest(drawn: tuple[np.ndarray, list[int]]) -> None:
    vectors, dims = drawn
    codec, dim = Int8Codec.calibrate(vectors), dims[0]
    codes, _ = codec.encode(vectors)
    of_prefix, _ = codec.take_prefix(dim).encode(vectors[:, :dim])
    np.testing.assert_array_equal(of_prefix, codes[:, :dim])
    np.testing.assert_array_equal(
        codec.take_prefix(dim).decode(of_prefix), codec.decode(codes)[:, :dim]
    )
    signs = unpack_signs(pack_signs(vectors), vectors.shape[1])
    np.testing.assert_array_equal(unpack_signs(pack_signs(vectors), dim), signs[:, :dim])


@pytest.mark.parametrize("size", [1e-3, 1e-5, 1e-7])
def test_a_faint_dimension_keeps_its_digits_when_the_sample_is_float16(size: float) -> None:
    sample = (np.linspace(-1, 1, 255)[:, None] * size).astype(np.float16)
    codec = Int8Codec.calibrate(sample)
    codes, num_clipped = codec.encode(sample)
    assert num_clipped == 0
    error = np.abs(codec.decode(codes) - sample.astype(np.float32))
    assert error.max() <= codec.scale[0] * 0.5001


def test_a_dimension_without_values_gets_scale_one() -> None:
    codec = Int8Codec.calibrate(np.array([[0.0, 254.0]], np.float32))
    np.testing.assert_array_equal(codec.scale, np.array([1, 2], np.float32))


def test_calibration_needs_finite_vectors() -> None:
    with pytest.raises(VectorError, match=r"`vectors` must hold at least one row.*got none"):
        Int8Codec.calibrate(np.zeros((0, 3), np.float32))
    for bad in (np.nan, np.inf):
        with pytest.raises(VectorError, match=r"`scale` must be positive and finite.*Calibrate on"):
            Int8Codec.calibrate(np.array([[1.0, bad]], np.float32))
    with pytest.raises(VectorError, match="`scale` must be positive"):
        Int8Codec(np.array([1.0, 0.0], np.float32))


@given(float32_matrices())
def test_signs_survive_packing(vectors: np.ndarray) -> None:
    packed = pack_signs(vectors)
    assert packed.shape == (len(vectors), bytes_per_vector(Dtype.BINARY, vectors.shape[1]))
    signs = unpack_signs(packed, vectors.shape[1])
    assert signs.dtype == np.float32
    np.testing.assert_array_equal(signs, np.where(vectors > 0, 1, -1))


@pytest.mark.parametrize(
    ("dtype", "dim", "expected"),
    [
        (Dtype.FLOAT32, 64, 256),
        (Dtype.FLOAT16, 64, 128),
        (Dtype.INT8, 64, 68),
        (Dtype.BINARY, 64, 8),
        (Dtype.BINARY, 65, 9),
    ],
)
def test_bytes_per_vector(dtype: Dtype, dim: int, expected: int) -> None:
    assert bytes_per_vector(dtype, dim) == expected
