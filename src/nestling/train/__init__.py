"""Nested losses, models and the loop that trains them. The one room with PyTorch."""

from nestling.train.job import LoopOptions, TrainingJob

__all__ = ["LoopOptions", "TrainingJob"]
