import numpy as np
import pytest

from nestling.core import (
    CODECS,
    Dtype,
    bytes_per_vector,
    cosine_scores,
    random_rotation,
    take_prefix,
    unpack_signs,
)
from nestling.errors import DimensionError
from nestling.search.tier import (
    SIGNS,
    STORED_AS,
    Tier,
    calibrated_scale,
    derive_tier,
    empty_tier,
    raw_tier,
)

DTYPES = tuple(Dtype)


def random_rows(num_rows: int, dim: int, seed: int = 0) -> np.ndarray:
    """Rows of different lengths, so that a forgotten norm shows."""
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((num_rows, dim)) * generator.uniform(0.5, 2.0, (num_rows, 1))
    return rows.astype(np.float32)


def decoded(rows: np.ndarray, dim: int, dtype: Dtype) -> np.ndarray:
    """What a tier's rows stand for, the slow way."""
    prefixes = rows[:, :dim]
    if dtype in CODECS:
        codec = CODECS[dtype].calibrate(prefixes)
        return codec.decode(codec.encode(prefixes)[0])
    if dtype is Dtype.ROTATED_BINARY:
        # Turned back instead of turning the query.
        signs = np.where(prefixes @ random_rotation(dim) > 0, 1, -1).astype(np.float32)
        return signs @ random_rotation(dim).T
    if dtype is Dtype.BINARY:
        return unpack_signs(np.packbits(prefixes > 0, axis=1), dim)
    unit = prefixes / np.linalg.norm(prefixes, axis=1, keepdims=True)
    return unit.astype(dtype).astype(np.float32)


def slow_fold(tier: Tier, queries: np.ndarray) -> np.ndarray:
    prefixes = take_prefix(queries.astype(np.float32), tier.dim, renormalize=True)
    if tier.scale is not None:
        prefixes = prefixes * tier.scale
    if tier.rotation is not None:
        prefixes = prefixes @ tier.rotation
    return prefixes / np.float32(tier.dim**0.5) if tier.dtype in SIGNS else prefixes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [8, 13, 32])
def test_folded_scores_are_cosines_of_what_the_codes_stand_for(dtype: Dtype, dim: int) -> None:
    rows, queries = random_rows(50, 40), random_rows(6, 40, seed=1)
    tier = derive_tier(rows, dim=dim, dtype=dtype)
    scores = tier.fold(queries) @ tier.unpack(0, 50).T
    if tier.norms is not None:
        scores /= tier.norms
    expected = cosine_scores(queries[:, :dim], decoded(rows, dim, dtype), dim)
    np.testing.assert_allclose(scores, expected, atol=2e-4 if dtype is Dtype.FLOAT16 else 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 13, 40])
def test_queries_are_folded_as_the_slow_way_does(dtype: Dtype, dim: int) -> None:
    tier = derive_tier(random_rows(20, 40), dim=dim, dtype=dtype)
    queries = random_rows(5, 40, seed=1)
    queries[2, :dim] = 0.0
    for given in (queries, queries.astype(np.float64), queries[::2], queries[:, :dim], queries[:0]):
        folded = tier.fold(given)
        assert folded.dtype == np.float32
        np.testing.assert_allclose(folded, slow_fold(tier, given), atol=1e-6)


def test_queries_of_any_length_are_folded() -> None:
    tier = derive_tier(random_rows(20, 40), dim=16, dtype=Dtype.FLOAT32)
    query = random_rows(1, 40)
    for length in (1e-25, 1e25):
        np.testing.assert_allclose(tier.fold(query * length), tier.fold(query), rtol=1e-5)


def test_a_query_narrower_than_the_tier_is_refused() -> None:
    tier = derive_tier(random_rows(20, 40), dim=16, dtype=Dtype.FLOAT32)
    with pytest.raises(DimensionError, match=r"`dim` must lie in \[1, 15\].*got 16"):
        tier.fold(random_rows(1, 15))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 7, 8, 39])
def test_a_tier_takes_the_bytes_that_are_promised(dtype: Dtype, dim: int) -> None:
    tier = derive_tier(random_rows(50, 40), dim=dim, dtype=dtype)
    assert tier.row_bytes == bytes_per_vector(dtype, dim)
    assert tier.num_bytes == 50 * bytes_per_vector(dtype, dim)


@pytest.mark.parametrize("dtype", [Dtype.FLOAT32, Dtype.FLOAT16])
def test_a_full_width_float_tier_stores_norms_and_no_copy(dtype: Dtype) -> None:
    rows = random_rows(50, 40).astype(dtype)
    tier = derive_tier(rows, dim=40, dtype=dtype)
    assert tier.is_borrowed
    assert tier.num_bytes == 50 * 4
    assert tier.row_bytes == 40 * rows.itemsize + 4
    assert np.shares_memory(tier.codes, rows)
    assert tier.norms is not None
    norms = np.linalg.norm(rows.astype(np.float32), axis=1)
    np.testing.assert_allclose(tier.norms, norms, rtol=1e-6)


