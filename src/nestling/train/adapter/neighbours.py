"""Nearest rows, where a row that is looked for among itself does not find itself."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int, Int64

from nestling.core import View, nested_top_k
from nestling.measure.drift import without_own
from nestling.measure.metrics import CUTOFF


def nearest_others(
    queries: Float32[np.ndarray, "queries dim"],
    documents: Float32[np.ndarray, "documents dim"],
    dims: Sequence[int],
    *,
    own: Int64[np.ndarray, " queries"],
) -> dict[int, Int[np.ndarray, "queries k"]]:
    """Return the ten documents nearest to each query by cosine at every width, best first.

    Args:
        queries: Rows of any length.
        documents: Rows of any length.
        dims: Ascending widths.
        own: The document that each query is itself, which is left out; -2 where it is none.

    Returns:
        Document numbers; -1 where there are too few.
    """
    view = View(name="rows", queries=np.ascontiguousarray(queries))
    found = nested_top_k(np.ascontiguousarray(documents), [view], dims, CUTOFF + 1)["rows"].by_dim
    return {dim: without_own(best.rows, own) for dim, best in found.items()}
