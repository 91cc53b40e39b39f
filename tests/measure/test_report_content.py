"""What the sections of the report hold, without drawing a page."""

from dataclasses import replace

import numpy as np
import pytest

from nestling.core import Dtype
from nestling.measure.decision import Decision
from nestling.measure.report.content import cautions, deploy_commands, worst_queries
from nestling.measure.report.focus import focus_on
from nestling.measure.report.labels import (
    about,
    bound_text,
    flatten,
    loss_text,
    metric_label,
    percent_interval,
    times,
)
from nestling.measure.report.wording import (
    headline,
    split_verdict,
    table_note,
    what_would_change,
)
from nestling.measure.results import Results
from tests.measure.report_cases import make_decision, make_results


@pytest.fixture(scope="module")
def results() -> Results:
    return make_results(metrics=("ndcg_at_10",))


@pytest.fixture(scope="module")
def decision(results: Results) -> Decision:
    return make_decision(results)


@pytest.mark.parametrize(
    ("model", "task", "source"),
    [
        ("vectors:my vectors.npy", "self:my vectors.npy", "--vectors 'my vectors.npy'"),
        ("my vectors.npy", "self:./my vectors.npy", "--vectors './my vectors.npy'"),
        ("wordllama-l2", "self:vectors", "--vectors vectors"),
        ("static:wordllama", "self:notes", "--model static:wordllama --corpus notes"),
        ("st:./m", "beir:./scifact#dev", "--model st:./m --corpus 'beir:./scifact#dev'"),
        ("st:./m", "labels:intents.tsv", "--model st:./m --corpus DOCUMENTS"),
        ("onnx:./m", "builtin:digits", "--model onnx:./m --corpus DOCUMENTS"),
        ("st:./m", "builtin#dev", "--model st:./m --corpus 'builtin#dev'"),
        ("st:$(rm x)", "builtin", "--model 'st:$(rm x)' --corpus builtin"),
    ],
)
def test_build_line_names_the_documents_that_were_measured(
    results: Results, model: str, task: str, source: str
) -> None:
    rows = [replace(row, model=model, task=task) for row in results.rows]
    build, search = deploy_commands(focus_on(replace(results, rows=rows), None))
    assert build == f"nestling build {source} --plan plan.json --out index"
    assert search.startswith('nestling search index "a query" --top-k 10')
    assert ("--model MODEL" in search) is source.startswith("--vectors")


def test_no_warning_without_a_reason(results: Results, decision: Decision) -> None:
    assert cautions(results, decision, focus_on(results, decision)) == []
    unknown = replace(results, looks_nested=None)
    assert cautions(unknown, decision, focus_on(unknown, decision)) == []


def test_warning_points_to_the_width_where_pca_gains_most() -> None:
    results = make_results(looks_nested=False)
    focus = focus_on(results, None)
    (warning,) = cautions(results, None, focus)
    assert warning.title == "This model does not look nested"
    assert "not clearly better than random choices of coordinates" in warning.text
    gains = {
        row.dim: row.value - results.find(family="prefix", dim=row.dim, dtype=row.dtype).value
        for row in results.rows
        if row.family == "pca" and row.metric == results.main_metric
    }
    best = max(gains, key=lambda dim: gains[dim])
    kept = (
        results.find(family=family, dim=best, dtype=Dtype.FLOAT32).value / results.reference().value
        for family in ("pca", "prefix")
    )
    rotated, prefix = (f"{share:.1%}" for share in kept)
    assert (
        f"(PCA) already keeps {rotated} of nDCG@10 instead of {prefix} at {best} dims"
        in warning.text
    )
    assert warning.command == (
        "nestling train adapter --model static:wordllama --fit-on builtin --dims 8,16,32,64,128 --out adapter"
    )
    (point,) = (point for point in focus.points if point.anchor == warning.anchor)
    assert (point.row.family, point.row.dim) == ("pca", best)


@pytest.mark.parametrize("has_pca", [True, False])
def test_warning_recommends_no_baseline_that_is_worse_or_missing(has_pca: bool) -> None:
    results = make_results(looks_nested=False)
    rows = [
        replace(row, value=0.0) if row.family == "pca" else row
        for row in results.rows
        if has_pca or row.family != "pca"
    ]
    changed = replace(results, rows=rows)
    (warning,) = cautions(changed, None, focus_on(changed, None))
    assert "PCA" not in warning.text
    assert warning.anchor is None
    assert (warning.command is None) is has_pca


