"""The page of the report: what it says, that it is whole, safe, and always the same bytes."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nestling.core import Dtype
from nestling.errors import EvidenceError, WriteError
from nestling.measure.decision import Decision
from nestling.measure.report import render_report, write_report
from nestling.measure.report.svg import COLORS
from nestling.measure.results import Results
from nestling.search.plan import Plan, Stage
from tests.measure.report_cases import make_decision, make_results
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

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results() -> Results:
    return make_results()


@pytest.fixture(scope="module")
def decision(results: Results) -> Decision:
    return make_decision(results)


@pytest.fixture(scope="module")
def html(results: Results, decision: Decision) -> str:
    return render_report(results, decision)


@pytest.fixture(scope="module")
def page(html: str) -> Node:
    return parse(html)


def glance(root: Node) -> dict[str, str]:
    """Return the figures for who only glances, by what they are."""
    figures = find(root, class_="glance")
    values = [node.text for node in figures.all("dd")]
    return dict(zip([node.text for node in figures.all("dt")], values, strict=True))


def test_page_is_whole_and_self_contained(html: str) -> None:
    check_page(html)
    check_asks_nothing_of_the_network(html)


def test_same_input_gives_the_same_bytes_in_another_process(html: str) -> None:
    code = (
        "import hashlib, sys\n"
        "from nestling.measure.report import render_report\n"
        "from tests.measure.report_cases import make_decision, make_results\n"
        "results = make_results()\n"
        "html = render_report(results, make_decision(results))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "print(hashlib.sha256(html.encode()).hexdigest())\n"
    )
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "7", "SOURCE_DATE_EPOCH": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert finished.stdout.strip() == hashlib.sha256(html.encode()).hexdigest()


def test_matplotlib_settings_neither_leak_in_nor_out(
    html: str, results: Results, decision: Decision
) -> None:
    import matplotlib as mpl

    with mpl.rc_context({"lines.linewidth": 9.0, "axes.grid": False, "font.size": 31.0}):
        before = dict(mpl.rcParams)
        assert render_report(results, decision) == html
        assert dict(mpl.rcParams) == before


def test_verdict_leads_with_its_first_sentence(results: Results, decision: Decision) -> None:
    verdict = "64 of 256 dims keep 99.5% of it, 3.9x smaller. As a two-stage search, 32-d does too."
    root = check_page(render_report(results, replace(decision, verdict=verdict)))
    (heading,) = root.all("h1")
    assert heading.text == "64 of 256 dims keep 99.5% of it, 3.9x smaller."
    assert find(root, class_="more").text == "As a two-stage search, 32-d does too."


def test_evidence_names_queries_hardware_date_and_command(page: Node) -> None:
    (header,) = page.all("header")
    for part in ("300 queries of builtin (test)", "95% confidence", "2026-11-23T15:31:07+00:00"):
        assert part in header.text
    assert "2 cores, AMD EPYC 9454" in header.text
    assert "nestling measure --model static:wordllama --task builtin" in header.text


def test_glance_claims_the_tested_tolerance_and_not_the_bound(page: Node) -> None:
    assert glance(page) == {
        "of nDCG@10 kept": "99.1%",
        "loss, 95% sure": "≤ 2%",
        "bytes scanned per vector, of 1,024": "68",
        "smaller than full width in float32": "15×",  # noqa: RUF001
    }


def test_table_holds_every_cut_with_every_metric(page: Node, results: Results) -> None:
    rows = body_rows(section(page, "Every cut"))
    main = [row for row in results.rows if row.metric == "ndcg_at_10"]
    assert len(rows) == len(main) == 11 * 6
    shown = {tuple(cells[1:]) for cells in rows}
    full = results.reference()
    for row in main:
        others = [
            f"{results.find(family=row.family, dim=row.dim, dtype=row.dtype, metric=name).value:.4f}"
            for name in ("mrr_at_10", "recall_at_100")
        ]
        ratio = 1024 / row.bytes_per_vector
        cells = [
            f"{row.value:.4f}",
            f"{100 * row.value / full.value:.1f}%",
            f"{row.bytes_per_vector:,}",
        ]
        found = [line for line in shown if [line[0], line[1], line[3], *line[5:]] == cells + others]
        assert found, row
        assert abs(float(found[0][4].rstrip("×").replace(",", "")) - ratio) <= 0.5  # noqa: RUF001


def test_table_interval_agrees_with_a_plain_bootstrap(page: Node, results: Results) -> None:
    full = np.array(results.reference().per_query)
    row = results.find(family="prefix", dim=64, dtype=Dtype.FLOAT32)
    cut = np.array(row.per_query)
    generator = np.random.default_rng(1)
    drawn = [generator.integers(0, len(full), len(full)) for _ in range(4000)]
    kept = [cut[sample].mean() / full[sample].mean() for sample in drawn]
    expected = np.quantile(kept, [0.025, 0.975])
    cells = next(
        cells
        for cells in body_rows(section(page, "Every cut"))
        if cells[0] == "64" and cells[1] == f"{row.value:.4f}"
    )
    low, high = (float(edge) / 100 for edge in cells[3].rstrip("%").split("\N{EN DASH}"))
    assert np.abs(np.array([low, high]) - expected).max() < 0.003


def test_chosen_and_certified_rows_are_marked(page: Node) -> None:
    marked = [row.text for row in page.all("tr") if row.attributes.get("class") == "marked"]
    assert len(marked) == 2
    assert marked[0].startswith("128 certified")
    assert marked[1].startswith("64 chosen")


def test_steps_are_listed_in_order_with_outcome(page: Node, decision: Decision) -> None:
    rows = body_rows(section(page, "What was tested"))
    assert [cells[1] for cells in rows] == [
        "certified" if step.passed else "not certified" for step in decision.steps
    ]
    assert rows[2][0] == "64-d int8 prefix"
    assert rows[2][-1] == "none would do"
    assert rows[5][-1] == "about 900"
    bound = decision.steps[0].loss_bound
    assert 0 <= float(rows[0][5].removesuffix("%")) - 100 * bound < 0.01, "rounded up"


def test_absolute_tolerance_speaks_of_points(results: Results, decision: Decision) -> None:
    absolute = replace(decision, is_relative=False, max_loss=0.01)
    root = check_page(render_report(results, absolute))
    assert glance(root)["loss, 95% sure"] == "≤ 1 points"
    assert body_rows(section(root, "What was tested"))[0][5].endswith(" points")


def test_plan_is_the_plan_file(page: Node, decision: Decision) -> None:
    assert decision.plan is not None
    shown = json.loads("".join(find(page, id="plan-json").texts))
    assert Plan.from_json(shown) == decision.plan
    assert find(page, id="commands").text == (
        "nestling build --model static:wordllama --corpus builtin --plan plan.json --out index "
        'nestling search index "a query" --top-k 10'
    )


def test_cut_alone_is_chosen_where_the_plan_has_one_stage(
    results: Results, decision: Decision
) -> None:
    plan = Plan(stages=(Stage(dim=128, dtype=Dtype.INT8),), embed_dim=256, space=None, evidence={})
    root = check_page(render_report(results, replace(decision, plan=plan, funnel=None)))
    assert "At the 128-d int8 prefix," in section(root, "Worst queries").text
    assert glance(root)["bytes scanned per vector, of 1,024"] == "132"


def test_worst_queries_are_those_that_lose_most(page: Node, results: Results) -> None:
    full = results.reference().per_query
    cut = results.find(family="funnel", dim=64, dtype=Dtype.INT8).per_query
    assert full is not None
    assert cut is not None
    losses = sorted(
        (
            (before - after, number)
            for number, (before, after) in enumerate(zip(full, cut, strict=True))
        ),
        key=lambda pair: (-pair[0], pair[1]),
    )
    shown = section(page, "Worst queries")
    assert [cells[0] for cells in body_rows(shown)] == [
        f"query-{number}" for _, number in losses[:20]
    ]
    assert body_rows(shown)[0][3] == f"{losses[0][0]:.4f}"
    num_worse = sum(loss > 0 for loss, _ in losses)
    assert f"{num_worse} queries do worse than at full width" in shown.text


def test_without_a_certificate_the_page_says_what_is_missing(results: Results) -> None:
    decision = make_decision(results, certified=False)
    root = check_page(render_report(results, decision))
    assert root.all("h1")[0].text.startswith("Not enough queries to say")
    assert glance(root) == {
        "loss tolerated": "2%",
        "queries there are": "300",
        "queries needed": "about 900",
    }
    assert (
        "a fresh set of about 900 like these would probably certify"
        in section(root, "What would change this verdict").text
    )
    assert "Nothing was chosen; at the first candidate, the 256-d int8 prefix" in (
        section(root, "Worst queries").text
    )
    assert not [node for node in root.walk() if node.attributes.get("id") == "plan"]
    assert "marked" not in [row.attributes.get("class") for row in root.all("tr")]


def test_warnings_stand_in_boxes_above_the_plots(html: str) -> None:
    assert '<aside class="caution">' not in html
    results = make_results(looks_nested=False)
    decision = make_decision(results, certified=False, max_loss=0.005)
    root = check_page(render_report(results, decision))
    nested, floor = (node for node in root.all("aside") if node.attributes["class"] == "caution")
    assert nested.all("h2")[0].text == "This model does not look nested"
    (link,) = nested.all("a")
    pca = results.find(family="pca", dim=8, dtype=Dtype.FLOAT32)
    assert f"{pca.value:.4f}" in find(root, id=link.attributes["href"][1:]).text
    (command,) = nested.all("pre")
    assert command.text == (
        "nestling train adapter --model static:wordllama --fit-on builtin --dims 8,16,32,64,128 --out adapter"
    )
    (button,) = nested.all("button")
    assert button.attributes["data-copies"] == command.attributes["id"]
    assert not floor.all("pre")
    assert floor.all("h2")[0].text == "The tolerance is finer than the evidence can be"


@pytest.mark.parametrize("certified", [True, False, None])
def test_self_task_never_speaks_of_quality(certified: bool | None) -> None:
    results = make_results(
        task="self:vectors.npy", metrics=("overlap_at_10", "recall_at_10_of_full")
    )
    decision = None if certified is None else make_decision(results, certified=certified)
    html = render_report(results, decision)
    assert "quality" not in html.lower()
    root = check_page(html)
    section(root, "Full-width ranking kept against bytes")
    expected = "of the full-width ranking" if certified is not False else "queries needed"
    assert expected in root.all("header")[0].text


@pytest.mark.parametrize(
    ("task", "metric", "has_per_query"),
    [
        ("beir:./scifact", "ndcg_at_10", True),
        ("labels:intents.tsv", "knn_accuracy", True),
        ("sts:stsb.tsv", "spearman", False),
        ("pairs:snli.tsv", "average_precision", False),
    ],
)
def test_every_kind_of_task_has_a_page_without_a_decision(
    task: str, metric: str, has_per_query: bool
) -> None:
    results = make_results(
        task=task,
        metrics=(metric,),
        has_per_query=has_per_query,
        looks_nested=True if has_per_query else None,
        dtypes=(Dtype.FLOAT32, Dtype.INT8),
    )
    html = render_report(results, None)
    root = check_page(html)
    check_asks_nothing_of_the_network(html)
    assert root.all("h1")[0].text.startswith("Measured, not certified: the 128-d int8 prefix keeps")
    assert ("No certificate is possible with this metric" in html) is not has_per_query
    assert ("Shaded:" in html) is has_per_query
    assert not [node for node in root.walk() if node.attributes.get("id") in ("plan", "steps")]


@pytest.mark.parametrize("dims", [(256,), (255, 256), tuple(range(1, 257))])
def test_any_number_of_widths(dims: tuple[int, ...]) -> None:
    results = make_results(
        dims=dims, num_queries=12, dtypes=(Dtype.FLOAT32,), metrics=("map_at_100",)
    )
    html = render_report(results, None)
    check_page(html)
    assert len(html) < 1_500_000


def test_page_works_without_the_full_width(results: Results) -> None:
    cut = replace(
        results, rows=[row for row in results.rows if row.dtype == "int8" and row.dim < 256]
    )
    root = check_page(render_report(cut, None))
    assert root.all("h1")[0].text == "No size has been chosen: nDCG@10 was measured at 10 cuts."
    assert {cells[2] for cells in body_rows(section(root, "Every cut"))} == {"\N{EN DASH}"}


def test_page_works_where_the_full_width_is_worth_nothing(results: Results) -> None:
    nothing = [
        replace(row, value=0.0, per_query=(0.0,) * len(results.query_ids)) for row in results.rows
    ]
    root = check_page(render_report(replace(results, rows=nothing), None))
    assert {cells[2] for cells in body_rows(section(root, "Every cut"))} == {"\N{EN DASH}"}


def test_unknown_family_and_bare_environment_are_shown(results: Results) -> None:
    rows = [replace(row, family="rotated") for row in results.rows if row.family == "pca"]
    bare = replace(results, rows=[*results.rows, *rows], environment={}, notes=())
    root = check_page(render_report(bare, None))
    assert any(node.text.startswith("rotated float32") for node in root.all("th"))


def test_everything_foreign_is_escaped(results: Results, decision: Decision) -> None:
    hostile = replace(
        results,
        rows=[
            replace(row, model=HOSTILE, task=HOSTILE, metric=row.metric + HOSTILE)
            for row in results.rows
        ],
        main_metric=results.main_metric + HOSTILE,
        query_ids=[f"{HOSTILE}{number}" for number in range(len(results.query_ids))],
        notes=[HOSTILE],
        environment={
            HOSTILE: HOSTILE,
            "command": HOSTILE,
            "cpu": HOSTILE,
            "date": {HOSTILE: [HOSTILE]},
        },
        corpus_hash=HOSTILE,
        fingerprint=replace(
            results.fingerprint, space=replace(results.fingerprint.space, model=HOSTILE)
        ),
    )
    assert decision.plan is not None
    html = render_report(
        hostile,
        replace(
            decision,
            verdict=HOSTILE,
            evidence=HOSTILE,
            metric=hostile.main_metric,
            plan=replace(decision.plan, evidence={HOSTILE: HOSTILE}),
        ),
    )
    root = check_page(html)
    assert "<img" not in html
    assert len(root.all("script")) == 1
    assert not [name for node in root.walk() for name in node.attributes if name.startswith("on")]
    assert HOSTILE in section(root, "What it was measured on").text
    check_asks_nothing_of_the_network(html.replace("src=x", ""))


def test_only_the_script_of_the_page_may_run(html: str, page: Node) -> None:
    (script,) = page.all("script")
    digest = base64.b64encode(hashlib.sha256("".join(script.texts).encode()).digest()).decode()
    policy = find(page, http_equiv="Content-Security-Policy").attributes["content"]
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_buttons_stay_hidden_without_scripts(page: Node) -> None:
    buttons = page.all("button")
    assert len(buttons) == 2
    for button in buttons:
        assert "hidden" in button.attributes
        find(page, id=button.attributes["data-copies"])


def test_page_is_accessible(page: Node) -> None:
    assert find(page, lang="en").tag == "html"
    assert len(page.all("h1")) == 1
    assert all(cell.attributes.get("scope") for cell in page.all("th"))
    for figure in page.all("figure"):
        assert figure.all("figcaption")
        for svg in figure.all("svg"):
            assert find(page, id=svg.attributes["aria-labelledby"]).text.startswith(
                "nDCG@10 against"
            )
    for node in page.all("svg"):
        assert node.attributes.get("role") == "img" or node.attributes["aria-hidden"] == "true"


@pytest.mark.parametrize("scheme", [0, 1])
def test_text_and_lines_stand_out_in_light_and_dark(html: str, scheme: int) -> None:
    blocks = re.findall(r":root \{(.*?)\}", html, flags=re.DOTALL)
    assert len(blocks) == 2
    colors = dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})", blocks[scheme]))
    assert set(COLORS) <= set(colors), "every colour of the plots has a value in both schemes"
    for text, ground in [
        *(
            (text, ground)
            for text in ("ink", "muted", "accent")
            for ground in ("paper", "card", "tint")
        ),
        ("caution", "card"),
    ]:
        assert contrast(colors[text], colors[ground]) >= 4.5, (text, ground)
    for family in ("prefix", "funnel", "pca", "random", "other"):
        assert contrast(colors[family], colors["paper"]) >= 3.0, family


def contrast(left: str, right: str) -> float:
    """The contrast ratio of WCAG 2.1."""
    light, dark = sorted((_luminance(left), _luminance(right)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(color: str) -> float:
    channels = np.array([int(color[start : start + 2], 16) for start in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_thousands_of_queries_stay_small() -> None:
    results = make_results(num_queries=8000)
    html = render_report(results, make_decision(results))
    assert len(html.encode()) < 1_500_000
    assert "query-7999" not in html or html.count("query-") <= 21


def test_unmeasured_metric_is_refused(results: Results, decision: Decision) -> None:
    with pytest.raises(
        EvidenceError, match=r"`metric` .* got 'ndcg_at_5'; the results hold ndcg_at_10"
    ):
        render_report(results, replace(decision, metric="ndcg_at_5"))
    with pytest.raises(EvidenceError, match="the results hold nothing"):
        render_report(replace(results, rows=[]), None)


def test_report_is_never_overwritten_silently(
    tmp_path: Path, results: Results, decision: Decision, html: str
) -> None:
    path = tmp_path / "deep" / "results.html"
    write_report(results, None, path, overwrite=False)
    before = path.read_bytes()
    assert before.endswith(b"</html>\n")
    with pytest.raises(
        WriteError, match=r"results\.html exists .* Pass --overwrite or another --out"
    ):
        write_report(results, decision, path, overwrite=False)
    assert path.read_bytes() == before
    write_report(results, decision, path, overwrite=True)
    assert path.read_text("utf-8") == html
    assert [entry.name for entry in path.parent.iterdir()] == ["results.html"]
