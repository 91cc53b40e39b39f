"""Peers that are embedded stores: LanceDB and qdrant-edge.

Neither lets its threads be set per query, so they are bound to one core where one thread is
measured.
"""

from pathlib import Path
from typing import Any

import numpy as np
from peers import Peer, Rows, Searcher

ROWS_AT_ONCE = 20_000


def fill(found: list[list[int]], k: int) -> Rows:
    return np.array([(rows + [-1] * k)[:k] for rows in found], dtype=np.int64)


# --- LanceDB -----------------------------------------------------------------------------------------


class LanceSearcher(Searcher):
    """A table with an index over its column of vectors."""

    def __init__(self, table: Any, *, is_graph: bool) -> None:
        self._table = table
        self._is_graph = is_graph
        self._settings: dict[str, int] = {}

    def tune(self, knob: int, *, factor: int = 0, probes: int = 0) -> None:
        """The knob is the window of a graph, or else the lists to read."""
        self._settings = {"knob": knob, "factor": factor, "probes": probes}

    def search(self, queries: np.ndarray, k: int) -> Rows:
        return fill([self._search_one(query, k) for query in queries], k)

    def _search_one(self, query: np.ndarray, k: int) -> list[int]:
        asked = self._table.search(query).distance_type("dot").limit(k).select(["row", "_distance"])
        if self._is_graph:
            wanted = k * max(1, self._settings["factor"])
            asked = asked.ef(max(wanted, self._settings["knob"]))
            asked = asked.nprobes(self._settings["probes"])
        else:
            asked = asked.nprobes(self._settings["knob"])
        if self._settings["factor"]:
            asked = asked.refine_factor(self._settings["factor"])
        return asked.to_arrow()["row"].to_pylist()

    def use_threads(self, count: int) -> None:
        """Nothing to set: the process is bound to cores instead."""


def lancedb_peers() -> list[Peer]:
    return [
        Peer(
            name="LanceDB IVF-HNSW-SQ",
            package="lancedb",
            build=lambda vectors, folder, threads: build_lance(vectors, folder, "IVF_HNSW_SQ"),
            open=lambda vectors, folder: open_lance(folder, is_graph=True),
            variants=[{"probes": 4, "factor": factor} for factor in (0, 3)],
            one_core=True,
        ),
        Peer(
            name="LanceDB IVF-PQ + refine",
            package="lancedb",
            build=lambda vectors, folder, threads: build_lance(vectors, folder, "IVF_PQ"),
            open=lambda vectors, folder: open_lance(folder, is_graph=False),
            knob="nprobe",
            low=1,
            high=512,
            variants=[{"factor": factor} for factor in (5, 20)],
            one_core=True,
        ),
    ]


