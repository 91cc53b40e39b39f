"""Milliseconds of single queries and of re-scoring, on this machine."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64

from nestling.measure.planner.refine import LineCost
from nestling.search.engines.base import Engine
from nestling.search.rescore import RowScorer
from nestling.search.tier import Tier

Clock = Callable[[], float]
"""Seconds, as `time.perf_counter` counts them."""

NUM_PASSES = 3
SHORT, LONG = 32, 512
"""Shortlists that the line through the cost of re-scoring is drawn by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Milliseconds of one query at a time, each the least of several passes over the queries.

    The least of a few passes is what the work itself takes; what other processes took is left out of
    it, and the 99th percentile is one of queries, not of the machine.
    """

    mean_ms: float
    p50_ms: float
    p99_ms: float


def time_queries(
    run: Callable[[Float32[np.ndarray, "1 full"]], object],
    queries: Float32[np.ndarray, "queries full"],
    *,
    clock: Clock = time.perf_counter,
    num_passes: int = NUM_PASSES,
) -> Latency:
    """Run queries one by one, a few times over."""
    run(queries[:1])
    seconds = np.empty((num_passes, len(queries)))
    for one_pass in seconds:
        for place in range(len(queries)):
            query = queries[place : place + 1]
            began = clock()
            run(query)
            one_pass[place] = clock() - began
    return _summary(1000.0 * seconds.min(axis=0))


def time_engine(
    engine: Engine,
    queries: Float32[np.ndarray, "queries full"],
    k: int,
    *,
    settings: Mapping[str, int],
    clock: Clock = time.perf_counter,
) -> Latency:
    """Search with an engine, one query at a time."""
    return time_queries(
        lambda query: engine.search(query, k, settings=settings), queries, clock=clock
    )


def time_rescoring(
    tier: Tier,
    queries: Float32[np.ndarray, "queries full"],
    *,
    seed: int,
    clock: Clock = time.perf_counter,
) -> LineCost:
    """Return what re-scoring random rows of a tier costs one query."""
    generator = np.random.default_rng(seed)
    folded = tier.fold(queries)
    scorer = RowScorer(tier)
    measured = []
    for size in (SHORT, LONG):
        size = min(size, len(tier))
        rows = generator.integers(0, len(tier), size=(len(queries), 1, size), dtype=np.int64)
        scorer.score(folded[:1], rows[0])
        times = np.empty((NUM_PASSES, len(queries)))
        for one_pass in times:
            for place in range(len(queries)):
                began = clock()
                scorer.score(folded[place : place + 1], rows[place])
                one_pass[place] = clock() - began
        measured.append((size, 1000.0 * float(np.median(times.min(axis=0)))))
    (short, short_ms), (long, long_ms) = measured
    per_row_ms = max(0.0, (long_ms - short_ms) / max(1, long - short))
    return LineCost(fixed_ms=max(0.0, short_ms - per_row_ms * short), per_row_ms=per_row_ms)


def _summary(milliseconds: Float64[np.ndarray, " queries"]) -> Latency:
    p50_ms, p99_ms = np.quantile(milliseconds, [0.5, 0.99])
    return Latency(mean_ms=float(milliseconds.mean()), p50_ms=float(p50_ms), p99_ms=float(p99_ms))
