"""Plans of nestling as peers: built, opened and searched through its public interface."""

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from peers import Peer, Rows, Searcher
from search_data import NUM_ASKED, spread_places

from nestling.core import Dtype
from nestling.data import Corpus
from nestling.encode import VectorFolder, encode_corpus
from nestling.encode.vectors import VectorsEncoder
from nestling.measure import PlanBudget, PlanGoal, Sample, plan_search
from nestling.search import Hit, Index, Plan, Stage
from nestling.search.plan import EngineChoice

WINDOWS = [{"window": window} for window in (70, 100, 140, 200, 300)]
"""Window of the engine, in percent of the shortlist."""
KEPT = [{"window": window, "kept": kept} for window in (70, 100, 140) for kept in (10, 20, 40)]
"""And what a middle stage keeps, in percent of the shortlist."""


UNTOUCHED = 0
"""A knob that leaves the plan as it was built."""

NUM_PLANNING = 4000
"""Queries that choose and judge a plan; none of them is among those of the benchmark."""


class OurSearcher(Searcher):
    """An opened index. The knob is the shortlist of the head, or the window where nothing follows it.

    What is timed is `Index.search`, ids included.
    """

    def __init__(self, index: Index) -> None:
        self.index = index
        self._num_threads = 1

    def tune(self, knob: int, *, window: int = 100, kept: int = 100) -> None:
        if knob == UNTOUCHED:
            return
        plan = turned(self.index.plan, knob, window=window, kept=kept)
        if plan != self.index.plan:
            self.index.resize(plan)  # tiers and engine stay: only the manifest is written

    def search(self, queries: np.ndarray, k: int) -> list[list[Hit]]:
        return self.index.search(
            queries, top_k=k, with_documents=False, num_threads=self._num_threads
        )

    def to_rows(self, found: list[list[Hit]]) -> Rows:
        """Return the rows, which are what the documents are called here."""
        return np.array([[int(hit.doc_id) for hit in hits] for hits in found], dtype=np.int64)

    def use_threads(self, count: int) -> None:
        self._num_threads = count

    def told(self, queries: np.ndarray) -> dict[str, Any]:
        """Return bytes and rows per query and stage, and the certificate of an exact engine."""
        trace = self.index.explain(queries, top_k=10).trace
        count = len(queries)
        return {
            "plan": self.index.plan.describe(),
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
    if not others and choice.name not in effort:
        return plan
    if not others:
        return replace(plan, engine=replace(choice, search={effort[choice.name]: knob}))
    stages = [replace(head, shortlist_size=knob)]
    if len(others) > 1:
        stages.append(replace(others[0], shortlist_size=max(10, knob * kept // 100)))
    stages.append(others[-1])
    search = {effort[choice.name]: max(10, knob * window // 100)} if choice.name in effort else {}
    return replace(plan, stages=tuple(stages), engine=replace(choice, search=search))


def our_peers(width: int, goal: PlanGoal) -> list[Peer]:
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
        chains += [[Stage(dim=256, dtype=dtype), full] for dtype in (Dtype.INT8, Dtype.INT4)]
        chains += [[Stage(dim=dim, dtype=Dtype.INT8), middle, full] for dim in heads]
    else:
        codes = Stage(dim=width, dtype=Dtype.INT8)
        chains += [[codes, full], [codes], [full]]
    plans = [our_peer(f"nestling graph: {describe(chain)}", chain, "graph") for chain in chains]
    widest = [Stage(dim=256, dtype=Dtype.INT8), full]
    plans.append(our_peer(f"nestling hnsw: {describe(widest)}", widest, "hnsw"))
    plans += [
        our_peer(f"nestling vamana: {describe(chain)}", chain, "vamana", is_open=False)
        for chain in ([widest] if width > 256 else [widest, [full]])
    ]
    return [*exact, *plans, chosen_peer(width, goal)]


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

    def load_code() -> None:
        rows = np.random.default_rng(0).standard_normal((64, plan_width(chain)), np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        with TemporaryDirectory() as folder:
            np.save(f"{folder}/docs.npy", rows)
            build(np.load(f"{folder}/docs.npy", mmap_mode="r"), Path(folder), 1)
            searcher = OurSearcher(Index.open(Path(folder, "index")))
            for queries in (rows[:1], rows):
                searcher.search(queries, 10)

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
        load_code=load_code,
    )


def plan_width(chain: list[Stage]) -> int:
    return chain[-1].dim


def chosen_peer(width: int, goal: PlanGoal) -> Peer:
    """Return what `nestling choose` finds by other queries of the set, as it finds it."""
    told = our_peer("", [Stage(dim=width, dtype=Dtype.FLOAT16)], "graph")

    def build(vectors: np.ndarray, folder: Path, num_threads: int) -> None:
        source = vector_folder(vectors, Dtype.FLOAT16)
        choice = plan_search(
            source.vectors,
            source.fingerprint,
            planning_sample(Path(vectors.filename).parent),  # type: ignore[attr-defined]
            goal,
            PlanBudget(),
            num_threads=num_threads,
        )
        assert choice.plan is not None, choice.verdict
        (folder / "choice.json").write_text(json.dumps(choice.to_json()))
        Index.build(folder / "index", source, plan=choice.plan, num_threads=num_threads).close()

    return replace(
        told, name="nestling, as `choose` finds it", build=build, low=UNTOUCHED, is_fixed=True
    )


def planning_sample(folder: Path) -> Sample:
    """Return queries of a set that lie between those of the benchmark, and their relevant rows."""
    queries, relevant = np.load(folder / "queries.npy"), np.load(folder / "relevant.npy")
    others = np.setdiff1d(np.arange(len(queries)), spread_places(len(queries), NUM_ASKED))
    taken = others[spread_places(len(others), NUM_PLANNING)]
    num_rows = len(np.load(folder / "docs.npy", mmap_mode="r"))
    ids = [str(place) for place in taken]
    return Sample(
        queries=np.ascontiguousarray(queries[taken]),
        query_ids=ids,
        doc_ids=[str(row) for row in range(num_rows)],
        qrels={name: {str(relevant[place]): 1} for name, place in zip(ids, taken, strict=True)},
        metric="mrr_at_10",
        source="queries of the set that the benchmark does not ask",
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
