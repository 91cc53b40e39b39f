"""What becomes of a shortlist: every way to re-score it, judged without searching again."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64

from nestling.core import Dtype
from nestling.measure.planner.sample import Judge
from nestling.search.plan import Stage

SIZES = (10, 15, 20, 30, 40, 60, 80, 120, 160, 240, 320, 480, 640, 960, 1280, 2000)
"""Shortlists to try: finer than that, time and quality hardly differ."""

StageKey = tuple[int, Dtype]
"""Width and format of a stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LineCost:
    """Milliseconds that grow with a count: `fixed_ms` + `per_row_ms` * rows."""

    fixed_ms: float
    per_row_ms: float

    def of(self, num_rows: int) -> float:
        """Return the milliseconds for so many rows."""
        return self.fixed_ms + self.per_row_ms * num_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Refinement:
    """What follows the first stage.

    Attributes:
        shortlist_size: Rows that the head hands on; None if it is the last stage.
        middle: A stage between, or None.
        middle_size: Rows that the middle stage hands on; None if there is none.
        final: The last stage, or None if the head is.
    """

    shortlist_size: int | None
    middle: StageKey | None = None
    middle_size: int | None = None
    final: StageKey | None = None

    def stages(self, head: StageKey) -> tuple[Stage, ...]:
        """Return all stages of the plan."""
        chain = [Stage(dim=head[0], dtype=head[1], shortlist_size=self.shortlist_size)]
        if self.middle is not None:
            chain.append(
                Stage(dim=self.middle[0], dtype=self.middle[1], shortlist_size=self.middle_size)
            )
        if self.final is not None:
            chain.append(Stage(dim=self.final[0], dtype=self.final[1]))
        return tuple(chain)

    def cost_ms(self, costs: Mapping[StageKey, LineCost]) -> float:
        """Return the predicted time of the stages behind the head."""
        total = 0.0
        if self.middle is not None:
            total += costs[self.middle].of(self.shortlist_size or 0)
        if self.final is not None:
            total += costs[self.final].of(self.middle_size or self.shortlist_size or 0)
        return total


class Shortlists:
    """The candidates of one head for every query, with their scores in every later stage."""

    def __init__(
        self,
        rows: Int64[np.ndarray, "queries longest"],
        scores: Mapping[StageKey, Float32[np.ndarray, "queries longest"]],
    ) -> None:
        """Take the candidates, best first (-1 for none), and their scores per stage."""
        self.rows = rows
        self._scores = scores

    def ranking(self, refinement: Refinement, num_results: int) -> Int64[np.ndarray, "queries k"]:
        """Return the rows that a plan would find, best first."""
        size = refinement.shortlist_size
        if size is None or refinement.final is None:
            return self.rows[:, :num_results]
        num_queries, longest = self.rows.shape
        places = np.tile(np.arange(min(size, longest)), (num_queries, 1))
        if refinement.middle is not None and refinement.middle_size is not None:
            places = self._best(places, refinement.middle, max(refinement.middle_size, num_results))
        places = self._best(places, refinement.final, num_results)
        return np.take_along_axis(self.rows, places, axis=1)

    def _best(
        self, places: Int64[np.ndarray, "queries kept"], stage: StageKey, k: int
    ) -> Int64[np.ndarray, "queries k"]:
        scores = np.take_along_axis(self._scores[stage], places, axis=1)
        rows = np.take_along_axis(self.rows, places, axis=1)
        # As the funnel ranks: ties go to the lower row, empty places to the end.
        order = np.lexsort((rows, -np.where(rows < 0, -np.inf, scores)), axis=1)[:, :k]
        return np.take_along_axis(places, order, axis=1)


def followers(
    head: StageKey, *, middles: Sequence[StageKey], finals: Sequence[StageKey]
) -> Iterator[tuple[StageKey | None, StageKey]]:
    """Yield what may follow a head: a middle stage or none, and a last stage, ever wider."""
    for final in finals:
        if final[0] < head[0] or final == head:
            continue
        yield None, final
        for middle in middles:
            if head[0] < middle[0] < final[0]:
                yield middle, final


