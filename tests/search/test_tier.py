from pathlib import Path

import numpy as np
import pytest

from nestling.core import (
    CODECS,
    Dtype,
    bytes_per_vector,
    cosine_scores,
    random_rotation,
    unpack_signs,
)
from nestling.errors import DimensionError
from nestling.search import derive_tier, open_tier
from nestling.search.rowfile import NOTHING
from nestling.search.tier import CODES, NORMS, SCALE
from tests.search.support import DTYPES, random_rows


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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [8, 13, 32])
def test_folded_scores_are_cosines_of_what_the_codes_stand_for(
    tmp_path: Path, dtype: Dtype, dim: int
) -> None:
    rows, queries = random_rows(50, 40), random_rows(6, 40, seed=1)
    derive_tier(rows, tmp_path, dim=dim, dtype=dtype)
    tier = open_tier(rows, tmp_path, dim=dim, dtype=dtype)
    scores = tier.fold(queries) @ tier.unpack(0, 50).T
    if tier.norms is not None:
        scores /= tier.norms
    expected = cosine_scores(queries[:, :dim], decoded(rows, dim, dtype), dim)
    np.testing.assert_allclose(scores, expected, atol=2e-4 if dtype is Dtype.FLOAT16 else 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 7, 8, 39])
def test_a_tier_takes_the_bytes_that_are_promised(tmp_path: Path, dtype: Dtype, dim: int) -> None:
    rows = random_rows(50, 40)
    files = derive_tier(rows, tmp_path, dim=dim, dtype=dtype)
    promised = 50 * bytes_per_vector(dtype, dim)
    assert open_tier(rows, tmp_path, dim=dim, dtype=dtype).num_bytes == promised
    on_disk = sum((tmp_path / name).stat().st_size for name in files if name != SCALE)
    assert on_disk == promised == sum(files[name].num_bytes for name in files if name != SCALE)


@pytest.mark.parametrize("dtype", [Dtype.FLOAT32, Dtype.FLOAT16])
def test_a_full_width_float_tier_stores_norms_and_no_copy(tmp_path: Path, dtype: Dtype) -> None:
    rows = random_rows(50, 40).astype(dtype)
    assert set(derive_tier(rows, tmp_path, dim=40, dtype=dtype)) == {NORMS}
    tier = open_tier(rows, tmp_path, dim=40, dtype=dtype)
    assert tier.is_borrowed
    assert tier.num_bytes == 50 * 4
    assert np.shares_memory(tier.codes, rows)


def test_a_full_width_tier_in_another_float_format_is_a_copy(tmp_path: Path) -> None:
    rows = random_rows(50, 40)
    assert set(derive_tier(rows, tmp_path, dim=40, dtype=Dtype.FLOAT16)) == {CODES}


@pytest.mark.parametrize("dtype", DTYPES)
def test_chunks_leave_no_trace(
    tmp_path: Path, dtype: Dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = random_rows(50, 40)
    for name in ("whole", "pieces"):
        (tmp_path / name).mkdir()
    whole = derive_tier(rows, tmp_path / "whole", dim=16, dtype=dtype)
    monkeypatch.setattr("nestling.search.rowfile.CHUNK_VALUES", 7 * 40)
    steps: list[int] = []
    pieces = derive_tier(
        rows,
        tmp_path / "pieces",
        dim=16,
        dtype=dtype,
        progress=lambda _, done, total: steps.append(done),
    )
    assert pieces == whole
    assert steps == [7, 14, 21, 28, 35, 42, 49, 50]
    for name in whole:
        assert (tmp_path / "pieces" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_zero_prefixes_score_zero(tmp_path: Path) -> None:
    rows = random_rows(3, 40)
    rows[1, :16] = 0.0
    for dtype in (Dtype.FLOAT32, Dtype.FLOAT16, Dtype.INT8, Dtype.INT4):
        (tmp_path / dtype).mkdir()
        derive_tier(rows, tmp_path / dtype, dim=16, dtype=dtype)
        tier = open_tier(rows, tmp_path / dtype, dim=16, dtype=dtype)
        scores = tier.fold(rows) @ tier.unpack(0, 3).T
        divided = scores if tier.norms is None else scores / tier.norms
        assert np.isfinite(divided).all()
        assert (divided[:, 1] == 0).all()


def test_values_outside_the_int8_range_are_clipped_and_counted(tmp_path: Path) -> None:
    rows = random_rows(50, 40)
    derive_tier(rows, tmp_path, dim=16, dtype=Dtype.INT8)
    tier = open_tier(rows, tmp_path, dim=16, dtype=Dtype.INT8)
    assert tier.encode(rows).num_clipped == 0
    beyond = tier.encode(10.0 * np.abs(rows).max(axis=0, keepdims=True))
    assert beyond.num_clipped == 16
    assert (beyond.codes == 127).all()


def test_values_outside_the_int4_range_are_clipped_and_not_counted(tmp_path: Path) -> None:
    rows = random_rows(50, 40)
    derive_tier(rows, tmp_path, dim=16, dtype=Dtype.INT4)
    tier = open_tier(rows, tmp_path, dim=16, dtype=Dtype.INT4)
    assert tier.encode(rows).num_clipped == 0
    beyond = tier.encode(10.0 * np.abs(rows).max(axis=0, keepdims=True))
    assert beyond.num_clipped == 0
    assert (beyond.codes == 0x77).all()


def test_append_continues_length_and_checksum(tmp_path: Path) -> None:
    rows = random_rows(50, 40)
    for name in ("once", "twice"):
        (tmp_path / name).mkdir()
    once = derive_tier(rows, tmp_path / "once", dim=16, dtype=Dtype.FLOAT16)
    files = derive_tier(rows[:20], tmp_path / "twice", dim=16, dtype=Dtype.FLOAT16)
    tier = open_tier(rows[:20], tmp_path / "twice", dim=16, dtype=Dtype.FLOAT16)
    encoded = tier.encode(rows[20:])
    assert tier.append(tmp_path / "twice", encoded, files) == once
    assert NOTHING not in once.values()
    longer = tier.extended(encoded, rows)
    np.testing.assert_array_equal(
        longer.codes, open_tier(rows, tmp_path / "once", dim=16, dtype=Dtype.FLOAT16).codes
    )


def test_a_width_outside_the_vectors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DimensionError, match=r"`dim` must lie in \[1, 40\].*got 41"):
        derive_tier(random_rows(5, 40), tmp_path, dim=41, dtype=Dtype.INT8)
