"""What a person sees: progress on stderr, tables and sparklines on stdout."""

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.table import Table

from nestling.core.progress import Progress

SECONDS_BETWEEN_LINES = 30
MOST_COLUMNS = 400

SPARKS = "▁▂▃▄▅▆▇█"


def talk(message: str) -> None:
    """Say something beside the result, on stderr."""
    click.echo(message, err=True)


def print_json(data: Any) -> None:
    """Print the result as one JSON document on stdout."""
    click.echo(json.dumps(data, indent=2, allow_nan=False))


def print_table(table: Table) -> None:
    """Print a table on stdout, as wide as it needs to be when nobody looks."""
    console = Console(highlight=False, markup=False)
    # Too wide for the window is better than digits cut off.
    wide = console.options.update(max_width=MOST_COLUMNS)
    console.width = max(console.width, Measurement.get(console, wide, table).maximum)
    console.print(table)


def sparkline(values: Sequence[float]) -> str:
    """Draw values as one line of blocks, the lowest value lowest; "" for none."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    scale = (len(SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(
        SPARKS[round((value - low) * scale)] if math.isfinite(value) else " " for value in values
    )


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """Show a bar with an ETA per label on a terminal; elsewhere one line when a label is done."""
    console = Console(stderr=True)
    if console.is_terminal:
        with _rich_bars(console) as bars:
            yield bars
    else:
        yield _LineProgress()


@contextmanager
def _rich_bars(console: Console) -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=console) as rich_progress:
        tasks: dict[str, TaskID] = {}

        def report(label: str, done: int, total: int) -> None:
            name = _name(label)
            if name not in tasks:
                tasks[name] = rich_progress.add_task(label, total=total)
            rich_progress.update(tasks[name], description=label, completed=done, total=total)

        yield report


def _name(label: str) -> str:
    """Return the part of a label that stays the same."""
    return label.partition(" | ")[0]


class _LineProgress:
    """One line per label when it is done, and every half minute until then: logs stay short."""

    def __init__(self) -> None:
        self._started: dict[str, tuple[float, int]] = {}
        self._last_line_s = time.perf_counter()

    def __call__(self, label: str, done: int, total: int) -> None:
        now_s = time.perf_counter()
        # What a resumed run begins with was done by another: it says nothing of this one's pace.
        started_s, done_before = self._started.setdefault(_name(label), (now_s, done))
        elapsed_s = now_s - started_s
        if done >= total:
            talk(f"{label}: {total:,} in {elapsed_s:.1f} s")
            del self._started[_name(label)]
        elif done > done_before and now_s - self._last_line_s > SECONDS_BETWEEN_LINES:
            left_s = elapsed_s * (total - done) / (done - done_before)
            talk(f"{label}: {done:,} of {total:,}, about {left_s:,.0f} s left")
        else:
            return
        self._last_line_s = now_s
