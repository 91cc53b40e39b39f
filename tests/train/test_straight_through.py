"""What codes decode to, with gradients: the NumPy codecs judge the values."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nestling.core import CODECS, Dtype, pack_signs, random_rotation, rotate_prefix, unpack_signs
from nestling.errors import DimensionError, TrainingError
from nestling.train.losses import straight_through

ROUNDED = tuple(CODECS)


def make_rows(num_rows: int, dim: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(num_rows, dim, generator=generator, dtype=torch.float64)
    sizes = torch.arange(1, dim + 1, dtype=torch.float64).rsqrt()
    return (rows * sizes).to(dtype).requires_grad_()


def slope(rows: Tensor, coded: Tensor, seed: int = 9) -> tuple[Tensor, Tensor]:
    """Return an upstream gradient, and what it becomes at the rows."""
    upstream = torch.randn(
        coded.shape, generator=torch.Generator().manual_seed(seed), dtype=coded.dtype
    )
    return upstream, torch.autograd.grad(coded, rows, upstream)[0]


@pytest.mark.parametrize("dtype", ROUNDED)
@given(num_rows=st.integers(1, 40), dim=st.integers(1, 24), seed=st.integers(0, 999))
def test_values_are_to_the_bit_those_of_the_codec(dtype, num_rows, dim, seed):
    rows = make_rows(num_rows, dim, seed)
    plain = rows.detach().numpy()
    codec = CODECS[dtype].calibrate(plain)
    np.testing.assert_array_equal(
        straight_through(rows, dtype).detach().numpy(), codec.decode(codec.encode(plain)[0])
    )


@pytest.mark.parametrize("dtype", ROUNDED)
def test_a_given_scale_is_that_of_the_codec_and_what_it_clips_gets_no_gradient(dtype):
    rows = make_rows(50, 8)
    plain = rows.detach().numpy()
    codec = CODECS[dtype].calibrate(0.3 * plain)
    codes, num_clipped = codec.encode(plain)
    coded = straight_through(rows, dtype, scale=torch.from_numpy(codec.scale))
    np.testing.assert_array_equal(coded.detach().numpy(), codec.decode(codes))
    upstream, found = slope(rows, coded)
    is_clipped = torch.from_numpy(np.abs(np.rint(plain / codec.scale)) > codec.largest_code)
    assert 0 < int(is_clipped.sum()) == num_clipped
    assert torch.equal(found, torch.where(is_clipped, 0, upstream))


def test_int8_of_its_own_batch_clips_nothing_and_hands_gradients_on_as_they_are():
    rows = make_rows(50, 8)
    upstream, found = slope(rows, straight_through(rows, Dtype.INT8))
    assert torch.equal(found, upstream)


@given(num_rows=st.integers(1, 20), dim=st.integers(1, 24), seed=st.integers(0, 999))
def test_signs_are_those_that_are_stored(num_rows, dim, seed):
    rows = make_rows(num_rows, dim, seed)
    expected = unpack_signs(pack_signs(rows.detach().numpy()), dim)
    np.testing.assert_array_equal(straight_through(rows, Dtype.BINARY).detach().numpy(), expected)


@pytest.mark.parametrize("given_scale", [False, True])
def test_signs_pass_gradients_in_units_of_the_dimension_and_none_far_out(given_scale):
    rows = make_rows(400, 6, dtype=torch.float64)
    sizes = rows.detach().square().mean(0).sqrt()
    scale = 0.5 * sizes if given_scale else None
    used = sizes if scale is None else scale
    upstream, found = slope(rows, straight_through(rows, Dtype.BINARY, scale=scale))
    is_far = rows.detach().abs() > 2 * used
    assert 0.01 < float(is_far.double().mean()) < 0.5
    torch.testing.assert_close(found, torch.where(is_far, 0, upstream / used))


def test_the_gradient_of_signs_does_not_depend_on_the_size_of_the_rows():
    small, large = make_rows(30, 6, dtype=torch.float64), make_rows(30, 6, dtype=torch.float64)
    made = [
        slope(rows, straight_through(k * rows, Dtype.BINARY))[1]
        for rows, k in ((small, 1.0), (large, 64.0))
    ]
    torch.testing.assert_close(made[0], made[1])


@given(dim=st.integers(1, 24), seed=st.integers(0, 999))
def test_rotated_signs_score_like_those_that_are_stored(dim, seed):
    rows = make_rows(12, 24, seed)
    queries = make_rows(5, 24, seed + 1).detach().numpy()
    turned = rotate_prefix(rows.detach().numpy(), dim)
    # Rounding may decide the sign of what is all but zero.
    settled = (np.abs(turned) > 1e-5).all(axis=1)
    stored = unpack_signs(pack_signs(turned), dim)
    expected = rotate_prefix(queries, dim) @ stored.T
    coded = straight_through(rows, Dtype.ROTATED_BINARY, dim=dim).detach().numpy()
    ours = queries[:, :dim] @ coded.T
    np.testing.assert_allclose(ours[:, settled], expected[:, settled], atol=1e-4)


def test_gradients_of_rotated_signs_go_through_the_rotation_and_back():
    rows = make_rows(60, 10, dtype=torch.float64)
    rotation = torch.tensor(random_rotation(7)).double()
    turned = (rows.detach()[:, :7] @ rotation).requires_grad_()
    upstream, found = slope(rows, straight_through(rows, Dtype.ROTATED_BINARY, dim=7))
    (inner,) = torch.autograd.grad(
        straight_through(turned, Dtype.BINARY), turned, upstream @ rotation
    )
    torch.testing.assert_close(found[:, :7], inner @ rotation.T)
    assert not found[:, 7:].any()


@pytest.mark.parametrize("dtype", [*ROUNDED, Dtype.BINARY])
def test_codes_nest(dtype):
    rows = make_rows(30, 12)
    whole = straight_through(rows, dtype)
    for dim in (1, 5, 12):
        assert torch.equal(straight_through(rows, dtype, dim=dim), whole[:, :dim])


def test_rotated_signs_do_not_nest():
    rows = make_rows(30, 12)
    short = straight_through(rows, Dtype.ROTATED_BINARY, dim=5)
    assert not torch.allclose(straight_through(rows, Dtype.ROTATED_BINARY)[:, :5], short)


@pytest.mark.parametrize("dtype", [*ROUNDED, Dtype.BINARY, Dtype.ROTATED_BINARY])
def test_no_gradient_goes_through_the_scale(dtype):
    rows = make_rows(20, 6)
    scale = torch.full((6,), 0.1, requires_grad=True)
    straight_through(rows, dtype, scale=scale).sum().backward()
    assert scale.grad is None
    assert rows.grad is not None


@pytest.mark.parametrize("dtype", [*ROUNDED, Dtype.BINARY, Dtype.ROTATED_BINARY])
def test_zero_rows_and_zero_dimensions_give_finite_numbers(dtype):
    rows = make_rows(9, 6)
    with torch.no_grad():
        rows[3] = 0
        rows[:, 2] = 0
    coded = straight_through(rows, dtype)
    assert torch.isfinite(coded).all()
    assert torch.isfinite(slope(rows, coded)[1]).all()


@pytest.mark.parametrize("dtype", [*ROUNDED, Dtype.BINARY])
def test_half_precision_is_coded_in_float32(dtype):
    halves = make_rows(20, 6, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        coded = straight_through(halves, dtype)
    assert torch.equal(coded, straight_through(halves.detach().float(), dtype))
    assert torch.autograd.grad(coded.sum(), halves)[0].dtype == torch.bfloat16


def test_a_row_that_is_not_finite_spoils_itself_alone():
    rows = make_rows(20, 6).detach()
    spoiled = torch.cat([rows, torch.full((1, 6), torch.nan)])
    coded = straight_through(spoiled, Dtype.INT8)
    assert torch.isnan(coded[-1]).all()
    assert torch.equal(coded[:-1], straight_through(rows, Dtype.INT8))


def test_bad_arguments_are_refused_by_name():
    rows = make_rows(3, 6)
    with pytest.raises(TrainingError, match=re.escape("`dtype` must be among int8, int4, binary")):
        straight_through(rows, Dtype.FLOAT16)
    with pytest.raises(DimensionError, match=re.escape("must lie in [1, 6]")):
        straight_through(rows, Dtype.INT8, dim=7)
