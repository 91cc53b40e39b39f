"""Adapters: maps after which every prefix of a frozen embedding says more."""

from nestling.train.adapter.adapter import AdapterRecipe, train_adapter
from nestling.train.adapter.candidates import AUTOMATIC, METHODS, Method
from nestling.train.adapter.pairs import FitPairs, encode_pairs
from nestling.train.adapter.record import AdapterRecord
from nestling.train.adapter.samples import FitSource, encode_source, read_source

__all__ = [
    "AUTOMATIC",
    "METHODS",
    "AdapterRecipe",
    "AdapterRecord",
    "FitPairs",
    "FitSource",
    "Method",
    "encode_pairs",
    "encode_source",
    "read_source",
    "train_adapter",
]
