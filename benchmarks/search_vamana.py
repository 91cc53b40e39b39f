"""Peers of scalable-vs: a Vamana graph over float16, int8, or its own codes.

LVQ and LeanVec run on Intel processors only: elsewhere they end the process, so they are left out.
"""

from pathlib import Path
from typing import Any

import numpy as np
from peers import Peer, Rows, Searcher
from search_graphs import load_scale, save_scale, to_int8


class SvsSearcher(Searcher):
    """A Vamana graph; with a scale, over int8 made here."""

    def __init__(self, index: Any, scale: float | None = None) -> None:
        self._index = index
        self._scale = scale

    def tune(self, knob: int, *, capacity: int = 100, ahead: int = 4, step: int = 1) -> None:
        """Set the window, the buffer in percent of it, and how far to prefetch."""
        import svs

        self._index.search_parameters = svs.VamanaSearchParameters(
            buffer_config=svs.SearchBufferConfig(knob, max(knob, knob * capacity // 100)),
            prefetch_lookahead=ahead,
            prefetch_step=step,
        )

    def search(self, queries: np.ndarray, k: int) -> Rows:
        if self._scale is not None:
            queries = to_int8(queries, self._scale)
        return self._index.search(queries, k)[0].astype(np.int64)

    def use_threads(self, count: int) -> None:
        self._index.num_threads = count


PREFETCH = [{"ahead": 4, "step": 1}, {"ahead": 1, "step": 1}, {"ahead": 12, "step": 2}]
TWO_LEVELS = [
    {**variant, "capacity": capacity} for variant in PREFETCH[::2] for capacity in (100, 150, 250)
]
"""Codes of two levels re-score the whole buffer, which may be longer than the window."""


def svs_peers(width: int) -> list[Peer]:
    plain = [
        svs_peer(f"svs Vamana {dtype}", dtype, lambda data: data, PREFETCH)
        for dtype in ("float16", "int8")
    ]
    return [*plain, *(_coded_peers(width) if runs_lvq() else [])]


def runs_lvq() -> bool:
    cpu = Path("/proc/cpuinfo")
    return cpu.exists() and "GenuineIntel" in cpu.read_text()


def _coded_peers(width: int) -> list[Peer]:
    """Return peers with codes, all on the graph of float16."""
    loads: list[tuple[str, Any, list[dict[str, int]]]] = [
        ("LVQ8", lambda data: _lvq(data, 8, 0), PREFETCH),
        ("LVQ4x8", lambda data: _lvq(data, 4, 8), TWO_LEVELS),
    ]
    for dim in (dim for dim in (64, 128, 256) if dim < width):
        loads.append((f"LeanVec {dim}", lambda data, dim=dim: _lean(data, dim), TWO_LEVELS))
    if width > 256:
        loads.append(
            ("LeanVec of the 128-d prefix", lambda data: _lean(data, 128, width), TWO_LEVELS)
        )
    return [
        svs_peer(f"svs {name}", "float16", load, variants, shares_files_of="svs Vamana float16")
        for name, load, variants in loads
    ]


def svs_peer(name: str, dtype: str, load: Any, variants: list[dict[str, int]], **more: Any) -> Peer:
    return Peer(
        name=name,
        package="scalable-vs",
        build=lambda vectors, folder, threads: build_svs(vectors, folder, threads, dtype),
        open=lambda vectors, folder: open_svs(folder, dtype, load),
        knob="window",
        variants=variants,
        is_open=False,
        **more,
    )


def build_svs(vectors: np.ndarray, folder: Path, num_threads: int, dtype: str) -> None:
    import svs

    if dtype == "int8":
        stored = to_int8(vectors, save_scale(vectors, folder))
    else:
        stored = vectors.astype(dtype)
    index = svs.Vamana.build(
        svs.VamanaBuildParameters(alpha=0.95, graph_max_degree=32, window_size=100),
        stored,
        svs.DistanceType.MIP,
        num_threads=num_threads,
    )
    index.save(*(str(folder / part) for part in ("config", "graph", "data")))


def open_svs(folder: Path, dtype: str, load: Any = lambda data: data) -> SvsSearcher:
    import svs

    scale = load_scale(folder)
    index = svs.Vamana(
        str(folder / "config"),
        svs.GraphLoader(str(folder / "graph")),
        load(svs.VectorDataLoader(str(folder / "data"), getattr(svs.DataType, dtype))),
        svs.DistanceType.MIP,
        query_type=svs.DataType.int8 if scale else svs.DataType.float32,
        num_threads=1,
    )
    return SvsSearcher(index, scale)


def _lvq(data: Any, primary: int, residual: int) -> Any:
    import svs

    return svs.LVQLoader(data, primary=primary, residual=residual)


def _lean(data: Any, dim: int, width: int | None = None) -> Any:
    """Project by PCA, or onto the first coordinates where `width` is given."""
    import svs

    kind = svs.LeanVecKind.lvq8
    matrix = {} if width is None else {"data_matrix": np.eye(width, dim, dtype=np.float32)}
    return svs.LeanVecLoader(data, dim, primary_kind=kind, secondary_kind=kind, **matrix)
