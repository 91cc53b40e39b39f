"""Does a model look nested: do its first coordinates say more than any others?"""

from collections.abc import Sequence

import numpy as np

from nestling.measure.table import Measured, PerQuery

CONFIDENCE = 0.95
"""Of the lower bound of the gain over random coordinates, which must lie above 0."""


def looks_nested(measured: Sequence[Measured], *, metric: str, embed_dim: int) -> bool | None:
    """Return whether float32 prefixes beat random coordinates clearly at small widths.

    The gain of the prefix over each random draw is averaged over the widths of at most a quarter
    of the full one, query by query. The model looks nested if the one-sided lower bound of the mean gain lies
    above 0. Two things push that bound down: few queries, and draws that differ among
    themselves; the second matters because the prefix of a model that is not nested is itself one
    more random draw, which can be lucky on any number of queries. Student's t with one degree of
    freedom fewer than there are draws covers both. With so few draws a small gain is often missed:
    False says that none was shown, not that there is none.

    Args:
        measured: Results that hold the random draws one by one.
        metric: What to count the gain in.
        embed_dim: Full width.

    Returns:
        None where the metric has no values per query, or no small width was measured.
    """
    from scipy.stats import t as student_t

    prefix: dict[int, PerQuery] = {}
    draws: dict[int, dict[int, PerQuery]] = {}
    for cut in measured:
        values = cut.metrics.get(metric)
        if not isinstance(values, np.ndarray) or 4 * cut.dim > embed_dim:
            continue
        if cut.family == "random":
            draws.setdefault(cut.draw, {})[cut.dim] = values
        elif cut.family == "prefix" and cut.dtype == "float32":
            prefix[cut.dim] = values
    if not prefix or not draws:
        return None
    gains = np.array(
        [
            np.mean([prefix[dim] - by_dim[dim] for dim in prefix], axis=0)
            for by_dim in draws.values()
        ]
    )
    num_draws, num_queries = gains.shape
    if num_draws < 2 or num_queries < 2:
        return None
    error_of_queries = gains.mean(axis=0).std(ddof=1) / np.sqrt(num_queries)
    error_of_draws = gains.mean(axis=1).std(ddof=1) * np.sqrt(1 + 1 / num_draws)
    quantile = student_t.ppf(CONFIDENCE, num_draws - 1)
    return bool(gains.mean() > quantile * np.hypot(error_of_queries, error_of_draws))
