"""Nested losses: they take embeddings or logits, never a model."""

from nestling.train.losses.nesting import LossValue, Nesting, StepDims, boosted_weights

__all__ = ["LossValue", "Nesting", "StepDims", "boosted_weights"]
