"""Funnels put together from bare peers: a graph of the prefix, then the shortlist at full width.

What a careful engineer writes in an afternoon, and the fair rival of ours. The full vectors are the
memory-mapped float32 file; FAISS scores the shortlist (about twice as fast as NumPy does).
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from peers import FaissSearcher, Peer, Rows, Searcher, build_faiss, turn_hnsw
from search_graphs import build_usearch, open_usearch
from search_vamana import build_svs, open_svs

PREFIXES = (64, 128, 256)
WINDOWS = [{"window": percent} for percent in (100, 130, 200)]
"""Window of the head, in percent of the shortlist."""

OpenHead = Callable[[Path], Searcher]


class PrefixFunnel(Searcher):
    """A searcher of prefixes whose shortlist is scored again; the knob is its length."""

    def __init__(self, head: Searcher, dim: int, vectors: np.ndarray) -> None:
        self._head = head
        self._dim = dim
        self._vectors = vectors
        self._shortlist = 0

    def tune(self, knob: int, *, window: int = 100) -> None:
        self._shortlist = knob
        self._head.tune(max(10, knob * window // 100))

    def search(self, queries: np.ndarray, k: int) -> Rows:
        import faiss

        prefixes = unit_prefix(queries, self._dim)
        rows = np.ascontiguousarray(self._head.search(prefixes, max(k, self._shortlist)))
        scores = np.empty(rows.shape, dtype=np.float32)
        faiss.fvec_inner_products_by_idx(
            faiss.swig_ptr(scores),
            faiss.swig_ptr(queries),
            faiss.swig_ptr(self._vectors),
            faiss.swig_ptr(rows),
            queries.shape[1],
            *rows.shape,
        )
        order = np.argpartition(scores, -k, axis=1)[:, -k:]
        ranked = np.argsort(-np.take_along_axis(scores, order, axis=1), axis=1)
        return np.take_along_axis(rows, np.take_along_axis(order, ranked, axis=1), axis=1)

    def use_threads(self, count: int) -> None:
        import faiss

        faiss.omp_set_num_threads(count)
        self._head.use_threads(count)


def funnel_peers(width: int) -> list[Peer]:
    peers = []
    for dim in (dim for dim in PREFIXES if dim < width):
        peers += [
            funnel_peer(
                f"funnel FAISS HNSW32 SQ8 {dim}-d",
                "faiss-cpu",
                dim,
                lambda vectors, folder, threads: build_faiss(
                    vectors, "HNSW32,SQ8", folder / "index.faiss", threads
                ),
                open_faiss_graph,
            ),
            funnel_peer(
                f"funnel usearch i8 {dim}-d",
                "usearch",
                dim,
                lambda vectors, folder, threads: build_usearch(vectors, folder, threads, "i8"),
                open_usearch,
            ),
            funnel_peer(
                f"funnel svs int8 {dim}-d",
                "scalable-vs",
                dim,
                lambda vectors, folder, threads: build_svs(vectors, folder, threads, "int8"),
                lambda folder: open_svs(folder, "int8"),
                is_open=False,
            ),
        ]
    return peers


def funnel_peer(
    name: str,
    package: str,
    dim: int,
    build_head: Callable[[np.ndarray, Path, int], None],
    open_head: OpenHead,
    *,
    is_open: bool = True,
) -> Peer:
    return Peer(
        name=name,
        package=package,
        build=lambda vectors, folder, threads: build_head(
            unit_prefix(vectors, dim), folder, threads
        ),
        open=lambda vectors, folder: PrefixFunnel(open_head(folder), dim, vectors),
        knob="shortlist",
        low=10,
        high=4000,
        variants=WINDOWS,
        is_open=is_open,
        reads_tail=True,
    )


def open_faiss_graph(folder: Path) -> Searcher:
    import faiss

    return FaissSearcher(faiss.read_index(str(folder / "index.faiss")), turn_hnsw)


def unit_prefix(vectors: np.ndarray, dim: int) -> np.ndarray:
    prefix = vectors[:, :dim].copy()  # of a single row, a contiguous view would do for NumPy
    prefix /= np.sqrt(np.einsum("ij,ij->i", prefix, prefix))[:, None]
    return prefix
