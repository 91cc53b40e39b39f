"""Rank a corpus for every query with every cut at every width, and re-score the shortlists."""

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float32, Int

from nestling.core import Dtype, NestedTopK, View, nested_top_k, rescore, top_k
from nestling.core.progress import Progress
from nestling.measure.cuts import Cut, Vectors
from nestling.measure.metrics import CUTOFF, DEPTH
from nestling.measure.table import Measured, PerQuery

Queries = Float32[np.ndarray, "queries embed_dim"]
Rows = Int[np.ndarray, "queries k"]
Reference = Int[np.ndarray, "queries wanted"]

Judge = Callable[[Rows, Reference], Mapping[str, PerQuery]]
"""From a ranking and the reference (top 10 at full width in float32) to values per query."""


def rank(
    corpus: Vectors, queries: Queries, cuts: Sequence[Cut], k: int, *, progress: Progress
) -> dict[str, NestedTopK]:
    """Return the k best rows per query with each cut at each of its widths, by name of the cut.

    All cuts of the same widths share one pass over the corpus, which may be memory-mapped: it is
    turned and coded chunk by chunk. Rotated binary takes a pass of its own per width.
    """
    rankings: dict[str, NestedTopK] = {}
    for dims in dict.fromkeys(cut.dims for cut in cuts):
        views = [
            View(
                name=cut.name,
                queries=cut.query_side(queries),
                transform=None if cut.is_plain else cut.corpus_side,
            )
            for cut in cuts
            if cut.dims == dims
        ]
        rankings |= nested_top_k(corpus, views, dims, k, progress=progress)
    return rankings


def measure_search(
    corpus: Vectors,
    queries: Queries,
    cuts: Sequence[Cut],
    *,
    judge: Judge,
    shortlist_size: int,
    funnels: bool = True,
    progress: Progress,
) -> list[Measured]:
    """Search with every cut at each of its widths, alone and as the head of a funnel.

    Args:
        corpus: Rows to search.
        queries: Query vectors.
        cuts: What `make_cuts` returned: the first holds the reference.
        judge: Puts values on a ranking.
        shortlist_size: Candidates that a funnel re-scores at full width in float32.
        funnels: Whether to measure each prefix as the head of a funnel too.
        progress: Told about the passes over the corpus.

    Returns:
        What was measured, random draws one by one.
    """
    rankings = rank(corpus, queries, cuts, max(DEPTH, shortlist_size), progress=progress)
    reference = rankings[cuts[0].name].by_dim[corpus.shape[1]].rows[:, :CUTOFF]
    measured = [
        Measured(
            family=cut.family,
            dim=dim,
            dtype=cut.dtype,
            draw=cut.draw,
            metrics=judge(rankings[cut.name].by_dim[dim].rows, reference),
            seconds=rankings[cut.name].seconds,
        )
        for cut in cuts
        for dim in cut.dims
    ]
    for cut in cuts if funnels else ():
        if cut.family != "prefix":
            continue
        # The full width in float32 re-scored by itself is no funnel.
        is_full = cut.dtype is Dtype.FLOAT32
        dims = [dim for dim in cut.dims if not (is_full and dim == corpus.shape[1])]
        ranking = rankings[cut.name]
        started_s = time.perf_counter()
        shortlists = [ranking.by_dim[dim].rows[:, :shortlist_size] for dim in dims]
        reranked = rescore_shortlists(corpus, queries, shortlists)
        seconds = ranking.seconds + time.perf_counter() - started_s
        measured += [
            Measured(
                family="funnel",
                dim=dim,
                dtype=cut.dtype,
                metrics=judge(rows, reference),
                seconds=seconds,
                shortlist_size=shortlist_size,
            )
            for dim, rows in zip(dims, reranked, strict=True)
        ]
    return measured


def rescore_shortlists(corpus: Vectors, queries: Queries, shortlists: Sequence[Rows]) -> list[Rows]:
    """Return each shortlist in the order of its full-width float32 scores, ties to the lower row.

    The shortlists of one query share most of their rows, so each row is scored once.

    Args:
        corpus: Full-width rows.
        queries: Full-width query vectors.
        shortlists: Of equal shape; -1 marks an empty place.
    """
    if not shortlists:
        return []
    stacked = np.concatenate(shortlists, axis=1)
    # A key names a query and a row; keys ascend by query, so one query's rows lie together.
    num_keys = len(corpus) + 1
    keys = np.arange(len(queries))[:, None] * num_keys + (stacked + 1)
    unique_keys, place = np.unique(keys, return_inverse=True)
    query, shifted_row = np.divmod(unique_keys, num_keys)
    column = np.arange(len(unique_keys)) - np.searchsorted(query, np.arange(len(queries)))[query]
    union = np.full((len(queries), int(column.max()) + 1), -1, dtype=np.int64)
    union[query, column] = shifted_row - 1
    scores = rescore(queries, corpus, union, corpus.shape[1])[query, column]
    per_shortlist = np.split(scores[place].reshape(stacked.shape), len(shortlists), axis=1)
    return [
        top_k(shortlist_scores, rows.shape[1], rows=rows).rows
        for shortlist_scores, rows in zip(per_shortlist, shortlists, strict=True)
    ]
