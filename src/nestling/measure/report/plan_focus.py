"""What the page on a search plan shows: every measured plan as one spot, and what counts for it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from nestling.core import bytes_per_vector
from nestling.measure.planner import PlanBudget, PlanChoice, PlanGoal, PlanPoint
from nestling.measure.report.labels import metric_label
from nestling.search.plan import Plan

Across = Callable[[PlanPoint], float]
"""What of a plan lies on the horizontal axis."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """One measured plan.

    Attributes:
        number: On the plots and in the table; the fastest is 1.
        point: What was measured.
        share: Of what the goal speaks of.
        low: Lower end of its interval; None where none was told for this share.
        outcome: In words; empty if there is nothing to say.
    """

    number: int
    point: PlanPoint
    share: float
    low: float | None
    outcome: str

    @property
    def engine(self) -> str:
        """Name of the engine."""
        return self.point.plan.engine.name

    @property
    def label(self) -> str:
        """The head in a few words, e.g. "graph, 64-d int8"."""
        head = self.point.plan.head
        return f"{self.engine}, {head.dim}-d {head.dtype}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFocus:
    """What the page is about.

    Attributes:
        choice: What the planner found.
        goal: What was to be kept.
        budget: What it might cost.
        metric: Of the task, or recall.
        spots: Every measured plan, fastest first.
        chosen: The one that was chosen, or None.
    """

    choice: PlanChoice
    goal: PlanGoal
    budget: PlanBudget
    metric: str
    spots: tuple[Spot, ...]
    chosen: Spot | None

    @property
    def is_recall(self) -> bool:
        """Whether the goal is a share of the exact top 10, and not of a task's metric."""
        return self.goal.min_recall is not None

    @property
    def exact_share(self) -> float:
        """What the exact search keeps: all of it."""
        exact = self.choice.exact
        return exact.recall if self.is_recall else exact.quality

    @property
    def has_lows(self) -> bool:
        """Whether the shares have intervals."""
        return any(spot.low is not None for spot in self.spots)

    @property
    def share_label(self) -> str:
        """What the goal is a share of, as a heading."""
        return "Exact top 10 found" if self.is_recall else f"{metric_label(self.metric)} kept"

    @property
    def of_what(self) -> str:
        """What the goal is a share of, in a sentence."""
        if self.is_recall:
            return "the exact top 10"
        return f"the exact search\N{RIGHT SINGLE QUOTATION MARK}s {metric_label(self.metric)}"


def focus_on_plans(choice: PlanChoice, goal: PlanGoal, budget: PlanBudget) -> PlanFocus:
    """Return what the page is about."""
    is_recall = goal.min_recall is not None
    # `quality_low` belongs to `quality`, which is recall itself where there are no judgements.
    has_lows = not is_recall or all(each.quality == each.recall for each in choice.points)
    front = choice.front
    spots = tuple(
        Spot(
            number=number,
            point=point,
            share=point.recall if is_recall else point.quality,
            low=point.quality_low if has_lows else None,
            outcome=_outcome(point, choice, is_on_front=point in front),
        )
        for number, point in enumerate(choice.points, start=1)
    )
    return PlanFocus(
        choice=choice,
        goal=goal,
        budget=budget,
        metric=str(choice.evidence.get("metric", "recall_at_10")),
        spots=spots,
        chosen=next((spot for spot in spots if spot.point == choice.chosen), None),
    )


def front_line(spots: Sequence[Spot], across: Across) -> list[Spot]:
    """Return, from the cheapest up, the plans that none which costs no more equals or beats."""
    kept: list[Spot] = []
    for spot in sorted(spots, key=lambda spot: (across(spot.point), -spot.share)):
        if not kept or spot.share > kept[-1].share:
            kept.append(spot)
    return kept


def rescored_bytes(plan: Plan, num_documents: int) -> int:
    """Return the bytes of the rows that the stages behind the head read for one query."""
    return sum(
        min(before.shortlist_size or 0, num_documents) * bytes_per_vector(stage.dtype, stage.dim)
        for before, stage in pairwise(plan.stages)
    )


def _outcome(point: PlanPoint, choice: PlanChoice, *, is_on_front: bool) -> str:
    if point == choice.chosen:
        return "chosen"
    if not point.reaches:
        return "below the goal"
    if not point.fits:
        return "over the budget"
    return "on the front" if is_on_front else ""
