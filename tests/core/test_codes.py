import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.core import (
    CODECS,
    Dtype,
    Int4Codec,
    Int8Codec,
    ScalarCodec,
    bytes_per_vector,
    pack_nibbles,
    pack_signs,
    unpack_nibbles,
    unpack_signs,
)
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


@pytest.mark.parametrize("codec_class", CODECS.values())
@given(drawn=vectors_and_dims())
def test_codes_nest(codec_class: type[ScalarCodec], drawn: tuple[np.ndarray, list[int]]) -> None:
    vectors, dims = drawn
    codec, dim = codec_class.calibrate(vectors), dims[0]
    np.testing.assert_array_equal(
        codec_class.calibrate(vectors[:, :dim]).scale, codec.take_prefix(dim).scale
    )
    codes, _ = codec.encode(vectors)
    of_prefix, _ = codec.take_prefix(dim).encode(vectors[:, :dim])
    np.testing.assert_array_equal(of_prefix, codes[:, :dim])
    np.testing.assert_array_equal(
        codec.take_prefix(dim).decode(of_prefix), codec.decode(codes)[:, :dim]
    )
    signs = unpack_signs(pack_signs(vectors), vectors.shape[1])
    np.testing.assert_array_equal(unpack_signs(pack_signs(vectors), dim), signs[:, :dim])


