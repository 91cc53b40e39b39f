"""FAISS's graph of small worlds (Malkov and Yashunin 2016, arXiv:1603.09320) over a tier."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
from jaxtyping import Float, Float32

from nestling.core import Dtype
from nestling.core.files import fsync_folder
from nestling.core.progress import Progress, silent
from nestling.search.engines.base import Engine, EngineFound, Setting
from nestling.search.engines.faiss_parts import (
    copied,
    faiss_module,
    faiss_threads,
    read_index,
    search_raw,
    selector,
    write_index,
)
from nestling.search.engines.own_scores import OwnScores, unit_rows
from nestling.search.rowset import RowSet
from nestling.search.tier import Tier

GRAPH = "graph.faiss"

ROWS_AT_ONCE = 8192
"""Rows that are decoded and put into the graph together."""

TRAINING_ROWS = 65_536
"""Rows that the ranges of 8-bit codes are taken from."""

SCAN_SHARE = 16
"""Below one allowed row in so many, they are better read one by one."""


@final
class HnswEngine(Engine):
    """Walks a layered graph of near neighbours.

    The graph is all it keeps for float tiers of its own: it reads the tier's codes where they are. Of
    a borrowed tier it makes a copy of unit rows, and of an int8 tier 8-bit codes of unit rows.

    Built with one thread, the same input gives the same graph. With more, rows are linked in the order
    in which threads get to them, and builds differ in a few links.
    """

    name: ClassVar[str] = "hnsw"
    checks_rows: ClassVar[bool] = True
    effort: ClassVar[str | None] = "window"
    formats: ClassVar[frozenset[Dtype]] = frozenset({Dtype.FLOAT32, Dtype.FLOAT16, Dtype.INT8})
    build_settings: ClassVar[Mapping[str, Setting]] = {
        "degree": Setting(
            default=32,
            low=2,
            high=512,
            help="links per row on upper layers, twice that on the lowest",
        ),
        "build_window": Setting(
            default=80, low=1, high=4096, help="candidates kept while a row's neighbours are sought"
        ),
    }
    search_settings: ClassVar[Mapping[str, Setting]] = {
        "window": Setting(
            default=64, low=1, high=65_536, help="candidates kept while the graph is walked"
        )
    }

    def __init__(self, tier: Tier, index: Any, num_rows: int) -> None:
        self._tier = tier
        self._scores = OwnScores(tier)
        self._index = index
        self.num_rows = num_rows
        self._parameters: dict[int, Any] = {}
        if num_rows and _shares_codes(tier):
            _show_codes(index, tier, num_rows)

    @classmethod
    def build(
        cls,
        tier: Tier,
        vectors: Float[np.ndarray, "rows full"],
        *,
        settings: Mapping[str, int],
        num_threads: int = 1,
        progress: Progress = silent,
    ) -> "HnswEngine":
        """Link all rows, each to its near neighbours among those before it."""
        with faiss_threads(num_threads) as faiss:
            degree, metric = settings["degree"], faiss.METRIC_INNER_PRODUCT
            if tier.dtype is Dtype.FLOAT32:
                index = faiss.IndexHNSWFlat(tier.dim, degree, metric)
            else:
                index = faiss.IndexHNSWSQ(tier.dim, _codes_of(tier), degree, metric)
            index.hnsw.efConstruction = settings["build_window"]
            if len(tier) and not index.is_trained:
                index.train(unit_rows(tier, 0, min(len(tier), TRAINING_ROWS)))
            _link(index, tier, 0, progress)
        return cls(tier, index, len(tier))

    def search(
        self,
        queries: Float32[np.ndarray, "queries width"],
        k: int,
        *,
        settings: Mapping[str, int],
        allowed: RowSet | None = None,
        num_threads: int = 1,
    ) -> EngineFound:
        """Return the best rows met on the walk, at most `k` per query."""
        # The length of a query changes no order, and the scores returned are the tier's own.
        prefixes = np.ascontiguousarray(queries[:, : self._tier.dim])
        with faiss_threads(num_threads):
            parameters = self._search_parameters(max(settings["window"], k), allowed)
            rows = search_raw(self._index, prefixes, max(1, min(k, self.num_rows)), parameters)
        return EngineFound(self._scores.best(queries, rows, k, num_threads=num_threads))

    def save(self, folder: Path) -> tuple[str, ...]:
        """Write the graph, and 8-bit codes if it has them."""
        write_index(self._index, folder / GRAPH, flags=_flags(self._tier))
        fsync_folder(folder)
        return (GRAPH,)

    @classmethod
    def load(
        cls,
        folder: Path,
        tier: Tier,
        vectors: Float[np.ndarray, "rows full"],
        *,
        settings: Mapping[str, int],
        num_rows: int,
    ) -> "HnswEngine":
        """Read the graph, and put the tier's rows under it."""
        index = read_index(folder / GRAPH, flags=_flags(tier))
        if not _keeps_codes(tier):
            _put_storage(index, tier, 0 if _shares_codes(tier) else num_rows)
        return cls(tier, index, num_rows)

    def extended(
        self,
        tier: Tier,
        vectors: Float[np.ndarray, "rows full"],
        *,
        settings: Mapping[str, int],
        num_threads: int = 1,
        progress: Progress = silent,
    ) -> "HnswEngine":
        """Link the new rows into a copy of the graph; one that more than doubles is built anew."""
        if len(tier) > 2 * self.num_rows:
            return self.build(
                tier, vectors, settings=settings, num_threads=num_threads, progress=progress
            )
        with faiss_threads(num_threads):
            index = copied(self._index, flags=_flags(tier))
            if not _keeps_codes(tier):
                _put_storage(index, tier, self.num_rows)
            _link(index, tier, self.num_rows, progress)
        return HnswEngine(tier, index, len(tier))

    def page_size(self, settings: Mapping[str, int]) -> int:
        """Return the candidates that a walk keeps."""
        return settings["window"]

    def prefers_scan(self, num_allowed: int) -> bool:
        """Say whether walking past rows that may not be found would take longer than reading the rest."""
        return num_allowed * SCAN_SHARE < self.num_rows

    @property
    def num_bytes(self) -> int:
        """The graph, and the codes that are not the tier's."""
        graph, storage = self._index.hnsw, self._index.storage
        lists = graph.neighbors.byte_size() + 8 * graph.offsets.size() + 4 * graph.levels.size()
        return lists + (0 if _shares_codes(self._tier) else storage.sa_code_size() * self.num_rows)

    def _search_parameters(self, window: int, allowed: RowSet | None) -> Any:
        faiss = faiss_module()

        if allowed is not None:
            window = min(window * self.num_rows // max(1, len(allowed)), SCAN_SHARE * window)
            return faiss.SearchParametersHNSW(efSearch=window, sel=selector(allowed))
        if window not in self._parameters:
            self._parameters[window] = faiss.SearchParametersHNSW(efSearch=window)
        return self._parameters[window]


def _keeps_codes(tier: Tier) -> bool:
    return tier.dtype is Dtype.INT8


def _shares_codes(tier: Tier) -> bool:
    # Mapped rows are to be checked before they are read, which FAISS does not know.
    return tier.norms is None and tier.checked is None


def _flags(tier: Tier) -> int:
    faiss = faiss_module()

    return 0 if _keeps_codes(tier) else int(faiss.IO_FLAG_SKIP_STORAGE)


def _codes_of(tier: Tier) -> int:
    faiss = faiss_module()

    kind = faiss.ScalarQuantizer
    return int(kind.QT_fp16 if tier.dtype is Dtype.FLOAT16 else kind.QT_8bit)


def _link(index: Any, tier: Tier, start: int, progress: Progress) -> None:
    for first in range(start, len(tier), ROWS_AT_ONCE):
        last = min(first + ROWS_AT_ONCE, len(tier))
        index.add(unit_rows(tier, first, last))
        progress("link rows", last - start, len(tier) - start)


def _put_storage(index: Any, tier: Tier, num_rows: int) -> None:
    """Give a graph that was read without its rows the first `num_rows` of the tier, or none yet."""
    faiss = faiss_module()

    metric = faiss.METRIC_INNER_PRODUCT
    if tier.dtype is Dtype.FLOAT32:
        storage = faiss.IndexFlat(tier.dim, metric)
    else:
        storage = faiss.IndexScalarQuantizer(tier.dim, _codes_of(tier), metric)
    for first in range(0, num_rows, ROWS_AT_ONCE):
        storage.add(unit_rows(tier, first, min(first + ROWS_AT_ONCE, num_rows)))
    storage.this.disown()
    index.storage = storage
    index.own_fields = True


def _show_codes(index: Any, tier: Tier, num_rows: int) -> None:
    """Let the graph read the tier's own codes, whose bytes are those that FAISS would keep."""
    faiss = faiss_module()

    storage = faiss.downcast_index(index.storage)
    content = tier.codes[:num_rows].reshape(-1).view(np.uint8)
    view = faiss.MaybeOwnedVectorUInt8.create_view(
        faiss.swig_ptr(content), content.nbytes, storage.codes.owner
    )
    storage.codes = view
    storage.ntotal = num_rows
