"""Every sentence and figure of a search plan's page that depends on what was measured."""

from collections.abc import Mapping
from typing import Any

from nestling.core.sizes import format_bytes
from nestling.measure.report.labels import (
    flatten,
    low_text,
    metric_label,
    percent,
    share_text,
    times,
)
from nestling.measure.report.plan_figures import memory_cost, shows_limit, time_cost
from nestling.measure.report.plan_focus import PlanFocus
from nestling.measure.report.wording import split_verdict

TIMES_MORE = (3, 10)
"""How many times the documents the cost is foretold for."""

_NAMES = {
    "goal": "goal",
    "memory_budget_bytes": "RAM budget",
    "latency_budget_ms": "latency budget",
    "num_documents": "documents",
    "queries": "queries",
    "num_queries_to_choose": "queries that chose",
    "num_queries_to_tell": "queries that tell",
    "metric": "metric",
    "exact_quality": "value of the exact search",
    "widths": "widths tried",
    "engines": "engines tried",
    "num_threads_to_build": "threads to plan with",
    "num_cores": "cores",
}
"""What the planner's evidence is called on the page; the rest goes by its own name."""


def verdict_lines(focus: PlanFocus) -> tuple[str, str]:
    """Return the first sentence of the verdict, and the rest of it."""
    verdict = focus.choice.verdict.replace(focus.metric, metric_label(focus.metric))
    verdict = verdict.replace("->", "\N{RIGHTWARDS ARROW}")
    if focus.choice.plan is None:
        verdict = verdict[:1].upper() + verdict[1:]
    return split_verdict(verdict)


def evidence_line(evidence: Mapping[str, Any]) -> str:
    """Return which queries chose and which tell, as far as the evidence knows."""
    counts = [evidence.get(f"num_queries_to_{verb}") for verb in ("choose", "tell")]
    source = f" ({evidence['queries']})" if "queries" in evidence else ""
    if None in counts:
        return ""
    return f"{counts[0]:,} queries chose, {counts[1]:,} others tell{source}."


def plan_glance(focus: PlanFocus) -> list[tuple[str, str]]:
    """Return a few figures, each with a word on what it is."""
    exact, spot = focus.choice.exact, focus.chosen
    kept = "found" if focus.is_recall else "kept"
    exact_time = f"the exact search takes {exact.latency_ms:,.2f} ms"
    if spot is None:
        figures = [(share_text(focus.goal.share), f"of {focus.of_what} to be {kept}")]
        if focus.spots:
            best = max(spot.share for spot in focus.spots)
            figures.append((percent(best), f"{kept} by the best plan measured, whatever it costs"))
        figures.append((f"{len(focus.spots)}", "plans measured"))
        figures.append((f"{exact.latency_ms:,.2f} ms", "per query of the exact search"))
        return figures
    point = spot.point
    low = "" if spot.low is None else f"; 95% sure: at least {low_text(spot.low)}"
    smaller = exact.mapped_bytes / point.memory_bytes if point.memory_bytes else None
    less = "" if smaller is None else f", {times(smaller)} less than the vectors take"
    return [
        (percent(spot.share), f"of {focus.of_what} {kept}{low}"),
        (f"{point.latency_ms:,.2f} ms", f"per query; {exact_time}"),
        (format_bytes(point.memory_bytes), f"of RAM for head and engine{less}"),
        (f"{point.build_s:,.1f} s", "to make head and engine"),
    ]


def shortfall(focus: PlanFocus) -> str | None:
    """Return a warning if the chosen plan misses the goal on the queries that tell, else None."""
    spot = focus.chosen
    if spot is None or spot.share >= focus.goal.share:
        return None
    return (
        f"Plan {spot.number} reached {share_text(focus.goal.share)} of {focus.of_what} on the half of the "
        f"queries that chose it, and keeps {low_text(spot.share)} on the half that tells. Give more "
        f"queries, or ask for a little more than you need."
    )