def test_vectors_with_an_adapter_are_warned_of_but_get_no_other() -> None:
    results = make_results(looks_nested=False)
    space = replace(results.fingerprint.space, adapter="pca-0123456789abcdef")
    adapted = replace(results, fingerprint=replace(results.fingerprint, space=space))
    (warning,) = cautions(adapted, None, focus_on(adapted, None))
    assert warning.title == "This model does not look nested"
    assert (warning.anchor, warning.command) == (None, None)
    assert "adapter" not in warning.text


@pytest.mark.parametrize("is_relative", [True, False])
def test_warning_when_no_test_could_certify_the_tolerance(
    results: Results, decision: Decision, is_relative: bool
) -> None:
    tolerated = 0.009
    max_loss = tolerated / decision.full_value if is_relative else tolerated
    fine = replace(decision, max_loss=max_loss, is_relative=is_relative, floor=0.0100)
    (warning,) = cautions(results, fine, focus_on(results, fine))
    assert warning.text == (
        "The tolerated loss, 0.90 points, lies below 1.00 points: the smallest loss that any "
        "distribution-free test can certify with 300 queries, 95% sure. No fewer than 334 queries "
        "can certify it."
    )
    coarse = replace(fine, floor=0.0089)
    assert cautions(results, coarse, focus_on(results, coarse)) == []


def test_warning_when_the_metric_has_no_value_per_query() -> None:
    results = make_results(task="sts:stsb.tsv", metrics=("spearman",), has_per_query=False)
    (warning,) = cautions(results, None, focus_on(results, None))
    assert warning.text.startswith("Spearman is one number for the whole task.")


def test_worst_queries_are_those_that_lose_most(results: Results, decision: Decision) -> None:
    full = results.reference().per_query
    cut = results.find(family="funnel", dim=64, dtype=Dtype.INT8).per_query
    assert full is not None
    assert cut is not None
    losses = [
        (before - after, number)
        for number, (before, after) in enumerate(zip(full, cut, strict=True))
    ]
    losses.sort(key=lambda pair: (-pair[0], pair[1]))
    found = worst_queries(results, decision, focus_on(results, decision))
    assert found is not None
    assert [query.query_id for query in found.worst] == [
        f"query-{number}" for _, number in losses[:20]
    ]
    assert found.num_worse == sum(loss > 0 for loss, _ in losses)
    assert found.num_better == sum(loss < 0 for loss, _ in losses)
    assert found.num_worse + found.num_equal + found.num_better == 300


def test_worst_queries_list_only_losses(results: Results, decision: Decision) -> None:
    full = results.reference().per_query
    assert full is not None
    hurt = [full[0] / 2, *full[1:]]
    rows = [
        replace(row, per_query=hurt) if (row.family, row.dim) == ("funnel", 64) else row
        for row in results.rows
    ]
    changed = replace(results, rows=rows)
    found = worst_queries(changed, decision, focus_on(changed, decision))
    assert found is not None
    assert [query.query_id for query in found.worst] == ["query-0"]


def test_chosen_point_is_the_head_of_the_plan(results: Results, decision: Decision) -> None:
    chosen = focus_on(results, decision).chosen
    assert chosen is not None
    assert chosen.label == "64-d int8 funnel"
    assert focus_on(results, replace(decision, plan=None)).chosen is None


def test_tolerance_line_lies_at_the_tolerated_value(results: Results, decision: Decision) -> None:
    full = decision.full_value
    assert focus_on(results, decision).tolerated_value == pytest.approx(0.98 * full)
    points = replace(decision, is_relative=False)
    assert focus_on(results, points).tolerated_value == pytest.approx(full - 0.02)


def test_intervals_hold_the_value_and_vanish_at_full_width(results: Results) -> None:
    for point in focus_on(results, None).points:
        assert point.interval is not None
        assert point.interval[0] - 1e-12 <= point.row.value <= point.interval[1] + 1e-12
        if (point.row.family, point.row.dim, point.row.dtype) == ("prefix", 256, Dtype.FLOAT32):
            assert point.interval == (point.row.value, point.row.value)
            assert point.kept_interval == (1.0, 1.0)


