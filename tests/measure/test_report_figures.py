"""The plots: nothing drawn twice in one colour, labels that do not touch, SVG that shares a page."""

import itertools
import re
from xml.etree import ElementTree as Xml

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.core import Dtype
from nestling.measure.report.figures import draw_by_bytes, draw_by_width, legend, thin_ticks
from nestling.measure.report.focus import Focus, focus_on
from nestling.measure.report.svg import COLORS, DASHES, sparkline_points
from tests.measure.report_cases import make_decision, make_results


@pytest.fixture(scope="module")
def focus() -> Focus:
    results = make_results(metrics=("ndcg_at_10",))
    return focus_on(results, make_decision(results))


def test_colors_can_be_told_apart() -> None:
    assert len(set(COLORS.values())) == len(COLORS)
    assert len({DASHES[dtype] for dtype in Dtype}) == len(Dtype)


def test_every_color_of_a_plot_is_a_variable_with_a_fallback(focus: Focus) -> None:
    svg = str(draw_by_bytes(focus).wide)
    assert not re.search(r"(?<!, )#[0-9a-f]{6}\b", svg)
    for name in ("prefix", "funnel", "pca", "random", "accent", "ink"):
        assert f"var(--{name}, {COLORS[name]})" in svg


def test_plot_scales_and_keeps_its_text(focus: Focus) -> None:
    figure = draw_by_width(focus)
    for svg in (figure.wide, figure.narrow):
        root = Xml.fromstring(str(svg))  # noqa: S314
        assert "width" not in root.attrib
        assert "viewBox" in root.attrib
        texts = [node.text for node in root.iter() if node.tag.endswith("}text")]
        assert "chosen: 64-d int8 funnel" in texts
        assert {"8", "16", "32", "64", "128", "256", "nDCG@10", "100%"} <= set(texts)
        assert "font-family" not in str(svg)
        assert "<style" not in str(svg)


def test_bytes_axis_has_powers_of_two(focus: Focus) -> None:
    root = Xml.fromstring(str(draw_by_bytes(focus).wide))  # noqa: S314
    texts = {node.text for node in root.iter() if node.tag.endswith("}text")}
    assert {"1", "64", "256", "1,024"} <= texts


def test_metric_names_are_never_read_as_mathematics() -> None:
    results = make_results(metrics=("$\\frac_at_10$<b>",), num_queries=20, dims=(8, 16))
    svg = str(draw_by_width(focus_on(results, None)).wide)
    assert "$\\frac@10$&lt;b&gt;" in svg


def test_legend_names_what_is_drawn(focus: Focus) -> None:
    entries = legend(focus.series)
    assert [entry["label"] for entry in entries] == ["prefix", "funnel", "PCA", "random"]
    assert list(entries[0]["dtypes"]) == list(Dtype)
    assert list(entries[3]["dtypes"]) == ["float32"]


def test_sparkline_rises_with_the_values(focus: Focus) -> None:
    line = focus.series[0]
    points = [
        tuple(map(float, pair.split(","))) for pair in sparkline_points(line, 0.0, 1.0).split()
    ]
    assert len(points) == len(line.points)
    assert points[0][0] == 2.0
    assert points[-1][0] == 62.0
    assert [y for _, y in points] == sorted((y for _, y in points), reverse=True)


@given(
    st.sets(st.integers(1, 4096), min_size=1).map(sorted),
    st.floats(0.01, 3.0),
)
def test_thinned_ticks_keep_their_distance_and_the_widest(ticks: list[int], apart: float) -> None:
    kept = thin_ticks(ticks, apart)
    assert kept[-1] == ticks[-1]
    assert set(kept) <= set(ticks)
    assert all(right / left >= 2**apart * (1 - 1e-9) for left, right in itertools.pairwise(kept))
