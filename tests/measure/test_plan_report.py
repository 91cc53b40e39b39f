"""The page on a search plan: what it says, that it is whole and safe, with a plan and without one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nestling.core import Fingerprint
from nestling.errors import WriteError
from nestling.measure.planner import (
    PlanBudget,
    PlanChoice,
    PlanGoal,
    Sample,
    plan_search,
)
from nestling.measure.report import render_plan_report, write_plan_report
from nestling.measure.report.plan_focus import focus_on_plans, rescored_bytes
from nestling.measure.report.plan_words import shortfall
from nestling.search.plan import EngineChoice
from tests.measure.plan_report_cases import (
    FAILURE,
    NUM_DOCUMENTS,
    SPACE,
    VERDICT,
    make_choice,
    make_points,
)
from tests.measure.report_html import (
    HOSTILE,
    Node,
    body_rows,
    check_asks_nothing_of_the_network,
    check_page,
    find,
    parse,
    section,
)

GOAL = PlanGoal(min_quality=0.99)
RECALL = PlanGoal(min_recall=0.95)
BUDGET = PlanBudget(memory_bytes=64_000_000, latency_ms=5.0, time_s=90.0)
COMMAND = "nestling choose --vectors 'my vectors' --min-quality 0.99 --task builtin --report p.html"


@pytest.fixture(scope="module")
def choice() -> PlanChoice:
    return make_choice()


@pytest.fixture(scope="module")
def html(choice: PlanChoice) -> str:
    return render_plan_report(choice, GOAL, BUDGET, command=COMMAND)


@pytest.fixture(scope="module")
def page(html: str) -> Node:
    return parse(html)


def glance(root: Node) -> dict[str, str]:
    figures = find(root, class_="glance")
    values = [node.text for node in figures.all("dd")]
    return dict(zip([node.text for node in figures.all("dt")], values, strict=True))


def facts(root: Node) -> dict[str, str]:
    listed = find(root, class_="facts")
    values = [node.text for node in listed.all("dd")]
    return dict(zip([node.text for node in listed.all("dt")], values, strict=True))


def has_id(root: Node, name: str) -> bool:
    return any(node.attributes.get("id") == name for node in root.walk())


def test_page_is_whole_and_self_contained(html: str, choice: PlanChoice) -> None:
    assert html.endswith("</html>\n")
    check_page(html)
    check_asks_nothing_of_the_network(html)
    assert render_plan_report(choice, GOAL, BUDGET, command=COMMAND) == html


def test_verdict_comes_first_in_words_for_people(page: Node) -> None:
    (heading,) = page.all("h1")
    assert heading.text == VERDICT.replace("mrr_at_10", "MRR@10").replace("->", "→")
    (header,) = page.all("header")
    assert "2,000 queries chose, 2,000 others tell (4,000 of 41,208" in header.text
    assert "2 cores, AMD EPYC 9454" in header.text


def test_glance_has_what_was_kept_and_what_it_costs(page: Node) -> None:
    assert glance(page) == {
        "of the exact search’s MRR@10 kept; 95% sure: at least 98.8%": "99.3%",  # noqa: RUF001
        "per query; the exact search takes 41.80 ms": "0.29 ms",
        "of RAM for head and engine, 10× less than the vectors take": "23.4 MB",  # noqa: RUF001
        "to make head and engine": "16.2 s",
    }


def test_table_holds_every_plan_and_marks_the_chosen_one(page: Node) -> None:
    rows = body_rows(section(page, "Every plan measured"))
    assert [row[0] for row in rows] == [
        "1 below the goal",
        "2 chosen",
        "3 on the front",
        "4 on the front",
        "5 on the front",
        "6 over the budget",
        "exact",
    ]
    assert rows[1][1:] == [
        "64-d int8, keep 160 → 1024-d float16 graph (degree 32, build_window 80; window 160)",
        *("99.3%", "98.8%", "89.1%", "0.290", "0.493", "23.4 MB", "16.2", "234.7 MB", "327.7 KB"),
    ]
    assert rows[6][1:5] == ["1024-d float16 flat", "100.0%", "\N{EN DASH}", "100.0%"]
    marked = [row for row in page.all("tr") if row.attributes.get("class") == "marked"]
    assert [row.attributes["id"] for row in marked] == ["plan-2"]


def test_bytes_that_are_re_scored_are_those_of_the_shortlists() -> None:
    two_stages, three_stages = make_points()[1].plan, make_points()[4].plan
    assert rescored_bytes(two_stages, NUM_DOCUMENTS) == 160 * 2048
    # An int8 row has a scale of four bytes.
    assert rescored_bytes(three_stages, NUM_DOCUMENTS) == 640 * 260 + 120 * 2048
    assert rescored_bytes(two_stages, 50) == 50 * 2048
    assert rescored_bytes(make_choice().exact.plan, NUM_DOCUMENTS) == 0


def test_growth_is_foretold_beside_what_was_measured(page: Node, choice: PlanChoice) -> None:
    growth = section(page, "With more documents")
    assert choice.cost is not None
    told = choice.cost.predict(3 * NUM_DOCUMENTS)
    rows = body_rows(growth)
    assert rows[0] == ["114,607", "0.29", "23.4 MB", "16.2", "measured"]
    assert rows[1][:2] == ["343,821", f"{told.latency_ms:.2f}"]
    assert [row[-1] for row in rows] == ["measured", "foretold", "foretold"]
    assert "made of 28,651, 57,303, 114,607 documents" in growth.text
    assert "Quality is not foretold" in growth.text
    without = render_plan_report(replace(choice, cost=None), GOAL, BUDGET)
    assert not has_id(check_page(without), "growth")


def test_how_it_was_measured_is_told_in_full(page: Node) -> None:
    told = facts(page)
    assert told["goal"] == "at least 99.0% of mrr_at_10"
    assert (told["RAM budget"], told["latency budget"]) == ("64.0 MB", "5 ms")
    assert told["time budget"] == "90 s"
    assert told["vectors"] == "nest:docstrings, revision 0f3c9e"
    assert (told["queries that chose"], told["queries that tell"]) == ("2,000", "2,000")
    assert told["engines tried"] == "flat, graph, hnsw"
    assert told["value of the exact search"] == "0.3761"
    assert told["cpu"] == "AMD EPYC 9454 48-Core Processor"
    assert find(page, id="command").text == COMMAND
    (button,) = page.all("button")
    assert button.attributes["data-copies"] == "command"


def test_page_is_accessible(page: Node) -> None:
    assert find(page, lang="en").tag == "html"
    assert all(cell.attributes.get("scope") and cell.text for cell in page.all("th"))
    for figure in page.all("figure"):
        assert figure.all("figcaption")
        for svg in figure.all("svg"):
            title = find(page, id=svg.attributes["aria-labelledby"]).text
            assert title.startswith("MRR@10 kept against ")
    for node in page.all("svg"):
        assert node.attributes.get("role") == "img" or node.attributes["aria-hidden"] == "true"


def test_caption_speaks_of_what_is_drawn(page: Node) -> None:
    time, memory = (node.text for node in page.all("figcaption"))
    for words in ("Line: the Pareto front", "Dotted level: the goal.", "95% interval", "Hollow:"):
        assert words in time
    assert "Ringed: the chosen plan. Dotted upright: the budget of 5 ms." in time
    assert "Dotted upright: the budget of 64.0 MB." in memory
    bare = render_plan_report(make_choice([make_points()[1]], chosen=1), RECALL, PlanBudget())
    for words in ("Hollow:", "Dotted upright"):
        assert words not in bare


def test_a_goal_out_of_reach_still_has_a_page() -> None:
    html = render_plan_report(make_choice(chosen=None), GOAL, BUDGET, command=COMMAND)
    root = check_page(html)
    check_asks_nothing_of_the_network(html)
    first, rest = FAILURE.replace("mrr_at_10", "MRR@10").replace("->", "→").split(" Nearest")
    assert root.all("h1")[0].text == f"N{first[1:]}"
    assert find(root, class_="more").text == f"Nearest{rest}"
    assert glance(root)["plans measured"] == "6"
    assert glance(root)["kept by the best plan measured, whatever it costs"] == "100.1%"
    assert "Ringed" not in html
    assert "chosen:" not in html
    assert not has_id(root, "growth")


def test_where_nothing_could_be_measured_the_page_says_so() -> None:
    choice = replace(make_choice([], chosen=None), evidence={})
    html = render_plan_report(choice, GOAL, PlanBudget())
    root = check_page(html, num_plots=0)
    assert glance(root)["plans measured"] == "0"
    assert [row[0] for row in body_rows(root)] == ["exact"]


def test_a_goal_of_recall_shows_recall_and_never_speaks_of_a_metric() -> None:
    root = check_page(render_plan_report(make_choice(chosen=3), RECALL, BUDGET))
    section(root, "Exact top 10 found against time")
    rows = body_rows(section(root, "Every plan measured"))
    assert [row[2] for row in rows[:2]] == ["93.4%", "89.1%"]
    # The only interval is that of the task's metric.
    assert "At least" not in section(root, "Every plan measured").text
    assert glance(root)["of the exact top 10 found"] == "96.4%"


def test_without_judgements_recall_has_the_interval() -> None:
    points = [replace(point, quality=point.recall) for point in make_points()]
    focus = focus_on_plans(make_choice(points), RECALL, BUDGET)
    assert focus.has_lows
    assert [spot.low for spot in focus.spots] == [point.quality_low for point in points]
    assert not focus_on_plans(make_choice(), RECALL, BUDGET).has_lows


def test_a_plan_that_falls_short_on_the_queries_that_tell_is_no_secret() -> None:
    points = make_points()
    points[1] = replace(points[1], quality=0.98996, quality_low=0.984)
    root = check_page(render_plan_report(make_choice(points), GOAL, BUDGET))
    (box,) = root.all("aside")
    assert "reached 99% of the exact search’s MRR@10 on the half" in box.text  # noqa: RUF001
    assert "keeps 98.9% on the half that tells" in box.text
    assert box.all("a")[0].attributes["href"] == "#plan-2"
    assert shortfall(focus_on_plans(make_choice(), GOAL, BUDGET)) is None


def test_everything_foreign_is_escaped() -> None:
    points = make_points()
    engine = EngineChoice(name="<img>&'", search={HOSTILE: 1})
    plan = replace(points[1].plan, engine=engine, space=replace(SPACE, model=HOSTILE))
    points[1] = replace(points[1], plan=plan)
    choice = make_choice(points, verdict=HOSTILE)
    evidence = dict.fromkeys(("goal", "metric", "queries", "cpu", "date", HOSTILE), HOSTILE)
    exact = replace(choice.exact, plan=replace(plan, engine=EngineChoice()))
    choice = replace(choice, exact=exact, evidence=dict(choice.evidence) | evidence)
    html = render_plan_report(choice, GOAL, BUDGET, command=HOSTILE)
    root = check_page(html)
    assert "<img" not in html
    assert len(root.all("script")) == 1
    assert not [name for node in root.walk() for name in node.attributes if name.startswith("on")]
    assert root.all("h1")[0].text == HOSTILE
    assert find(root, id="command").text == HOSTILE
    cells = body_rows(section(root, "Every plan measured"))[1]
    assert "<img>&'" in cells[1]
    assert HOSTILE in cells[1]
    assert HOSTILE in facts(root)
    check_asks_nothing_of_the_network(html.replace("src=x", ""))


def test_a_page_is_never_overwritten_silently(
    tmp_path: Path, choice: PlanChoice, html: str
) -> None:
    path = tmp_path / "deep" / "plan.html"
    write_plan_report(choice, GOAL, BUDGET, path, overwrite=False)
    before = path.read_bytes()
    with pytest.raises(WriteError, match=r"plan\.html exists .* --overwrite or another --report\."):
        write_plan_report(choice, GOAL, BUDGET, path, command=COMMAND, overwrite=False)
    assert path.read_bytes() == before
    write_plan_report(choice, GOAL, BUDGET, path, command=COMMAND, overwrite=True)
    assert path.read_text("utf-8") == html


@pytest.mark.parametrize("goal", [0.9, 1.0])
def test_what_the_planner_really_finds_has_a_page(goal: float) -> None:
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((300, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    doc_ids = [f"d{row}" for row in range(len(vectors))]
    wanted = PlanGoal(min_recall=goal)
    budget = PlanBudget(time_s=1.0)
    found = plan_search(
        vectors,
        Fingerprint(space=replace(SPACE, embed_dim=32), encoder={}),
        Sample.of_documents(vectors, doc_ids, num_queries=40),
        wanted,
        budget,
        engines=("flat",),
    )
    assert found.points
    html = render_plan_report(found, wanted, budget)
    root = check_page(html)
    check_asks_nothing_of_the_network(html)
    rows = body_rows(section(root, "Every plan measured"))
    assert [row[2] for row in rows[:-1]] == [f"{100 * each.recall:.1f}%" for each in found.points]
    assert ("chosen:" in html) is (found.plan is not None)
