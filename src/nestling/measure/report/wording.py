"""Every sentence of the report that depends on what was measured."""

import math
import re

from nestling.measure.decision import Decision, Step
from nestling.measure.report.focus import Focus, deployed_step, tolerated_points
from nestling.measure.report.labels import about, cut_label, metric_label, percent, times
from nestling.measure.report.series import Point
from nestling.measure.results import Results

WELL_KEPT = 0.95
"""What the headline asks of a prefix while nothing has been chosen: a figure, not a certificate."""


def split_verdict(verdict: str) -> tuple[str, str]:
    """Return the first sentence of a verdict, and the rest of it."""
    first, *rest = re.split(r"(?<=\.) (?=[A-Z])", verdict, maxsplit=1)
    return first, "".join(rest)


def headline(results: Results, focus: Focus) -> tuple[str, str]:
    """Return the verdict and its evidence line where nothing has been decided."""
    name = metric_label(focus.metric)
    what = f"the full-width ranking ({name})" if focus.is_self else name
    small = _smallest_well_kept(focus)
    verdict = (
        f"No size has been chosen: {name} was measured at {len(focus.points)} cuts."
        if small is None
        else f"Measured, not certified: the {small.label} keeps {percent(small.kept)} of {what} "
        f"in {small.row.bytes_per_vector:,} bytes per vector."
    )
    count = f"{len(results.query_ids):,} queries of " if focus.has_per_query else ""
    reason = (
        "No loss was tested."
        if focus.has_per_query
        else f"No loss can be tested: {name} has no value per query."
    )
    return verdict, f"{count}{focus.task}. {reason}"


def glance(results: Results, decision: Decision | None, focus: Focus) -> list[tuple[str, str]]:
    """Return a few figures, each with a word on what it is."""
    name = metric_label(focus.metric)
    full_bytes = 4 * results.embed_dim
    if decision is None:
        reference = focus.reference
        figures = [(f"{results.embed_dim:,}", f"dimensions at full width, {full_bytes:,} bytes")]
        if reference is not None:
            figures.insert(0, (f"{reference.value:.4f}", f"{name} at full width"))
        if results.num_documents:
            figures.append((f"{results.num_documents:,}", "documents"))
        return figures
    step = deployed_step(decision)
    if step is None:
        figures = [
            (_tolerance(decision), "loss tolerated"),
            (f"{decision.num_queries:,}", "queries there are"),
        ]
        if decision.queries_needed is not None:
            figures.append((about(decision.queries_needed), "queries needed"))
        return figures
    what = "the full-width ranking" if focus.is_self else name
    return [
        (percent(step.kept), f"of {what} kept"),
        (f"≤ {_tolerance(decision)}", f"loss, {100 * decision.confidence:g}% sure"),
        (f"{step.bytes_per_vector:,}", f"bytes scanned per vector, of {full_bytes:,}"),
        (times(full_bytes / step.bytes_per_vector), "smaller than full width in float32"),
    ]


def plot_caption(focus: Focus) -> str:
    """Return what the marks of the plots mean, as far as they are drawn."""
    parts = ["Hollow marks: full width."]
    if focus.has_intervals:
        parts.append(
            f"Shaded: {100 * focus.confidence:g}% bootstrap interval of the loss against full width, "
            f"query by query."
        )
    if focus.tolerated_value is not None:
        parts.append("Dotted level: the tolerated loss.")
    if focus.chosen is not None:
        parts.append("Ringed: the chosen cut.")
    parts.append(
        "Bytes are those of the tier that is scanned; a funnel also keeps the full vectors."
        if any(line.family == "funnel" for line in focus.series)
        else "Bytes are those of the tier that is scanned."
    )
    return " ".join(parts)


def table_note(focus: Focus) -> str:
    """Return what the columns of the table mean."""
    note = (
        "Kept is the share of the float32 value at full width, and smaller counts from its bytes."
    )
    if focus.has_intervals:
        note += (
            f" Intervals are {100 * focus.confidence:g}% bootstrap intervals over the queries: they "
            f"describe this sample, and certify nothing."
        )
    if any(line.family == "pca" for line in focus.series):
        note += (
            " PCA is fitted on the measured vectors themselves, and every query must be rotated by it "
            "too: its bytes leave the rotation out."
        )
    return note


def tolerance_text(decision: Decision) -> str:
    """Return the tolerated loss in words."""
    unit = "the full-width value" if decision.is_relative else metric_label(decision.metric)
    return f"{_tolerance(decision)} of {unit}"


def queries_to_pass(step: Step) -> str:
    """Return how many queries it would take to certify a step."""
    if step.passed:
        return ""
    return "none would do" if step.queries_needed is None else about(step.queries_needed)


def floor_warning(decision: Decision) -> str | None:
    """Return a warning if no test could certify the tolerance with so few queries, else None."""
    tolerated = tolerated_points(decision)
    if tolerated >= decision.floor:
        return None
    warning = (
        f"The tolerated loss, {100 * tolerated:.2f} points, lies below {100 * decision.floor:.2f} points: the "
        f"smallest loss that any distribution-free test can certify with {decision.num_queries:,} "
        f"queries, {100 * decision.confidence:g}% sure."
    )
    if tolerated <= 0:
        return warning
    least = math.ceil(decision.floor * decision.num_queries / tolerated)
    return f"{warning} No fewer than {least:,} queries can certify it."


def what_would_change(results: Results, decision: Decision | None, focus: Focus) -> list[str]:
    """Return, most pressing first, what would lead to another verdict."""
    lines = []
    if decision is not None:
        lines = _failure_lines(decision)
        lines.append(
            f"Another tolerance, metric or confidence: this verdict rests on {metric_label(decision.metric)}, "
            f"a loss of at most {tolerance_text(decision)}, and {100 * decision.confidence:g}% "
            f"confidence."
        )
    elif focus.has_per_query:
        lines.append("A choice: nestling choose tests each size against a loss that you tolerate.")
    space = results.fingerprint.space
    return [
        *lines,
        "Other documents or another kind of query: the evidence speaks for inputs like these only.",
        f"Another model or revision: these are vectors of {space.model}, revision {space.revision}.",
    ]


def _failure_lines(decision: Decision) -> list[str]:
    failed = [step for step in decision.steps if not step.passed]
    lines = [
        f"More queries: a fresh set of {about(step.queries_needed)} like these would probably certify "
        f"the {_cut(step)}; there were {decision.num_queries:,}."
        for step in failed
        if step.queries_needed is not None
    ]
    hopeless = [_cut(step) for step in failed if step.queries_needed is None]
    if hopeless:
        lines.append(
            f"A larger tolerance: no less than {tolerance_text(decision)} was lost by the "
            f"{', the '.join(hopeless)}, and more queries would not change that."
        )
    return lines


def _cut(step: Step) -> str:
    return cut_label(step.family, step.dim, step.dtype)


def _tolerance(decision: Decision) -> str:
    # The loss that was tested is certified; the tighter bound of a step chosen by testing is not.
    return f"{100 * decision.max_loss:g}{'%' if decision.is_relative else ' points'}"


def _smallest_well_kept(focus: Focus) -> Point | None:
    kept = [
        point
        for point in focus.points
        if point.row.family == "prefix" and point.kept is not None and point.kept >= WELL_KEPT
    ]
    return min(kept, key=lambda point: (point.row.bytes_per_vector, -point.row.value), default=None)
