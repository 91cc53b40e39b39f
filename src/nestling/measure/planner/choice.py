"""What the planner found: points, their front, the plan chosen, and a sentence about it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from nestling.measure.cost.table import CostTable
from nestling.measure.plan_certificate import PlanCertificate
from nestling.measure.planner.cost_model import CostModel
from nestling.measure.planner.findings import (
    AdaptiveOutcome,
    ColdLatency,
    ShortlistGrid,
    WorstRanking,
)
from nestling.measure.results import Results
from nestling.search.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanPoint:
    """One plan and what it does.

    Attributes:
        plan: The plan.
        quality: Share of the exact full-width task metric, on the queries that did not choose it.
        quality_low: Lower end of a one-sided 95% bootstrap interval of it, paired by query.
        recall: Mean recall@10 of the exact full-width search, on the same queries.
        latency_ms: Mean time of a single query on one thread.
        latency_p50_ms: Median of it.
        latency_p99_ms: 99th percentile of it.
        memory_bytes: RAM of the head tier and the engine.
        mapped_bytes: Memory-mapped files that later stages read.
        build_s: Time to make the head tier and the engine.
        reaches: Whether the goal was reached on the queries that chose it.
        fits: Whether it is within the budget.
        latency_p95_ms: 95th percentile of the time of a single query.
        bytes_read: Mean bytes of vectors read per query, all stages together; None where an engine does
            not tell.
        cold: The same queries without a mapped page in the cache; None if that was not measured.
    """

    plan: Plan
    quality: float
    quality_low: float
    recall: float
    latency_ms: float
    latency_p50_ms: float
    latency_p99_ms: float
    memory_bytes: int
    mapped_bytes: int
    build_s: float
    reaches: bool
    fits: bool
    latency_p95_ms: float | None = None
    bytes_read: float | None = None
    cold: ColdLatency | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain data; the plan in words."""
        data = {
            name: getattr(self, name) for name in self.__slots__ if name not in ("plan", "cold")
        }
        cold = None if self.cold is None else asdict(self.cold)
        return {"plan": self.plan.describe(), **data, "cold": cold}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanChoice:
    """What the planner found.

    Attributes:
        plan: The fastest measured plan that reaches the goal within the budget; None if none does.
        verdict: One sentence about it.
        chosen: Its point.
        points: All plans that were measured, fastest first.
        exact: The exact full-width search, for comparison.
        cost: What more documents would cost; None if there was no time to fit it.
        evidence: What went in: goal, budget, queries, machine.
        certificate: What is certified of the points; None if nothing was to be certified.
        grid: What shortlists of each head hold; None if that was not asked for.
        worst: Queries that the chosen plan answers worst, on the queries that tell; at most 20.
        adaptive: What adapting to each query saves; None if that was not asked for.
        table: What the chosen plan would cost; None if that was not asked for.
        sweep: Every width in every format and all baselines, on the queries that tell; None if that was
            not asked for.
    """

    plan: Plan | None
    verdict: str
    chosen: PlanPoint | None
    points: Sequence[PlanPoint]
    exact: PlanPoint
    cost: CostModel | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    certificate: PlanCertificate | None = None
    grid: ShortlistGrid | None = None
    worst: Sequence[WorstRanking] = ()
    adaptive: AdaptiveOutcome | None = None
    table: CostTable | None = None
    sweep: Results | None = None

    @property
    def front(self) -> list[PlanPoint]:
        """The measured points that no other beats in quality, time and memory at once."""
        return pareto_front(self.points)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "verdict": self.verdict,
            "plan": None if self.plan is None else self.plan.to_json(),
            "chosen": None if self.chosen is None else self.chosen.to_json(),
            "exact": self.exact.to_json(),
            "front": [point.to_json() for point in self.front],
            "points": [point.to_json() for point in self.points],
            "cost": None if self.cost is None else asdict(self.cost),
            "evidence": dict(self.evidence),
            "certificate": None if self.certificate is None else self.certificate.to_json(),
            "adaptive": None if self.adaptive is None else self.adaptive.to_json(),
            "table": None if self.table is None else self.table.to_json(),
        }


def pareto_front(points: Sequence[PlanPoint]) -> list[PlanPoint]:
    """Return the points that no other one equals or beats in quality, latency and memory together."""

    def beats(one: PlanPoint, other: PlanPoint) -> bool:
        ours = (-one.quality, one.latency_ms, one.memory_bytes)
        theirs = (-other.quality, other.latency_ms, other.memory_bytes)
        return ours != theirs and all(a <= b for a, b in zip(ours, theirs, strict=True))

    return [point for point in points if not any(beats(other, point) for other in points)]


def describe_choice(point: PlanPoint, exact: PlanPoint, *, metric: str) -> str:
    """Return the verdict, e.g. "graph: 64-d int8, keep 160 -> 1024-d float16 keeps 99.2% of ..."."""
    speed = exact.latency_ms / point.latency_ms if point.latency_ms else math.inf
    smaller = exact.mapped_bytes / point.memory_bytes if point.memory_bytes else math.inf
    return (
        f"{point.plan.describe()} keeps {point.quality:.1%} of {metric} "
        f"(95% sure: at least {math.floor(1000 * point.quality_low) / 10:.1f}%) and {point.recall:.1%} of the exact "
        f"top 10, in {point.latency_ms:.2f} ms per query and {point.memory_bytes / 1e6:,.1f} MB of RAM: "
        f"{speed:,.0f}x faster than the exact search over all {exact.plan.embed_dim:,} dimensions, "
        f"in {smaller:,.1f}x less RAM than its vectors take"
    )
