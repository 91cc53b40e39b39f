"""The best rows of a score matrix, with one rule for ties."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class TopK(NamedTuple):
    """Best corpus rows per query, best first; ties go to the lower row.

    Attributes:
        rows: Corpus row numbers, of shape (queries, k); -1 where the corpus has fewer than k rows.
        scores: Their scores, of the same shape; minus infinity where `rows` is -1.
    """

    rows: Int[np.ndarray, "queries k"]
    scores: Float[np.ndarray, "queries k"]


def top_k(
    scores: Float[np.ndarray, "queries rows"],
    k: int,
    *,
    rows: Int[np.ndarray, "queries rows"] | None = None,
) -> TopK:
    """Return the k best columns of each row of a score matrix by a full sort, the obvious way.

    Args:
        scores: Higher is better.
        k: How many to keep; places beyond the number of columns are filled with -1.
        rows: Corpus row number of each score; by default the column number. Columns named -1 are
            empty places and come last.
    """
    if rows is None:
        rows = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    else:
        scores = np.where(rows < 0, -np.inf, scores)
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    best_rows = np.full((len(scores), k), -1, dtype=np.int64)
    best_scores = np.full((len(scores), k), -np.inf, dtype=np.float32)
    kept = order.shape[1]
    best_rows[:, :kept] = np.take_along_axis(rows, order, axis=1)
    best_scores[:, :kept] = np.take_along_axis(scores, order, axis=1)
    return TopK(best_rows, best_scores)
