"""Exact search: score every row."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar, final

import numpy as np
from jaxtyping import Float, Float32

from nestling.core import TopK
from nestling.core.progress import Progress, silent
from nestling.search.engines.base import Engine, EngineFound
from nestling.search.engines.blas import one_blas_thread
from nestling.search.engines.own_scores import OwnScores
from nestling.search.engines.running_top_k import RunningTopK
from nestling.search.rescore import pick_best
from nestling.search.rowset import RowSet
from nestling.search.tier import Tier

FEW_QUERIES = 2
"""Up to this many queries, compiled code that reads codes where they lie beats a matrix product."""

CHUNK_VALUES = 1 << 19
"""Unpacked codes are kept to about this many numbers at a time."""

BLOCK_SCORES = 1 << 19
"""Scores are gathered to about this many before the best of them are picked."""

QUERIES_AT_ONCE = 256
KEYS_AT_ONCE = 1 << 22
"""With a very long shortlist, fewer queries are scored at a time."""

SPARE_ROWS = 16
"""Rows kept beyond k until the best are scored again."""

PRODUCTS_PER_THREAD = 1 << 22
"""Multiply-adds that are done before a second thread has started."""

SCAN_SHARE = 8
"""Below one allowed row in so many, reading these alone beats reading all."""

Folded = Float32[np.ndarray, "queries dim"]


@final
class FlatEngine(Engine):
    """Reads the whole tier for every query and is never wrong.

    One or two queries are scored in compiled code, more of them by matrix products, whose rounding
    depends on where a row stands: a few rows more than asked for are kept, and scored again as the
    compiled code does. If rounding could have hidden a better row still, among many near duplicates,
    the query is searched again alone.
    """

    name: ClassVar[str] = "flat"
    checks_rows: ClassVar[bool] = True
    is_exact: ClassVar[bool] = True

    def __init__(self, tier: Tier, num_rows: int) -> None:
        self._tier = tier
        self._scores = OwnScores(tier)
        self.num_rows = num_rows

    @classmethod
    def build(
        cls,
        tier: Tier,
        vectors: Float[np.ndarray, "rows full"],
        *,
        settings: Mapping[str, int],
        num_threads: int = 1,
        progress: Progress = silent,
    ) -> "FlatEngine":
        """Take the tier as it is: nothing is kept beyond it."""
        return cls(tier, len(tier))

    def search(
        self,
        queries: Float32[np.ndarray, "queries width"],
        k: int,
        *,
        settings: Mapping[str, int],
        allowed: RowSet | None = None,
        num_threads: int = 1,
    ) -> EngineFound:
        """Return the k best rows per query."""
        folded = self._tier.fold(queries)
        num_scored = len(folded) * self.num_rows
        if len(folded) <= FEW_QUERIES:
            best = self._scan_few(folded, k, allowed, num_threads)
        else:
            best = self._scan_many(folded, k, allowed, num_threads)
        return EngineFound(best, num_scored, num_scored * self._tier.row_bytes)

    def save(self, folder: Path) -> tuple[str, ...]:
        """Write nothing."""
        return ()

    @classmethod
    def load(
        cls,
        folder: Path,
        tier: Tier,
        vectors: Float[np.ndarray, "rows full"],
        *,
        settings: Mapping[str, int],
        num_rows: int,
    ) -> "FlatEngine":
        """Take the tier as it is."""
        return cls(tier, num_rows)

    def prefers_scan(self, num_allowed: int) -> bool:
        """Say whether the allowed rows are few enough to be read one by one."""
        return num_allowed * SCAN_SHARE < self.num_rows

    def _scan_few(self, folded: Folded, k: int, allowed: RowSet | None, num_threads: int) -> TopK:
        rows, stop = None, self.num_rows
        if allowed is not None:
            rows = allowed.rows
            stop = int(np.searchsorted(rows, self.num_rows))
        scan = self._scores.scorer.scan
        num_shares = min(num_threads, 1 + stop * self._tier.dim // PRODUCTS_PER_THREAD)
        if num_shares == 1:
            return scan(folded, k, rows=rows, stop=stop)
        bounds = [stop * share // num_shares for share in range(num_shares + 1)]
        with ThreadPoolExecutor(num_shares, thread_name_prefix="flat") as executor:
            parts = list(
                executor.map(
                    lambda start, stop: scan(folded, k, rows=rows, start=start, stop=stop),
                    bounds[:-1],
                    bounds[1:],
                )
            )
        found, scores = (np.concatenate(each, axis=1) for each in zip(*parts, strict=True))
        return pick_best(found, scores, k)

    def _scan_many(self, folded: Folded, k: int, allowed: RowSet | None, num_threads: int) -> TopK:
        best = TopK(np.empty((len(folded), k), np.int64), np.empty((len(folded), k), np.float32))
        num_kept = min(k + SPARE_ROWS, max(1, self.num_rows))
        step = max(1, min(QUERIES_AT_ONCE, KEYS_AT_ONCE // num_kept))
        with one_blas_thread():
            for start in range(0, len(folded), step):
                part = slice(start, start + step)
                products = self._best_products(folded[part], num_kept, allowed, num_threads)
                again = self._scores.scorer.best(
                    folded[part], products.rows, k, num_threads=num_threads
                )
                best.rows[part], best.scores[part] = again.best
                left_out = np.where(products.rows[:, -1] >= 0, products.scores[:, -1], -np.inf)
                unsure = left_out > best.scores[part, -1] - self._most_rounding
                if num_kept < self.num_rows:
                    for query in start + np.flatnonzero(unsure):
                        one = slice(query, query + 1)
                        alone = self._scan_few(folded[one], k, allowed, num_threads)
                        best.rows[one], best.scores[one] = alone
        return best

    @property
    def _most_rounding(self) -> float:
        # Twice the bound on a sum of so many products of unit vectors (Higham 2002, Section 3.1).
        return 2.0 * self._tier.dim * float(np.finfo(np.float32).eps)

    def _best_products(
        self, folded: Folded, k: int, allowed: RowSet | None, num_threads: int
    ) -> TopK:
        block = max(1, BLOCK_SCORES // max(1, len(folded)))
        firsts = range(0, self.num_rows, block)

        def scan_blocks(chosen: range) -> RunningTopK:
            best = RunningTopK(len(folded), k)
            for first in chosen:
                last = min(first + block, self.num_rows)
                best.offer(self._score_block(folded, first, last, allowed), first)
            return best

        num_products = len(folded) * self.num_rows * self._tier.dim
        num_shares = max(1, min(num_threads, len(firsts), num_products // PRODUCTS_PER_THREAD))
        if num_shares == 1:
            return scan_blocks(firsts).result()
        with ThreadPoolExecutor(num_shares, thread_name_prefix="flat") as executor:
            shares = [firsts[share::num_shares] for share in range(num_shares)]
            best, *others = executor.map(scan_blocks, shares)
        for other in others:
            best.merge(other)
        return best.result()

    def _score_block(
        self, folded: Folded, start: int, stop: int, allowed: RowSet | None
    ) -> Float32[np.ndarray, "queries rows"]:
        tier = self._tier
        scores = np.empty((len(folded), stop - start), dtype=np.float32)
        step = max(1, CHUNK_VALUES // tier.dim)
        for first in range(start, stop, step):
            last = min(first + step, stop)
            codes = tier.unpack(first, last)
            np.matmul(folded, codes.T, out=scores[:, first - start : last - start])
        if tier.norms is not None:
            scores /= tier.norms[start:stop]
        if allowed is not None:
            scores[:, ~allowed.mask[start:stop]] = -np.inf
        return scores
