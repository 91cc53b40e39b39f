"""The plots of a search plan's page: the front, the chosen plan, the goal, labels, ticks."""

import itertools
import re
from dataclasses import replace
from xml.etree import ElementTree as Xml

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.measure.planner import PlanBudget, PlanGoal
from nestling.measure.report.plan_figures import (
    draw_by_memory,
    draw_by_time,
    engine_color,
    log_ticks,
    place_labels,
    plan_legend,
    shows_limit,
    time_cost,
)
from nestling.measure.report.plan_focus import PlanFocus, focus_on_plans, front_line
from nestling.measure.report.svg import COLORS
from tests.measure.plan_report_cases import make_choice, make_points

GOAL = PlanGoal(min_quality=0.99)


@pytest.fixture(scope="module")
def focus() -> PlanFocus:
    return focus_on_plans(make_choice(), GOAL, PlanBudget(memory_bytes=64_000_000))


def marks(svg: str, style: str) -> int:
    """Return how many marks have something in their style."""
    return sum(
        node.tag.endswith("}use") and style in node.get("style", "")
        for node in Xml.fromstring(svg).iter()  # noqa: S314
    )


def paths(svg: str, color: str) -> list[dict[str, str]]:
    """Return the attributes of every stroke in a colour."""
    wanted = f"stroke: var(--{color}, {COLORS[color]})"
    return [
        dict(node.attrib)
        for node in Xml.fromstring(svg).iter()  # noqa: S314
        if node.tag.endswith("}path") and wanted in node.get("style", "")
    ]


