"""Plans of nestling as peers: built, opened and searched through its public interface."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from peers import Peer, Rows, Searcher

from nestling.core import Dtype
from nestling.data import Corpus
from nestling.encode import VectorFolder, encode_corpus
from nestling.encode.vectors import VectorsEncoder
from nestling.search import Index, Plan, Stage
from nestling.search.plan import EngineChoice

WINDOWS = [{"window": window} for window in (70, 100, 140)]
"""Window of the engine, in percent of the shortlist."""
KEPT = [{"window": window, "kept": kept} for window in (70, 100, 140) for kept in (20, 40)]
"""And what a middle stage keeps, in percent of the shortlist."""


class OurSearcher(Searcher):
    """An opened index. The knob is the shortlist of the head, or the window where nothing follows it.

    What is timed is `Index.search`, ids included.
    """

    def __init__(self, index: Index) -> None:
        self.index = index
        self._num_threads = 1

    def tune(self, knob: int, *, window: int = 100, kept: int = 100) -> None:
        plan = turned(self.index.plan, knob, window=window, kept=kept)
        if plan != self.index.plan:
            self.index.resize(plan)  # tiers and engine stay: only the manifest is written

    def search(self, queries: np.ndarray, k: int) -> Rows:
        found = self.index.search(
            queries, top_k=k, with_documents=False, num_threads=self._num_threads
        )
        return np.array([[int(hit.doc_id) for hit in hits] for hits in found], dtype=np.int64)

    def use_threads(self, count: int) -> None:
        self._num_threads = count

    def told(self, queries: np.ndarray) -> dict[str, Any]:
        """Return bytes and rows per query and stage, and the certificate of an exact engine."""
        trace = self.index.explain(queries, top_k=10).trace
        count = len(queries)
        return {
            "stages": [
                {
                    "stage": f"{stage.dim}-d {stage.dtype}",
                    "rows": None if stage.num_scored is None else stage.num_scored / count,
                    "bytes": None if stage.bytes_read is None else stage.bytes_read / count,
                    "ms": 1e3 * stage.seconds / count,
                }
                for stage in trace.stages
            ],
            "certificate": None if trace.certificate is None else dict(trace.certificate),
        }


def turned(plan: Plan, knob: int, *, window: int, kept: int) -> Plan:
    """Return a plan with another shortlist, and what hangs on it."""
    head, *others = plan.stages
    choice = plan.engine
    effort = {"graph": "window", "hnsw": "window", "vamana": "window", "ivf": "probes"}
    if not others:
        return replace(plan, engine=replace(choice, search={effort[choice.name]: knob}))
    stages = [replace(head, shortlist_size=knob)]
    if len(others) > 1:
        stages.append(replace(others[0], shortlist_size=max(10, knob * kept // 100)))
    stages.append(others[-1])
    search = {effort[choice.name]: max(10, knob * window // 100)} if choice.name in effort else {}
    return replace(plan, stages=tuple(stages), engine=replace(choice, search=search))


def our_peers(width: int) -> list[Peer]:
    """Return the plans that are measured for vectors of a width."""
    full = Stage(dim=width, dtype=Dtype.FLOAT16)
    exact = [
        our_peer(
            "nestling nested (exact)",
            [Stage(dim=width, dtype=Dtype.FLOAT32)],
            "nested",
            stored=Dtype.FLOAT32,
            is_exact=True,
        ),
        our_peer(
            "nestling flat (exact)",
            [Stage(dim=width, dtype=Dtype.FLOAT32)],
            "flat",
            stored=Dtype.FLOAT32,
            is_exact=True,
        ),
    ]
    heads = (64, 128) if width > 256 else (128,)
    chains = [[Stage(dim=dim, dtype=Dtype.INT8), full] for dim in heads]
    if width > 256:
        middle = Stage(dim=256, dtype=Dtype.INT8)
        chains += [[Stage(dim=dim, dtype=Dtype.INT8), middle, full] for dim in heads]
    else:
        chains += [[Stage(dim=width, dtype=Dtype.INT8), full], [full]]
    plans = [
        our_peer(f"nestling {engine}: {describe(chain)}", chain, engine)
        for engine in ("graph", "hnsw")
        for chain in chains
    ]
    plans += [
        our_peer(f"nestling vamana: {describe(chain)}", chain, "vamana", is_open=False)
        for chain in (chains if width <= 256 else chains[:2])
    ]
    return [*exact, *plans]


def describe(chain: list[Stage]) -> str:
    return " -> ".join(f"{stage.dim}-d {stage.dtype}" for stage in chain)


def our_peer(
    name: str,
    chain: list[Stage],
    engine: str,
    *,
    stored: Dtype = Dtype.FLOAT16,
    is_open: bool = True,
    is_exact: bool = False,
) -> Peer:
    """Return a plan as a peer; its shortlists are set when it is tuned."""
    stages = tuple(
        replace(stage, shortlist_size=100 if place < len(chain) - 1 else None)
        for place, stage in enumerate(chain)
    )

    def build(vectors: np.ndarray, folder: Path, num_threads: int) -> None:
        plan = Plan(
            stages=stages,
            embed_dim=vectors.shape[1],
            space=None,
            evidence={},
            engine=EngineChoice(name=engine),
        )
        source = vector_folder(vectors, stored)
        Index.build(folder / "index", source, plan=plan, num_threads=num_threads).close()

    searches_more = [{}] if len(chain) == 1 else WINDOWS if len(chain) == 2 else KEPT
    return Peer(
        name=name,
        package="nestling",
        prepare=lambda vectors: vector_folder(vectors, stored),
        build=build,
        open=lambda vectors, folder: OurSearcher(Index.open(folder / "index")),
        knob="window" if len(chain) == 1 else "shortlist",
        low=10,
        high=4000,
        variants=[{}] if is_exact else searches_more,
        is_open=is_open,
        is_exact=is_exact,
        reads_tail=len(chain) > 1,
        is_ours=True,
    )


def plan_of(engine: str, dims: tuple[int, ...], width: int, shortlists: tuple[int, ...]) -> Plan:
    """Return a plan of int8 stages before the full width in float16."""
    stages = [
        Stage(dim=dim, dtype=Dtype.INT8, shortlist_size=size)
        for dim, size in zip(dims, shortlists, strict=True)
    ]
    return Plan(
        stages=(*stages, Stage(dim=width, dtype=Dtype.FLOAT16)),
        embed_dim=width,
        space=None,
        evidence={},
        engine=EngineChoice(name=engine),
    )


def vector_folder(vectors: np.ndarray, dtype: Dtype) -> VectorFolder:
    """Return the vectors as `nestling encode` leaves them, which it makes beside the file once."""
    path = Path(vectors.filename)  # type: ignore[attr-defined]
    ids = [str(row) for row in range(len(vectors))]
    corpus = Corpus(doc_ids=ids, texts=[""] * len(ids), source=path.name)
    made = encode_corpus(VectorsEncoder(str(path)), corpus, path.parent / str(dtype), dtype=dtype)
    return made.folder
