"""Peers that are graphs: hnswlib and usearch; scalable-vs is in `search_vamana`."""

from pathlib import Path
from typing import Any

import numpy as np
from peers import Peer, Rows, Searcher

SHARE_KEPT = 0.9999
"""Of the absolute coordinates, as what 127 stands for in int8; larger ones are clipped."""


# --- hnswlib -----------------------------------------------------------------------------------------


class HnswlibSearcher(Searcher):
    """Its queries take the number of threads each."""

    def __init__(self, index: Any) -> None:
        self._index = index
        self._num_threads = 1

    def tune(self, knob: int, **settings: int) -> None:
        self._index.set_ef(knob)

    def search(self, queries: np.ndarray, k: int) -> Rows:
        found = self._index.knn_query(queries, k, num_threads=self._num_threads)[0]
        return found.astype(np.int64)

    def use_threads(self, count: int) -> None:
        self._num_threads = count


def hnswlib_peer() -> Peer:
    def build(vectors: np.ndarray, folder: Path, num_threads: int) -> None:
        import hnswlib

        index = hnswlib.Index("ip", vectors.shape[1])
        index.init_index(len(vectors), M=16, ef_construction=100)
        index.add_items(vectors, num_threads=num_threads)
        index.save_index(str(folder / "index.hnswlib"))

    def open_(vectors: np.ndarray, folder: Path) -> Searcher:
        import hnswlib

        index = hnswlib.Index("ip", vectors.shape[1])
        index.load_index(str(folder / "index.hnswlib"))
        return HnswlibSearcher(index)

    return Peer(name="hnswlib M16", package="hnswlib", build=build, open=open_)


# --- usearch -----------------------------------------------------------------------------------------


class UsearchSearcher(Searcher):
    """Codes of int8 are made here, by one scale for all: its own cast wastes the bits of wide vectors."""

    def __init__(self, index: Any, scale: float | None) -> None:
        self._index = index
        self._scale = scale
        self._num_threads = 1

    def tune(self, knob: int, **settings: int) -> None:
        self._index.expansion_search = knob

    def search(self, queries: np.ndarray, k: int) -> Rows:
        if self._scale is not None:
            queries = to_int8(queries, self._scale)
        if len(queries) > 1:
            found = self._index.search(queries, k, threads=self._num_threads)
            return np.where(np.arange(k) < found.counts[:, None], found.keys.astype(np.int64), -1)
        keys = self._index.search(queries[0], k, threads=1).keys.astype(np.int64)
        return np.pad(keys, (0, k - len(keys)), constant_values=-1)[None]

    def use_threads(self, count: int) -> None:
        self._num_threads = count


def usearch_peers() -> list[Peer]:
    return [
        Peer(
            name=f"usearch {dtype}",
            package="usearch",
            build=lambda vectors, folder, threads, dtype=dtype: build_usearch(
                vectors, folder, threads, dtype
            ),
            open=lambda vectors, folder: open_usearch(folder),
        )
        for dtype in ("bf16", "i8")
    ]


def build_usearch(vectors: np.ndarray, folder: Path, num_threads: int, dtype: str) -> None:
    from usearch.index import Index

    index = Index(
        ndim=vectors.shape[1], metric="ip", dtype=dtype, connectivity=16, expansion_add=100
    )
    if dtype == "i8":
        vectors = to_int8(vectors, save_scale(vectors, folder))
    index.add(np.arange(len(vectors)), np.ascontiguousarray(vectors), threads=num_threads)
    index.save(str(folder / "index.usearch"))


def open_usearch(folder: Path) -> UsearchSearcher:
    from usearch.index import Index

    index = Index.restore(str(folder / "index.usearch"), view=False)
    return UsearchSearcher(index, load_scale(folder))


# --- int8 by one scale -------------------------------------------------------------------------------


def save_scale(vectors: np.ndarray, folder: Path) -> float:
    """Write and return what one step of int8 stands for, inverted."""
    sample = np.abs(vectors[:: max(1, len(vectors) // 5000)])
    scale = float(127 / np.quantile(sample, SHARE_KEPT))
    (folder / "scale.txt").write_text(repr(scale))
    return scale


def load_scale(folder: Path) -> float | None:
    path = folder / "scale.txt"
    return float(path.read_text()) if path.exists() else None


def to_int8(vectors: np.ndarray, scale: float) -> np.ndarray:
    return np.clip(np.rint(vectors * np.float32(scale)), -127, 127).astype(np.int8)
