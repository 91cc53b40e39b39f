"""Vectors on the workbench: their tiers, the exact search, and plans run as an index would."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
from jaxtyping import Float, Float32, Int64

from nestling.core import Dtype
from nestling.measure.planner.refine import LineCost, StageKey
from nestling.measure.planner.timing import Clock, time_rescoring
from nestling.search.engines import engine_class, full_settings
from nestling.search.engines.base import Engine
from nestling.search.engines.flat import FlatEngine
from nestling.search.funnel import Funnel
from nestling.search.plan import Plan
from nestling.search.rescore import RowScorer
from nestling.search.tier import Tier, derive_tier, raw_tier

TIMED_QUERIES = 50
"""Queries that a re-scoring is timed with."""


@final
class BareRows:
    """Rows that are served as they are: what an index checks, the workbench has just read."""

    def __init__(self, rows: Float[np.ndarray, "rows full"]) -> None:
        self.rows = rows

    def ensure(self, rows: Int64[np.ndarray, "*places"]) -> None:
        """Do nothing."""

    def ensure_span(self, start: int, stop: int) -> None:
        """Do nothing."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class MemoryView:
    """What a funnel needs of an index, in RAM.

    Attributes:
        plan: The funnel to run.
        vectors: Full vectors.
        tiers: Tier of every stage.
        engine: Over the head's tier.
        search_settings: Of the engine, complete.
    """

    plan: Plan
    vectors: BareRows
    tiers: Mapping[StageKey, Tier]
    engine: Engine
    search_settings: Mapping[str, int]

    @property
    def num_rows(self) -> int:
        """Documents."""
        return len(self.vectors.rows)


@final
class Workbench:
    """One set of vectors, and what was made of them so far; tiers are kept, engines are not."""

    def __init__(
        self,
        vectors: Float[np.ndarray, "rows full"],
        *,
        num_threads: int,
        clock: Clock = time.perf_counter,
        seed: int = 0,
    ) -> None:
        """Take full-width vectors, which may be memory-mapped."""
        self.vectors = vectors
        self.num_threads = num_threads
        self.clock = clock
        self._seed = seed
        self._tiers: dict[StageKey, Tier] = {}
        self._derived_s: dict[StageKey, float] = {}
        self._costs: dict[StageKey, LineCost] = {}

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def stored(self) -> StageKey:
        """The stage that reads the stored vectors at their full width."""
        return self.vectors.shape[1], Dtype(self.vectors.dtype.name)

    @cached_property
    def exact(self) -> FlatEngine:
        """The exact search over the full width."""
        return FlatEngine.build(self.head_tier(self.stored), self.vectors, settings={})

    def head_tier(self, key: StageKey) -> Tier:
        """Return the tier that a first stage scans."""
        if key not in self._tiers:
            began_s = self.clock()
            self._tiers[key] = derive_tier(self.vectors, dim=key[0], dtype=key[1])
            self._derived_s[key] = self.clock() - began_s
        return self._tiers[key]

    def derived_s(self, key: StageKey) -> float:
        """Return how long it took to derive a tier."""
        self.head_tier(key)
        return self._derived_s[key]

    def later_tier(self, key: StageKey) -> Tier:
        """Return the tier that a later stage reads, which may be the stored vectors."""
        if key[1] == self.stored[1]:
            return raw_tier(self.vectors, key[0])
        return self.head_tier(key)

    def find_exact(
        self, queries: Float32[np.ndarray, "queries full"], k: int
    ) -> Int64[np.ndarray, "queries k"]:
        """Return the exact best rows."""
        found = self.exact.search(queries, k, settings={}, num_threads=self.num_threads)
        return found.best.rows

    def scores(
        self,
        key: StageKey,
        queries: Float32[np.ndarray, "queries full"],
        rows: Int64[np.ndarray, "queries k"],
    ) -> Float32[np.ndarray, "queries k"]:
        """Return the scores of some rows in a later stage."""
        tier = self.later_tier(key)
        return RowScorer(tier).score(tier.fold(queries), rows, num_threads=self.num_threads)

    def rescoring_cost(
        self, key: StageKey, queries: Float32[np.ndarray, "queries full"]
    ) -> LineCost:
        """Return what a row more on the shortlist of a stage costs one query."""
        if key not in self._costs:
            self._costs[key] = time_rescoring(
                self.later_tier(key), queries[:TIMED_QUERIES], seed=self._seed, clock=self.clock
            )
        return self._costs[key]

    def funnel(self, plan: Plan, engine: Engine) -> Funnel:
        """Return the funnel that an index would run."""
        head = (plan.head.dim, plan.head.dtype)
        tiers = {head: self.head_tier(head)}
        for stage in plan.stages[1:]:
            key = (stage.dim, stage.dtype)
            tiers[key] = self.later_tier(key)
        known = engine_class(plan.engine.name).search_settings
        return Funnel(
            MemoryView(
                plan=plan,
                vectors=BareRows(self.vectors),
                tiers=tiers,
                engine=engine,
                search_settings=full_settings(plan.engine.name, plan.engine.search, known),
            )
        )

    def mapped_bytes(self, plan: Plan) -> int:
        """Return the bytes of the files that later stages read, the stored vectors always."""
        keys = {(stage.dim, stage.dtype) for stage in plan.stages[1:]}
        derived = sum(self.head_tier(key).num_bytes for key in keys if key[1] != self.stored[1])
        return self.vectors.nbytes + derived
