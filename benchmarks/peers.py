"""Other engines behind one small interface, for the search benchmark.

A peer builds its files from unit vectors, opens them, and searches with one knob that trades time
for quality; `variants` are settings of a query tried beside the knob. The names of the tables are
those of the report. What they need:

    pip install faiss-cpu hnswlib usearch scalable-vs lancedb qdrant-edge-py

A peer whose package is not installed is left out, and the report says so.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

Settings = Mapping[str, int]
Rows = np.ndarray


class Searcher(ABC):
    """An opened index."""

    @abstractmethod
    def tune(self, knob: int, **settings: int) -> None:
        """Set what the next searches use."""

    @abstractmethod
    def search(self, queries: np.ndarray, k: int) -> Any:
        """Return what a user gets: rows per query, best first, -1 where there are none, or see `to_rows`."""

    def to_rows(self, found: Any) -> Rows:
        """Return what `search` found as rows; this is not timed."""
        return found

    @abstractmethod
    def use_threads(self, count: int) -> None:
        """Set the threads of the next batches."""

    def told(self, queries: np.ndarray) -> dict[str, Any]:
        """Return what a search can say of itself."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One engine, set up in one way.

    Attributes:
        name: As in the report.
        package: What is installed to run it.
        knob: What the searched-for number is called.
        low: Smallest value of the knob.
        high: Largest value that is tried.
        variants: Other settings of a query; for each the knob is found anew.
        is_open: Whether its licence is an open one.
        is_exact: Whether there is nothing to tune.
        reads_tail: Whether it re-scores from the file of full vectors, memory-mapped.
        one_core: Whether threads cannot be set, so that the process is bound to a core instead.
        shares_files_of: Name of the peer whose files it opens.
        prepare: What must be there before the clock of the build starts.
        is_ours: Whether it is a plan of nestling.
        is_fixed: Whether it comes tuned, so that its quality is what it is.
        load_code: Loads what a search runs, so that RAM is told without it.
    """

    name: str
    package: str
    build: Callable[[np.ndarray, Path, int], None]
    open: Callable[[np.ndarray, Path], Searcher]
    knob: str = "ef"
    low: int = 10
    high: int = 2000
    variants: Sequence[Settings] = field(default_factory=lambda: [{}])
    is_open: bool = True
    is_exact: bool = False
    reads_tail: bool = False
    one_core: bool = False
    shares_files_of: str | None = None
    prepare: Callable[[np.ndarray], object] = lambda vectors: None
    is_ours: bool = False
    is_fixed: bool = False
    load_code: Callable[[], object] = lambda: None

    @property
    def is_installed(self) -> bool:
        return version_of(self.package) is not None

    @property
    def folder_name(self) -> str:
        return file_name(self.shares_files_of or self.name)


def file_name(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name)


def version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def all_peers(width: int) -> list[Peer]:
    """Return every peer for vectors of a width."""
    from search_funnels import funnel_peers
    from search_graphs import hnswlib_peer, usearch_peers
    from search_stores import lancedb_peers, qdrant_peers
    from search_vamana import svs_peers

    return [
        *faiss_peers(width),
        hnswlib_peer(),
        *usearch_peers(),
        *svs_peers(width),
        *funnel_peers(width),
        *lancedb_peers(),
        *qdrant_peers(width),
    ]


# --- FAISS -----------------------------------------------------------------------------------------


class FaissSearcher(Searcher):
    """An index of FAISS and how its knob is turned."""

    def __init__(self, index: Any, turn: Callable[..., None]) -> None:
        self.index = index
        self._turn = turn

    def tune(self, knob: int, **settings: int) -> None:
        self._turn(self.index, knob, **settings)

    def search(self, queries: np.ndarray, k: int) -> Rows:
        return self.index.search(queries, k)[1]

    def use_threads(self, count: int) -> None:
        import faiss

        faiss.omp_set_num_threads(count)


def faiss_peers(width: int) -> list[Peer]:
    refined = {"knob": "nprobe", "low": 1, "high": 1024}
    factors = [{"factor": factor} for factor in (2, 4, 8, 16, 32)]
    return [
        faiss_peer("FAISS flat", "Flat", lambda index, knob: None, is_exact=True),
        faiss_peer("FAISS HNSW32", "HNSW32,Flat", turn_hnsw),
        faiss_peer("FAISS HNSW32 SQ8", "HNSW32,SQ8", turn_hnsw),
        faiss_peer(
            "FAISS IVF-PQ fastscan + refine",
            "OPQ64_128,IVF{lists},PQ64x4fs,RFlat"
            if width > 256
            else "IVF{lists},PQ{half}x4fs,RFlat",
            turn_ivf,
            variants=factors,
            **refined,
        ),
        faiss_peer(
            "FAISS IVF-SQ8",
            "IVF{lists},SQ8",
            lambda index, knob: _set(index, nprobe=knob),
            **refined,
        ),
    ]


def faiss_peer(name: str, factory: str, turn: Callable[..., None], **more: Any) -> Peer:
    """Return a peer from a string of FAISS's index factory."""

    def build(vectors: np.ndarray, folder: Path, num_threads: int) -> None:

        build_faiss(np.ascontiguousarray(vectors), factory, folder / "index.faiss", num_threads)

    def open_(vectors: np.ndarray, folder: Path) -> Searcher:
        import faiss

        return FaissSearcher(faiss.read_index(str(folder / "index.faiss")), turn)

    return Peer(name=name, package="faiss-cpu", build=build, open=open_, **more)


def build_faiss(vectors: np.ndarray, factory: str, path: Path, num_threads: int) -> None:
    """Build and write; training takes at most 100,000 rows."""
    import faiss

    faiss.omp_set_num_threads(num_threads)
    lists = int(4 * len(vectors) ** 0.5)
    made = factory.format(lists=lists, half=vectors.shape[1] // 2)
    index = faiss.index_factory(vectors.shape[1], made, faiss.METRIC_INNER_PRODUCT)
    if "HNSW32" in factory:
        index.hnsw.efConstruction = 80
    if not index.is_trained:
        index.train(vectors[:: max(1, len(vectors) // 100_000)])
    index.add(vectors)
    faiss.write_index(index, str(path))


def turn_hnsw(index: Any, knob: int) -> None:
    index.hnsw.efSearch = knob


def turn_ivf(index: Any, knob: int, factor: int) -> None:
    _set(index, nprobe=knob, k_factor_rf=factor)


def _set(index: Any, **values: int) -> None:
    import faiss

    told = ",".join(f"{name}={value}" for name, value in values.items())
    faiss.ParameterSpace().set_index_parameters(index, told)
