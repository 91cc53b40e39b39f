"""One plot drawn twice, for a desk and for a phone, and the marks that plots share."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from nestling.measure.report.svg import COLORS, inline_svg

Paint = Callable[[Any, tuple[int, int]], None]
"""Paints on the axes of a plot of so many units, width and height."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One plot as inline SVG, drawn twice: for a desk and for a phone."""

    wide: Markup
    narrow: Markup


def draw_figure(
    name: str, title: str, sizes_px: tuple[tuple[int, int], tuple[int, int]], paint: Paint
) -> Figure:
    """Draw a plot in both sizes.

    Args:
        name: Unique within the page.
        title: What it shows, for people who cannot see it.
        sizes_px: For a desk, and for a phone.
        paint: What draws it.
    """
    wide, narrow = (
        inline_svg(_draw(name, size_px, paint), f"{name}-{kind}", title)
        for kind, size_px in zip(("wide", "narrow"), sizes_px, strict=True)
    )
    return Figure(wide=wide, narrow=narrow)


def draw_level(axes: Any, value: float) -> None:
    """Draw a dotted level through a value that is to be kept."""
    axes.axhline(value, color=COLORS["ink"], linewidth=1.0, linestyle=(0, (2, 2)), zorder=2.5)


def mark_chosen(axes: Any, across: float, value: float, label: str) -> None:
    """Ring the point that was chosen, and name it above the plot, whose axis across is logarithmic."""
    axes.axvline(across, color=COLORS["accent"], linewidth=1.0, zorder=2.5)
    axes.plot(
        [across],
        [value],
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
        f"chosen: {label}",
        xy=(across, 1.0),
        xycoords=axes.get_xaxis_transform(),
        xytext=(0, 5),
        textcoords="offset points",
        ha="left" if share < 0.25 else "right" if share > 0.75 else "center",
        fontweight="bold",
    )


def _draw(name: str, size_px: tuple[int, int], paint: Paint) -> bytes:
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
        paint(axes, size_px)
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
