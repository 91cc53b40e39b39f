"""From measured values to the rows of a results file."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64

from nestling.core import Dtype, bytes_per_vector
from nestling.measure.results import Row

PerQuery = Float64[np.ndarray, " queries"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Every metric of one way to cut at one width.

    Attributes:
        family: As in `Row`.
        dim: Width that is scanned.
        dtype: Number format that is scanned.
        metrics: By name: values per query, or one number where the metric is not a mean.
        seconds: As in `Row`.
        shortlist_size: As in `Row`.
        draw: Number of the random draw; draws are averaged into one row.
    """

    family: str
    dim: int
    dtype: Dtype
    metrics: Mapping[str, PerQuery | float]
    seconds: float
    shortlist_size: int | None = None
    draw: int = 0


def make_rows(measured: Iterable[Measured], *, model: str, task: str) -> list[Row]:
    """Return one row per metric of each measured cut, in the order given."""
    rows = []
    for cut in measured:
        for metric, values in cut.metrics.items():
            per_query = None if isinstance(values, float) else tuple(values.tolist())
            rows.append(
                Row(
                    model=model,
                    task=task,
                    family=cut.family,
                    dim=cut.dim,
                    dtype=cut.dtype,
                    metric=metric,
                    value=float(np.mean(values)),
                    per_query=per_query,
                    bytes_per_vector=bytes_per_vector(cut.dtype, cut.dim),
                    seconds=cut.seconds,
                    shortlist_size=cut.shortlist_size,
                )
            )
    return rows


def average_draws(measured: Iterable[Measured]) -> list[Measured]:
    """Replace the random draws at each width by their mean, query by query and in seconds."""
    grouped: dict[tuple[str, int, Dtype], list[Measured]] = {}
    for cut in measured:
        grouped.setdefault((cut.family, cut.dim, cut.dtype), []).append(cut)
    return [draws[0] if len(draws) == 1 else _mean(draws) for draws in grouped.values()]


def _mean(draws: list[Measured]) -> Measured:
    metrics: dict[str, PerQuery | float] = {}
    for name, values in draws[0].metrics.items():
        mean = np.mean(np.array([draw.metrics[name] for draw in draws]), axis=0)
        metrics[name] = float(mean) if isinstance(values, float) else mean
    return replace(
        draws[0], metrics=metrics, seconds=float(np.mean([draw.seconds for draw in draws]))
    )
