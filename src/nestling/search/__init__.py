"""Tiers store, stages search: plans, the index that runs them, and its engines."""

from nestling.search.engines import engine_class
from nestling.search.engines.base import Engine
from nestling.search.index import Added, Hit, Index
from nestling.search.plan import Plan, Stage
from nestling.search.tier import Tier, derive_tier, open_tier

__all__ = [
    "Added",
    "Engine",
    "Hit",
    "Index",
    "Plan",
    "Stage",
    "Tier",
    "derive_tier",
    "engine_class",
    "open_tier",
]
