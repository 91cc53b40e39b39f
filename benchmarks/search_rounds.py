"""Every engine tuned to one quality, then all that count measured in turns."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from peers import Peer, file_name
from search_data import open_set
from search_tuning import Target, Truth, tune
from search_worker import Setup, Worker, built

CONTENDERS = 5.0
"""Engines this many times slower than the fastest are measured once, not in every round."""
ROUND_S = 1.5
"""A round asks so many single queries of one engine, in seconds."""

Record = dict[str, Any]


def compare(
    work: Path,
    set_name: str,
    target: Target,
    peers: Sequence[Peer],
    *,
    num_queries: int,
    rounds: int,
) -> Record:
    """Return what was measured of every engine, as plain data; builds that are there are kept."""
    data = open_set(work, set_name).take_queries(num_queries)
    truth = Truth.of(data)
    found: dict[str, Record] = {}
    left_out: dict[str, str] = {}
    for peer in peers:
        setup = Setup(peer=peer.name, set_name=set_name, work=work, num_queries=num_queries)
        if not peer.is_installed:
            left_out[peer.name] = f"{peer.package} is not installed"
            continue
        try:
            record = _tuned(peer, setup, truth, target)
        except (RuntimeError, EOFError, OSError) as error:
            left_out[peer.name] = f"failed: {error!r}"[:200]
        else:
            if record is None:
                left_out[peer.name] = f"misses {target.describe()} at {peer.knob} {peer.high}"
            else:
                found[peer.name] = record
        print(peer.name, left_out.get(peer.name, _in_short(found.get(peer.name))), file=sys.stderr)
    _measure_in_turns(found, work, set_name, num_queries, rounds)
    return {
        "set": set_name,
        "source": data.source,
        "shape": list(data.vectors.shape),
        "num_queries": len(data.queries),
        "target": asdict(target),
        "target_text": target.describe(),
        "exact_mrr": truth.best_mrr,
        "exact_vector_bytes": int(data.vectors.size) * 4,
        "peers": found,
        "left_out": left_out,
    }


def _tuned(peer: Peer, setup: Setup, truth: Truth, target: Target) -> Record | None:
    """Return what `_tune_alone` found, now or when the benchmark was cut off."""
    at = f"{target.metric}-{target.least:g}-{setup.num_queries}"
    path = setup.work / "tuned" / setup.set_name / at / f"{file_name(peer.name)}.json"
    if not path.exists():
        record = _tune_alone(peer, setup, truth, target)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record))
    return json.loads(path.read_text())


def _tune_alone(peer: Peer, setup: Setup, truth: Truth, target: Target) -> Record | None:
    made = built(setup, peer)
    with Worker(setup) as worker:
        opened = worker.ask("open")
        tuned = tune(peer, worker, truth, target)
        if tuned is None:
            return None
        at = {"knob": tuned.knob, "settings": tuned.settings}
        rows = worker.ask("rows", **at)
        record = {
            "package": peer.package,
            "is_open": peer.is_open,
            "is_ours": peer.is_ours,
            "is_exact": peer.is_exact,
            "reads_tail": peer.reads_tail,
            "setting": tuned.describe(peer),
            "built": asdict(made),
            "opened": opened,
            "memory": worker.ask("memory"),
            "recall": truth.recall(rows),
            "mrr_share": truth.mrr(rows) / truth.best_mrr,
            "told": worker.ask("told", **at),
            **at,
        }
        record["first"] = _measure(worker, record, tuned.seconds, len(truth.queries))
    return record


def _measure_in_turns(
    found: dict[str, Record], work: Path, set_name: str, num_queries: int, rounds: int
) -> None:
    """Add the `rounds` of every engine; those far behind keep the one of their tuning."""
    if not found:
        return
    fastest = min(record["first"]["single_s"] for record in found.values())
    contenders = [
        name
        for name, record in found.items()
        if record["first"]["single_s"] <= CONTENDERS * fastest
    ]
    workers: dict[str, Worker] = {}
    try:
        for name in contenders:
            workers[name] = Worker(
                Setup(peer=name, set_name=set_name, work=work, num_queries=num_queries)
            )
            workers[name].ask("open")
        measured: dict[str, list[Record]] = {name: [] for name in contenders}
        for number in range(rounds):
            # Every other round goes backwards, so that no engine always follows the same one.
            for name in contenders if number % 2 == 0 else reversed(contenders):
                record = found[name]
                measured[name].append(
                    _measure(workers[name], record, record["first"]["single_s"], num_queries)
                )
    finally:
        for worker in workers.values():
            worker.close()
    for name, record in found.items():
        first = record.pop("first")
        record["rounds"] = measured.get(name, [first]) or [first]


def _measure(worker: Worker, record: Record, seconds: float, num_queries: int) -> Record:
    at = {"knob": record["knob"], "settings": record["settings"]}
    count = int(np.clip(ROUND_S / seconds, 30, num_queries))
    _, singles = worker.ask("single", count=count, **at)
    return {
        "single_s": float(singles.mean()),
        "p50_s": float(np.quantile(singles, 0.5)),
        "p99_s": float(np.quantile(singles, 0.99)),
        "num_single": count,
        "batch_s": worker.ask("batch", threads=1, **at),
        "two_threads_s": worker.ask("batch", threads=2, **at),
    }


def _in_short(record: Record | None) -> str:
    if record is None:
        return ""
    return f"{1e3 * record['first']['single_s']:.3f} ms, {record['setting']}"
