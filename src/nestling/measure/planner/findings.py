"""What a planner can tell beside its points: plain data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nestling.core import Dtype
from nestling.search.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class GridHead:
    """How much of the exact top 10 the shortlists of one head hold.

    Attributes:
        dim: Width of the head.
        dtype: Its number format.
        recall: Mean share of the exact top 10, per size of the grid.
        quality: Share of the exact metric that is kept once the shortlist is re-scored at full width,
            per size; None where queries have no judgements.
    """

    dim: int
    dtype: Dtype
    recall: tuple[float, ...]
    quality: tuple[float, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortlistGrid:
    """Shortlists of exact heads, on the queries that choose.

    Attributes:
        sizes: Rows on the shortlist, ascending.
        heads: One row of the grid each.
    """

    sizes: tuple[int, ...]
    heads: tuple[GridHead, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedDoc:
    """One place of a ranking.

    Attributes:
        doc_id: Which document.
        grade: As judged; 0 where it is not.
        snippet: The beginning of its text, or "".
    """

    doc_id: str
    grade: int
    snippet: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstRanking:
    """A query that a plan answers worse than the exact search does, with both rankings.

    Attributes:
        query_id: Which query.
        text: Of the query, or "".
        exact_value: Metric of the exact full-width search.
        plan_value: Metric of the plan.
        exact: Its first ten documents.
        found: Those of the plan.
    """

    query_id: str
    text: str
    exact_value: float
    plan_value: float
    exact: Sequence[RankedDoc]
    found: Sequence[RankedDoc]


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdLatency:
    """Milliseconds of single queries whose mapped rows are not in the page cache.

    Attributes:
        p50_ms: Median.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile.
        num_queries: Timed.
    """

    p50_ms: float
    p95_ms: float
    p99_ms: float
    num_queries: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthOutcome:
    """What a plan costs and keeps, on the certificate queries.

    Attributes:
        plan: Static or adaptive.
        value: Mean of the metric.
        kept: As a share of the exact mean; None if that is 0.
        loss_bound: Largest loss not excluded at the confidence, in the unit of the tolerance.
        passed: Whether its loss is certified to be within the tolerance.
        bytes_read: Mean bytes of vectors read per query, all stages together.
        rows_scored: Mean rows scored per query behind the head.
        mean_dim: Mean width to which a scored row was read, the head's rows included.
        latency_ms: Mean time of a single query on one thread.
    """

    plan: Plan
    value: float
    kept: float | None
    loss_bound: float
    passed: bool
    bytes_read: float
    rows_scored: float
    mean_dim: float
    latency_ms: float

    def to_json(self) -> dict[str, Any]:
        """Return plain data; the plan whole, so that it can be used."""
        data = {name: getattr(self, name) for name in self.__slots__ if name != "plan"}
        return {"plan": self.plan.to_json(), **data}


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveOutcome:
    """A query-adaptive plan beside the cheapest static one that meets the same tolerance.

    Attributes:
        static: The static plan certified with the fewest bytes; None if none passed.
        adaptive: The adaptive plan certified with the fewest bytes; None if none passed.
        tested: All adaptive candidates that were tested, in the order of testing.
        verdict: One sentence about both.
    """

    static: DepthOutcome | None
    adaptive: DepthOutcome | None
    tested: tuple[DepthOutcome, ...]
    verdict: str

    def to_json(self) -> dict[str, Any]:
        """Return plain data; candidates in words."""
        return {
            "verdict": self.verdict,
            "static": None if self.static is None else self.static.to_json(),
            "adaptive": None if self.adaptive is None else self.adaptive.to_json(),
            "tested": [
                {**outcome.to_json(), "plan": outcome.plan.describe()} for outcome in self.tested
            ],
        }