def vertices(path: dict[str, str]) -> list[tuple[float, float]]:
    """Return the corners of a polyline."""
    return [(float(x), float(y)) for x, y in re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", path["d"])]


def texts(svg: str) -> set[str | None]:
    return {node.text for node in Xml.fromstring(svg).iter() if node.tag.endswith("}text")}  # noqa: S314


def front(svg: str) -> list[tuple[float, float]]:
    """Return the corners of the line through the front: the only grey one that is no axis."""
    lines = [
        vertices(path)
        for path in paths(svg, "muted")
        if "stroke-width: 1.4" in path["style"] and "fill: none" in path["style"]
    ]
    assert len(lines) == 1
    return lines[0]


def test_the_line_goes_through_the_front_of_what_the_plot_shows(focus: PlanFocus) -> None:
    by_time = front_line(focus.spots, lambda point: point.latency_ms)
    assert [spot.number for spot in by_time] == [1, 2, 3, 6]
    by_memory = front_line(focus.spots, lambda point: point.memory_bytes)
    assert [spot.number for spot in by_memory] == [5, 6]
    for figure, line in ((draw_by_time(focus), by_time), (draw_by_memory(focus), by_memory)):
        for svg in (figure.wide, figure.narrow):
            corners = front(str(svg))
            assert len(corners) == len(line)
            assert [x for x, _ in corners] == sorted(x for x, _ in corners)
            # Downwards in an SVG is upwards on the page.
            assert [y for _, y in corners] == sorted((y for _, y in corners), reverse=True)


def test_equal_plans_are_on_the_line_once() -> None:
    twice = [make_points()[1], make_points()[1]]
    focus = focus_on_plans(make_choice(twice, chosen=1), GOAL, PlanBudget())
    assert len(front_line(focus.spots, lambda point: point.latency_ms)) == 1
    draw_by_time(focus)


def test_the_chosen_plan_is_ringed_and_named_and_every_plan_has_its_number(
    focus: PlanFocus,
) -> None:
    for figure in (draw_by_time(focus), draw_by_memory(focus)):
        for svg in map(str, (figure.wide, figure.narrow)):
            assert {"chosen: 2, graph, 64-d int8", "goal", "exact"} <= texts(svg)
            assert {"1", "2", "3", "4", "5", "6"} <= texts(svg)
            assert marks(svg, "stroke: var(--accent") == 1
    nothing = focus_on_plans(make_choice(chosen=None), GOAL, PlanBudget())
    svg = str(draw_by_time(nothing).wide)
    assert marks(svg, "stroke: var(--accent") == 0
    assert not [text for text in texts(svg) if text and text.startswith("chosen")]


def test_goal_and_budget_are_dotted(focus: PlanFocus) -> None:
    def dotted(svg: str) -> int:
        return sum("stroke-dasharray: 2,2" in path["style"] for path in paths(svg, "ink"))

    assert dotted(str(draw_by_time(focus).wide)) == 1
    assert dotted(str(draw_by_memory(focus).wide)) == 2


@pytest.mark.parametrize(
    ("latency_ms", "is_shown"), [(0.05, False), (0.1, True), (5.0, True), (90.0, False)]
)
def test_a_budget_far_from_everything_measured_is_not_drawn(
    latency_ms: float, is_shown: bool
) -> None:
    focus = focus_on_plans(make_choice(), GOAL, PlanBudget(latency_ms=latency_ms))
    assert shows_limit(focus, time_cost(focus)) is is_shown


def test_hollow_is_what_cannot_be_chosen(focus: PlanFocus) -> None:
    svg = str(draw_by_time(focus).wide)
    assert marks(svg, "fill: var(--paper") == 3, "plans 1 and 6, and the exact search"


def test_intervals_are_drawn_where_there_are_some(focus: PlanFocus) -> None:
    def intervals(drawn: PlanFocus) -> int:
        svg = str(draw_by_time(drawn).wide)
        colors = {engine_color(spot.engine) for spot in drawn.spots}
        return sum(
            "stroke-width: 2" in path["style"] for color in colors for path in paths(svg, color)
        )

    assert intervals(focus) == 6
    assert intervals(focus_on_plans(make_choice(), PlanGoal(min_recall=0.9), PlanBudget())) == 0


def test_legend_names_engines_and_the_formats_of_their_heads(focus: PlanFocus) -> None:
    entries = plan_legend(focus)
    assert [entry["label"] for entry in entries] == ["graph", "hnsw", "flat"]
    assert len({entry["color"] for entry in entries}) == 3
    assert list(entries[2]["dtypes"]) == ["rotated-binary", "int8"]


def test_engines_that_can_be_planned_have_colors_of_their_own() -> None:
    colors = [engine_color(name) for name in ("flat", "graph", "hnsw", "ivf", "vamana")]
    assert len(set(colors)) == len(colors)
    assert set(colors) <= set(COLORS)


def test_names_are_never_read_as_mathematics() -> None:
    choice = make_choice()
    odd = replace(choice, evidence={"metric": "$\\frac_at_10$<b>"})
    svg = str(draw_by_time(focus_on_plans(odd, GOAL, PlanBudget())).wide)
    assert "$\\frac@10$&lt;b&gt; kept" in svg


@given(
    st.floats(1e-5, 1e5),
    st.floats(1.01, 1e6),
    st.floats(0.04, 0.25),
)
def test_ticks_lie_on_the_axis_and_apart(low: float, ratio: float, apart: float) -> None:
    high = low * ratio
    ticks = log_ticks(low, high, apart)
    assert all(low <= tick <= high for tick in ticks)
    for left, right in itertools.pairwise(ticks):
        assert right / left >= ratio**apart * (1 - 1e-9)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.15, 55.0, [0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0]),
        (0.15, 1e6, [1.0, 10.0, 100.0, 1000.0, 10_000.0, 100_000.0, 1_000_000.0]),
        (0.21, 0.29, [0.22, 0.24, 0.26, 0.28]),
        (31.0, 39.0, [32.0, 34.0, 36.0, 38.0]),
    ],
)
def test_ticks_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert log_ticks(low, high, 0.1) == ticks


def test_labels_keep_off_marks_each_other_and_what_is_taken() -> None:
    places = [(50.0, 50.0), (58.0, 50.0), (66.0, 50.0), (94.0, 94.0)]
    labels = ["1", "2", "3", "exact"]
    middles = place_labels(
        places, labels, taken=[(0.0, 62.0, 100.0, 64.0)], frame=(0.0, 0.0, 100.0, 100.0)
    )
    boxes = [
        (x - 3.5 * len(text), y - 6.5, x + 3.5 * len(text), y + 6.5)
        for (x, y), text in zip(middles, labels, strict=True)
    ]
    boxes += [(x - 5.9, y - 5.9, x + 5.9, y + 5.9) for x, y in places[:1]]
    boxes.append((0.0, 62.0, 100.0, 64.0))
    for one, other in itertools.combinations(boxes, 2):
        apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
        assert apart, (one, other)
    for left, foot, right, top in boxes[: len(labels)]:
        assert min(left, foot) >= 0
        assert max(right, top) <= 100
