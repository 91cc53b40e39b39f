"""The two plots: a metric against bytes, and against width."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from nestling.core import Dtype
from nestling.measure.report.focus import Focus
from nestling.measure.report.labels import family_label, metric_label
from nestling.measure.report.series import Point, Series
from nestling.measure.report.svg import COLORS, DASHES, color_name, inline_svg, swatch

_MARKERS = {
    Dtype.FLOAT32: "o",
    Dtype.FLOAT16: "s",
    Dtype.INT8: "^",
    Dtype.INT4: "v",
    Dtype.BINARY: "D",
    Dtype.ROTATED_BINARY: "X",
}
_MAX_MARKERS = 24
_TICK_LABEL_PX = 52

Position = Callable[[Point], int]
"""Where a point lies on the horizontal axis."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One plot as inline SVG, drawn twice: for a desk and for a phone."""

    wide: Markup
    narrow: Markup


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
    wide, narrow = (
        inline_svg(
            _plot(focus, name, size_px, position, ticks, (x_label, metric)),
            f"{name}-{kind}",
            title,
        )
        for kind, size_px in zip(("wide", "narrow"), sizes_px, strict=True)
    )
    return Figure(wide=wide, narrow=narrow)


def _plot(
    focus: Focus,
    name: str,
    size_px: tuple[int, int],
    position: Position,
    ticks: Sequence[int],
    axis_labels: tuple[str, str],
) -> bytes:
    import matplotlib as mpl
    from matplotlib import figure as mpl_figure
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    # A user's own matplotlibrc must not change the report, nor the report the user's settings.
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_settings(name))
        # 72 dots per inch make one point one unit of the SVG.
        canvas = FigureCanvasSVG(
            mpl_figure.Figure(
                figsize=(size_px[0] / 72, size_px[1] / 72), dpi=72, layout="constrained"
            )
        )
        canvas.figure.patch.set_visible(False)
        axes = canvas.figure.add_subplot()
        axes.patch.set_visible(False)
        for line in reversed(focus.series):
            _draw_series(axes, line, position)
        _scale_axes(axes, focus, position, ticks, size_px[0])
        _label_axes(axes, focus, axis_labels)
        _draw_levels(axes, focus)
        if focus.chosen is not None:
            _mark_chosen(axes, focus.chosen, position(focus.chosen))
        buffer = io.BytesIO()
        canvas.print_svg(buffer, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return buffer.getvalue()


def _settings(name: str) -> dict[str, Any]:
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.family": ["DejaVu Sans"],
        "font.size": 11.5,
        "lines.scale_dashes": False,
        "text.parse_math": False,
        "text.color": COLORS["ink"],
        "axes.labelcolor": COLORS["muted"],
        "axes.edgecolor": COLORS["muted"],
        "xtick.color": COLORS["muted"],
        "ytick.color": COLORS["muted"],
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": COLORS["rule"],
        "grid.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "ytick.major.size": 0.0,
    }


def _draw_series(axes: Any, line: Series, position: Position) -> None:
    color = COLORS[color_name(line.family)]
    across = [position(point) for point in line.points]
    values = [point.row.value for point in line.points]
    is_cut = line.family == "prefix"
    bands = [point.interval for point in line.points if point.interval is not None]
    if is_cut and len(bands) == len(across) > 1:
        low, high = zip(*bands, strict=True)
        axes.fill_between(across, low, high, color=color, alpha=0.14, linewidth=0, zorder=2)
    marks = {"color": color, "marker": _MARKERS[line.dtype], "markeredgewidth": 1.4}
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


def _draw_levels(axes: Any, focus: Focus) -> None:
    if focus.tolerated_value is not None:
        axes.axhline(
            focus.tolerated_value,
            color=COLORS["ink"],
            linewidth=1.0,
            linestyle=(0, (2, 2)),
            zorder=2.5,
        )


def _mark_chosen(axes: Any, chosen: Point, across: int) -> None:
    axes.axvline(across, color=COLORS["accent"], linewidth=1.0, zorder=2.5)
    axes.plot(
        [across],
        [chosen.row.value],
        color=COLORS["accent"],
        marker="o",
        markersize=14,
        markerfacecolor="none",
        markeredgewidth=1.8,
        zorder=6,
    )
    left, right = np.log(axes.get_xlim())
    share = (np.log(across) - left) / (right - left)
    axes.annotate(
        f"chosen: {chosen.label}",
        xy=(across, 1.0),
        xycoords=axes.get_xaxis_transform(),
        xytext=(0, 5),
        textcoords="offset points",
        ha="left" if share < 0.25 else "right" if share > 0.75 else "center",
        fontweight="bold",
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