def test_a_full_width_tier_in_another_float_format_is_a_copy() -> None:
    tier = derive_tier(random_rows(50, 40), dim=40, dtype=Dtype.FLOAT16)
    assert not tier.is_borrowed
    assert tier.num_bytes == 50 * 80


@pytest.mark.parametrize("dtype", [Dtype.FLOAT32, Dtype.FLOAT16])
def test_a_raw_tier_shows_the_stored_vectors(dtype: Dtype) -> None:
    rows = random_rows(50, 40).astype(dtype)
    tier = raw_tier(rows, 16)
    assert (tier.dtype, tier.num_bytes, tier.row_bytes) == (dtype, 0, 16 * rows.itemsize)
    assert np.shares_memory(tier.codes, rows)
    np.testing.assert_array_equal(tier.unpack(3, 9), rows[3:9, :16].astype(np.float32))
    with pytest.raises(DimensionError, match=r"`dim` must lie in \[1, 40\].*got 41"):
        raw_tier(rows, 41)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [16, 40])
def test_an_empty_tier_encodes_as_the_whole_one(dtype: Dtype, dim: int) -> None:
    rows = random_rows(50, 40)
    whole = derive_tier(rows, dim=dim, dtype=dtype)
    scale = calibrated_scale(rows, dim, dtype)
    tier = empty_tier(Dtype.FLOAT32, 40, dim, dtype, scale=scale, rotation=whole.rotation)
    assert len(tier) == 0
    assert tier.codes.dtype == whole.codes.dtype == STORED_AS[dtype]
    assert tier.codes.shape[1] == whole.codes.shape[1]
    assert (tier.norms is None) == (whole.norms is None)
    assert tier.is_borrowed == whole.is_borrowed
    for start in range(0, 50, 7):
        part = tier.encode(rows[start : start + 7])
        np.testing.assert_array_equal(part.codes, whole.codes[start : start + 7])
        if whole.norms is not None:
            np.testing.assert_array_equal(part.norms, whole.norms[start : start + 7])


def test_a_rotation_that_was_stored_is_the_one_that_counts() -> None:
    rows, other = random_rows(50, 40), random_rotation(16, seed=7)
    tier = empty_tier(Dtype.FLOAT32, 40, 16, Dtype.ROTATED_BINARY, rotation=other)
    expected = np.packbits(rows[:, :16] @ other > 0, axis=1)
    np.testing.assert_array_equal(tier.encode(rows).codes, expected)
    np.testing.assert_allclose(tier.fold(rows), slow_fold(tier, rows), atol=1e-6)
    drawn = empty_tier(Dtype.FLOAT32, 40, 16, Dtype.ROTATED_BINARY).rotation
    np.testing.assert_array_equal(drawn, random_rotation(16))


def test_zero_prefixes_score_zero() -> None:
    rows = random_rows(3, 40)
    rows[1, :16] = 0.0
    for dtype in (Dtype.FLOAT32, Dtype.FLOAT16, Dtype.INT8, Dtype.INT4):
        tier = derive_tier(rows, dim=16, dtype=dtype)
        scores = tier.fold(rows) @ tier.unpack(0, 3).T
        divided = scores if tier.norms is None else scores / tier.norms
        assert np.isfinite(divided).all()
        assert (divided[:, 1] == 0).all()


def test_values_outside_the_int8_range_are_clipped_and_counted() -> None:
    rows = random_rows(50, 40)
    tier = derive_tier(rows, dim=16, dtype=Dtype.INT8)
    assert tier.encode(rows).num_clipped == 0
    beyond = tier.encode(10.0 * np.abs(rows).max(axis=0, keepdims=True))
    assert beyond.num_clipped == 16
    assert (beyond.codes == 127).all()


def test_values_outside_the_int4_range_are_clipped_and_not_counted() -> None:
    rows = random_rows(50, 40)
    tier = derive_tier(rows, dim=16, dtype=Dtype.INT4)
    assert tier.encode(rows).num_clipped == 0
    beyond = tier.encode(10.0 * np.abs(rows).max(axis=0, keepdims=True))
    assert beyond.num_clipped == 0
    assert (beyond.codes == 0x77).all()


def test_a_width_outside_the_vectors_is_refused() -> None:
    for dtype in (Dtype.INT8, Dtype.BINARY):
        with pytest.raises(DimensionError, match=r"`dim` must lie in \[1, 40\].*got 41"):
            derive_tier(random_rows(5, 40), dim=41, dtype=dtype)
