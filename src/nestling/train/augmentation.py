"""Change images a little, so that a model learns what does not matter."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from nestling.errors import TrainingError


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """How far an image may be moved; every amount is drawn evenly up to its limit, either way.

    There are no mirror images: a mirrored letter is another letter.

    Attributes:
        max_shift: Share of a side.
        max_rotation_deg: Degrees.
        max_zoom: Share of the size.
        max_shear: Share of the height by which the top is moved against the bottom.
    """

    max_shift: float = 0.07
    max_rotation_deg: float = 8.0
    max_zoom: float = 0.15
    max_shear: float = 0.1

    def __post_init__(self) -> None:
        limits = {
            "max_shift": 0.5,
            "max_rotation_deg": 180.0,
            "max_zoom": 0.9,
            "max_shear": 1.0,
        }
        for name, limit in limits.items():
            if not 0 <= getattr(self, name) <= limit:
                raise TrainingError(
                    f"`{name}` must lie in [0, {limit:g}], got {getattr(self, name)}. Change it and train again."
                )


def augment(
    pixels: Float[Tensor, "batch height width"],
    augmentation: Augmentation,
    generator: np.random.Generator,
) -> Float[Tensor, "batch height width"]:
    """Return every image shifted, turned, zoomed and sheared by amounts of its own.

    What comes in at an edge repeats the edge.

    Args:
        pixels: On the CPU; not written to.
        augmentation: The limits.
        generator: The same state gives the same bits.
    """
    num, height, width = pixels.shape
    draws = generator.uniform(-1.0, 1.0, (5, num))
    shift_x, shift_y = 2 * augmentation.max_shift * draws[:2]
    angle = math.radians(augmentation.max_rotation_deg) * draws[2]
    zoom = 1 + augmentation.max_zoom * draws[3]
    shear = augmentation.max_shear * draws[4]
    # `affine_grid` measures either side from -1 to 1, hence the aspect.
    aspect = height / width
    turn = [
        [zoom * np.cos(angle), aspect * (shear - zoom * np.sin(angle)), shift_x],
        [zoom * np.sin(angle) / aspect, zoom * np.cos(angle), shift_y],
    ]
    matrices = torch.from_numpy(np.array(turn, dtype=np.float32)).permute(2, 0, 1)
    grid = affine_grid(matrices, [num, 1, height, width], align_corners=False)
    moved = grid_sample(pixels[:, None], grid, padding_mode="border", align_corners=False)
    return moved[:, 0]