def build_lance(vectors: np.ndarray, folder: Path, kind: str) -> None:
    import lancedb
    import pyarrow as pa

    width = vectors.shape[1]
    schema = pa.schema([("row", pa.int64()), ("vector", pa.list_(pa.float32(), width))])

    def batches() -> Any:
        for start in range(0, len(vectors), ROWS_AT_ONCE):
            block = np.ascontiguousarray(vectors[start : start + ROWS_AT_ONCE])
            column = pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), width)
            rows = pa.array(np.arange(start, start + len(block)))
            yield pa.record_batch([rows, column], schema=schema)

    table = lancedb.connect(folder).create_table("vectors", batches(), schema=schema)
    lists = max(1, len(vectors) // 100_000) if kind == "IVF_HNSW_SQ" else int(len(vectors) ** 0.5)
    more = (
        {"m": 20, "ef_construction": 150}
        if kind == "IVF_HNSW_SQ"
        else {"num_sub_vectors": min(width // 4, 128)}
    )
    table.create_index("dot", num_partitions=lists, index_type=kind, **more)


def open_lance(folder: Path, *, is_graph: bool) -> LanceSearcher:
    import lancedb

    return LanceSearcher(lancedb.connect(folder).open_table("vectors"), is_graph=is_graph)


# --- qdrant-edge ---------------------------------------------------------------------------------


class QdrantSearcher(Searcher):
    """A shard; with a prefix, its graph gives the shortlist and the full vectors re-score it."""

    def __init__(self, shard: Any, dim: int | None) -> None:
        self._shard = shard
        self._dim = dim
        self._knob = 0
        self._oversampling = 0

    def tune(self, knob: int, *, oversampling: int = 0) -> None:
        """The knob is the window of the graph, or the length of the prefix's shortlist."""
        self._knob = knob
        self._oversampling = oversampling

    def search(self, queries: np.ndarray, k: int) -> Rows:
        import qdrant_edge as qdrant

        requests = [self._request(query, k) for query in queries]
        if len(requests) == 1:
            found = [self._shard.query(requests[0])]
        else:
            found = self._shard.query_batch(qdrant.QueryBatchRequest(requests))
        return fill([[point.id for point in points] for points in found], k)

    def _request(self, query: np.ndarray, k: int) -> Any:
        import qdrant_edge as qdrant

        full = qdrant.Query.Nearest(query.tolist(), using="full")
        rescored = qdrant.QuantizationSearchParams(
            rescore=self._oversampling > 0, oversampling=float(max(1, self._oversampling))
        )
        params = qdrant.SearchParams(hnsw_ef=max(k, self._knob), quantization=rescored)
        if self._dim is None:
            return qdrant.QueryRequest(limit=k, query=full, params=params)
        prefix = qdrant.Query.Nearest(query[: self._dim].tolist(), using="prefix")
        shortlist = qdrant.Prefetch(limit=max(k, self._knob), query=prefix, params=params)
        return qdrant.QueryRequest(limit=k, query=full, prefetches=[shortlist])

    def use_threads(self, count: int) -> None:
        """Nothing to set: the process is bound to cores instead."""


def qdrant_peers(width: int) -> list[Peer]:
    dims = (None, 128)
    return [
        Peer(
            name="qdrant-edge HNSW SQ8" + (f", prefetch of {dim}-d" if dim else ""),
            package="qdrant-edge-py",
            build=lambda vectors, folder, threads, dim=dim: build_qdrant(
                vectors, folder, threads, dim
            ),
            open=lambda vectors, folder, dim=dim: open_qdrant(folder, dim),
            knob="shortlist" if dim else "ef",
            variants=[{}] if dim else [{"oversampling": 0}, {"oversampling": 3}],
            one_core=True,
        )
        for dim in dims
    ]


def build_qdrant(vectors: np.ndarray, folder: Path, num_threads: int, dim: int | None) -> None:
    import qdrant_edge as qdrant

    graph = qdrant.HnswIndexConfig(
        m=16, ef_construct=100, full_scan_threshold=1000, max_indexing_threads=num_threads
    )
    codes = qdrant.ScalarQuantizationConfig(qdrant.ScalarType.Int8, always_ram=True)
    none = qdrant.HnswIndexConfig(m=0, ef_construct=100, full_scan_threshold=1000)
    full = qdrant.EdgeVectorParams(
        vectors.shape[1],
        qdrant.Distance.Dot,
        quantization_config=None if dim else codes,
        hnsw_config=none if dim else graph,
    )
    named = {"full": full}
    if dim:
        named["prefix"] = qdrant.EdgeVectorParams(
            dim, qdrant.Distance.Cosine, quantization_config=codes, hnsw_config=graph
        )
    optimizers = qdrant.EdgeOptimizersConfig(default_segment_number=1, indexing_threshold=1000)
    shard = qdrant.EdgeShard.create(
        str(folder), qdrant.EdgeConfig(vectors=named, optimizers=optimizers)
    )
    for start in range(0, len(vectors), ROWS_AT_ONCE // 10):
        block = np.asarray(vectors[start : start + ROWS_AT_ONCE // 10])
        points = []
        for row, vector in enumerate(block, start=start):
            values = {"full": vector.tolist()}
            if dim:
                values["prefix"] = vector[:dim].tolist()
            points.append(qdrant.Point(row, values))
        shard.update(qdrant.UpdateOperation.upsert_points(points))
    shard.optimize()
    shard.flush()
    shard.close()


def open_qdrant(folder: Path, dim: int | None) -> QdrantSearcher:
    import qdrant_edge as qdrant

    return QdrantSearcher(qdrant.EdgeShard.load(str(folder)), dim)
