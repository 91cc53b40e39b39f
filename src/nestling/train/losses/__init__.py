"""Nested losses: they take embeddings or logits, never a model."""

from nestling.train.losses.gradient_cache import encode_in_chunks
from nestling.train.losses.nested_cross_entropy import NestedCrossEntropy
from nestling.train.losses.nested_info_nce import NestedInfoNCE
from nestling.train.losses.nested_loss import NestedLoss
from nestling.train.losses.nesting import LossValue, Nesting, StepDims, boosted_weights
from nestling.train.losses.self_distillation import SelfDistillation

__all__ = [
    "LossValue",
    "NestedCrossEntropy",
    "NestedInfoNCE",
    "NestedLoss",
    "Nesting",
    "SelfDistillation",
    "StepDims",
    "boosted_weights",
    "encode_in_chunks",
]
