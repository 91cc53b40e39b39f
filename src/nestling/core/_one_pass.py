"""How `nested_top_k` shares out its work: chunks, tiles, threads, best-so-far lists."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Float32

from nestling.core._candidates import Best, Queries, read_only, split_keys
from nestling.core.prefix import prefix_norms
from nestling.core.topk import TopK
from nestling.errors import VectorError

Rows = Float32[np.ndarray, "rows full"]
Transform = Callable[[Rows], Rows]
Job = Callable[[], None]
Run = Callable[[Iterable[Job]], None]

# Rows that all queries meet before the next ones: half of a level-2 cache of 1 MB.
TILE_BYTES = 512 << 10
LARGEST_TILE_ROWS = 512
# Up to this many queries, one plain reading of the rows beats laying them out for the product.
FEW_QUERIES = 4
# With fewer queries per share, laying out the rows once per share costs too much.
QUERIES_PER_SHARE = 128
# Rows converted or transformed at a time by one thread; chunks are made of whole pieces.
PIECE_ROWS = 512
# Rows between two meetings of all threads; copied ones should stay in the level-3 cache.
COPIED_CHUNK_BYTES = 16 << 20
MAPPED_CHUNK_BYTES = 64 << 20
# Multiply-adds that are done before a second thread has started.
SMALL_JOB = 1 << 22


def threads_worth_starting(num_products: int, num_threads: int | None) -> int:
    """Return `num_threads`, by default one per core this process may use; 1 for a small job."""
    if num_products < SMALL_JOB:
        return 1
    if num_threads is None and hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return num_threads or os.cpu_count() or 1


@contextmanager
def run_on(num_threads: int) -> Iterator[Run]:
    """Yield a function that runs jobs on so many threads and returns when all are done."""
    if num_threads == 1:
        yield _run_here
        return
    with ThreadPoolExecutor(num_threads, thread_name_prefix="nested_top_k") as executor:

        def run(jobs: Iterable[Job]) -> None:
            for future in [executor.submit(job) for job in jobs]:
                future.result()

        yield run


def _run_here(jobs: Iterable[Job]) -> None:
    for job in jobs:
        job()


class Source:
    """The corpus as read-only, contiguous float32 chunks; what is that already is not copied.

    Attributes:
        chunk_rows: Rows per chunk.
        spare: Room for one transformed chunk; empty if `is_transformed` is false.
    """

    def __init__(
        self, corpus: Float[np.ndarray, "rows full"], *, num_threads: int, is_transformed: bool
    ) -> None:
        self._corpus = corpus
        num_rows, full = corpus.shape
        is_copied = corpus.dtype != np.float32 or not corpus.flags.c_contiguous
        budget = COPIED_CHUNK_BYTES if is_copied or is_transformed else MAPPED_CHUNK_BYTES
        self.chunk_rows = PIECE_ROWS * max(num_threads, budget // (4 * full * PIECE_ROWS))
        room = min(self.chunk_rows, num_rows)
        self.spare = np.empty((room if is_transformed else 0, full), np.float32)
        self._copy = np.empty((room, full), np.float32) if is_copied else None

    def read(self, start: int, run: Run) -> Rows:
        """Return the chunk from row `start`; if it is a copy, the next one overwrites it."""
        rows = np.asarray(self._corpus[start : start + self.chunk_rows])
        if self._copy is not None:
            copy = self._copy[: len(rows)]
            run(partial(np.copyto, copy[piece], rows[piece]) for piece in _pieces(len(rows)))
            rows = copy
        return read_only(rows)


class ViewPass:
    """One view on its way through the corpus: its queries and their best-so-far lists.

    The queries, and each chunk, are cut so that every thread has a share. Each share has lists of
    its own: nobody waits for anybody, and a list sees its rows in ascending order, as the kernels
    demand.
    """

    def __init__(
        self,
        name: str,
        queries: Rows,
        transform: Transform | None,
        widths: Sequence[int],
        *,
        num_kept: int,
        num_threads: int,
    ) -> None:
        # Here and not above: numba takes a third of a second to import.
        from nestling.core import _kernels

        is_few = 1 <= len(queries) <= FEW_QUERIES
        self.name = name
        self._transform = transform
        self._kernel = _kernels.score_few if is_few else _kernels.score_many
        self._widths = np.array(widths, dtype=np.int64)
        self._num_kept = num_kept
        tile = min(LARGEST_TILE_ROWS, TILE_BYTES // (4 * widths[-1]))
        self._tile = max(1, tile // _kernels.BLOCK) * _kernels.BLOCK
        num_parts, num_shares = _share_out(len(queries), num_threads)
        self._queries = [_lay_out(part, widths) for part in np.array_split(queries, num_parts)]
        self._best = [
            [_no_best(part, num_kept) for _ in range(num_shares)] for part in self._queries
        ]
        self._seconds = 0.0

    def score(self, chunk: Rows, first_row: int, source: Source, run: Run) -> None:
        """Offer every row of a chunk, the first being corpus row `first_row`, to every query."""
        began = time.perf_counter()
        if self._transform is not None:
            spare = source.spare[: len(chunk)]
            run(
                partial(self._transform_piece, self._transform, chunk[piece], spare[piece])
                for piece in _pieces(len(chunk))
            )
            chunk = read_only(spare)
        run(self._shares(chunk, first_row))
        self._seconds += time.perf_counter() - began

    def result(self, k: int) -> tuple[dict[int, TopK], float]:
        """Return the best of all shares per width, and the seconds spent on this view."""
        began = time.perf_counter()
        by_dim = {}
        for w, width in enumerate(self._widths.tolist()):
            parts = [_merge_shares(shares, w, k) for shares in self._best]
            by_dim[width] = TopK(*(np.concatenate(column) for column in zip(*parts, strict=True)))
        return by_dim, self._seconds + time.perf_counter() - began

    def _transform_piece(self, transform: Transform, rows: Rows, out: Rows) -> None:
        transformed = transform(rows)
        if transformed.shape != rows.shape:
            raise VectorError(
                f"`transform` of view {self.name!r} must keep the shape of its rows, got "
                f"{transformed.shape} for {rows.shape}. Make it return as many rows, as wide."
            )
        out[:] = transformed

    def _shares(self, chunk: Rows, first_row: int) -> Iterator[Job]:
        for queries, shares in zip(self._queries, self._best, strict=True):
            cuts = [len(chunk) * share // len(shares) for share in range(len(shares) + 1)]
            for best, (start, stop) in zip(shares, pairwise(cuts), strict=True):
                yield partial(
                    self._kernel,
                    chunk[start:stop],
                    first_row + start,
                    self._tile,
                    queries,
                    self._widths,
                    best,
                    self._num_kept,
                )


def _pieces(num_rows: int) -> Iterator[slice]:
    return (slice(start, start + PIECE_ROWS) for start in range(0, num_rows, PIECE_ROWS))


def _share_out(num_queries: int, num_threads: int) -> tuple[int, int]:
    """Return in how many parts to cut the queries, and each chunk, for one share per thread."""
    most = max(1, num_queries // QUERIES_PER_SHARE)
    num_parts = max(
        parts for parts in range(1, num_threads + 1) if num_threads % parts == 0 and parts <= most
    )
    return num_parts, num_threads // num_parts


def _lay_out(queries: Rows, widths: Sequence[int]) -> Queries:
    from nestling.core._kernels import group_vectors

    norms = prefix_norms(queries, widths).T
    zeros = np.zeros(norms.shape, np.float32)
    return Queries(
        rows=read_only(np.ascontiguousarray(queries)),
        panels=group_vectors(queries[:, : widths[-1]]),
        norms=np.divide(np.float32(1), norms, out=zeros, where=norms > 0),
    )


def _no_best(queries: Queries, num_kept: int) -> Best:
    shape = queries.norms.shape
    capacity = num_kept + max(16, num_kept // 2)
    return Best(
        keys=np.empty((*shape, capacity), np.uint64),
        counts=np.zeros(shape, np.int64),
        thresholds=np.full(shape, -np.inf, np.float32),
    )


def _merge_shares(shares: Sequence[Best], w: int, k: int) -> TopK:
    """Return the best of all shares of one query tile at width `w`."""
    used = [
        # No candidate has key 0: it marks an empty place.
        np.where(np.arange(best.keys.shape[2]) < best.counts[w, :, None], best.keys[w], 0)
        for best in shares
    ]
    keys = np.sort(np.concatenate(used, axis=1), axis=1)[:, ::-1][:, :k]
    missing = k - keys.shape[1]
    return split_keys(np.pad(keys, ((0, 0), (0, max(0, missing)))))
