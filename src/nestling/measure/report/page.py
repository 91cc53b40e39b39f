"""The page on a measurement: what its template is filled in with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nestling.measure.decision import Decision
from nestling.measure.report import content, labels, wording
from nestling.measure.report.figures import draw_by_bytes, draw_by_width, legend
from nestling.measure.report.focus import Focus, focus_on
from nestling.measure.report.series import other_metrics
from nestling.measure.report.skeleton import render_page, write_page
from nestling.measure.report.svg import color_name, sparkline_points
from nestling.measure.results import Results

_FILTERS: dict[str, Callable[..., Any]] = {
    "color_name": color_name,
    "bound_text": labels.bound_text,
    "cut_label": labels.cut_label,
    "family_label": labels.family_label,
    "keep_widths_whole": labels.keep_widths_whole,
    "loss_text": labels.loss_text,
    "metric_label": labels.metric_label,
    "percent": labels.percent,
    "percent_interval": labels.percent_interval,
    "sparkline_points": sparkline_points,
    "queries_to_pass": wording.queries_to_pass,
    "times": labels.times,
}


def write_report(
    results: Results, decision: Decision | None, path: Path, *, overwrite: bool
) -> None:
    """Write the report, whole or not at all.

    Raises:
        WriteError: If the file exists and `overwrite` is false, or cannot be written.
        EvidenceError: If the results hold no rows of the metric that is reported on.
    """
    write_page(path, render_report(results, decision), overwrite=overwrite, option="--out")


def render_report(results: Results, decision: Decision | None) -> str:
    """Return the report as one HTML file; equal inputs give equal bytes.

    Args:
        results: What was measured.
        decision: What `choose` made of it. None if nobody has chosen yet, or if the metric has no
            values per query; the page then shows what was measured and certifies nothing.

    Raises:
        EvidenceError: If the results hold no rows of the metric that is reported on.
    """
    focus = focus_on(results, decision)
    return render_page(
        "template.html",
        _FILTERS,
        {
            "results": results,
            "decision": decision,
            "focus": focus,
            **_words(results, decision, focus),
            **_pictures(focus),
        },
    )


def _words(results: Results, decision: Decision | None, focus: Focus) -> dict[str, Any]:
    name = labels.metric_label(focus.metric)
    verdict, evidence = (
        wording.headline(results, focus)
        if decision is None
        else (decision.verdict.replace(focus.metric, name), decision.evidence)
    )
    return {
        "verdict": wording.split_verdict(verdict),
        "evidence": evidence,
        "run": content.run_facts(results.environment),
        "command": labels.flatten(results.environment.get("command", "")),
        "glance": wording.glance(results, decision, focus),
        "cautions": content.cautions(results, decision, focus),
        "caption": wording.plot_caption(focus),
        "tolerance": "" if decision is None else wording.tolerance_text(decision),
        "plan_json": content.plan_json(decision),
        "commands": content.deploy_commands(focus),
        "worst": content.worst_queries(results, decision, focus),
        "other_metrics": other_metrics(results, focus.metric),
        "table_note": wording.table_note(focus),
        "would_change": wording.what_would_change(results, decision, focus),
        "facts": content.facts(results, focus),
    }


def _pictures(focus: Focus) -> dict[str, Any]:
    by_bytes, by_width = draw_by_bytes(focus), draw_by_width(focus)
    values = [point.row.value for point in focus.points]
    return {
        "legend": legend(focus.series),
        "by_bytes": by_bytes,
        "by_width": by_width,
        "low": min(values),
        "high": max(values),
    }
