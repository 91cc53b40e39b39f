"""Cosine scores, higher is better."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from nestling.core.dims import check_dims
from nestling.core.prefix import prefix_norms, take_prefix


def cosine_scores(
    queries: Float[np.ndarray, "queries full"], corpus: Float[np.ndarray, "rows full"], dim: int
) -> Float[np.ndarray, "queries rows"]:
    """Return the cosine of every query prefix with every corpus prefix, the slow and obvious way.

    A zero prefix scores 0 against everything.
    """
    return (
        take_prefix(queries, dim, renormalize=True) @ take_prefix(corpus, dim, renormalize=True).T
    )


def nested_pair_cosines(
    left: Float[np.ndarray, "pairs full"],
    right: Float[np.ndarray, "pairs full"],
    dims: Sequence[int],
) -> Float[np.ndarray, "pairs widths"]:
    """Return the cosine of row i of `left` with row i of `right` at every width.

    Each coordinate is read once: dot products and norms of a wider prefix continue those of the
    narrower one. A zero prefix scores 0. Sums are taken in float32 at least.

    Raises:
        DimensionError: If `dims` breaks the rules of `check_dims`.
    """
    widths = check_dims(dims, left.shape[-1])
    dtype = np.result_type(left.dtype, right.dtype, np.float32)
    dots = np.empty((len(left), len(widths)), dtype=dtype)
    start = 0
    for column, width in enumerate(widths):
        bands = left[:, start:width], right[:, start:width]
        np.einsum("ij,ij->i", *bands, out=dots[:, column], dtype=dtype)
        start = width
    np.cumsum(dots, axis=1, out=dots)
    norms = prefix_norms(left, widths) * prefix_norms(right, widths)
    return np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0)


def rescore(
    queries: Float[np.ndarray, "queries full"],
    corpus: Float[np.ndarray, "rows full"],
    shortlist: Int[np.ndarray, "queries kept"],
    dim: int,
) -> Float[np.ndarray, "queries kept"]:
    """Return the cosine at width `dim` of each query with the corpus rows on its shortlist.

    Args:
        queries: Float32 rows.
        corpus: Float32 or float16 rows, may be memory-mapped; only shortlisted rows are read.
        shortlist: Row numbers; -1 marks an empty place and scores minus infinity.
        dim: Width of the re-score.
    """
    query_prefixes = take_prefix(queries, dim, renormalize=True)
    scores = np.empty(shortlist.shape, dtype=np.float32)
    # One chunk of gathered rows stays near 4 MB, in the cache, whatever the shortlist and the width.
    step = max(1, (1 << 20) // max(1, shortlist.shape[1] * dim))
    for start in range(0, len(queries), step):
        rows = shortlist[start : start + step]
        gathered = np.asarray(corpus[rows.ravel(), :dim], np.float32).reshape(*rows.shape, dim)
        norms = np.sqrt(np.einsum("qkd,qkd->qk", gathered, gathered))
        dots = np.einsum("qd,qkd->qk", query_prefixes[start : start + step], gathered)
        scores[start : start + step] = dots / np.where(norms == 0.0, 1.0, norms)
    scores[shortlist < 0] = -np.inf
    return scores
