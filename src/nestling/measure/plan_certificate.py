"""What is certified of whole plans, on queries that had no part in finding them: plain data."""

from dataclasses import asdict, dataclass
from typing import Any

from nestling.measure.tolerance import Tolerance


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentStep:
    """How a plan does on one segment of the certificate queries.

    Attributes:
        column: What the queries are told apart by, e.g. "length" or a metadata column.
        segment: Which of them, e.g. "short".
        num_queries: In it.
        full_value: Mean of the exact full-width search.
        value: Mean of the plan.
        loss_bound: Largest loss not excluded at the confidence, for this segment alone, in the unit of
            the tolerance.
        passed: Whether the loss is within the tolerance at the confidence, for this segment alone. That
            all segments of a plan passed is certified at the same confidence (intersection-union).
        is_named: Whether that may be said of this segment by name, all segments of the plan considered
            (Holm). Every named one passed.
    """

    column: str
    segment: str
    num_queries: int
    full_value: float
    value: float
    loss_bound: float
    passed: bool
    is_named: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanStep:
    """One plan that was tested, in the order of testing.

    Attributes:
        point: Its place among `PlanChoice.points`.
        description: The plan in words.
        value: Mean of the metric on the certificate queries.
        kept: `value` as a share of the exact mean; None if that is 0.
        loss: Exact mean minus `value`, in points of the metric (0 to 1).
        loss_bound: Largest loss not excluded at the confidence, in the unit of the tolerance.
        interval: Bootstrap interval of the loss, paired by query, in the same unit: a plain figure.
        clustered_interval: The same, drawing whole clusters of queries; None if each is one of its own.
        segments: Of the guard; empty without one.
        passed: Whether the loss is certified to be within the tolerance, in every segment of the guard.
        queries_needed: If not passed: about how many queries like these would certify it, where more
            would help; None otherwise.
    """

    point: int
    description: str
    value: float
    kept: float | None
    loss: float
    loss_bound: float
    interval: tuple[float, float]
    clustered_interval: tuple[float, float] | None
    segments: tuple[SegmentStep, ...]
    passed: bool
    queries_needed: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanCertificate:
    """What is certified of the plans that a planner found.

    Plans are put in an order, the safest first, by queries of another split; the test walks along it on
    the certificate queries, up to the first failure, so that every plan that passed holds, all together,
    at the confidence (fixed-sequence Learn then Test).

    Attributes:
        tolerance: What is claimed.
        metric: Of the loss.
        source: Where the certificate queries come from, in words.
        num_queries: Certificate queries.
        num_clusters: Groups of queries that share relevant documents (or a column's value).
        guard: Columns whose every segment must hold; empty without a guard.
        floor: Smallest absolute loss that any distribution-free test can certify: ln(1/delta) / n.
        full_value: Mean of the exact full-width search.
        steps: Every plan tested, in the order of testing.
        certified: `PlanStep.point` of the plan to use: the cheapest of those that passed; None if none.
        queries_needed: If none passed: the fewest that any step needs, as far as more would help.
    """

    tolerance: Tolerance
    metric: str
    source: str
    num_queries: int
    num_clusters: int
    guard: tuple[str, ...]
    floor: float
    full_value: float
    steps: tuple[PlanStep, ...]
    certified: int | None
    queries_needed: int | None

    @property
    def step(self) -> PlanStep | None:
        """The step of the certified plan."""
        return next((step for step in self.steps if step.point == self.certified), None)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)
