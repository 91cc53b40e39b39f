"""The page: the template filled in, and the file written whole."""

import base64
import hashlib
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from nestling.core.files import write_atomically
from nestling.errors import WriteError
from nestling.measure.decision import Decision
from nestling.measure.report import content, labels, wording
from nestling.measure.report.figures import draw_by_bytes, draw_by_width, legend
from nestling.measure.report.focus import Focus, focus_on
from nestling.measure.report.series import other_metrics
from nestling.measure.report.svg import color_name, sparkline_points
from nestling.measure.results import Results

_COPY_SCRIPT = """
for (const button of document.querySelectorAll("button[data-copies]")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copies);
    try {
      await navigator.clipboard.writeText(source.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(source);
      button.textContent = "Selected: now copy";
    }
  });
}
"""


def write_report(
    results: Results, decision: Decision | None, path: Path, *, overwrite: bool
) -> None:
    """Write the report, whole or not at all.

    Raises:
        WriteError: If the file exists and `overwrite` is false, or cannot be written.
        EvidenceError: If the results hold no rows of the metric that is reported on.
    """
    if path.exists() and not overwrite:
        raise WriteError(
            f"{path} exists and is never overwritten silently. Pass --overwrite or another --out."
        )
    write_atomically(path, render_report(results, decision).encode())


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
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
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
    source = files("nestling.measure.report").joinpath("template.html").read_text("utf-8")
    return environment.from_string(source).render(
        results=results,
        decision=decision,
        focus=focus,
        script=Markup(_COPY_SCRIPT),  # noqa: S704  (a constant of this module)
        script_hash=base64.b64encode(hashlib.sha256(_COPY_SCRIPT.encode()).digest()).decode(),
        **_words(results, decision, focus),
        **_pictures(focus),
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
        "run": content.run_facts(results),
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