def cheapest(
    shortlists: Shortlists,
    head: StageKey,
    judge: Judge,
    *,
    num_results: int,
    reaches: "Reaches",
    middles: Sequence[StageKey],
    finals: Sequence[StageKey],
    head_ms: Callable[[int], float],
    costs: Mapping[StageKey, LineCost],
) -> tuple[float, Refinement] | None:
    """Return the cheapest refinement whose ranking reaches the goal, and its milliseconds.

    With a middle stage, shortlists from the shortest that does without one up to twice that are
    tried: a middle stage loses, and now and then it wins by chance.

    Args:
        shortlists: Of the head.
        head: Its width and format.
        judge: Of the queries to choose by.
        num_results: Rows of a ranking.
        reaches: Whether a ranking is good enough.
        middles: Stages that may stand between.
        finals: Stages that may come last.
        head_ms: Time of the first stage for a shortlist of so many rows.
        costs: Of re-scoring, per stage.
    """
    found: list[tuple[float, Refinement]] = []
    longest = shortlists.rows.shape[1]
    alone = Refinement(shortlist_size=None)
    if reaches(judge, shortlists.ranking(alone, num_results)):
        found.append((head_ms(num_results), alone))
    sizes = [size for size in SIZES if num_results <= size <= longest]

    def good(refinement: Refinement) -> bool:
        return reaches(judge, shortlists.ranking(refinement, num_results))

    for middle, final in followers(head, middles=middles, finals=finals):
        if middle is None:
            plain = (Refinement(shortlist_size=size, final=final) for size in sizes)
            first = next((each for each in plain if good(each)), None)
            shortest = longest + 1 if first is None else first.shortlist_size or longest
            if first is not None:
                found.append((head_ms(shortest) + first.cost_ms(costs), first))
            continue
        tried = [
            Refinement(shortlist_size=size, middle=middle, middle_size=kept, final=final)
            for size in sizes
            if shortest <= size <= 2 * shortest
            for kept in sizes
            if kept < size
        ]
        priced = [(head_ms(each.shortlist_size or 0) + each.cost_ms(costs), each) for each in tried]
        bound = min((cost_ms for cost_ms, _ in found), default=np.inf)
        for cost_ms, refinement in sorted(priced, key=lambda pair: pair[0]):
            if cost_ms >= bound:
                break
            if good(refinement):
                found.append((cost_ms, refinement))
                break
    return min(found, key=lambda pair: pair[0], default=None)


class Reaches:
    """Whether a ranking keeps enough, by a margin of one standard error.

    Of hundreds of plans that are looked at, some reach a goal on these queries by luck. Without the
    margin those would be chosen, and most would miss the goal on other queries.
    """

    def __init__(self, *, min_quality: float | None, min_recall: float | None) -> None:
        self._min_quality = min_quality
        self._min_recall = min_recall

    def __call__(self, judge: Judge, rows: Int64[np.ndarray, "queries k"]) -> bool:
        """Compare the mean over all queries, less its standard error, with the goal."""
        if self._min_recall is not None:
            recall = judge.recall(rows)
            return _low(np.ones(len(recall)), recall) >= self._min_recall
        return _low(judge.exact_quality(), judge.quality(rows)) >= (self._min_quality or 0.0)


def share_kept(
    exact: Float64[np.ndarray, " queries"], found: Float64[np.ndarray, " queries"]
) -> float:
    """Return the mean of `found` as a share of that of `exact`; 1 if there is nothing to lose."""
    base = float(exact.mean())
    return float(found.mean()) / base if base > 0 else 1.0


def _low(exact: Float64[np.ndarray, " queries"], found: Float64[np.ndarray, " queries"]) -> float:
    """Return the share kept, less one standard error of it, the two being paired by query."""
    share, base = share_kept(exact, found), float(exact.mean())
    if base == 0.0:
        return share
    spread = float((found - share * exact).std())
    return share - spread / (base * len(exact) ** 0.5)
