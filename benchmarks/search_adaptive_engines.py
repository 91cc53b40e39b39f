"""What `search_adaptive.py` compares, each engine in a process of its own."""

import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from peers import FaissSearcher, Peer, Searcher, build_faiss, faiss_peers, file_name
from search_data import SearchSet, open_set
from search_funnels import PrefixFunnel, open_faiss_graph, unit_prefix
from search_ours import OurSearcher, our_peer, vector_folder
from search_tuning import Target, Truth, tune
from search_worker import Built, Setup, Worker, _Bench, index_folder

from nestling.core import Dtype, default_nesting_dims
from nestling.measure.adaptive_retrieval import (
    FUNNEL_SIZES,
    SHORTLIST_SIZE,
    Stages,
    chain,
    label_metrics,
)
from nestling.search import Index, Plan, Stage
from nestling.search.plan import EngineChoice

SHARE = 0.999
"""Of the mAP@10 of the exact search at the full width, that every tuned engine must reach."""
PAPER_HEAD = 16
WARM_UP = 20
"""Queries before single ones are timed; a scan of the full width takes long."""
ROUND_S = 0.7
"""A round asks so many single queries of one engine, in seconds."""

Record = dict[str, Any]


def arms(width: int, smallest: int, alone: int) -> list[Peer]:
    """Return everything that is compared.

    Args:
        width: The full width.
        smallest: Width to find a shortlist at, beside the paper's.
        alone: Width to search without a re-rank.
    """
    flat, graph = faiss_peers(width)[:2]
    full = chain([width], [])
    found = [
        flat,
        our_arm("nestling flat", "flat", full),
        our_arm("nestling nested", "nested", full),
        graph,
        *(
            replace(
                graph,
                name=f"{graph.name}, ef {ef}",
                low=ef,
                is_exact=True,
                shares_files_of=graph.name,
            )
            for ef in (SHORTLIST_SIZE, width)
        ),
        our_arm("nestling graph", "graph", full, is_tuned=True),
    ]
    for head in sorted({smallest, PAPER_HEAD}):
        pair = chain([head, width], [SHORTLIST_SIZE])
        found += [
            our_arm("nestling flat", "flat", pair),
            our_arm("nestling graph", "graph", pair),
        ]
    funnel = funnel_chain(PAPER_HEAD, width)
    found += [
        our_arm("nestling flat", "flat", funnel),
        our_arm("nestling graph", "graph", funnel),
        prefix_arm("Flat", PAPER_HEAD, width),
        prefix_arm("HNSW32,Flat", PAPER_HEAD, width),
    ]
    prefix = chain([alone], [])
    found += [
        our_arm("nestling flat", "flat", prefix),
        our_arm("nestling graph", "graph", prefix, is_tuned=True),
        alone_arm(alone),
        prefix_arm("HNSW32,Flat", smallest, width, is_tuned=True),
    ]
    stages = [Stage(dim=smallest, dtype=Dtype.INT8), Stage(dim=width, dtype=Dtype.FLOAT16)]
    found.append(
        our_peer(f"nestling graph, tuned: {smallest}-d int8 -> {width}-d float16", stages, "graph")
    )
    return found


def funnel_chain(head: int, width: int) -> Stages:
    """Return the paper's funnel: the next four widths, then the full one."""
    dims = default_nesting_dims(width)
    wider = [dim for dim in dims if head < dim < width][: len(FUNNEL_SIZES) - 1]
    return chain([head, *wider, width], FUNNEL_SIZES[: len(wider) + 1])


# --- Ours --------------------------------------------------------------------------------------------


class ChainSearcher(OurSearcher):
    """A plan whose shortlists stay as they are; the knob is the window of a graph."""

    def tune(self, knob: int, **settings: int) -> None:
        plan = self.index.plan
        if plan.engine.name == "graph":
            turned = replace(plan, engine=replace(plan.engine, search={"window": knob}))
            if turned != plan:
                self.index.resize(turned)  # only the manifest is written


