"""What the page is about: one metric, its lines, and the point to mark."""

from collections.abc import Sequence
from dataclasses import dataclass

from nestling.measure.decision import Decision, Step
from nestling.measure.report.series import Point, Series, group_series, reference_row
from nestling.measure.results import Results, Row

CONFIDENCE = 0.95
"""Of the intervals, where no decision names a confidence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Focus:
    """What the page is about.

    Attributes:
        metric: The metric shown first: the decision's, else the main one.
        confidence: Of the intervals shown.
        model: Model URI.
        task: TASK.
        series: Every line of the metric, never empty.
        reference: Full-width float32 row, or None if it was not measured.
        tolerated_value: Full-width value less the tolerated loss, or None.
        chosen: The point that the plan deploys, or None.
        marks: Words on the certified points, by `Point.anchor`.
    """

    metric: str
    confidence: float
    model: str
    task: str
    series: tuple[Series, ...]
    reference: Row | None
    tolerated_value: float | None
    chosen: Point | None
    marks: dict[str, str]

    @property
    def is_self(self) -> bool:
        """Whether the full width itself is the only judge: the task has no judgements."""
        return self.task.startswith("self:")

    @property
    def subject(self) -> str:
        """What a cut can lose, in words."""
        return "full-width ranking kept" if self.is_self else "quality"

    @property
    def points(self) -> list[Point]:
        """Every point of every series."""
        return [point for line in self.series for point in line.points]

    @property
    def has_intervals(self) -> bool:
        """Whether the points have bootstrap intervals."""
        return self.points[0].interval is not None

    @property
    def has_per_query(self) -> bool:
        """Whether the metric has a value per query, so that a loss can be certified at all."""
        return self.points[0].row.per_query is not None


def focus_on(results: Results, decision: Decision | None) -> Focus:
    """Return what the page is about.

    Raises:
        EvidenceError: If the results hold no rows of the metric.
    """
    metric = results.main_metric if decision is None else decision.metric
    confidence = CONFIDENCE if decision is None else decision.confidence
    series = group_series(results, metric, confidence=confidence)
    chosen, marks = (None, {}) if decision is None else _marked_points(series, decision)
    first = series[0].points[0].row
    return Focus(
        metric=metric,
        confidence=confidence,
        model=first.model,
        task=first.task,
        series=series,
        reference=reference_row(results, metric),
        tolerated_value=None
        if decision is None
        else decision.full_value - tolerated_points(decision),
        chosen=chosen,
        marks=marks,
    )


def find_point(series: Sequence[Series], step: Step) -> Point | None:
    """Return the point of a tested step, or None if the results do not hold it."""
    for line in series:
        for point in line.points:
            row = point.row
            if (row.family, row.dim, row.dtype) == (step.family, step.dim, step.dtype):
                return point
    return None


def deployed_step(decision: Decision) -> Step | None:
    """Return the certified step that the plan carries out, or None without a plan."""
    if decision.plan is None:
        return None
    family = "funnel" if len(decision.plan.stages) > 1 else "prefix"
    head = (family, decision.plan.head.dim, decision.plan.head.dtype)
    passed = (step for step in decision.steps if step.passed)
    return next((step for step in passed if (step.family, step.dim, step.dtype) == head), None)


def _marked_points(
    series: Sequence[Series], decision: Decision
) -> tuple[Point | None, dict[str, str]]:
    """Return the point that the plan deploys, and words on it and on the smallest certified."""
    marks = {}
    for step in (decision.cut, decision.funnel):
        point = None if step is None else find_point(series, step)
        if point is not None:
            marks[point.anchor] = "certified"
    deployed = deployed_step(decision)
    chosen = None if deployed is None else find_point(series, deployed)
    return chosen, marks if chosen is None else marks | {chosen.anchor: "chosen"}


def tolerated_points(decision: Decision) -> float:
    """Return the tolerated loss in points of the metric."""
    return decision.max_loss * (decision.full_value if decision.is_relative else 1.0)
