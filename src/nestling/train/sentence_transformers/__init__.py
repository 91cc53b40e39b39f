"""Nested losses for sentence-transformers models, through the Trainer of that package."""

from nestling.train.sentence_transformers.fine_tune import (
    TRANSFORMER_OPTIONS,
    train_sentence_transformer,
)
from nestling.train.sentence_transformers.loss import SentenceTransformersLoss

__all__ = ["TRANSFORMER_OPTIONS", "SentenceTransformersLoss", "train_sentence_transformer"]
