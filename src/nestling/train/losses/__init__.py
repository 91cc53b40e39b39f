"""Nested losses: they take embeddings or logits, never a model."""

from nestling.train.losses.gradient_cache import encode_in_chunks
from nestling.train.losses.nested_cross_entropy import NestedCrossEntropy
from nestling.train.losses.nested_info_nce import NestedInfoNCE
from nestling.train.losses.nested_loss import NestedLoss
from nestling.train.losses.nesting import LossValue, Nesting, StepDims, boosted_weights
from nestling.train.losses.quantized_prefixes import QuantizedPrefixes
from nestling.train.losses.self_distillation import SelfDistillation
from nestling.train.losses.spread_out import SpreadOut
from nestling.train.losses.straight_through import straight_through

__all__ = [
    "LossValue",
    "NestedCrossEntropy",
    "NestedInfoNCE",
    "NestedLoss",
    "Nesting",
    "QuantizedPrefixes",
    "SelfDistillation",
    "SpreadOut",
    "StepDims",
    "boosted_weights",
    "encode_in_chunks",
    "straight_through",
]
