"""The page on a search plan: the verdict, the Pareto front as a picture, and all that was measured."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nestling.core.sizes import format_bytes
from nestling.measure.planner import PlanBudget, PlanChoice, PlanGoal
from nestling.measure.report import labels, plan_words
from nestling.measure.report.content import run_facts
from nestling.measure.report.plan_figures import draw_by_memory, draw_by_time, plan_legend
from nestling.measure.report.plan_focus import focus_on_plans, rescored_bytes
from nestling.measure.report.skeleton import render_page, write_page

_FILTERS: dict[str, Callable[..., Any]] = {
    "format_bytes": format_bytes,
    "keep_widths_whole": labels.keep_widths_whole,
    "low_text": labels.low_text,
    "percent": labels.percent,
}


def write_plan_report(
    choice: PlanChoice,
    goal: PlanGoal,
    budget: PlanBudget,
    path: Path,
    *,
    command: str | None = None,
    overwrite: bool,
) -> None:
    """Write the page on a search plan, whole or not at all.

    Raises:
        WriteError: If the file exists and `overwrite` is false, or cannot be written.
    """
    html = render_plan_report(choice, goal, budget, command=command)
    write_page(path, html, overwrite=overwrite, option="--report")


def render_plan_report(
    choice: PlanChoice, goal: PlanGoal, budget: PlanBudget, *, command: str | None = None
) -> str:
    """Return the page on a search plan as one HTML file; equal inputs give equal bytes.

    Args:
        choice: What the planner found, with or without a plan.
        goal: What was to be kept.
        budget: What it might cost.
        command: What was typed, if anything was.
    """
    focus = focus_on_plans(choice, goal, budget)
    num_documents = int(choice.evidence.get("num_documents", 0))
    return render_page(
        "plan.html",
        _FILTERS,
        {
            "focus": focus,
            "verdict": plan_words.verdict_lines(focus),
            "evidence": plan_words.evidence_line(choice.evidence),
            "run": run_facts(choice.evidence),
            "command": command,
            "num_documents": num_documents,
            "glance": plan_words.plan_glance(focus),
            "shortfall": plan_words.shortfall(focus),
            "legend": plan_legend(focus),
            "by_time": draw_by_time(focus),
            "by_memory": draw_by_memory(focus),
            "caption": plan_words.plots_caption(focus),
            "limits": plan_words.limit_notes(focus),
            "rescored": [rescored_bytes(spot.point.plan, num_documents) for spot in focus.spots],
            "growth": plan_words.growth_rows(focus),
            "growth_note": plan_words.growth_note(focus),
            "facts": plan_words.plan_facts(focus),
        },
    )
