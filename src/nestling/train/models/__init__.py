"""Models that are trained nested."""

from nestling.train.models.classifier import NestedClassifier
from nestling.train.models.nested_head import NestedHead
from nestling.train.models.resnet import SmallResNet
from nestling.train.models.static_text import StaticText, train_tokenizer

__all__ = ["NestedClassifier", "NestedHead", "SmallResNet", "StaticText", "train_tokenizer"]
