from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.core import check_dim, check_dims, check_nesting_dims, default_nesting_dims
from nestling.errors import DimensionError


@pytest.mark.parametrize(
    ("embed_dim", "expected"),
    [
        (1024, (8, 16, 32, 64, 128, 256, 512, 1024)),
        (768, (12, 24, 48, 96, 192, 384, 768)),
        (384, (12, 24, 48, 96, 192, 384)),
        (100, (25, 50, 100)),
        (16, (8, 16)),
        (15, (15,)),
        (1, (1,)),
    ],
)
def test_default_dims_halve_while_whole_and_at_least_8(
    embed_dim: int, expected: tuple[int, ...]
) -> None:
    assert default_nesting_dims(embed_dim) == expected


@given(st.integers(1, 5000))
def test_default_dims_are_nesting_dims(embed_dim: int) -> None:
    dims = default_nesting_dims(embed_dim)
    assert check_nesting_dims(dims, embed_dim) == dims
    assert all(wide == 2 * narrow for narrow, wide in pairwise(dims))


@pytest.mark.parametrize("dim", [0, -3])
def test_a_dim_below_1_is_refused(dim: int) -> None:
    with pytest.raises(DimensionError, match=rf"`dim` must be at least 1, got {dim}\."):
        check_dim(dim, 8)


@pytest.mark.parametrize("dim", [9, 100])
def test_a_dim_outside_the_width_is_refused(dim: int) -> None:
    with pytest.raises(
        DimensionError, match=rf"`dim` must lie in \[1, 8\].*got {dim}\. To go wider"
    ):
        check_dim(dim, 8)
    assert check_dim(8, 8) == 8


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ([], r"`dims` must name at least one width, got none\. Pass e\.g\. --dims"),
        ([8, 4], r"ascend without repeats, got 8,4\. Pass 4,8\."),
        ([4, 4, 8], r"ascend without repeats, got 4,4,8\. Pass 4,8\."),
        ([0, 4], r"`dim` must be at least 1, got 0"),
        ([4, 17], r"`dim` must lie in \[1, 16\].*got 17"),
    ],
)
def test_bad_dims_are_refused(dims: list[int], message: str) -> None:
    with pytest.raises(DimensionError, match=message):
        check_dims(dims, 16)


def test_nesting_dims_end_at_the_full_width() -> None:
    assert check_nesting_dims([4, 8], 16) == (4, 8, 16)
    assert check_nesting_dims([4, 16], 16) == (4, 16)