def test_kept_interval_agrees_with_a_plain_bootstrap(results: Results) -> None:
    full = np.array(results.reference().per_query)
    cut = np.array(results.find(family="prefix", dim=64, dtype=Dtype.FLOAT32).per_query)
    generator = np.random.default_rng(1)
    drawn = [generator.integers(0, len(full), len(full)) for _ in range(4000)]
    expected = np.quantile([cut[rows].mean() / full[rows].mean() for rows in drawn], [0.025, 0.975])
    (point,) = (
        point
        for point in focus_on(results, None).points
        if (point.row.family, point.row.dim, point.row.dtype) == ("prefix", 64, Dtype.FLOAT32)
    )
    assert np.abs(np.array(point.kept_interval) - expected).max() < 0.003


def test_headline_names_the_fewest_bytes_that_keep_95_percent(results: Results) -> None:
    verdict, evidence = headline(results, focus_on(results, None))
    kept = [
        row
        for row in results.rows
        if row.family == "prefix" and row.value >= 0.95 * results.reference().value
    ]
    smallest = min(kept, key=lambda row: (row.bytes_per_vector, -row.value))
    assert verdict.startswith(
        f"Measured, not certified: the {smallest.dim}-d {smallest.dtype} prefix"
    )
    assert evidence == "300 queries of builtin. No loss was tested."


def test_headline_of_a_self_task_speaks_of_the_ranking() -> None:
    results = make_results(task="self:v.npy", metrics=("overlap_at_10",))
    verdict, _ = headline(results, focus_on(results, None))
    assert "of the full-width ranking (overlap@10)" in verdict


def test_what_would_change_names_every_failure(results: Results, decision: Decision) -> None:
    lines = what_would_change(results, decision, focus_on(results, decision))
    more, larger = lines[:2]
    assert more == (
        "More queries: a fresh set of about 900 like these would probably certify the 32-d int8 "
        "funnel; there were 300."
    )
    assert larger == (
        "A larger tolerance: no less than 2% of the full-width value was lost by the 64-d int8 prefix, "
        "and more queries would not change that."
    )
    assert "static:wordllama, revision 0f3c9e" in lines[-1]


def test_table_says_what_pca_is_fitted_on_where_there_is_pca(results: Results) -> None:
    assert "PCA is fitted on the measured vectors themselves" in table_note(focus_on(results, None))
    without = replace(results, rows=[row for row in results.rows if row.family != "pca"])
    assert "PCA" not in table_note(focus_on(without, None))


def test_verdict_is_split_after_its_first_sentence() -> None:
    assert split_verdict("Keeps 99.5% (sure), 3.9x smaller. No funnel. Is.") == (
        "Keeps 99.5% (sure), 3.9x smaller.",
        "No funnel. Is.",
    )
    assert split_verdict("One, e.g. 0.5.") == ("One, e.g. 0.5.", "")


def test_labels() -> None:
    assert metric_label("ndcg_at_10") == "nDCG@10"
    assert metric_label("ndcg_at_10_binary") == "nDCG@10 binary"
    assert metric_label("recall_at_10_of_full") == "recall@10 of full"
    assert metric_label("accuracy_1nn") == "accuracy 1-NN"
    assert metric_label("average_precision") == "average precision"
    assert times(15.06) == "15\N{MULTIPLICATION SIGN}"
    assert times(3.94) == "3.9\N{MULTIPLICATION SIGN}"
    assert times(4.0) == "4\N{MULTIPLICATION SIGN}"
    assert percent_interval((0.5, 0.61)) == "50.0\N{EN DASH}61.0%"
    assert percent_interval((1.0, 1.0)) == ""
    assert about(901) == "about 910"
    assert about(12) == "about 12"
    assert about(5587) == "about 5,600"
    assert loss_text(0.0123, True) == "1.23%"
    assert loss_text(0.0123, False) == "1.23 points"
    assert bound_text(0.020031, True) == "2.01%"
    assert bound_text(0.02 + 6e-8, False) == "2.00 points"
    assert flatten({"a": [1, "b"], "c": None}) == "a 1, b, c None"
