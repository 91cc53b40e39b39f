"""What a comparison of query times leaves out: cold tails, the life of an index, growth."""

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
from nestling.search import Index, Plan

ADD_ROWS = 1000
NUM_ADDS = 10
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
    told["compact_s"] = _timed(index.compact, 1)
    index.close()
    return told


def _timed(work: Any, times: int) -> float:
    seconds = []
    for _ in range(times):
        started_s = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started_s)
    return statistics.median(seconds)


# --- Growth ----------------------------------------------------------------------------------------


def measure_growth(
    work: Path, base: str, sizes: Sequence[int], peers: Sequence[Peer], *, num_queries: int
) -> list[Record]:
    """Measure time, RAM and build of some engines at several sizes, at one fixed setting each.

    What is found is not judged: the larger sets hold perturbed copies.
    """
    rows = []
    for size in sizes:
        name = f"{base}#{size}"
        open_set(work, name)
        for peer in peers:
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