def our_arm(name: str, engine: str, stages: Stages, *, is_tuned: bool = False) -> Peer:
    """Return a plan in float32 as a peer; the window of a head is that of its shortlist."""

    def build(vectors: np.ndarray, folder: Path, num_threads: int) -> None:
        plan = Plan(
            stages=stages,
            embed_dim=vectors.shape[1],
            space=None,
            evidence={},
            engine=EngineChoice(name=engine),
        )
        source = vector_folder(vectors, Dtype.FLOAT32)
        Index.build(folder / "index", source, plan=plan, num_threads=num_threads).close()

    return Peer(
        name=f"{name}: {describe(stages)}",
        package="nestling",
        prepare=lambda vectors: vector_folder(vectors, Dtype.FLOAT32),
        build=build,
        open=lambda vectors, folder: ChainSearcher(Index.open(folder / "index")),
        knob="window",
        low=10 if is_tuned else SHORTLIST_SIZE,
        is_exact=not is_tuned,
        reads_tail=len(stages) > 1,
        is_ours=True,
    )


def describe(stages: Stages) -> str:
    """Return widths and shortlists, e.g. "16-d, 200 -> 2048-d"."""
    return " -> ".join(
        f"{stage.dim}-d" + (f", {stage.shortlist_size}" if stage.shortlist_size else "")
        for stage in stages
    )


# --- Of FAISS ----------------------------------------------------------------------------------------


class FixedFunnel(PrefixFunnel):
    """A funnel whose shortlist stays as it is, and the window of its head with it."""

    def tune(self, knob: int, **settings: int) -> None:
        super().tune(SHORTLIST_SIZE)


class PrefixSearcher(Searcher):
    """A searcher of prefixes, and nothing after it."""

    def __init__(self, head: Searcher, dim: int) -> None:
        self.head = head
        self.dim = dim

    def tune(self, knob: int, **settings: int) -> None:
        self.head.tune(knob)

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        return self.head.search(unit_prefix(queries, self.dim), k)

    def use_threads(self, count: int) -> None:
        self.head.use_threads(count)


def alone_arm(dim: int) -> Peer:
    """Return a graph of the prefixes without a re-rank."""

    def build(vectors: np.ndarray, folder: Path, num_threads: int) -> None:
        build_faiss(unit_prefix(vectors, dim), "HNSW32,Flat", folder / "index.faiss", num_threads)

    return Peer(
        name=f"FAISS HNSW32: {dim}-d",
        package="faiss-cpu",
        build=build,
        open=lambda vectors, folder: PrefixSearcher(open_faiss_graph(folder), dim),
    )


def prefix_arm(factory: str, head: int, width: int, *, is_tuned: bool = False) -> Peer:
    """Return an index of the prefixes and a re-rank by FAISS."""
    engine = "HNSW32" if "HNSW32" in factory else "flat"
    fixed = f"FAISS {engine}: {describe(chain([head, width], [SHORTLIST_SIZE]))}"
    tuned = f"FAISS {engine}, tuned: {head}-d -> {width}-d"

    def build(vectors: np.ndarray, folder: Path, num_threads: int) -> None:
        build_faiss(unit_prefix(vectors, head), factory, folder / "index.faiss", num_threads)

    def open_(vectors: np.ndarray, folder: Path) -> Searcher:
        searcher = open_faiss_graph(folder) if engine == "HNSW32" else open_scan(folder)
        return (PrefixFunnel if is_tuned else FixedFunnel)(searcher, head, vectors)

    return Peer(
        name=tuned if is_tuned else fixed,
        package="faiss-cpu",
        build=build,
        open=open_,
        knob="shortlist",
        low=10 if is_tuned else SHORTLIST_SIZE,
        variants=[{"window": percent} for percent in (100, 130, 200)] if is_tuned else [{}],
        is_exact=not is_tuned,
        reads_tail=True,
    )


def open_scan(folder: Path) -> Searcher:
    import faiss

    index = faiss.read_index(str(folder / "index.faiss"))
    return FaissSearcher(index, lambda index, knob: None)


# --- In the worker -----------------------------------------------------------------------------------


