"""The two plots: a metric against bytes, and against width."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nestling.measure.report.canvas import Figure, draw_figure, draw_level, mark_chosen
from nestling.measure.report.focus import Focus
from nestling.measure.report.labels import family_label, metric_label
from nestling.measure.report.series import Point, Series
from nestling.measure.report.svg import COLORS, DASHES, MARKERS, color_name, swatch

_MAX_MARKERS = 24
_TICK_LABEL_PX = 52

Position = Callable[[Point], int]
"""Where a point lies on the horizontal axis."""


def draw_by_bytes(focus: Focus) -> Figure:
    """Draw the metric against the bytes that the scanned tier takes per vector."""
    across = sorted({point.row.bytes_per_vector for point in focus.points})
    powers = [2**power for power in range(64) if across[0] <= 2**power <= across[-1]]
    return _draw(
        focus,
        name="bytes",
        sizes_px=((920, 440), (360, 350)),
        position=lambda point: point.row.bytes_per_vector,
        ticks=powers or across,
        x_label="bytes per vector, log scale",
    )


def draw_by_width(focus: Focus) -> Figure:
    """Draw the metric against the width that is scanned."""
    return _draw(
        focus,
        name="width",
        sizes_px=((640, 330), (360, 290)),
        position=lambda point: point.row.dim,
        ticks=sorted({point.row.dim for point in focus.points}),
        x_label="width in dimensions, log scale",
    )


def legend(series: Sequence[Series]) -> list[dict[str, Any]]:
    """Return what the page shows as legend: per family its number formats with their marks."""
    families: dict[str, dict[str, Any]] = {}
    for line in series:
        entry = families.setdefault(
            line.family,
            {"label": family_label(line.family), "color": color_name(line.family), "dtypes": {}},
        )
        entry["dtypes"].setdefault(str(line.dtype), swatch(line.dtype))
    return list(families.values())


def _draw(
    focus: Focus,
    *,
    name: str,
    sizes_px: tuple[tuple[int, int], tuple[int, int]],
    position: Position,
    ticks: Sequence[int],
    x_label: str,
) -> Figure:
    metric = metric_label(focus.metric)
    drawn = ", ".join(entry["label"] for entry in legend(focus.series))
    title = f"{metric} against {x_label}, for {drawn}. The table on this page holds every value."

    def paint(axes: Any, size_px: tuple[int, int]) -> None:
        for line in reversed(focus.series):
            _draw_series(axes, line, position)
        _scale_axes(axes, focus, position, ticks, size_px[0])
        _label_axes(axes, focus, (x_label, metric))
        if focus.tolerated_value is not None:
            draw_level(axes, focus.tolerated_value)
        if focus.chosen is not None:
            chosen = focus.chosen
            mark_chosen(axes, float(position(chosen)), chosen.row.value, chosen.label)

    return draw_figure(name, title, sizes_px, paint)


def _draw_series(axes: Any, line: Series, position: Position) -> None:
    color = COLORS[color_name(line.family)]
    across = [position(point) for point in line.points]
    values = [point.row.value for point in line.points]
    is_cut = line.family == "prefix"
    bands = [point.interval for point in line.points if point.interval is not None]
    if is_cut and len(bands) == len(across) > 1:
        low, high = zip(*bands, strict=True)
        axes.fill_between(across, low, high, color=color, alpha=0.14, linewidth=0, zorder=2)
    marks = {"color": color, "marker": MARKERS[line.dtype], "markeredgewidth": 1.4}
    axes.plot(
        across,
        values,
        linewidth=1.6,
        linestyle=(0, DASHES[line.dtype]) if DASHES[line.dtype] else "solid",
        markersize=5.0,
        markevery=-(-len(across) // _MAX_MARKERS),
        zorder=4 if is_cut else 3,
        **marks,
    )
    if is_cut and line.points[-1].row.dim == line.embed_dim:
        axes.plot(
            across[-1:],
            values[-1:],
            markersize=6.5,
            markerfacecolor=COLORS["paper"],
            zorder=5,
            **marks,
        )


def _scale_axes(
    axes: Any, focus: Focus, position: Position, ticks: Sequence[int], width_px: int
) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    across = [position(point) for point in focus.points]
    left, right = min(across), max(across)
    margin = max(1.06, (right / left) ** 0.03)
    axes.set_xscale("log", base=2)
    axes.set_xlim(left / margin, right * margin)
    apart = np.log2(right / left) * _TICK_LABEL_PX / width_px
    axes.xaxis.set_major_locator(FixedLocator(thin_ticks(ticks, apart)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    drawn = [point.row.value for point in focus.points]
    for line in focus.series:
        if line.family == "prefix":
            drawn += [edge for point in line.points for edge in point.interval or ()]
    if focus.tolerated_value is not None:
        drawn.append(focus.tolerated_value)
    pad = 0.05 * (max(drawn) - min(drawn)) or 0.05
    lowest = min(drawn) - pad
    # An interval may reach below 0, a metric that never does should not seem to.
    if min(point.row.value for point in focus.points) >= 0:
        lowest = max(lowest, -pad / 2)
    axes.set_ylim(lowest, max(drawn) + pad)
    axes.yaxis.set_major_locator(MaxNLocator(6))


def thin_ticks(ticks: Sequence[int], apart: float) -> list[int]:
    """Leave out ticks less than `apart` octaves from the next; the widest stays."""
    kept = [ticks[-1]]
    for tick in reversed(ticks[:-1]):
        if np.log2(kept[-1] / tick) >= apart:
            kept.append(tick)
    return kept[::-1]


def _label_axes(axes: Any, focus: Focus, axis_labels: tuple[str, str]) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_xlabel(axis_labels[0])
    axes.set_ylabel(axis_labels[1])
    if focus.reference is None or focus.reference.value <= 0:
        return
    full_value = focus.reference.value
    shares = axes.secondary_yaxis(
        "right", functions=(lambda value: value / full_value, lambda share: share * full_value)
    )
    shares.set_ylabel("of full width")
    shares.spines["right"].set_visible(False)
    shares.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    shares.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.3g}%"))
    shares.grid(visible=False)
    shares.patch.set_visible(False)
