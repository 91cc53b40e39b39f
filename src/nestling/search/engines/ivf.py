"""Lists of rows around centroids, in the form of AdANNS (Rege et al. 2023, arXiv:2305.19435).

Rows are gathered into lists at one prefix width and scanned at another, the tier's: telling lists apart
takes fewer coordinates than telling rows apart.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
from jaxtyping import Float, Float32

from nestling.core import Dtype
from nestling.core.files import fsync_folder
from nestling.core.progress import Progress, silent
from nestling.errors import FormatError
from nestling.search.engines.base import Engine, EngineFound, Setting
from nestling.search.engines.faiss_parts import (
    copied,
    faiss_module,
    faiss_threads,
    read_index,
    selector,
    write_index,
)
from nestling.search.engines.own_scores import OwnScores, unit_rows
from nestling.search.rowset import RowSet
from nestling.search.tier import Tier

LISTS = "lists.faiss"

ROWS_AT_ONCE = 8192
"""Rows that are decoded and put into lists together."""

TRAINING_ROWS = 65_536
"""Rows, evenly spaced, that the ranges of 8-bit codes are taken from."""

ROWS_PER_LIST = 256
"""Rows per list, evenly spaced, that centroids are fitted on."""

NUM_ROUNDS = 10
SEED = 1234

PAGE_ROWS = 64
"""Results of a search that are ranked together, whatever is asked for."""

SCAN_SHARE = 32
"""Below one allowed row in so many, they are better read one by one."""


@final
class IvfEngine(Engine):
    """Scans the lists whose centroids are nearest to the query.

    The lists hold copies: float rows as the tier has them, and 8-bit codes of unit rows for int8.
    """

    name: ClassVar[str] = "ivf"
    checks_rows: ClassVar[bool] = True
    effort: ClassVar[str | None] = "probes"
    formats: ClassVar[frozenset[Dtype]] = frozenset({Dtype.FLOAT32, Dtype.FLOAT16, Dtype.INT8})
    build_settings: ClassVar[Mapping[str, Setting]] = {
        "lists": Setting(
            default=0,
            low=0,
            high=1 << 20,
            help="number of lists, 0 for 4 times the root of the rows",
        ),
        "clustering_dim": Setting(
            default=0, low=0, high=1 << 16, help="prefix width that forms lists, 0 for the tier's"
        ),
    }
    search_settings: ClassVar[Mapping[str, Setting]] = {
        "probes": Setting(default=16, low=1, high=1 << 20, help="lists scanned per query")
    }

    def __init__(self, tier: Tier, index: Any, num_rows: int) -> None:
        self._tier = tier
        self._scores = OwnScores(tier)
        self.num_rows = num_rows
        self._index = index
        if index is not None:
            faiss = faiss_module()
            self._lists = index.index_ivf
            transformed = faiss.downcast_index(index.quantizer)
            self._centroids = faiss.downcast_index(transformed.index)

    @classmethod
    def build(
        cls,
        tier: Tier,
        vectors: Float[np.ndarray, "rows full"],
        *,
        settings: Mapping[str, int],
        num_threads: int = 1,
        progress: Progress = silent,
    ) -> "IvfEngine":
        """Fit centroids, and put every row into the list of the nearest.

        Raises:
            FormatError: If `clustering_dim` is wider than the tier.
        """
        clustering_dim = settings["clustering_dim"] or tier.dim
        if clustering_dim > tier.dim:
            raise FormatError(
                f"`clustering_dim` of the engine 'ivf' must be at most the tier's width {tier.dim}, got "
                f"{clustering_dim}. Take a wider head, or form lists at fewer coordinates."
            )
        num_rows = len(tier)
        if not num_rows:
            return cls(tier, None, 0)
        num_lists = min(num_rows, settings["lists"] or max(1, round(4 * num_rows**0.5)))
        with faiss_threads(num_threads):
            centroids = _fitted_centroids(tier, num_lists, clustering_dim)
            index = _empty_lists(tier, centroids)
            _add(index, tier, 0, progress)
        return cls(tier, index, num_rows)

    def search(
        self,
        queries: Float32[np.ndarray, "queries width"],
        k: int,
        *,
        settings: Mapping[str, int],
        allowed: RowSet | None = None,
        num_threads: int = 1,
    ) -> EngineFound:
        """Return the best rows in the lists scanned, at most `k` per query."""
        num_queries, num_found = len(queries), max(1, min(k, self.num_rows))
        rows = np.full((num_queries, num_found), -1, dtype=np.int64)
        if self.num_rows and num_queries:
            scores = np.empty((num_queries, num_found), dtype=np.float32)
            # The length of a query changes no order, and the scores returned are the tier's own.
            prefixes = np.ascontiguousarray(queries[:, : self._tier.dim])
            narrow = np.ascontiguousarray(prefixes[:, : self._centroids.d])
            num_probes = min(settings["probes"], self._lists.nlist)
            with faiss_threads(num_threads) as faiss:
                nearness, probed = self._centroids.search(narrow, num_probes)
                chosen = None if allowed is None else selector(allowed)
                arrays = (prefixes, probed, nearness, scores, rows)
                places = [faiss.swig_ptr(array) for array in arrays]
                self._lists.search_preassigned_c(
                    num_queries,
                    places[0],
                    num_found,
                    *places[1:],
                    False,
                    faiss.SearchParametersIVF(nprobe=num_probes, sel=chosen),
                )
        return EngineFound(self._scores.best(queries, rows, k, num_threads=num_threads))

    def save(self, folder: Path) -> tuple[str, ...]:
        """Write centroids and lists."""
        if self._index is None:
            return ()
        write_index(self._index, folder / LISTS)
        fsync_folder(folder)
        return (LISTS,)

    @classmethod
    def load(
        cls,
        folder: Path,
        tier: Tier,
        vectors: Float[np.ndarray, "rows full"],
        *,
        settings: Mapping[str, int],
        num_rows: int,
    ) -> "IvfEngine":
        """Read centroids and lists."""
        return cls(tier, read_index(folder / LISTS) if num_rows else None, num_rows)

    def extended(
        self,
        tier: Tier,
        vectors: Float[np.ndarray, "rows full"],
        *,
        settings: Mapping[str, int],
        num_threads: int = 1,
        progress: Progress = silent,
    ) -> "IvfEngine":
        """Put the new rows into copies of the lists; one that more than doubles is built anew."""
        if len(tier) > 2 * self.num_rows:
            return self.build(
                tier, vectors, settings=settings, num_threads=num_threads, progress=progress
            )
        with faiss_threads(num_threads):
            index = copied(self._index)
            _add(index, tier, self.num_rows, progress)
        return IvfEngine(tier, index, len(tier))

    def page_size(self, settings: Mapping[str, int]) -> int:
        """Return how many rows are ranked together."""
        return PAGE_ROWS

    def prefers_scan(self, num_allowed: int) -> bool:
        """Say whether the allowed rows are fewer than the lists scanned would hold."""
        return num_allowed * SCAN_SHARE < self.num_rows

    @property
    def num_bytes(self) -> int:
        """Codes and row numbers in the lists, and the centroids."""
        if self._index is None:
            return 0
        centroids = 4 * self._centroids.d * self._lists.nlist
        return int(self.num_rows * (self._lists.code_size + 8) + centroids)


def _fitted_centroids(
    tier: Tier, num_lists: int, dim: int
) -> Float32[np.ndarray, "lists clustering_dim"]:
    faiss = faiss_module()
    rows = _spread_rows(tier, num_lists * ROWS_PER_LIST)[:, :dim]
    clustering = faiss.Clustering(dim, num_lists)
    clustering.seed, clustering.niter, clustering.spherical = SEED, NUM_ROUNDS, True
    clustering.min_points_per_centroid = 1
    clustering.max_points_per_centroid = ROWS_PER_LIST + 1
    clustering.train(np.ascontiguousarray(rows), faiss.IndexFlatIP(dim))
    return faiss.vector_float_to_array(clustering.centroids).reshape(num_lists, dim).copy()


def _spread_rows(tier: Tier, most: int) -> Float32[np.ndarray, "chosen dim"]:
    """Return at most so many unit rows, evenly spaced."""
    num_rows = len(tier)
    num_chosen = min(num_rows, most)
    chosen = np.arange(num_chosen) * num_rows // num_chosen
    parts = []
    for first in range(0, num_rows, ROWS_AT_ONCE):
        last = min(first + ROWS_AT_ONCE, num_rows)
        low, high = np.searchsorted(chosen, (first, last))
        parts.append(unit_rows(tier, first, last)[chosen[low:high] - first])
    return np.concatenate(parts)


def _empty_lists(tier: Tier, centroids: Float32[np.ndarray, "lists clustering_dim"]) -> Any:
    faiss = faiss_module()
    num_lists, clustering_dim = centroids.shape
    coarse = faiss.IndexFlatIP(clustering_dim)
    coarse.add(centroids)
    cut = faiss.RemapDimensionsTransform(tier.dim, clustering_dim, False)
    quantizer = faiss.IndexPreTransform(cut, coarse)
    # The lists' own quantizer is never asked: rows and queries arrive with their lists.
    unused, metric = faiss.IndexFlatIP(tier.dim), faiss.METRIC_INNER_PRODUCT
    if tier.dtype is Dtype.FLOAT32:
        lists = faiss.IndexIVFFlat(unused, tier.dim, num_lists, metric)
    else:
        kind = faiss.ScalarQuantizer
        codes = kind.QT_fp16 if tier.dtype is Dtype.FLOAT16 else kind.QT_8bit
        lists = faiss.IndexIVFScalarQuantizer(unused, tier.dim, num_lists, codes, metric)
        lists.by_residual = False
        if tier.dtype is Dtype.INT8:
            sample = _spread_rows(tier, TRAINING_ROWS)
            lists.sq.train(sample)
    index = faiss.IndexIVFIndependentQuantizer(quantizer, lists)
    lists.is_trained = index.is_trained = True
    return index


def _add(index: Any, tier: Tier, start: int, progress: Progress) -> None:
    for first in range(start, len(tier), ROWS_AT_ONCE):
        last = min(first + ROWS_AT_ONCE, len(tier))
        index.add(unit_rows(tier, first, last))
        progress("fill lists", last - start, len(tier) - start)
