"""Score given rows of a tier, in compiled code: shortlists, the few rows a filter allows, a tail."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, final

import numpy as np
from jaxtyping import Float32, Int64

from nestling.core import Dtype, TopK
from nestling.errors import FormatError
from nestling.search.rowfile import read_only
from nestling.search.tier import SIGNS, Tier

BYTES_PER_THREAD = 1 << 22
"""Bytes of rows that are scored before a second thread has started."""

Folded = Float32[np.ndarray, "queries dim"]


class Rescored(NamedTuple):
    """Rows in a new order.

    Attributes:
        best: The best rows, best first, ties to the lower row, padded with -1.
        num_scored: Rows scored, counted once per query.
    """

    best: TopK
    num_scored: int


@final
class RowScorer:
    """Scores rows of a tier by their numbers.

    Every (query, row) pair is computed alone and in one order, so that a score depends neither on what
    else is scored, nor on the number of threads. Rows that are mapped are checked before they are read.

    Attributes:
        tier: Whose rows it scores.
        layout: Where and how these lie, for compiled code.
        row_bytes: What scoring one row reads.
    """

    def __init__(self, tier: Tier) -> None:
        # Here and not above: numba takes a third of a second to import.
        from nestling.search import _rescore_kernels, _row_kernels

        if tier.codes.shape[1] > 1 and tier.codes.strides[1] != tier.codes.itemsize:
            raise ValueError("coordinates of a row must lie side by side")
        self._kernels = _rescore_kernels
        self.tier = tier  # and with it the memory that the layout points at
        self.row_bytes = tier.row_bytes
        kind = {
            np.dtype(np.float32): _row_kernels.FLOAT32,
            np.dtype(np.float16): _row_kernels.FLOAT16,
            np.dtype(np.int8): _row_kernels.INT8,
            np.dtype(np.uint8): _row_kernels.SIGNS if tier.dtype in SIGNS else _row_kernels.INT4,
        }[tier.codes.dtype]
        self.layout = _row_kernels.Layout(
            kind=kind,
            address=tier.codes.__array_interface__["data"][0],
            stride=tier.codes.strides[0],
            num_bytes=_code_bytes(tier),
            num_rows=len(tier),
            takes_norms=tier.is_raw,
        )
        self._norms = norms_of(tier)

    def score(
        self, folded: Folded, shortlists: Int64[np.ndarray, "queries kept"], *, num_threads: int = 1
    ) -> Float32[np.ndarray, "queries kept"]:
        """Return the cosine of every query with the rows on its shortlist.

        Args:
            folded: Queries, as `Tier.fold` returns them.
            shortlists: Row numbers; -1 marks an empty place, which scores minus infinity.
            num_threads: Threads to use.

        Raises:
            FormatError: If there is no row of some number, or a mapped row is damaged.
        """
        scores = np.empty(shortlists.shape, np.float32)
        self._run(self._kernels.score_shortlists, folded, shortlists, (scores,), num_threads)
        return scores

    def best(
        self,
        folded: Folded,
        shortlists: Int64[np.ndarray, "queries kept"],
        k: int,
        *,
        num_threads: int = 1,
    ) -> Rescored:
        """Return the k best rows of every shortlist.

        Args:
            folded: Queries, as `Tier.fold` returns them.
            shortlists: Row numbers, none twice; -1 marks an empty place.
            k: How many to keep per query.
            num_threads: Threads to use.

        Raises:
            FormatError: If there is no row of some number, or a mapped row is damaged.
        """
        best = _room(len(folded), k)
        run = self._run(self._kernels.rank_shortlists, folded, shortlists, best, num_threads)
        return Rescored(best, run)

    def scan(
        self,
        folded: Folded,
        k: int,
        *,
        rows: Int64[np.ndarray, " members"] | None = None,
        start: int = 0,
        stop: int | None = None,
        num_threads: int = 1,
    ) -> TopK:
        """Return the k best of some rows for every query, each row being read once for all of them.

        Args:
            folded: Queries, as `Tier.fold` returns them.
            k: How many to keep per query; places beyond the rows hold -1 and minus infinity.
            rows: Row numbers, ascending; None for all rows.
            start: First place in `rows`, or first row.
            stop: One after the last; by default the end.
            num_threads: Threads to use.

        Raises:
            FormatError: If a mapped row is damaged.
        """
        if rows is None:
            rows, limit = _NO_ROWS, len(self.tier)
            stop = limit if stop is None else stop
            self.tier.ensure_span(start, stop)
        else:
            stop = len(rows) if stop is None else stop
            rows = read_only(rows)
            self.tier.ensure(rows[start:stop])
        found = _room(len(folded), k)
        if start >= stop:
            found.rows[:], found.scores[:] = -1, -np.inf
            return found
        folded = read_only(folded)

        def scan(part: slice) -> int:
            self._kernels.scan_rows(
                self.layout,
                self._norms,
                folded[part],
                rows,
                start,
                stop,
                found.rows[part],
                found.scores[part],
            )
            return 0

        _share(scan, len(folded), (stop - start) * self.layout.num_bytes, num_threads)
        return found

    def _run(
        self,
        kernel: Callable[..., int],
        folded: Folded,
        shortlists: Int64[np.ndarray, "queries kept"],
        out: tuple[np.ndarray, ...],
        num_threads: int,
    ) -> int:
        """Score shortlists into `out`; return how many rows were scored."""
        folded, shortlists = read_only(folded), read_only(shortlists)
        self.tier.ensure(shortlists)
        if num_threads == 1 or len(folded) == 1:
            num_scored = int(kernel(self.layout, self._norms, folded, shortlists, *out))
        else:

            def score(part: slice) -> int:
                parts = (folded[part], shortlists[part], *(array[part] for array in out))
                return int(kernel(self.layout, self._norms, *parts))

            query_bytes = shortlists.shape[1] * self.layout.num_bytes
            counts = _share(score, len(folded), query_bytes, num_threads)
            num_scored = sum(counts) if min(counts) >= 0 else -1
        if num_scored < 0:
            raise FormatError(
                f"a stage found row {shortlists.max()}, but there are {len(self.tier)} rows. "
                f"The engine's files belong to another index: build the index again."
            )
        return num_scored


def pick_best(
    rows: Int64[np.ndarray, "queries kept"], scores: Float32[np.ndarray, "queries kept"], k: int
) -> TopK:
    """Return the k best of some scored rows, as `core.top_k` does, in compiled code.

    Args:
        rows: Row numbers; -1 marks an empty place.
        scores: Theirs, finite.
        k: How many to keep per query.
    """
    from nestling.search import _rescore_kernels as kernels

    found = _room(len(rows), k)
    # Scores that may be written to, as where compiled code calls this: one kind of array, compiled once.
    writable = np.require(scores, requirements=["C", "W"])
    kernels.pick_best(read_only(rows), writable, found.rows, found.scores)
    return found


def rank_products(
    queries: Float32[np.ndarray, "queries dim"],
    norms: Float32[np.ndarray, " rows"],
    rows: Int64[np.ndarray, "queries kept"],
    products: Float32[np.ndarray, "queries kept"],
    k: int,
) -> TopK:
    """Return the k best of some rows by cosine, from their products with the queries.

    Args:
        queries: Of any length, not zero.
        norms: Of all rows, as `norms_of` returns them.
        rows: Row numbers, contiguous; -1 marks an empty place, and so does a 0 behind the first.
        products: Of a query and each of its rows.
        k: How many to keep per query.
    """
    from nestling.search import _rescore_kernels as kernels

    found = _room(len(rows), k)
    kernels.rank_products(read_only(queries), norms, rows, products, *found)
    return found


def norms_of(tier: Tier) -> Float32[np.ndarray, " rows"]:
    """Return the norms of a tier's rows as compiled code takes them; none if they are 1."""
    return _NO_NORMS if tier.norms is None else read_only(tier.norms)


def _room(num_queries: int, k: int) -> TopK:
    return TopK(np.empty((num_queries, k), np.int64), np.empty((num_queries, k), np.float32))


_NO_ROWS = read_only(np.empty(0, np.int64))
_NO_NORMS = read_only(np.empty(0, np.float32))


def _code_bytes(tier: Tier) -> int:
    if tier.dtype in SIGNS:
        return (tier.dim + 7) // 8
    if tier.dtype is Dtype.INT4:
        return (tier.dim + 1) // 2
    return tier.dim * tier.codes.itemsize


def _share(
    job: Callable[[slice], int], num_queries: int, query_bytes: int, num_threads: int
) -> list[int]:
    """Run a job for all queries, some on other threads if it is worth starting these."""
    num_shares = min(num_threads, num_queries, 1 + num_queries * query_bytes // BYTES_PER_THREAD)
    if num_shares <= 1:
        return [job(slice(0, num_queries))]
    bounds = [num_queries * share // num_shares for share in range(num_shares + 1)]
    parts: Iterable[slice] = map(slice, bounds[:-1], bounds[1:])
    with ThreadPoolExecutor(num_shares, thread_name_prefix="rescore") as executor:
        return list(executor.map(job, parts))
