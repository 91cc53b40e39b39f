"""The other sides of `sweep.py`: the same question answered with NumPy and BLAS.

Every function returns, per width, the rows and the cosines of the k best corpus rows of every
query, best first, and adds the seconds of its parts to `spent`.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
from scipy.linalg.blas import sgemm

Ranking = tuple[np.ndarray, np.ndarray]
Spent = defaultdict[str, float]
Selection = Callable[[np.ndarray, int, Ranking | None, int], Ranking]

SHARES = ThreadPoolExecutor(2)


@contextmanager
def adding_to(spent: Spent, part: str) -> Iterator[None]:
    started_s = time.perf_counter()
    yield
    spent[part] += time.perf_counter() - started_s


def unit_prefix(vectors: np.ndarray, dim: int) -> np.ndarray:
    prefix = np.ascontiguousarray(vectors[:, :dim])
    norms = np.sqrt(np.einsum("ij,ij->i", prefix, prefix))
    prefix /= np.where(norms == 0, 1, norms)[:, None]
    return prefix


def from_scratch(
    corpus: np.ndarray,
    queries: np.ndarray,
    dims: Sequence[int],
    k: int,
    *,
    select: Selection,
    chunk_rows: int,
    spent: Spent,
) -> dict[int, Ranking]:
    """Every prefix by itself: contiguous, normalised, chunked matmul, selection, merge."""
    rankings = {}
    for dim in dims:
        unit_queries = unit_prefix(queries, dim)
        scores = np.empty((len(queries), chunk_rows), np.float32)
        best: Ranking | None = None
        for start in range(0, len(corpus), chunk_rows):
            with adding_to(spent, "copy and norms"):
                chunk = unit_prefix(corpus[start : start + chunk_rows], dim)
            with adding_to(spent, "product"):
                part = np.matmul(unit_queries, chunk.T, out=scores[:, : len(chunk)])
            with adding_to(spent, "selection"):
                best = select(part, start, best, k)
        assert best is not None
        rankings[dim] = in_order(best)
    return rankings


def nested_blas(
    corpus: np.ndarray,
    queries: np.ndarray,
    dims: Sequence[int],
    k: int,
    *,
    select: Selection,
    chunk_rows: int,
    spent: Spent,
) -> dict[int, Ranking]:
    """Bands added up by BLAS with beta = 1, scaled and selected by NumPy."""
    best: dict[int, Ranking] = {}
    bands = [slice(start, stop) for start, stop in zip((0, *dims), dims, strict=False)]
    # Scaling a query does not change its ranking; scaling it back gives the cosine.
    query_bands = [np.ascontiguousarray(queries[:, band]) for band in bands]
    query_norms = {dim: np.linalg.norm(queries[:, :dim], axis=1) for dim in dims}
    for start in range(0, len(corpus), chunk_rows):
        chunk = corpus[start : start + chunk_rows]
        dots = np.zeros((len(queries), len(chunk)), np.float32)
        squares = np.zeros(len(chunk), np.float32)
        for dim, band, query_band in zip(dims, bands, query_bands, strict=True):
            with adding_to(spent, "copy and norms"):
                rows = np.ascontiguousarray(chunk[:, band])
                squares += np.einsum("ij,ij->i", rows, rows)
            with adding_to(spent, "product"):
                sgemm(1, rows.T, query_band.T, 1, dots.T, trans_a=True, overwrite_c=True)
            with adding_to(spent, "selection"):
                norms = np.where(squares == 0, 1, np.sqrt(squares))
                best[dim] = select(dots / norms, start, best.get(dim), k)
    return {
        dim: in_order((rows, scores / query_norms[dim][:, None]))
        for dim, (rows, scores) in best.items()
    }


def by_partition(scores: np.ndarray, start: int, best: Ranking | None, k: int) -> Ranking:
    """The usual selection: argpartition of each chunk, merged; half of the queries per core."""
    kept = min(k, scores.shape[1])

    def share(part: slice) -> Ranking:
        columns = np.argpartition(scores[part], -kept, axis=1)[:, -kept:]
        values = np.take_along_axis(scores[part], columns, axis=1)
        rows = columns + start
        if best is None:
            return rows, values
        rows = np.concatenate([best[0][part], rows], axis=1)
        values = np.concatenate([best[1][part], values], axis=1)
        order = np.argpartition(values, -k, axis=1)[:, -k:]
        return np.take_along_axis(rows, order, axis=1), np.take_along_axis(values, order, axis=1)

    return in_halves(share, len(scores))


def by_threshold(scores: np.ndarray, start: int, best: Ranking | None, k: int) -> Ranking:
    """The best NumPy can do: only scores above the k-th best so far are looked at."""
    if best is None:
        return by_partition(scores, start, best, k)

    def share(part: slice) -> Ranking:
        rows, values = (side[part] for side in best)
        query, column = np.nonzero(scores[part] > values.min(axis=1)[:, None])
        counts = np.bincount(query, minlength=len(rows))
        place = np.arange(len(query)) - (np.cumsum(counts) - counts)[query]
        wide_rows = np.full((len(rows), k + counts.max(initial=0)), -1)
        wide_values = np.full(wide_rows.shape, -np.inf, np.float32)
        wide_rows[:, :k], wide_values[:, :k] = rows, values
        wide_rows[query, k + place] = column + start
        wide_values[query, k + place] = scores[part][query, column]
        order = np.argpartition(wide_values, -k, axis=1)[:, -k:]
        return (
            np.take_along_axis(wide_rows, order, axis=1),
            np.take_along_axis(wide_values, order, axis=1),
        )

    return in_halves(share, len(scores))


def in_halves(share: Callable[[slice], Ranking], num_queries: int) -> Ranking:
    middle = num_queries // 2
    halves = list(SHARES.map(share, (slice(0, middle), slice(middle, num_queries))))
    return (
        np.concatenate([rows for rows, _ in halves]),
        np.concatenate([values for _, values in halves]),
    )


def in_order(best: Ranking) -> Ranking:
    rows, scores = best
    order = np.lexsort((rows, -scores), axis=1)
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)
