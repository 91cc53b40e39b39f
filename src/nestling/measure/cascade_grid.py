"""The joint search behind `fit_thresholds`: a split seen through a few thresholds per width.

With all other thresholds held, what two neighbouring ones come to, at every pair of levels at once, is
a sum over a table of counts. So each move is the best of all pairs, at the price of one pass over the
split.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from nestling.measure.cascade import Cascade, WidthAnswers

NUM_QUANTILES = 32
"""Thresholds per width, at quantiles of the confidences. Finer ones follow the noise of the split."""

Levels = tuple[int, ...]
"""One per width: a place in its thresholds."""


class Grid(NamedTuple):
    """A split seen through a few thresholds per width.

    An input goes on at level l exactly if its code is at most l. Level 0 always stops (codes start
    at 1), and the level after the last threshold never does: the width is skipped.

    Attributes:
        dims: Widths.
        thresholds: Ascending thresholds of each width, the first being 0. The last width has no other.
        codes: How many thresholds each confidence exceeds, of shape (widths, inputs).
        correct: 1 where the width is right, of the same shape.
        is_cumulative: Whether every width tried is charged for, not just the exit.
    """

    dims: np.ndarray
    thresholds: tuple[np.ndarray, ...]
    codes: np.ndarray
    correct: np.ndarray
    is_cumulative: bool


class Total(NamedTuple):
    """Correct answers and cost of all inputs together; whole numbers, so that ties are exact."""

    correct: float
    cost: float

    def rank(self, needed: int) -> tuple[bool, float, float]:
        """Return what to maximise: cheap once accurate enough, and accurate until then."""
        if self.correct >= needed:
            return True, -self.cost, self.correct
        return False, self.correct, -self.cost


def make_grid(answers: WidthAnswers, greedy: Cascade, *, is_cumulative: bool) -> Grid:
    """Return a split seen through quantiles of its confidences, and the greedy thresholds."""
    shares = np.linspace(0.0, 1.0, NUM_QUANTILES + 1)[1:-1]
    thresholds = [
        # The greedy one is among them, so that the search can start there.
        np.unique([0.0, *np.quantile(confidences, shares), of_greedy])
        for confidences, of_greedy in zip(answers.confidences, greedy.thresholds, strict=False)
    ]
    thresholds.append(np.zeros(1))
    codes = [
        np.searchsorted(values, confidences, side="left")
        for values, confidences in zip(thresholds, answers.confidences, strict=True)
    ]
    return Grid(
        np.array(answers.dims),
        tuple(thresholds),
        np.array(codes),
        answers.is_correct.astype(np.float64),
        is_cumulative,
    )


def starts(grid: Grid, greedy: Cascade) -> Iterator[Levels]:
    """Yield the greedy cascade stopped at each size, and each width alone."""
    of_greedy = [
        int(np.searchsorted(values, threshold))
        for values, threshold in zip(grid.thresholds, greedy.thresholds, strict=False)
    ]
    skips = [len(values) for values in grid.thresholds]
    for place in range(len(skips)):
        after = [0] * (len(skips) - place)
        yield (*of_greedy[:place], *after)
        yield (*skips[:place], *after)


def descend(grid: Grid, levels: Levels, needed: int, seen: set[Levels]) -> Levels:
    """Return levels that no change of one or two neighbouring ones improves.

    Pairs further apart were tried too: they took three times as long and found nothing cheaper.

    Args:
        grid: The split.
        levels: Where to start.
        needed: Correct answers that the total must reach.
        seen: Levels met before: a descent that comes upon them ends, its rest being known. Filled.
    """
    rank = total_of(grid, levels).rank(needed)
    is_better = True
    while is_better and levels not in seen:
        seen.add(levels)
        is_better = False
        for first in range(len(levels) - 1):
            moved, total = _best_pair(grid, levels, first, needed)
            if total.rank(needed) > rank:
                levels, rank, is_better = moved, total.rank(needed), True
    return levels


def _best_pair(grid: Grid, levels: Levels, first: int, needed: int) -> tuple[Levels, Total]:
    """Return the best levels of a width and the next, all others being held, and what they come to."""
    correct, cost = pair_tables(grid, levels, first)
    if first + 2 == len(levels):
        # The last width answers whatever is left: its only level is 0.
        correct, cost = correct[:, :1], cost[:, :1]
    is_enough = correct >= needed
    keys = (-correct, np.where(is_enough, cost, math.inf)) if is_enough.any() else (cost, -correct)
    place = int(np.lexsort([key.ravel() for key in keys])[0])
    row, column = divmod(place, correct.shape[1])
    moved = (*levels[:first], row, column, *levels[first + 2 :])
    return moved, Total(float(correct[row, column]), float(cost[row, column]))


def pair_tables(
    grid: Grid, levels: Levels, first: int
) -> tuple[Float[np.ndarray, "first second"], Float[np.ndarray, "first second"]]:
    """Return correct answers and cost for all levels of a width and the next, the others being held.

    If the second is the last width, only its level 0 makes sense.
    """
    second = first + 1
    stops = grid.codes > np.array(levels)[:, None]
    shape = len(grid.thresholds[first]) + 1, len(grid.thresholds[second]) + 1
    charges = _charges(grid, levels, without=(first, second))
    exits = stops.argmax(axis=0)
    before = np.flatnonzero(exits < first)
    going = np.flatnonzero(exits >= first)
    # With nothing behind `second`, what lies there is never read.
    behind = min(second + 1, len(levels) - 1)
    later = behind + stops[behind:, going].argmax(axis=0)
    codes = grid.codes[first, going], grid.codes[second, going]
    right = grid.correct[:, going]
    correct = grid.correct[exits[before], before].sum() + _sum_up(
        codes, shape, right[first], right[second], right[later, np.arange(len(going))]
    )
    paid = np.ones(len(going))
    cost = charges[exits[before]].sum() + _sum_up(
        codes, shape, paid * charges[first], paid * charges[second], charges[later]
    )
    if grid.is_cumulative:
        arriving = np.cumsum(np.bincount(codes[0], minlength=shape[0]))
        cost[:-1] += grid.dims[first] * len(going)
        cost[:, :-1] += grid.dims[second] * arriving[:, None]
    return correct, cost


def _sum_up(
    codes: tuple[Int[np.ndarray, " inputs"], Int[np.ndarray, " inputs"]],
    shape: tuple[int, int],
    at_first: Float[np.ndarray, " inputs"],
    at_second: Float[np.ndarray, " inputs"],
    later: Float[np.ndarray, " inputs"],
) -> Float[np.ndarray, "first second"]:
    """Return the sum over inputs of what each contributes where it stops, for all pairs of levels."""
    cells = codes[0] * shape[1] + codes[1]

    def passing(values: np.ndarray) -> np.ndarray:
        flat = np.bincount(cells, weights=values, minlength=shape[0] * shape[1])
        return flat.reshape(shape).cumsum(axis=0).cumsum(axis=1)

    passed_first = np.cumsum(np.bincount(codes[0], weights=at_first, minlength=shape[0]))
    stopping = at_first.sum() - passed_first
    passed_both = passing(at_second)
    return stopping[:, None] + passed_both[:, -1:] - passed_both + passing(later)


def _charges(
    grid: Grid, levels: Levels, *, without: tuple[int, ...] = ()
) -> Float[np.ndarray, " widths"]:
    """Return what an input is charged that stops at each width.

    Args:
        grid: The split.
        levels: Of all widths.
        without: Widths that the cumulative count leaves out.
    """
    if not grid.is_cumulative:
        return grid.dims.astype(np.float64)
    is_tried = _is_tried(grid, levels)
    is_tried[list(without)] = False
    return np.cumsum(grid.dims * is_tried).astype(np.float64)


def _is_tried(grid: Grid, levels: Levels) -> Bool[np.ndarray, " widths"]:
    pairs = zip(levels, grid.thresholds, strict=True)
    return np.array([level < len(values) for level, values in pairs])


def total_of(grid: Grid, levels: Levels) -> Total:
    """Return what the cascade of some levels comes to, the obvious way."""
    exits = (grid.codes > np.array(levels)[:, None]).argmax(axis=0)
    correct = grid.correct[exits, np.arange(len(exits))].sum()
    return Total(float(correct), float(_charges(grid, levels)[exits].sum()))


def to_cascade(grid: Grid, levels: Levels) -> Cascade:
    """Return the cascade of some levels, without what it does not use.

    It ends at the first width that always stops, and skips a width that stops no input of the split.
    """
    last = levels.index(0)
    exits = (grid.codes > np.array(levels)[:, None]).argmax(axis=0)
    answers = np.bincount(exits, minlength=last)
    return Cascade(
        dims=tuple(grid.dims[: last + 1].tolist()),
        thresholds=tuple(
            float(grid.thresholds[place][levels[place]]) if answers[place] else math.inf
            for place in range(last)
        ),
    )
