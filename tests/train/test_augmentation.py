from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nestling.errors import TrainingError
from nestling.train.augmentation import Augmentation, augment

STILL = Augmentation(max_shift=0.0, max_rotation_deg=0.0, max_zoom=0.0, max_shear=0.0)
PIXELS = torch.rand(6, 9, 13, generator=torch.Generator().manual_seed(0))


class Drawn(np.random.Generator):
    """Draws what it is told: shift x, shift y, rotation, zoom, shear, each in [-1, 1]."""

    def __init__(self, *draws: float) -> None:
        super().__init__(np.random.PCG64(0))
        self.draws = draws

    def uniform(self, low, high, size):  # type: ignore[override]
        return np.tile(np.array(self.draws)[:, None], size[1])


def move(pixels: torch.Tensor, draws: tuple[float, ...], **limits: float) -> torch.Tensor:
    return augment(pixels, replace(STILL, **limits), Drawn(*draws))


def test_nothing_changes_without_limits() -> None:
    moved = augment(PIXELS, STILL, np.random.default_rng(0))
    torch.testing.assert_close(moved, PIXELS, atol=1e-5, rtol=0)


def test_a_shift_of_whole_pixels_moves_them_and_repeats_the_edge() -> None:
    moved = move(PIXELS, (1, 0, 0, 0, 0), max_shift=2 / 13)
    torch.testing.assert_close(moved[:, :, :-2], PIXELS[:, :, 2:], atol=1e-5, rtol=0)
    torch.testing.assert_close(moved[:, :, -1], PIXELS[:, :, -1], atol=1e-5, rtol=0)
    moved = move(PIXELS, (0, -1, 0, 0, 0), max_shift=3 / 9)
    torch.testing.assert_close(moved[:, 3:], PIXELS[:, :-3], atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(9, 9), (9, 13)])
def test_half_a_turn_is_exact_on_any_shape(shape: tuple[int, int]) -> None:
    pixels = PIXELS[:, : shape[0], : shape[1]]
    moved = move(pixels, (0, 0, 1, 0, 0), max_rotation_deg=180.0)
    torch.testing.assert_close(moved, pixels.flip(1, 2), atol=1e-4, rtol=0)


def test_a_quarter_turn_keeps_the_pixels_square() -> None:
    moved = move(PIXELS, (0, 0, 1, 0, 0), max_rotation_deg=90.0)
    # The 9 x 9 in the middle turns in itself; what lies beside it comes in from the edge.
    middle = PIXELS[:, :, 2:11]
    turned = moved[:, :, 2:11]
    is_turned = torch.allclose(turned, middle.rot90(1, (1, 2)), atol=1e-4)
    assert is_turned or torch.allclose(turned, middle.rot90(-1, (1, 2)), atol=1e-4)


def test_zoom_and_shear_leave_the_centre_row_and_pixel() -> None:
    zoomed = move(PIXELS, (0, 0, 0, 1, 0), max_zoom=0.5)
    torch.testing.assert_close(zoomed[:, 4, 6], PIXELS[:, 4, 6], atol=1e-5, rtol=0)
    assert not torch.allclose(zoomed, PIXELS, atol=1e-2)
    sheared = move(PIXELS, (0, 0, 0, 0, 1), max_shear=1.0)
    torch.testing.assert_close(sheared[:, 4], PIXELS[:, 4], atol=1e-5, rtol=0)
    torch.testing.assert_close(sheared[:, 3, 1:], PIXELS[:, 3, :-1], atol=1e-4, rtol=0)


@given(seed=st.integers(0, 100))
def test_values_stay_in_range_and_the_same_seed_gives_the_same_bits(seed: int) -> None:
    limits, kept = Augmentation(), PIXELS.clone()
    moved = augment(PIXELS, limits, np.random.default_rng(seed))
    assert torch.equal(moved, augment(PIXELS, limits, np.random.default_rng(seed)))
    assert torch.equal(PIXELS, kept)
    assert moved.min() >= 0
    assert moved.max() <= 1 + 1e-6
    assert not torch.equal(moved[0], augment(PIXELS, limits, np.random.default_rng(seed + 1))[0])


@pytest.mark.parametrize(
    ("name", "value", "limit"),
    [
        ("max_shift", 0.6, "0.5"),
        ("max_rotation_deg", -1.0, "180"),
        ("max_zoom", 1.0, "0.9"),
        ("max_shear", 2.0, "1"),
    ],
)
def test_limits(name: str, value: float, limit: str) -> None:
    with pytest.raises(TrainingError, match=rf"`{name}` must lie in \[0, {limit}\], got {value}"):
        Augmentation(**{name: value})