def plots_caption(focus: PlanFocus) -> str:
    """Return what the marks of both plots mean, as far as they are drawn."""
    parts = [
        "Numbers are those of the table; the fastest plan is 1.",
        "Line: the Pareto front, plans that none measured equals or beats in both.",
        "Dotted level: the goal.",
    ]
    if focus.has_lows:
        parts.append(
            "Downwards from a mark: to the lower end of its 95% interval, on the queries that tell."
        )
    if any(not (spot.point.reaches and spot.point.fits) for spot in focus.spots):
        parts.append("Hollow: below the goal on the queries that choose, or over the budget.")
    if focus.chosen is not None:
        parts.append("Ringed: the chosen plan.")
    return " ".join(parts)


def limit_notes(focus: PlanFocus) -> dict[str, str]:
    """Return what the dotted upright of each plot means, by its name; empty where there is none."""
    texts = {
        "time": f"{focus.budget.latency_ms:g} ms" if focus.budget.latency_ms else "",
        "memory": format_bytes(focus.budget.memory_bytes or 0),
    }
    return {
        cost.name: f"Dotted upright: the budget of {texts[cost.name]}."
        if shows_limit(focus, cost)
        else ""
        for cost in (time_cost(focus), memory_cost(focus))
    }


def growth_rows(focus: PlanFocus) -> list[tuple[str, str, str, str, bool]]:
    """Return documents, time, RAM and build time, and whether they are foretold, row by row."""
    cost, spot = focus.choice.cost, focus.chosen
    if cost is None or spot is None:
        return []
    point, measured = spot.point, cost.measured_rows[-1]
    figures = [(measured, point.latency_ms, point.memory_bytes, point.build_s, False)]
    for more in TIMES_MORE:
        told = cost.predict(more * measured)
        figures.append((told.num_rows, told.latency_ms, told.memory_bytes, told.build_s, True))
    return [
        (f"{rows:,}", f"{time_ms:.2f}", format_bytes(memory), f"{build_s:,.1f}", is_foretold)
        for rows, time_ms, memory, build_s, is_foretold in figures
    ]


def growth_note(focus: PlanFocus) -> str:
    """Return what the prediction rests on, and what it leaves out."""
    cost = focus.choice.cost
    if cost is None:
        return ""
    sizes = ", ".join(f"{size:,}" for size in cost.measured_rows)
    return (
        f"Power laws through the chosen head, made of {sizes} documents: the time of the first stage "
        f"grows as their number to the power of {cost.head_ms.exponent:.2f}, RAM {cost.memory_bytes.exponent:.2f}, "
        f"build time {cost.build_s.exponent:.2f}; {cost.later_ms:.2f} ms of later stages stay. Quality is not "
        f"foretold: more documents need longer shortlists."
    )


def plan_facts(focus: PlanFocus) -> list[tuple[str, str]]:
    """Return everything that explains or repeats the measurement, by name."""
    evidence, space = focus.choice.evidence, focus.choice.exact.plan.space
    vectors = {}
    if space is not None:
        vectors = {
            "vectors": f"{space.model}, revision {space.revision}",
            "embed_dim": f"{focus.choice.exact.plan.embed_dim:,}",
        }
    listed: dict[str, Any] = {
        "goal": evidence.get("goal"),
        "RAM budget": None
        if focus.budget.memory_bytes is None
        else format_bytes(focus.budget.memory_bytes),
        "latency budget": None
        if focus.budget.latency_ms is None
        else f"{focus.budget.latency_ms:g} ms",
        "time budget": f"{focus.budget.time_s:g} s",
        **vectors,
    }
    for key, value in evidence.items():
        name = _NAMES.get(key, key)
        if name not in listed and key not in ("memory_budget_bytes", "latency_budget_ms"):
            listed[name] = value
    return [(name, _fact_text(value)) for name, value in listed.items() if value not in (None, "")]


def _fact_text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else flatten(value)