@pytest.mark.parametrize("codec_class", CODECS.values())
def test_scales_nest_to_the_bit(codec_class: type[ScalarCodec]) -> None:
    for seed in range(300):  # float32 sums and powers broke it once in 200
        generator = np.random.default_rng(seed)
        num_rows, width = int(generator.integers(1, 40)), int(generator.integers(2, 40))
        rows = generator.standard_normal((num_rows, width))
        vectors = (rows * np.exp(4.0 * generator.standard_normal(width))).astype(np.float32)
        scale = codec_class.calibrate(vectors).scale
        for dim in {1, 2, max(1, width // 2)}:
            prefix = np.ascontiguousarray(vectors[:, :dim])
            np.testing.assert_array_equal(codec_class.calibrate(prefix).scale, scale[:dim])


@given(vectors_and_dims())
def test_packed_int4_codes_nest(drawn: tuple[np.ndarray, list[int]]) -> None:
    vectors, dims = drawn
    codec, dim = Int4Codec.calibrate(vectors), dims[0]
    packed = pack_nibbles(codec.encode(vectors)[0])
    of_prefix = pack_nibbles(codec.take_prefix(dim).encode(vectors[:, :dim])[0])
    np.testing.assert_array_equal(unpack_nibbles(packed, dim), unpack_nibbles(of_prefix, dim))
    np.testing.assert_array_equal(packed[:, : dim // 2], of_prefix[:, : dim // 2])


@given(float32_matrices(max_rows=20), st.floats(0.125, 3, width=32))
def test_int4_is_off_by_half_a_step_or_by_what_lies_outside_the_range(
    vectors: np.ndarray, factor: float
) -> None:
    codec = Int4Codec.calibrate(vectors)
    scaled = vectors * np.float32(factor)
    codes, num_clipped = codec.encode(scaled)
    assert codes.dtype == np.int8
    assert np.abs(codes).max(initial=0) <= 7
    error = np.abs(codec.decode(codes) - scaled)
    outside = np.abs(scaled) - 7 * codec.scale
    assert (error <= np.maximum(codec.scale * 0.5, outside) * (1 + 1e-4)).all()
    assert num_clipped == (np.abs(np.rint(scaled / codec.scale)) > 7).sum()


def naive_int4_error(values: np.ndarray, scale: float) -> float:
    """Squared error of one dimension: every value goes to the nearest of the fifteen."""
    return float(np.square(values[:, None] - scale * np.arange(-7, 8)).min(axis=1).sum())


@given(float32_matrices(max_rows=20, max_dim=4))
def test_int4_is_never_worse_than_a_range_up_to_the_largest_magnitude(vectors: np.ndarray) -> None:
    scale = Int4Codec.calibrate(vectors).scale
    for values, fitted in zip(vectors.T.astype(np.float64), scale.tolist(), strict=True):
        widest = np.abs(values).max() / 7
        if widest > 0:
            bound = naive_int4_error(values, widest)
            assert naive_int4_error(values, fitted) <= bound + 1e-5 * np.square(values).sum()


@pytest.mark.parametrize("shape", ["normal", "laplace", "uniform", "spiky"])
def test_int4_comes_close_to_the_best_of_all_ranges(shape: str) -> None:
    generator = np.random.default_rng(0)
    values = {
        "normal": generator.standard_normal(500),
        "laplace": generator.laplace(size=500),
        "uniform": generator.uniform(-1, 1, 500),
        "spiky": generator.standard_normal(2000) * (generator.random(2000) < 0.1),
    }[shape]
    scale = float(Int4Codec.calibrate(values[:, None].astype(np.float32)).scale[0])
    tried = np.linspace(0.01, 1.2, 200) * np.abs(values).max() / 7
    assert naive_int4_error(values, scale) <= 1.02 * min(
        naive_int4_error(values, candidate) for candidate in tried
    )


def test_int4_clips_rare_outliers_where_int8_follows_them() -> None:
    values = np.random.default_rng(0).standard_normal((1000, 1)).astype(np.float32)
    values[0] = 30.0
    assert Int4Codec.calibrate(values).scale[0] * 7 < 15
    assert Int8Codec.calibrate(values).scale[0] * 127 == pytest.approx(30)


def test_int4_is_fitted_on_rows_spread_over_all_of_them() -> None:
    rows = np.ones((50_000, 1), np.float32)
    rows[:45_000] = 0.0
    assert Int4Codec.calibrate(rows).scale[0] == pytest.approx(1 / 7, rel=0.01)
    again = Int4Codec.calibrate(rows.astype(np.float16))
    np.testing.assert_array_equal(again.scale, Int4Codec.calibrate(rows).scale)


@given(st.integers(0, 9), st.integers(1, 25), st.integers(0, 2**32 - 1))
def test_nibbles_survive_packing(num_rows: int, dim: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(-7, 8, (num_rows, dim), dtype=np.int8)
    packed = pack_nibbles(codes)
    assert packed.dtype == np.uint8
    assert packed.shape == (num_rows, bytes_per_vector(Dtype.INT4, dim) - 4)
    np.testing.assert_array_equal(unpack_nibbles(packed, dim), codes)


def test_the_low_nibble_comes_first_and_the_last_is_padded() -> None:
    np.testing.assert_array_equal(
        pack_nibbles(np.array([[1, -1, 7], [-7, 0, -2]], np.int8)),
        np.array([[0xF1, 0x07], [0x09, 0x0E]], np.uint8),
    )


@pytest.mark.parametrize("size", [1e-3, 1e-5, 1e-7])
def test_a_faint_dimension_keeps_its_digits_when_the_sample_is_float16(size: float) -> None:
    sample = (np.linspace(-1, 1, 255)[:, None] * size).astype(np.float16)
    codec = Int8Codec.calibrate(sample)
    codes, num_clipped = codec.encode(sample)
    assert num_clipped == 0
    error = np.abs(codec.decode(codes) - sample.astype(np.float32))
    assert error.max() <= codec.scale[0] * 0.5001


@pytest.mark.parametrize(("codec_class", "largest"), [(Int8Codec, 254.0), (Int4Codec, 14.0)])
def test_a_dimension_without_values_gets_scale_one(
    codec_class: type[ScalarCodec], largest: float
) -> None:
    codec = codec_class.calibrate(np.array([[0.0, largest]], np.float32))
    np.testing.assert_array_equal(codec.scale, np.array([1, 2], np.float32))


@pytest.mark.parametrize("codec_class", CODECS.values())
def test_calibration_needs_finite_vectors(codec_class: type[ScalarCodec]) -> None:
    with pytest.raises(VectorError, match=r"`vectors` must hold at least one row.*got none"):
        codec_class.calibrate(np.zeros((0, 3), np.float32))
    for bad in (np.nan, np.inf):
        with pytest.raises(VectorError, match=r"`scale` must be positive and finite.*Calibrate on"):
            codec_class.calibrate(np.array([[1.0, bad]], np.float32))
    with pytest.raises(VectorError, match="`scale` must be positive"):
        codec_class(np.array([1.0, 0.0], np.float32))


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
        (Dtype.INT4, 64, 36),
        (Dtype.INT4, 65, 37),
        (Dtype.BINARY, 64, 8),
        (Dtype.BINARY, 65, 9),
        (Dtype.ROTATED_BINARY, 64, 8),
        (Dtype.ROTATED_BINARY, 65, 9),
    ],
)
def test_bytes_per_vector(dtype: Dtype, dim: int, expected: int) -> None:
    assert bytes_per_vector(dtype, dim) == expected
