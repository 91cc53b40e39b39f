"""Nested losses, models and the loop that trains them. The one room with PyTorch."""

from importlib.util import find_spec as _find_spec

from nestling.errors import MissingExtraError as _MissingExtraError

for _package in ("torch", "accelerate"):
    if _find_spec(_package) is None:
        raise _MissingExtraError(_package, "train")

from nestling.train.images import ImageRecipe, train_images  # noqa: E402
from nestling.train.job import LoopOptions, TrainingJob  # noqa: E402
from nestling.train.loop import fit  # noqa: E402
from nestling.train.record import EpochRecord, TrainingRecord  # noqa: E402
from nestling.train.static_text import StaticRecipe, train_static_text  # noqa: E402

__all__ = [
    "EpochRecord",
    "ImageRecipe",
    "LoopOptions",
    "StaticRecipe",
    "TrainingJob",
    "TrainingRecord",
    "fit",
    "train_images",
    "train_static_text",
]
