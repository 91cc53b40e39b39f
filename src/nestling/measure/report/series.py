"""Rows ordered into lines: one series per family and number format, its points by width."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nestling.core import Dtype
from nestling.errors import EvidenceError
from nestling.measure.intervals import bootstrap_loss_intervals
from nestling.measure.report.labels import cut_label
from nestling.measure.results import Results, Row, per_query_array

FAMILY_ORDER = ("prefix", "funnel", "pca", "random")

Interval = tuple[float, float]
_Key = tuple[str, Dtype, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One measured cut.

    Attributes:
        row: The row of the metric the report is about.
        anchor: Id of its table row.
        kept: Share of the full-width value; None without a positive full-width value.
        kept_interval: Paired bootstrap interval of `kept`; None without values per query.
        interval: `kept_interval` of the measured full-width value, in points of the metric.
        others: Values of the other metrics of this cut, by name.
    """

    row: Row
    anchor: str
    kept: float | None
    kept_interval: Interval | None
    interval: Interval | None
    others: dict[str, float]

    @property
    def label(self) -> str:
        """The cut in words, e.g. "64-d int8 prefix"."""
        return cut_label(self.row.family, self.row.dim, self.row.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """All widths of one family in one number format, narrowest first."""

    family: str
    dtype: Dtype
    shortlist_size: int | None
    embed_dim: int
    points: tuple[Point, ...]


def reference_row(results: Results, metric: str) -> Row | None:
    """Return the full-width float32 row of a metric, or None if it was not measured."""
    try:
        return results.reference(metric)
    except EvidenceError:
        return None


def group_series(results: Results, metric: str, *, confidence: float) -> tuple[Series, ...]:
    """Return every series of a metric: prefixes first, then funnels, then baselines.

    Raises:
        EvidenceError: If no row has this metric.
    """
    main = [row for row in results.rows if row.metric == metric]
    if not main:
        have = ", ".join(other_metrics(results, metric)) or "nothing"
        raise EvidenceError(
            f"`metric` of a report must have been measured, got {metric!r}; the results hold {have}. "
            f"Measure again with `nestling measure --out results.json`."
        )
    main.sort(key=lambda row: row.dim)
    reference = reference_row(results, metric)
    # A share of nothing, or of less than nothing, says nothing.
    full_value = None if reference is None or reference.value <= 0 else reference.value
    intervals = _kept_intervals(main, reference, confidence) if full_value else {}
    others: dict[tuple[_Key, int], dict[str, float]] = {}
    for row in results.rows:
        if row.metric != metric:
            others.setdefault((_series_key(row), row.dim), {})[row.metric] = row.value
    lines: dict[_Key, list[Point]] = {}
    for number, row in enumerate(main):
        interval = intervals.get(number)
        point = Point(
            row=row,
            anchor=f"row-{number}",
            kept=None if full_value is None else row.value / full_value,
            kept_interval=interval,
            interval=None
            if full_value is None or interval is None
            else (full_value * interval[0], full_value * interval[1]),
            others=others.get((_series_key(row), row.dim), {}),
        )
        lines.setdefault(_series_key(row), []).append(point)
    return tuple(
        Series(
            family=key[0],
            dtype=key[1],
            shortlist_size=key[2] or None,
            embed_dim=results.embed_dim,
            points=tuple(points),
        )
        for key, points in sorted(lines.items(), key=lambda line: _series_order(line[0]))
    )


def other_metrics(results: Results, metric: str) -> list[str]:
    """Return the metrics beside this one, in the order they were measured in."""
    return [name for name in dict.fromkeys(row.metric for row in results.rows) if name != metric]


def _series_key(row: Row) -> _Key:
    return row.family, row.dtype, row.shortlist_size or 0


def _series_order(key: _Key) -> tuple[int, str, int, int]:
    family, dtype, shortlist_size = key
    rank = FAMILY_ORDER.index(family) if family in FAMILY_ORDER else len(FAMILY_ORDER)
    return rank, family, list(Dtype).index(dtype), shortlist_size


def _kept_intervals(
    rows: Sequence[Row], reference: Row | None, confidence: float
) -> dict[int, Interval]:
    """Return the interval of the kept share by number of row; empty without values per query.

    It comes from the paired loss: queries differ far more from each other than the cuts of one
    query do, and it is the loss that a choice is about.
    """
    if reference is None or any(row.per_query is None for row in (reference, *rows)):
        return {}
    losses = bootstrap_loss_intervals(
        per_query_array(reference),
        np.stack([per_query_array(row) for row in rows]),
        relative=True,
        confidence=confidence,
        seed=0,
    )
    return {number: (1.0 - high, 1.0 - low) for number, (low, high) in enumerate(losses.tolist())}
