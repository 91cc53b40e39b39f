"""Tiers store, stages search: plans, the index that runs them, and its engines."""

from nestling.search.engines import ENGINES, engine_class
from nestling.search.engines.base import Engine
from nestling.search.index import Added, Index
from nestling.search.opened import Found, Hit
from nestling.search.plan import EngineChoice, Plan, Stage
from nestling.search.rowset import RowSet
from nestling.search.tier import Tier, derive_tier
from nestling.search.trace import SearchTrace, StageTrace

__all__ = [
    "ENGINES",
    "Added",
    "Engine",
    "EngineChoice",
    "Found",
    "Hit",
    "Index",
    "Plan",
    "RowSet",
    "SearchTrace",
    "Stage",
    "StageTrace",
    "Tier",
    "derive_tier",
    "engine_class",
]
