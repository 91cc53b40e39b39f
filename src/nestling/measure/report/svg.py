"""Colours, and SVG that lives inside a page.

The colours are Okabe and Ito's for colour-blind readers (2008), one per family; the number format
is told by marker and dash. In the page every colour is a CSS variable, so that one drawing is
readable on paper, on a light screen and on a dark one; text stays text.
"""

import re
from xml.etree import ElementTree as Xml

from markupsafe import Markup

from nestling.core import Dtype
from nestling.measure.report.series import Series

COLORS = {
    "ink": "#1d1d1c",
    "muted": "#5f5e59",
    "rule": "#d9d7d0",
    "paper": "#fcfbf8",
    "accent": "#0072b3",
    "prefix": "#0072b2",
    "funnel": "#009e73",
    "pca": "#d55e00",
    "random": "#7f7d76",
    "other": "#b5578f",
}
"""What is drawn with, by the name of its CSS variable; equal colours could not be told apart."""

DASHES: dict[Dtype, tuple[float, ...]] = {
    Dtype.FLOAT32: (),
    Dtype.FLOAT16: (7.0, 2.5),
    Dtype.INT8: (7.0, 2.5, 1.5, 2.5),
    Dtype.INT4: (7.0, 2.5, 1.5, 2.5, 1.5, 2.5),
    Dtype.BINARY: (1.5, 2.5),
    Dtype.ROTATED_BINARY: (1.5, 5.0),
}
MARKERS: dict[Dtype, str] = {
    Dtype.FLOAT32: "o",
    Dtype.FLOAT16: "s",
    Dtype.INT8: "^",
    Dtype.INT4: "v",
    Dtype.BINARY: "D",
    Dtype.ROTATED_BINARY: "X",
}
_SWATCH_MARKERS = {
    Dtype.FLOAT32: "M16 3.2a3.8 3.8 0 1 0 .01 0Z",
    Dtype.FLOAT16: "M12.6 3.6h6.8v6.8h-6.8Z",
    Dtype.INT8: "M16 2.8l4.2 7.6h-8.4Z",
    Dtype.INT4: "M16 11.2l4.2-7.6h-8.4Z",
    Dtype.BINARY: "M16 2.4l4.4 4.6-4.4 4.6-4.4-4.6Z",
    Dtype.ROTATED_BINARY: "M14 2.8l2 2 2-2 2.2 2.2-2 2 2 2-2.2 2.2-2-2-2 2-2.2-2.2 2-2-2-2Z",
}


def color_name(family: str) -> str:
    """Return the name of the colour a family is drawn in."""
    return family if family in ("prefix", "funnel", "pca", "random") else "other"


def swatch(dtype: Dtype) -> dict[str, str]:
    """Return how a legend of 32 x 14 draws a number format: marker path and dash array."""
    return {
        "marker": _SWATCH_MARKERS[dtype],
        "dashes": " ".join(f"{length:g}" for length in DASHES[dtype]),
    }


def sparkline_points(line: Series, low: float, high: float) -> str:
    """Return the points of a polyline in a box of 64 x 16, `low` at its foot, widths evenly apart."""
    span = (high - low) or 1.0
    step = 60.0 / max(1, len(line.points) - 1)
    return " ".join(
        f"{2 + index * step:.1f},{14 - 12 * (point.row.value - low) / span:.1f}"
        for index, point in enumerate(line.points)
    )


def inline_svg(document: bytes, name: str, title: str) -> Markup:
    """Turn the SVG file that matplotlib wrote into an element that shares a page with others.

    Args:
        document: The file.
        name: Unique within the page; every id of the element starts with it.
        title: What it shows, for people who cannot see it.
    """
    root = Xml.fromstring(document)  # noqa: S314  (matplotlib wrote it a moment ago)
    # matplotlib's style element would restyle the whole page.
    defs = next(iter(root))
    root.remove(defs)
    used = set(re.findall(r"[(\"]#([\w-]+)", document.decode()))
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.tail = None
        if element.tag != "text":
            element.text = None
        element.attrib = {
            key.rpartition("}")[2]: _own_value(key, value, name)
            for key, value in element.attrib.items()
            if key != "id" or value in used
        }
    for key in ("width", "height", "version"):
        del root.attrib[key]
    root.set("xmlns", "http://www.w3.org/2000/svg")
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title")
    heading = Xml.Element("title", {"id": f"{name}-title"})
    heading.text = title
    root.insert(0, heading)
    return Markup(Xml.tostring(root, encoding="unicode"))  # noqa: S704  (Xml has escaped it)


def _own_value(key: str, value: str, name: str) -> str:
    """Return an attribute with ids made unique to the plot and colours made variable."""
    if key == "id":
        return f"{name}-{value}"
    if key.endswith("href"):
        return f"#{name}-{value[1:]}"
    if key == "style":
        value = re.sub(r"font-family: [^;]+;? ?", "", value)
        for variable, color in COLORS.items():
            value = value.replace(color, f"var(--{variable}, {color})")
    return " ".join(value.replace("url(#", f"url(#{name}-").split())
