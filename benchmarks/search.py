"""Tiered search against other engines, both sides tuned to the same quality in one run.

Two sets of real nested vectors (see `search_data`). On the wide one every engine is tuned to 99% of the
MRR@10 of the exact full-width search, on the 256-d one to recall@10 of .95; then those that count are
measured in turns: single queries and batches on one thread, batches on two. Parts:

- compare: every peer (see `peers`) and our plans;
- exact: our exact engines and FAISS flat;
- cold: those that read a tail from a file, without a page of it in the cache;
- life: build, open, verify, adds, delete, resize, compact;
- growth: 10,000 to 1,000,000 rows at a fixed setting.

    python benchmarks/search.py [--sets wide256,wide1024] [--parts compare,exact,cold,life,growth]
                                [--queries 2000] [--rounds 5] [--work folder] [--out report.md]

Everything is kept in the work folder (indexes, 20 GB, settings found, and results), so that a killed
benchmark goes on; a part whose result is there is not measured again unless --again is given, which
forgets settings, too, and keeps indexes. On a quiet machine;
building every peer on two cores takes about an hour, measuring another.
"""

import argparse
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_name, "2")

from peers import Peer, all_peers  # noqa: E402
from search_data import NUM_ASKED, SETS, open_set  # noqa: E402
from search_ours import our_peers, plan_of  # noqa: E402
from search_parts import measure_cold, measure_growth, measure_life  # noqa: E402
from search_report import load, make_report, save  # noqa: E402
from search_rounds import compare  # noqa: E402
from search_tuning import Target  # noqa: E402

from nestling.measure import PlanGoal  # noqa: E402

TARGETS = {
    "wide256": Target(metric="recall", least=0.95),
    "wide1024": Target(metric="mrr", least=0.99),
}
GOALS = {256: PlanGoal(min_recall=0.95), 1024: PlanGoal(min_quality=0.99)}
"""The same for the planner, by the width of the set."""
PARTS = ("compare", "exact", "cold", "life", "growth")
GROWTH_SET = "wide1024"
SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000)
GROWING = {
    "nestling graph: 64-d int8 -> 1024-d float16": 1_000_000,
    "funnel FAISS HNSW32 SQ8 64-d": 1_000_000,
    "FAISS HNSW32 SQ8": 100_000,
}
"""Engines, and the most rows of each: beyond, a build at full width takes half an hour."""


def find_peer(name: str, width: int) -> Peer:
    """Return a peer, or one of our plans, by its name in the report."""
    peers = [*our_peers(width, GOALS[width]), *all_peers(width)]
    return next(peer for peer in peers if peer.name == name)


def run_set(name: str, given: argparse.Namespace) -> None:
    """Measure the parts of one set that are asked for and not there."""
    width = open_set(given.work, name).embed_dim
    ours, others = our_peers(width, GOALS[width]), all_peers(width)
    if given.only:
        others = [peer for peer in others if any(part in peer.name for part in given.only)]
        ours = [peer for peer in ours if any(part in peer.name for part in given.only)]
    sizes = {"num_queries": given.queries}

    def run_compare() -> Any:
        tuned = [peer for peer in [*ours, *others] if not (peer.is_exact and peer.is_ours)]
        return compare(given.work, name, TARGETS[name], tuned, rounds=given.rounds, **sizes)

    def run_exact() -> Any:
        exact = [peer for peer in [*ours, *others] if peer.is_exact]
        everything = Target(metric="recall", least=0.999)
        return compare(given.work, name, everything, exact, rounds=given.rounds, **sizes)

    def run_cold() -> Any:
        compared = load(given.work, name, "compare")
        return measure_cold(given.work, name, compared["peers"], **sizes)

    def run_life() -> Any:
        shortlists = (160, 60) if width > 256 else (100,)
        plan, other = (
            plan_of("graph", dims, width, shortlists)
            for dims in ([(64, 256), (128, 256)] if width > 256 else [(128,), (64,)])
        )
        return measure_life(given.work, name, plan, other)

    def run_growth() -> Any:
        peers = [(find_peer(peer, width), most) for peer, most in GROWING.items()]
        return measure_growth(given.work, name, given.sizes, peers, num_queries=500)

    runs: dict[str, Callable[[], Any]] = {
        "compare": run_compare,
        "exact": run_exact,
        "cold": run_cold,
        "life": run_life,
        "growth": run_growth,
    }
    for part in given.parts:
        if part == "growth" and name != GROWTH_SET:
            continue
        if given.again or load(given.work, name, part) is None:
            before = os.getloadavg()[0]
            measured = runs[part]()
            save(given.work, name, part, measured, loads=(before, os.getloadavg()[0]))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    listed = {"type": lambda text: text.split(",")}
    parser.add_argument("--sets", default=list(SETS), **listed)
    parser.add_argument("--parts", default=list(PARTS), **listed)
    parser.add_argument("--only", default=[], help="parts of names of engines", **listed)
    parser.add_argument(
        "--sizes", default=SIZES, type=lambda text: [int(size) for size in text.split(",")]
    )
    parser.add_argument("--queries", type=int, default=NUM_ASKED)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--work", type=Path, default=Path("search_runs"))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    given.work = given.work.resolve()
    for name in given.sets:
        if given.again:
            shutil.rmtree(given.work / "tuned" / name, ignore_errors=True)
        run_set(name, given)
    command = (
        f"python benchmarks/search.py --sets {','.join(given.sets)} --parts "
        f"{','.join(given.parts)} --queries {given.queries} --rounds {given.rounds}"
    )
    report = make_report(given.work, given.sets, command)
    print(report)
    if given.out:
        given.out.write_text(report)


if __name__ == "__main__":
    main()
