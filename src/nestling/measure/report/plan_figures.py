"""The two plots of a search plan's page: what is kept against time, and against RAM."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from nestling.measure.report.canvas import Figure, draw_figure, draw_level, mark_chosen
from nestling.measure.report.plan_focus import Across, PlanFocus, Spot, front_line
from nestling.measure.report.svg import COLORS, MARKERS, swatch

_ENGINE_COLORS = {"graph": "prefix", "flat": "pca", "hnsw": "funnel", "vamana": "random"}
"""The hues of the page are named after what the page on a measurement draws in them."""

_STEPS = ((1,), (1, 3), (1, 2, 5), tuple(range(1, 10)))
"""Ticks within a power of ten, from few to many."""
_TICK_LABEL_PX, _EDGES_PX = 38, 95
"""What a tick takes, and what lies left and right of the axis."""
_CHARACTER_PX, _LINE_PX, _MARK_PX, _RING_PX = 7.0, 13.0, 6.0, 9.0
"""What a character of a label, a line of text, a mark and the ring take."""
_LINE_SAMPLES = 60
"""Places of a line that labels keep off."""

Box = tuple[float, float, float, float]
"""Left, foot, right, top."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What lies on the horizontal axis.

    Attributes:
        name: Of the plot, unique within the page.
        label: Of the axis.
        across: Where a plan lies on it.
        exact: Where the exact search does.
        limit: What the budget allows of it, or None.
    """

    name: str
    label: str
    across: Across
    exact: float
    limit: float | None


def time_cost(focus: PlanFocus) -> Cost:
    """Return the axis of milliseconds."""
    return Cost(
        name="time",
        label="ms per query, log scale",
        across=lambda point: point.latency_ms,
        exact=focus.choice.exact.latency_ms,
        limit=focus.budget.latency_ms,
    )


def memory_cost(focus: PlanFocus) -> Cost:
    """Return the axis of RAM."""
    limit = focus.budget.memory_bytes
    return Cost(
        name="memory",
        label="RAM in MB, log scale",
        across=lambda point: point.memory_bytes / 1e6,
        # Its vectors are mapped, and to be fast they must all be there.
        exact=focus.choice.exact.mapped_bytes / 1e6,
        limit=None if limit is None else limit / 1e6,
    )


def draw_by_time(focus: PlanFocus) -> Figure:
    """Draw what is kept against milliseconds."""
    return _draw(focus, time_cost(focus), ((920, 440), (360, 350)))


def draw_by_memory(focus: PlanFocus) -> Figure:
    """Draw what is kept against RAM."""
    return _draw(focus, memory_cost(focus), ((640, 330), (360, 290)))


def engine_color(engine: str) -> str:
    """Return the name of the colour an engine is drawn in."""
    return _ENGINE_COLORS.get(engine, "other")


def plan_legend(focus: PlanFocus) -> list[dict[str, Any]]:
    """Return what the page shows as legend: per engine the formats of its heads with their marks."""
    engines: dict[str, dict[str, Any]] = {}
    for spot in focus.spots:
        entry = engines.setdefault(
            spot.engine, {"label": spot.engine, "color": engine_color(spot.engine), "dtypes": {}}
        )
        dtype = spot.point.plan.head.dtype
        entry["dtypes"].setdefault(str(dtype), swatch(dtype))
    return list(engines.values())


def shows_limit(focus: PlanFocus, cost: Cost) -> bool:
    """Return whether the budget lies where something was measured; elsewhere it would only squeeze."""
    if cost.limit is None:
        return False
    measured = _measured(focus, cost)
    return min(measured) / 2 <= cost.limit <= 2 * max(measured)


def log_ticks(low: float, high: float, apart: float) -> list[float]:
    """Return round numbers between two for a logarithmic axis, as many as will do.

    Args:
        low: Least value of the axis.
        high: Greatest value of it.
        apart: Least distance of two ticks, as a share of the axis.
    """
    from matplotlib.ticker import MaxNLocator

    def fits(ticks: Sequence[float]) -> bool:
        least = (high / low) ** apart
        return all(right / left >= least for left, right in pairwise(ticks))

    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    found: list[float] = []
    for steps in _STEPS:
        # Divided, not multiplied by 10 ** -1: 0.3 has to read 0.3.
        ticks = [
            step * 10**power if power >= 0 else step / 10**-power
            for power in powers
            for step in steps
        ]
        inside = [float(tick) for tick in ticks if low <= tick <= high]
        if fits(inside):
            found = inside
    for most in (5, 3, 2):
        if len(found) >= 2:
            break
        linear = MaxNLocator(nbins=most, steps=[1, 2, 5, 10]).tick_values(low, high)
        inside = [float(f"{tick:.6g}") for tick in linear if low <= tick <= high]
        if fits(inside):
            found = inside
    return found


def place_labels(
    places: Sequence[tuple[float, float]],
    texts: Sequence[str],
    *,
    taken: Sequence[Box],
    frame: Box,
) -> list[tuple[float, float]]:
    """Return the middle of each label, beside its place, where it touches least.

    Args:
        places: Of the marks, in units of the plot.
        texts: One per mark.
        taken: What else is drawn.
        frame: What labels stay within.
    """
    boxes = [_box((x, y), 2 * _MARK_PX, 2 * _MARK_PX) for x, y in places]
    boxes += taken
    middles = []
    for (x, y), text in zip(places, texts, strict=True):
        width, height = len(text) * _CHARACTER_PX, _LINE_PX
        tried = [
            (x + across * (width / 2 + _MARK_PX + far), y + up * (height / 2 + _MARK_PX + far))
            for far in (1.0, 5.0, 10.0, 16.0)
            for across, up in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
        ]
        found = [_box(middle, width, height) for middle in tried]
        costs = [
            sum(_overlap(box, other) for other in boxes) + (0.0 if _is_inside(box, frame) else 1e6)
            for box in found
        ]
        best = costs.index(min(costs))
        middles.append(tried[best])
        boxes.append(found[best])
    return middles


def _box(middle: tuple[float, float], width: float, height: float) -> Box:
    x, y = middle
    return (x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def _is_inside(box: Box, frame: Box) -> bool:
    return box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]


def _overlap(one: Box, other: Box) -> float:
    across = min(one[2], other[2]) - max(one[0], other[0])
    up = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, across) * max(0.0, up)


def _measured(focus: PlanFocus, cost: Cost) -> list[float]:
    return [*map(cost.across, focus.choice.points), cost.exact]


def _draw(
    focus: PlanFocus, cost: Cost, sizes_px: tuple[tuple[int, int], tuple[int, int]]
) -> Figure:
    title = (
        f"{focus.share_label} against {cost.label}, for {len(focus.spots)} measured plans and the "
        f"exact search. The table on this page holds every value."
    )

    def paint(axes: Any, size_px: tuple[int, int]) -> None:
        _scale_axes(axes, focus, cost, size_px[0])
        draw_level(axes, focus.goal.share)
        _draw_goal_label(axes, focus.goal.share)
        if shows_limit(focus, cost):
            axes.axvline(
                cost.limit, color=COLORS["ink"], linewidth=1.0, linestyle=(0, (2, 2)), zorder=2.5
            )
        _draw_front(axes, focus, cost.across)
        for spot in focus.spots:
            _draw_spot(axes, spot, cost.across(spot.point))
        _draw_exact(axes, cost.exact, focus.exact_share)
        if focus.chosen is not None:
            spot = focus.chosen
            mark_chosen(axes, cost.across(spot.point), spot.share, f"{spot.number}, {spot.label}")
        _draw_labels(axes, focus, cost)

    return draw_figure(cost.name, title, sizes_px, paint)


def _scale_axes(axes: Any, focus: PlanFocus, cost: Cost, width_px: int) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    measured = _measured(focus, cost)
    if shows_limit(focus, cost) and cost.limit is not None:
        measured.append(cost.limit)
    # Plans that cost the same shall not stretch a hundredth of a millisecond over the whole plot.
    margin = max(1.25, (max(measured) / min(measured)) ** 0.05)
    low, high = min(measured) / margin, max(measured) * margin
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    ticks = log_ticks(low, high, _TICK_LABEL_PX / (width_px - _EDGES_PX))
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.set_xlabel(cost.label)

    shares = [spot.share for spot in focus.spots]
    shares += [spot.low for spot in focus.spots if spot.low is not None]
    shares += [focus.goal.share, focus.exact_share]
    pad = 0.07 * (max(shares) - min(shares)) or 0.01
    axes.set_ylim(min(shares) - pad, max(shares) + pad)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.6g}%"))
    axes.set_ylabel(focus.share_label)


def _draw_goal_label(axes: Any, share: float) -> None:
    axes.annotate(
        "goal",
        xy=(1.0, share),
        xycoords=axes.get_yaxis_transform(),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
    )


def _draw_front(axes: Any, focus: PlanFocus, across: Across) -> None:
    front = front_line(focus.spots, across)
    axes.plot(
        [across(spot.point) for spot in front],
        [spot.share for spot in front],
        color=COLORS["muted"],
        linewidth=1.4,
        zorder=3,
    )


def _draw_spot(axes: Any, spot: Spot, across: float) -> None:
    color = COLORS[engine_color(spot.engine)]
    if spot.low is not None:
        axes.plot(
            [across, across],
            [spot.low, spot.share],
            color=color,
            linewidth=2.0,
            marker="_",
            markersize=6.0,
            markevery=[0],
            alpha=0.55,
            zorder=3.5,
        )
    is_good = spot.point.reaches and spot.point.fits
    axes.plot(
        [across],
        [spot.share],
        color=color,
        marker=MARKERS[spot.point.plan.head.dtype],
        markersize=7.0,
        markeredgewidth=1.4,
        markerfacecolor=color if is_good else COLORS["paper"],
        zorder=4,
    )


def _draw_exact(axes: Any, across: float, share: float) -> None:
    axes.plot(
        [across],
        [share],
        color=COLORS["ink"],
        marker="P",
        markersize=7.0,
        markeredgewidth=1.2,
        markerfacecolor=COLORS["paper"],
        zorder=4,
    )


def _draw_labels(axes: Any, focus: PlanFocus, cost: Cost) -> None:
    # What lies where is known only once the axes have made room for their own labels.
    axes.figure.draw_without_rendering()
    left, foot, right, top = axes.get_window_extent().extents.tolist()

    def units(across: float, share: float) -> tuple[float, float]:
        x, y = axes.transData.transform((across, share)).tolist()
        return x, y

    places = [units(cost.across(spot.point), spot.share) for spot in focus.spots]
    places.append(units(cost.exact, focus.exact_share))
    texts = [str(spot.number) for spot in focus.spots] + ["exact"]
    goal = units(cost.exact, focus.goal.share)[1]
    taken: list[Box] = [(left, goal - 1, right, goal + 1)]
    for spot, (x, y) in zip(focus.spots, places, strict=False):
        if spot is focus.chosen:
            taken += [_box((x, y), 2 * _RING_PX, 2 * _RING_PX), (x - 1, foot, x + 1, top)]
        if spot.low is not None:
            taken.append((x - 3, units(cost.across(spot.point), spot.low)[1], x + 3, y))
    front = [
        units(cost.across(each.point), each.share) for each in front_line(focus.spots, cost.across)
    ]
    for start, end in pairwise(front):
        for x, y in np.linspace(start, end, _LINE_SAMPLES).tolist():
            taken.append(_box((x, y), 4.0, 4.0))
    for (x, y), text in zip(
        place_labels(places, texts, taken=taken, frame=(left, foot, right, top)), texts, strict=True
    ):
        axes.annotate(
            text,
            xy=(x, y),
            xycoords="figure pixels",
            ha="center",
            va="center_baseline",
            fontsize=10.5,
            zorder=7,
        )
