"""Plain bootstrap intervals: the familiar figure beside a certificate, never the certificate.

Percentile intervals over resampled queries (Efron and Tibshirani 1993, chapter 13). They are only
about right, and too narrow for few queries or rare losses: a decision rests on `certify`.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

NUM_RESAMPLES = 1000

_BLOCK_VALUES = 2**22
"""Draws held at a time, so that memory does not grow with queries times resamples."""


def bootstrap_mean_interval(
    values: Float[np.ndarray, " queries"],
    *,
    confidence: float,
    seed: int,
    num_resamples: int = NUM_RESAMPLES,
) -> tuple[float, float]:
    """Return a two-sided interval of the mean.

    The same seed and number of queries draw the same resamples, so intervals of two metrics over
    the same queries are paired.

    Args:
        values: One value per query, at least one.
        confidence: Of the interval, in (0, 1).
        seed: Of the resampling.
        num_resamples: Means that the percentiles are taken of.
    """
    means = _resampled_means(values[None, :], seed=seed, num_resamples=num_resamples)
    low, high = _percentiles(means, confidence)[:, 0]
    return float(low), float(high)


def bootstrap_loss_intervals(
    full: Float[np.ndarray, " queries"],
    cuts: Float[np.ndarray, "cuts queries"],
    *,
    relative: bool,
    confidence: float,
    seed: int,
    num_resamples: int = NUM_RESAMPLES,
) -> Float[np.ndarray, "cuts 2"]:
    """Return a two-sided interval of the mean loss of each cut, paired query by query.

    Args:
        full: Value of the full width per query.
        cuts: Values of each cut for the same queries.
        relative: Whether a loss is a share of the full-width mean of the same resample, else
            absolute. A resample in which that mean is 0 has nothing to lose and counts as 0.
        confidence: As in `bootstrap_mean_interval`.
        seed: As in `bootstrap_mean_interval`.
        num_resamples: As in `bootstrap_mean_interval`.
    """
    series = np.concatenate([full[None, :], full - cuts])
    means = _resampled_means(series, seed=seed, num_resamples=num_resamples)
    losses = means[:, 1:]
    if relative:
        base = means[:, :1]
        losses = np.divide(losses, base, out=np.zeros_like(losses), where=base != 0.0)
    return _percentiles(losses, confidence).T


def _percentiles(
    means: Float[np.ndarray, "resamples series"], confidence: float
) -> Float[np.ndarray, "2 series"]:
    tail = (1.0 - confidence) / 2.0
    return np.quantile(means, [tail, 1.0 - tail], axis=0)


def _resampled_means(
    series: Float[np.ndarray, "series queries"], *, seed: int, num_resamples: int
) -> Float[np.ndarray, "resamples series"]:
    """Return the mean of each series over queries drawn with replacement, all series alike."""
    num_queries = series.shape[1]
    generator = np.random.default_rng(seed)
    means = [
        _draw_counts(generator, size, num_queries) @ series.T / num_queries
        for size in _block_sizes(num_resamples, num_queries)
    ]
    return np.concatenate(means)


def _draw_counts(
    generator: np.random.Generator, num_resamples: int, num_queries: int
) -> Float[np.ndarray, "resamples queries"]:
    """Return how often each resample drew each query: one matrix product then means them all."""
    shape = (num_resamples, num_queries)
    drawn = generator.integers(0, num_queries, size=shape, dtype=np.int32)
    places = drawn + num_queries * np.arange(num_resamples)[:, None]
    counts = np.bincount(places.ravel(), minlength=num_resamples * num_queries)
    return counts.reshape(num_resamples, num_queries).astype(np.float64)


def _block_sizes(num_resamples: int, num_queries: int) -> Iterator[int]:
    size = max(1, _BLOCK_VALUES // num_queries)
    for start in range(0, num_resamples, size):
        yield min(size, num_resamples - start)
