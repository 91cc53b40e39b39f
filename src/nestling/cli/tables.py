"""Results and decisions as terminal tables."""

import math
from itertools import groupby

from rich.table import Table

from nestling.cli.terminal import sparkline
from nestling.core import Dtype
from nestling.core.sizes import format_bytes
from nestling.measure import Decision, PlanChoice, Results, Row
from nestling.search import SearchTrace

FAMILIES = ("prefix", "funnel", "pca", "random")
"""From what a user deploys to what it is compared with."""


def results_table(results: Results) -> Table:
    """Return the main metric by width: one line per family and number format, one column per width."""
    rows = sorted(
        (row for row in results.rows if row.metric == results.main_metric),
        key=lambda row: (FAMILIES.index(row.family), list(Dtype).index(row.dtype), row.dim),
    )
    dims = sorted({row.dim for row in rows})
    table = Table(title=f"{results.main_metric} by width, {rows[0].model} on {rows[0].task}")
    table.add_column("family")
    table.add_column("dtype")
    for dim in dims:
        table.add_column(str(dim), justify="right")
    table.add_column("curve")
    for (family, dtype), group in groupby(rows, key=lambda row: (row.family, row.dtype)):
        by_dim = {row.dim: row for row in group}
        cells = [f"{by_dim[dim].value:.4f}" if dim in by_dim else "" for dim in dims]
        curve = sparkline([row.value for row in by_dim.values()])
        table.add_row(_family_label(family, by_dim[max(by_dim)]), str(dtype), *cells, curve)
    return table


def steps_table(decision: Decision, *, embed_dim: int) -> Table:
    """Return every candidate that was tested, in the order of testing."""
    unit = "%" if decision.is_relative else " points"
    table = Table(
        title=f"tested on {decision.num_queries:,} queries, widest first, until one fails"
    )
    for name in (
        "family",
        "dims",
        "dtype",
        "bytes",
        "smaller",
        decision.metric,
        "kept",
        "loss bound",
        "",
    ):
        table.add_column(name, justify="left" if name in ("family", "dtype", "") else "right")
    for step in decision.steps:
        kept = "" if step.kept is None else f"{step.kept:.1%}"
        verdict = "certified" if step.passed else _missing(step.queries_needed)
        table.add_row(
            step.family,
            str(step.dim),
            str(step.dtype),
            f"{step.bytes_per_vector:,}",
            f"{4 * embed_dim / step.bytes_per_vector:.1f}x",
            f"{step.value:.4f}",
            kept,
            # Rounded up: a bound of 2.004% must not read as one of 2%.
            f"{math.ceil(10_000 * step.loss_bound) / 100:.2f}{unit}",
            verdict,
        )
    return table


def plans_table(choice: PlanChoice) -> Table:
    """Return every plan that was measured, fastest first, and the exact search last."""
    table = Table(title="measured plans; quality is told by queries that did not choose")
    for name in (
        "plan",
        "quality",
        "at least",
        "recall",
        "ms",
        "p99 ms",
        "RAM",
        "mapped",
        "build",
        "",
    ):
        table.add_column(name, justify="left" if name in ("plan", "") else "right")
    front = choice.front
    for point in (*choice.points, choice.exact):
        if point is choice.chosen:
            mark = "chosen"
        elif not point.reaches:
            mark = "below the goal"
        elif not point.fits:
            mark = "over the budget"
        else:
            mark = "on the front" if point in front else ""
        table.add_row(
            point.plan.describe(),
            f"{point.quality:.1%}",
            # Rounded down: a bound of 98.96% must not read as one of 99%.
            f"{math.floor(1000 * point.quality_low) / 10:.1f}%",
            f"{point.recall:.1%}",
            f"{point.latency_ms:.3f}",
            f"{point.latency_p99_ms:.3f}",
            format_bytes(point.memory_bytes),
            format_bytes(point.mapped_bytes),
            f"{point.build_s:.1f} s",
            "exact" if point is choice.exact else mark,
        )
    return table


def trace_table(trace: SearchTrace) -> Table:
    """Return what each stage of a search did."""
    table = Table(title=f"what the search did (generation {trace.generation})")
    for name in ("stage", "by", "rows scored", "bytes read", "ms"):
        table.add_column(name, justify="left" if name in ("stage", "by") else "right")
    for stage in trace.stages:
        table.add_row(
            f"{stage.dim}-d {stage.dtype}",
            stage.engine or "re-scoring",
            "" if stage.num_scored is None else f"{stage.num_scored:,}",
            "" if stage.bytes_read is None else f"{stage.bytes_read:,}",
            f"{1000 * stage.seconds:.3f}",
        )
    return table


def _missing(queries_needed: int | None) -> str:
    if queries_needed is None:
        return "none would do"
    # An extrapolation: more than two digits would claim too much.
    unit = 10 ** max(0, len(str(queries_needed)) - 2)
    return f"needs about {-(-queries_needed // unit) * unit:,} queries"


def _family_label(family: str, row: Row) -> str:
    return family if row.shortlist_size is None else f"{family} (top {row.shortlist_size} reranked)"
