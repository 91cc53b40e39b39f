"""A small residual network for grey images, quick on a CPU."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nestling.core import check_dim
from nestling.errors import DimensionError

STEM_STRIDES = (1, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResNetShape:
    """How large a `SmallResNet` is.

    Few channels at the first, largest resolutions: a convolution costs its pixels times its
    channels squared.

    Attributes:
        embed_dim: Width of the embedding.
        widths: Channels of each stage; every stage after the first halves the resolution.
        blocks_per_stage: Residual blocks of two convolutions.
        stem_stride: 2 halves the resolution before the first stage; 1 is for tiny images.
    """

    embed_dim: int
    widths: tuple[int, ...] = (16, 32, 64, 128)
    blocks_per_stage: int = 1
    stem_stride: int = 2

    def __post_init__(self) -> None:
        check_dim(self.embed_dim, self.embed_dim)
        if not self.widths or min(self.widths) < 1:
            raise DimensionError(
                f"`widths` must be channels from 1 up, one per stage, got {self.widths}. E.g. (16, 32, 64, 128)."
            )
        if self.blocks_per_stage < 1:
            raise DimensionError(
                f"`blocks_per_stage` must be at least 1, got {self.blocks_per_stage}."
            )
        if self.stem_stride not in STEM_STRIDES:
            raise DimensionError(
                f"`stem_stride` must be 1 or 2, got {self.stem_stride}. Take 1 for images under 16 pixels."
            )

    def to_json(self) -> dict[str, Any]:
        """Return plain data that `from_json` reads back."""
        return {**asdict(self), "widths": list(self.widths)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "ResNetShape":
        """Read what `to_json` wrote."""
        return cls(**{**data, "widths": tuple(data["widths"])})


class Block(nn.Module):
    """Two convolutions beside a shortcut (He et al. 2016, arXiv:1512.03385, Figure 2)."""

    def __init__(self, num_in: int, num_out: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_in, num_out, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(num_out)
        self.conv2 = nn.Conv2d(num_out, num_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(num_out)
        self.shortcut: nn.Conv2d | None = None
        self.shortcut_norm: nn.BatchNorm2d | None = None
        if stride != 1 or num_in != num_out:
            self.shortcut = nn.Conv2d(num_in, num_out, 1, stride=stride, bias=False)
            self.shortcut_norm = nn.BatchNorm2d(num_out)

    def forward(
        self, features: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels_out height_out width_out"]:
        """Return the features of the next block."""
        kept = features
        if self.shortcut is not None and self.shortcut_norm is not None:
            kept = self.shortcut_norm(self.shortcut(features))
        features = torch.relu(self.norm1(self.conv1(features)))
        return torch.relu(self.norm2(self.conv2(features)) + kept)


class SmallResNet(nn.Module):
    """Grey images of any size to embeddings.

    The embedding is the mean over the pixels of the last features, a linear map, and a batch
    normalisation without a rectifier after it: its coordinates are centred and alike in scale.
    Pooled features as they leave a rectifier are never negative, so that short prefixes of them
    all point the same way and tell little by cosine.
    """

    def __init__(self, shape: ResNetShape) -> None:
        super().__init__()
        self.shape = shape
        num = shape.widths[0]
        self.stem = nn.Conv2d(1, num, 3, stride=shape.stem_stride, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(num)
        blocks = []
        for stage, width in enumerate(shape.widths):
            for place in range(shape.blocks_per_stage):
                blocks.append(Block(num, width, stride=2 if stage and not place else 1))
                num = width
        self.blocks = nn.Sequential(*blocks)
        self.project = nn.Linear(num, shape.embed_dim, bias=False)
        self.project_norm = nn.BatchNorm1d(shape.embed_dim)
        self.to(memory_format=torch.channels_last)  # twice as fast on a CPU

    def forward(
        self, pixels: Float[Tensor, "batch height width"]
    ) -> Float[Tensor, "batch embed_dim"]:
        """Return one embedding per image, not normalised.

        Args:
            pixels: Grey values in [0, 1].
        """
        grey = pixels[:, None].contiguous(memory_format=torch.channels_last)
        features = self.blocks(torch.relu(self.stem_norm(self.stem(grey))))
        return self.project_norm(self.project(features.mean(dim=(2, 3))))
