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
        interval: The full-width value less the bootstrap interval of the paired loss; None if
            there are no values per query.
        kept: Share of the full-width value; None without a positive full-width value.
        kept_interval: Paired bootstrap interval of `kept`.
        others: Values of the other metrics of this cut, by name.
    """

    row: Row
    anchor: str
    interval: Interval | None
    kept: float | None
    kept_interval: Interval | None
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
    intervals = _paired_intervals(main, reference, confidence)
    others: dict[tuple[_Key, int], dict[str, float]] = {}
    for row in results.rows:
        if row.metric != metric:
            others.setdefault((_series_key(row), row.dim), {})[row.metric] = row.value
    lines: dict[_Key, list[Point]] = {}
    for number, (row, (interval, kept_interval)) in enumerate(zip(main, intervals, strict=True)):
        # A share of nothing, or of less than nothing, says nothing.
        can_share = reference is not None and reference.value > 0
        point = Point(
            row=row,
            anchor=f"row-{number}",
            interval=interval,
            kept=row.value / reference.value if reference is not None and can_share else None,
            kept_interval=kept_interval if can_share else None,
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


def _paired_intervals(
    rows: Sequence[Row], reference: Row | None, confidence: float
) -> list[tuple[Interval | None, Interval | None]]:
    """Return per row the interval of its value and that of its share of the full-width value.

    Both come from the paired loss: queries differ far more from each other than the cuts of one
    query do, and it is the loss that a choice is about.
    """
    if reference is None or any(row.per_query is None for row in rows) or not reference.per_query:
        return [(None, None)] * len(rows)
    full = per_query_array(reference)
    cuts = np.stack([per_query_array(row) for row in rows])
    losses, shares = (
        bootstrap_loss_intervals(full, cuts, relative=relative, confidence=confidence, seed=0)
        for relative in (False, True)
    )
    return [
        (
            (reference.value - float(loss[1]), reference.value - float(loss[0])),
            (1.0 - float(share[1]), 1.0 - float(share[0])),
        )
        for loss, share in zip(losses, shares, strict=True)
    ]