class ArmBench(_Bench):
    """Finds its engine among these, and says what a query costs."""

    def __init__(self, setup: Setup) -> None:
        self._set = open_set(setup.work, setup.set_name).take_queries(setup.num_queries)
        width = self._set.embed_dim
        known = {
            peer.name: peer
            for head in default_nesting_dims(width)[:-1]
            for peer in arms(width, head, head)
        }
        self._peer = known[setup.peer]
        self._folder = index_folder(setup, self._peer)
        self._searcher = None

    def single(
        self, knob: int, settings: dict[str, int], count: int, k: int = 10
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return rows and seconds of single queries on one thread.

        They are asked in a batch before, so that what they read of mapped files is there: the system
        may have dropped it while other engines had their turns.
        """
        searcher = self._turned(knob, settings, 1)
        queries = self._set.queries[:count]
        searcher.search(queries, k)
        for row in range(WARM_UP):
            searcher.search(self._set.queries[-row - 1 :][:1], k)
        found, seconds = [], np.empty(len(queries))
        clock = time.perf_counter
        for row in range(len(queries)):
            query = queries[row : row + 1]
            started_s = clock()
            hits = searcher.search(query, k)
            seconds[row] = clock() - started_s
            found.append(searcher.to_rows(hits))
        return np.concatenate(found), seconds

    def stages(self, knob: int, settings: dict[str, int]) -> list[dict[str, float]]:
        """Return width, rows scored and bytes of vectors read per query, stage by stage."""
        searcher = self._turned(knob, settings, 1)
        queries = self._set.queries[:: max(1, len(self._set.queries) // 500)]
        if isinstance(searcher, OurSearcher):
            trace = searcher.index.explain(queries, top_k=10).trace
            return [
                {
                    "dim": stage.dim,
                    "rows": (stage.num_scored or 0) / len(queries),
                    "bytes": (stage.bytes_read or 0) / len(queries),
                }
                for stage in trace.stages
            ]
        if isinstance(searcher, PrefixFunnel):
            dim, kept = searcher._dim, searcher._shortlist
            head = faiss_stage(searcher._head, unit_prefix(queries, dim), kept)
            width = queries.shape[1]
            return [head, {"dim": width, "rows": kept, "bytes": 4 * kept * width}]
        if isinstance(searcher, PrefixSearcher):
            return [faiss_stage(searcher.head, unit_prefix(queries, searcher.dim), 10)]
        return [faiss_stage(searcher, queries, 10)]


def faiss_stage(searcher: Searcher, queries: np.ndarray, k: int) -> dict[str, float]:
    """Return what a search by FAISS scores: all rows, or as many as its graph counts."""
    import faiss

    assert isinstance(searcher, FaissSearcher)
    rows, dim = float(searcher.index.ntotal), queries.shape[1]
    if hasattr(searcher.index, "hnsw"):
        counted = faiss.cvar.hnsw_stats  # type: ignore[attr-defined]
        counted.reset()
        searcher.index.search(np.ascontiguousarray(queries), k)
        rows = counted.ndis / len(queries)
    return {"dim": dim, "rows": rows, "bytes": 4 * rows * dim}


class ArmWorker(Worker):
    """A process that holds one opened engine of this benchmark."""

    def __init__(self, setup: Setup) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(setup, other), daemon=True)
        self._process.start()
        other.close()


def _serve(setup: Setup, pipe: Connection) -> None:
    bench: ArmBench | None = None
    while True:
        try:
            what, more = pipe.recv()
        except EOFError:
            # Some libraries hang or crash when they are taken down; nothing here needs that.
            sys.stdout.flush()
            os._exit(0)
        try:
            bench = bench or ArmBench(setup)
            work: Callable[..., Any] = getattr(bench, what)
            pipe.send(("done", work(**more)))
        except Exception as error:
            pipe.send(("failed", f"{setup.peer}, {what}: {error!r}"))


def built(setup: Setup, peer: Peer) -> Built:
    """Return what the build took; it is done in a process of its own, unless it is there."""
    folder = index_folder(setup, peer)
    note = folder.with_suffix(".json")
    if not note.exists():
        shutil.rmtree(folder, ignore_errors=True)  # of a build that was cut off
        with ArmWorker(setup) as worker:
            note.write_text(json.dumps(asdict(worker.ask("build"))))
    return Built(**json.loads(note.read_text()))


# --- Quality, tuning and rounds -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Classes of rows and queries."""

    of_rows: np.ndarray
    of_queries: np.ndarray

    @classmethod
    def read(cls, folder: Path) -> "Labels":
        return cls(
            of_rows=np.load(folder / "doc_labels.npy"),
            of_queries=np.load(folder / "query_labels.npy"),
        )

    def average_precision(self, rows: np.ndarray) -> np.ndarray:
        """Return AP@10 per query as the paper's code has it: divided by 10."""
        is_relevant = (self.of_rows[rows] == self.of_queries[:, None]) & (rows >= 0)
        return label_metrics(is_relevant, np.full(len(rows), 10))["map_at_10_paper"]


@dataclass(frozen=True, kw_only=True)
class LabelTarget(Target):
    """A share of the mAP@10 of the exact search."""

    labels: Labels
    exact_map: float

    def value(self, truth: Truth, rows: np.ndarray) -> float:
        return float(self.labels.average_precision(rows).mean() / self.exact_map)

    def describe(self) -> str:
        return f"{self.least:.1%} of the exact mAP@10"


def tuned_arms(work: Path, data: SearchSet, peers: Sequence[Peer]) -> dict[str, Record]:
    """Return what is known of every engine before it is timed; what is there is not made again."""
    labels = Labels.read(work / data.name)
    truth: Truth | None = None
    found: dict[str, Record] = {}
    for peer in peers:
        path = work / "tuned" / data.name / f"{file_name(peer.name)}.json"
        if not path.exists():
            truth = truth or exact_search(work, data)
            path.write_text(json.dumps(_tune(work, data, peer, truth, labels)))
        told = found[peer.name] = json.loads(path.read_text())
        print(f"{peer.name}: {told['setting']}, {told['share']:.4f} of mAP", file=sys.stderr)
    return found


def exact_search(work: Path, data: SearchSet) -> Truth:
    """Return the exact rows of all queries; they are kept."""
    path = work / "tuned" / data.name / "exact.npz"
    if not path.exists():
        found = Truth.of(data)
        np.savez(path, rows=found.rows, least_scores=found.least_scores)
    kept = np.load(path)
    return Truth(
        rows=kept["rows"],
        least_scores=kept["least_scores"],
        vectors=data.vectors,
        queries=data.queries,
        relevant=data.relevant,
    )


def _tune(work: Path, data: SearchSet, peer: Peer, truth: Truth, labels: Labels) -> Record:
    exact = labels.average_precision(truth.rows)
    target = LabelTarget(metric="map", least=SHARE, labels=labels, exact_map=float(exact.mean()))
    setup = Setup(peer=peer.name, set_name=data.name, work=work, num_queries=len(data.queries))
    made = built(setup, peer)
    with ArmWorker(setup) as worker:
        opened = worker.ask("open")
        before = worker.ask("memory")
        at: Record = {"knob": peer.low, "settings": {}}
        setting = ""
        if not peer.is_exact:
            tuned = tune(peer, worker, truth, target)
            if tuned is None:
                raise RuntimeError(f"{peer.name} misses {target.describe()} at {peer.high}")
            at = {"knob": tuned.knob, "settings": tuned.settings}
            setting = tuned.describe(peer)
        rows = worker.ask("rows", **at)
        after = worker.ask("memory")
        precision = labels.average_precision(rows)
        difference = precision - exact
        return {
            **at,
            "setting": setting,
            "map": float(precision.mean()),
            "share": float(precision.mean() / exact.mean()),
            "difference": float(difference.mean()),
            "half_interval": float(1.96 * difference.std(ddof=1) / len(difference) ** 0.5),
            "recall": truth.recall(rows),
            "stages": worker.ask("stages", **at),
            "is_coded": peer.name.startswith("nestling nested"),
            "anonymous_bytes": opened["anonymous_bytes"],
            "file_bytes": opened["file_bytes"] + after["file_bytes"] - before["file_bytes"],
            "disk_bytes": made.disk_bytes,
        }


def measure_rounds(
    work: Path, data: SearchSet, found: dict[str, Record], *, num_queries: int, rounds: int
) -> None:
    """Add `rounds` to every engine, all on one thread."""
    workers: dict[str, ArmWorker] = {}
    try:
        for name in found:
            workers[name] = ArmWorker(
                Setup(peer=name, set_name=data.name, work=work, num_queries=num_queries)
            )
        for worker in workers.values():
            worker.ask("open")
        for number in range(-1, rounds):
            # Every other round goes backwards, so that no engine always follows the same one.
            for name in found if number % 2 else reversed(found):
                record = found[name]
                at = {"knob": record["knob"], "settings": record["settings"]}
                if number < 0:  # how many queries make a round
                    _, seconds = workers[name].ask("single", count=20, **at)
                    record["rounds"] = []
                    record["num_single"] = int(np.clip(ROUND_S / seconds.mean(), 20, num_queries))
                    continue
                _, seconds = workers[name].ask("single", count=record["num_single"], **at)
                record["rounds"].append(
                    {
                        "single_s": float(seconds.mean()),
                        "p50_s": float(np.quantile(seconds, 0.5)),
                        "p99_s": float(np.quantile(seconds, 0.99)),
                        "batch_s": workers[name].ask("batch", threads=1, **at),
                    }
                )
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
    finally:
        for worker in workers.values():
            worker.close()
