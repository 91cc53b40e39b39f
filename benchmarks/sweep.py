"""How much faster are all prefixes in one pass than each prefix by itself?

100,000 x 1,024 float32 vectors, 1,000 queries, 8 prefixes (8, 16, ... 1,024), top 10 and top 100.
All sides run in turn, on the same vectors, round after round; the ratios are medians over the
rounds. Sides: `nested_top_k`; every prefix from scratch with chunked BLAS and argpartition; the
same with running thresholds; bands added up by BLAS with NumPy around it.

    python benchmarks/sweep.py [--out report.md] [--rounds 5] [--rows 100000]

Best on a quiet machine; takes a few minutes and 1.5 GB.
"""

import argparse
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any


def use_wide_kernels() -> None:
    """Let OpenBLAS use AVX-512 where it is, whatever the environment says.

    Left to AVX2, the NumPy sides run at 0.55 of the speed; `nested_top_k` does not use BLAS.
    """
    cpu = Path("/proc/cpuinfo")
    if cpu.exists() and " avx512f " in cpu.read_text():
        os.environ["OPENBLAS_CORETYPE"] = "SkylakeX"


use_wide_kernels()  # before NumPy is loaded: OpenBLAS looks once

import numpy as np  # noqa: E402
import sweep_sides as sides  # noqa: E402
from numba import njit  # noqa: E402

from nestling.core import Int8Codec, Projection, View, _kernels, nested_top_k  # noqa: E402
from nestling.core._one_pass import ViewPass  # noqa: E402

DIMS = tuple(8 << step for step in range(8))
FULL = DIMS[-1]
NUM_QUERIES = 1000
KS = (10, 100)
CHUNKS_TRIED = (1024, 4096, 16384)
# For a while after a call, threads of BLAS spin in wait for the next one, at the cost of others.
PAUSE_S = 0.1

Seconds = dict[str, list[float]]


def make_vectors(num_rows: int, seed: int) -> np.ndarray:
    """Vectors whose leading coordinates carry more, as in a nested embedding."""
    generator = np.random.default_rng(seed)
    vectors = generator.standard_normal((num_rows, FULL), dtype=np.float32)
    vectors *= np.float32(1) / np.sqrt(np.arange(1, FULL + 1, dtype=np.float32))
    return vectors


def view(queries: np.ndarray, **options: Any) -> View:
    return View(**{"name": "float32", "queries": queries, **options})


def time_in_turn(jobs: dict[str, Callable[[], object]], rounds: int) -> Seconds:
    seconds: Seconds = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            time.sleep(PAUSE_S)
            started_s = time.perf_counter()
            job()
            seconds[name].append(time.perf_counter() - started_s)
    return seconds


def ratio(seconds: Seconds, slow: str, fast: str) -> float:
    return median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True))


def spread(values: Sequence[float], unit: float = 1) -> str:
    scaled = [value * unit for value in values]
    return f"{median(scaled):.3g} ({min(scaled):.3g} to {max(scaled):.3g})"


# --- The sides ---------------------------------------------------------------------------------


def best_chunk(corpus: np.ndarray, queries: np.ndarray, select: sides.Selection) -> int:
    """Give a NumPy side the chunk size that it is fastest with."""

    def seconds(chunk_rows: int) -> float:
        started_s = time.perf_counter()
        sides.from_scratch(
            corpus, queries, (64, FULL), 10, select=select, chunk_rows=chunk_rows, spent=none()
        )
        return time.perf_counter() - started_s

    return min(CHUNKS_TRIED, key=seconds)


def none() -> sides.Spent:
    return defaultdict(float)


def make_sides(
    corpus: np.ndarray, queries: np.ndarray, k: int, chunks: dict[str, int]
) -> dict[str, Callable[[], object]]:
    partition = {"select": sides.by_partition, "chunk_rows": chunks["partition"], "spent": none()}
    threshold = {"select": sides.by_threshold, "chunk_rows": chunks["threshold"], "spent": none()}
    return {
        "nested": partial(nested_top_k, corpus, [view(queries)], DIMS, k),
        "nested, full width alone": partial(nested_top_k, corpus, [view(queries)], (FULL,), k),
        "scratch": partial(sides.from_scratch, corpus, queries, DIMS, k, **partition),
        "scratch, full width alone": partial(
            sides.from_scratch, corpus, queries, (FULL,), k, **partition
        ),
        "scratch, thresholds": partial(sides.from_scratch, corpus, queries, DIMS, k, **threshold),
        "scratch, thresholds, full width alone": partial(
            sides.from_scratch, corpus, queries, (FULL,), k, **threshold
        ),
        "nested in BLAS and NumPy": partial(
            sides.nested_blas, corpus, queries, DIMS, k, **threshold
        ),
    }


def check_agreement(corpus: np.ndarray, queries: np.ndarray, chunk_rows: int) -> str:
    """All sides must answer the same before their seconds mean anything."""
    options = {"chunk_rows": chunk_rows, "spent": none()}
    ours = nested_top_k(corpus, [view(queries)], DIMS, 10)["float32"].by_dim
    others = [
        sides.from_scratch(corpus, queries, DIMS, 10, select=select, **options)
        for select in (sides.by_partition, sides.by_threshold)
    ]
    others.append(
        sides.nested_blas(corpus, queries, DIMS, 10, select=sides.by_threshold, **options)
    )
    differences, equal = [], []
    for other in others:
        for dim in DIMS:
            rows, scores = other[dim]
            differences.append(np.abs(scores - ours[dim].scores).max())
            equal.append((rows == ours[dim].rows).mean())
    assert max(differences) < 1e-5, max(differences)
    return (
        f"All sides agree: scores to {max(differences):.1g}, and {min(equal):.3%} of the places "
        f"hold the same row (the rest are ties within rounding)."
    )


def time_views(corpus: np.ndarray, queries: np.ndarray, rounds: int) -> Seconds:
    codec = Int8Codec.calibrate(corpus[:10_000])
    rotation = np.linalg.qr(make_vectors(FULL, 2))[0].astype(np.float32)
    project = Projection(rotation)
    views = [
        view(queries),
        view(queries, name="int8", transform=lambda rows: codec.decode(codec.encode(rows)[0])),
        view(project(queries), name="rotated", transform=project),
    ]
    jobs: dict[str, Callable[[], object]] = {
        one.name: partial(nested_top_k, corpus, [one], DIMS, 10) for one in views
    }
    jobs["all three in one pass"] = partial(nested_top_k, corpus, views, DIMS, 10)
    return time_in_turn(jobs, rounds)


def time_single_query(corpus: np.ndarray, queries: np.ndarray, rounds: int) -> Seconds:
    unit = {dim: sides.unit_prefix(corpus, dim) for dim in (64, FULL)}
    query = {dim: sides.unit_prefix(queries[:1], dim) for dim in unit}

    def plain(dim: int) -> np.ndarray:
        scores = unit[dim] @ query[dim][0]
        best = np.argpartition(scores, -10)[-10:]
        return best[np.argsort(-scores[best])]

    jobs: dict[str, Callable[[], object]] = {
        "all 8 widths at once": partial(nested_top_k, corpus, [view(queries[:1])], DIMS, 10)
    }
    for dim in unit:
        ours = partial(nested_top_k, unit[dim], [view(query[dim])], (dim,), 10)
        jobs |= {f"{dim}-d": ours, f"{dim}-d, plain NumPy": partial(plain, dim)}
    return time_in_turn(jobs, 10 * rounds)


# --- Where the time goes -----------------------------------------------------------------------


@njit(nogil=True)
def multiply_all(
    panels: np.ndarray,
    query_panels: np.ndarray,
    widths: np.ndarray,
    dots: np.ndarray,
    num_tiles: int,
) -> None:
    for _ in range(num_tiles):
        for group in range(len(query_panels)):
            start = 0
            for width in widths:
                _kernels.multiply_group(
                    panels, len(panels), query_panels, group, start, width, dots
                )
                start = width


@njit(nogil=True)
def pack_all(rows: np.ndarray, widths: np.ndarray, panels: np.ndarray, norms: np.ndarray) -> None:
    tile = norms.shape[1]
    for start in range(0, len(rows), tile):
        _kernels.pack_rows(rows[start : start + tile], widths, panels, norms)


def profile_ours(corpus: np.ndarray, queries: np.ndarray, k: int, rounds: int) -> dict[str, float]:
    """Return the seconds of one thread's share (all rows, half of the queries), part by part."""
    share = queries[: len(queries) // 2]
    rows = corpus.view()
    rows.flags.writeable = False
    one = ViewPass("float32", share, None, DIMS, num_kept=k, num_threads=1)
    tile, laid_out = one._tile, one._queries[0]
    widths = np.array(DIMS)
    panels = np.ones((tile // _kernels.LANES, FULL, _kernels.LANES), np.float32)
    norms = np.ones((len(DIMS), tile), np.float32)
    dots = np.zeros((_kernels.GROUP, tile), np.float32)
    num_tiles = len(corpus) // tile
    full = np.array([FULL])
    jobs: dict[str, Callable[[], object]] = {
        "all": partial(nested_top_k, corpus, [view(share)], DIMS, k, num_threads=1),
        "lay out": partial(pack_all, rows, widths, panels, norms),
        "product": partial(multiply_all, panels, laid_out.panels, widths, dots, num_tiles),
        "peak": partial(multiply_all, panels[:1], laid_out.panels, full, dots[:, :32].copy(), 2000),
    }
    for job in jobs.values():
        job()
    parts = {name: median(values) for name, values in time_in_turn(jobs, rounds).items()}
    num_products = 2000 * len(laid_out.panels) * _kernels.GROUP * _kernels.LANES * FULL
    parts["flop_per_s"] = 2 * num_products / parts.pop("peak")
    parts["scan"] = parts["all"] - parts["lay out"] - parts["product"]
    return parts


# --- Memory ------------------------------------------------------------------------------------

CHILD = """
import sys, numpy as np
from nestling.core import View, nested_top_k
def megabytes(field):
    status = open("/proc/self/status").read()
    return int(status.split(field + ":")[1].split()[0]) / 1024
corpus = np.load(sys.argv[1], mmap_mode=sys.argv[2] or None)
queries = np.load(sys.argv[1].replace("corpus", "queries"))
before = megabytes("VmRSS")
nested_top_k(corpus, [View(name="v", queries=queries)], {dims}, 100)
print(before, megabytes("VmHWM"))
"""


def measure_memory(corpus: np.ndarray, queries: np.ndarray) -> dict[str, tuple[float, float]]:
    """Return the megabytes of a process before, and at the peak of, a sweep with k = 100."""
    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "corpus.npy"
        np.save(path, corpus)
        np.save(Path(folder) / "queries.npy", queries)
        for name, mode in (("in RAM", ""), ("memory-mapped", "r")):
            child = [sys.executable, "-c", CHILD.format(dims=DIMS), str(path), mode]
            done = subprocess.run(child, capture_output=True, text=True, check=True)
            before, peak = map(float, done.stdout.split())
            measured[name] = (before, peak)
    return measured


# --- The report --------------------------------------------------------------------------------


def describe_machine() -> tuple[str, str]:
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    named = re.search(r"model name\s*:\s*(.+)", cpuinfo)
    cpu = named[1].strip() if named else platform.processor() or platform.machine()
    family = re.search(r"cpu family\s*:\s*(\d+)", cpuinfo)
    if family:
        cpu += f" (family {family[1]})"
    cores = len(os.sched_getaffinity(0))
    slug = re.sub(r"\W+", "-", cpu.lower()).strip("-")
    return f"{cpu}, {cores} cores", f"{slug}-{cores}cores"


def table(header: str, rows: Sequence[str]) -> str:
    columns = header.count("|") - 1
    return "\n".join([header, "|---" * columns + "|", *rows])


def verdicts(timed: dict[int, Seconds], memory: float) -> list[str]:
    lines = []
    for k, seconds in timed.items():
        faster = ratio(seconds, "scratch", "nested")
        dearer = ratio(seconds, "nested", "scratch, full width alone")
        lines += [
            (
                f"- k = {k}: **{faster:.1f}x faster** than every prefix from scratch "
                f"(goal 2x, hoped for 3x): {'met' if faster >= 2 else 'MISSED'}"
            ),
            (
                f"- k = {k}: all 8 prefixes cost **{dearer:.2f}x the full-width evaluation alone** "
                f"(goal: at most 2.2x): {'met' if dearer <= 2.2 else 'MISSED'}"
            ),
        ]
    lines.append(
        f"- peak memory **{memory:.2f}x the vectors** (goal: under 2x): "
        f"{'met' if memory < 2 else 'MISSED'}"
    )
    return lines


def sides_table(seconds: Seconds) -> str:
    names = {
        "nested": "`nested_top_k`, 8 prefixes",
        "nested, full width alone": "`nested_top_k`, full width alone",
        "scratch": "8 prefixes from scratch: BLAS, argpartition",
        "scratch, full width alone": "full width alone: BLAS, argpartition",
        "scratch, thresholds": "8 prefixes from scratch: BLAS, running thresholds",
        "scratch, thresholds, full width alone": "full width alone: BLAS, running thresholds",
        "nested in BLAS and NumPy": "8 prefixes nested: BLAS with beta = 1, running thresholds",
    }
    return table(
        "| side | relative to `nested_top_k` | seconds: median (range) |",
        [
            f"| {text} | {ratio(seconds, name, 'nested'):.2f} | {spread(seconds[name])} |"
            for name, text in names.items()
        ],
    )


def profile_table(before: sides.Spent, ours: dict[int, dict[str, float]]) -> str:
    total = sum(before.values())
    rows = [
        (
            f"| BLAS and NumPy, nested | {before['product']:.2f} | {before['selection']:.2f} | "
            f"{before['copy and norms']:.2f} | {total:.2f} |"
        )
    ]
    rows += [
        f"| `nested_top_k`, k = {k} | {parts['product']:.2f} | {parts['scan']:.2f} | "
        f"{parts['lay out']:.2f} | {parts['all']:.2f} |"
        for k, parts in ours.items()
    ]
    return table("| seconds | product | selection | copy and norms | all |", rows)


def floor_text(parts: dict[str, float], num_rows: int) -> str:
    flop = 2 * num_rows * NUM_QUERIES / 2 * FULL
    rate = parts["flop_per_s"]
    gigabytes = num_rows * FULL * 4 / 1e9
    return (
        f"The floor: {flop / 1e9:.0f} GFLOP per thread at the {rate / 1e9:.0f} GFLOP/s that the "
        f"product reaches on rows in the first cache take {flop / rate:.2f} s; each thread also reads "
        f"{gigabytes:.2f} GB of vectors once. The product runs at "
        f"{flop / parts['product'] / 1e9:.0f} GFLOP/s, narrow bands included."
    )


def write_report(
    *,
    timed: dict[int, Seconds],
    views: Seconds,
    single: Seconds,
    memory: dict[str, tuple[float, float]],
    before: sides.Spent,
    ours: dict[int, dict[str, float]],
    agreement: str,
    chunks: dict[str, int],
    loads: tuple[float, float],
    options: argparse.Namespace,
) -> str:
    vectors_mb = options.rows * FULL * 4 / 2**20
    worst = max(peak for _, peak in memory.values()) / vectors_mb
    versions = ", ".join(
        f"{name} {version(name)}" for name in ("nestling", "numpy", "scipy", "numba")
    )
    machine, _ = describe_machine()
    blocks = [
        "# All prefixes in one pass",
        (
            f"{datetime.now(UTC):%Y-%m-%d}. {machine}. Python {platform.python_version()}, {versions}. "
            f"One-minute load {loads[0]:.2f} before and {loads[1]:.2f} after."
        ),
        (
            f"`python benchmarks/sweep.py --rounds {options.rounds} --rows {options.rows}`: "
            f"{options.rows:,} x {FULL:,} float32 vectors, {NUM_QUERIES:,} queries, prefixes "
            f"{', '.join(map(str, DIMS))}. All sides in turn, {options.rounds} rounds; ratios are medians "
            f"of the rounds' ratios. NumPy sides use both cores, OpenBLAS kernels "
            f"{os.environ.get('OPENBLAS_CORETYPE', 'of its own choice')}, and the fastest of the chunk sizes "
            f"{CHUNKS_TRIED}: {chunks['partition']} with argpartition, {chunks['threshold']} with "
            f"thresholds."
        ),
        agreement,
        "\n".join(verdicts(timed, worst)),
    ]
    for k, seconds in timed.items():
        blocks += [f"## Top {k}", sides_table(seconds)]
    blocks += [
        "## Where the time goes",
        (
            "BLAS and NumPy: one run on all cores, k = 10. `nested_top_k`: the share of one of two "
            "threads (half of the queries, all rows), run alone; selection is what is left of the whole."
        ),
        profile_table(before, ours),
        floor_text(ours[10], options.rows),
        "## Three views in one pass, k = 10",
        table(
            "| view | relative to float32 | seconds: median (range) |",
            [
                f"| {name} | {ratio(views, name, 'float32'):.2f} | {spread(values)} |"
                for name, values in views.items()
            ],
        ),
        "## One query, k = 10",
        (
            "Plain NumPy is `x @ q` and argpartition on vectors normalised beforehand; `nested_top_k` "
            "takes the norms as it goes."
        ),
        table(
            "| | milliseconds: median (range) |",
            [f"| {name} | {spread(values, 1e3)} |" for name, values in single.items()],
        ),
        "## Memory",
        (
            f"Peak resident memory of a process that loads the vectors ({vectors_mb:.0f} MiB) and sweeps "
            f"them once with k = 100. Interpreter, libraries and compiled code count, and so do the "
            f"pages of a memory map."
        ),
        table(
            "| vectors | MiB before | MiB at the peak | relative to the vectors |",
            [
                f"| {name} | {start:.0f} | {peak:.0f} | {peak / vectors_mb:.2f} |"
                for name, (start, peak) in memory.items()
            ],
        ),
    ]
    return "\n\n".join(blocks) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="report; by default next to this script")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=100_000)
    options = parser.parse_args()
    load_before = os.getloadavg()[0]
    corpus, queries = make_vectors(options.rows, 0), make_vectors(NUM_QUERIES, 1)
    chunks = {
        "partition": best_chunk(corpus, queries, sides.by_partition),
        "threshold": best_chunk(corpus, queries, sides.by_threshold),
    }
    agreement = check_agreement(corpus, queries, chunks["threshold"])
    timed = {}
    for k in KS:
        timed[k] = time_in_turn(make_sides(corpus, queries, k, chunks), options.rounds)
        print(f"k = {k}\n{sides_table(timed[k])}", file=sys.stderr, flush=True)
    before = none()
    sides.nested_blas(
        corpus,
        queries,
        DIMS,
        10,
        select=sides.by_threshold,
        chunk_rows=chunks["threshold"],
        spent=before,
    )
    report = write_report(
        timed=timed,
        views=time_views(corpus, queries, options.rounds),
        single=time_single_query(corpus, queries, options.rounds),
        memory=measure_memory(corpus, queries),
        before=before,
        ours={k: profile_ours(corpus, queries, k, options.rounds) for k in KS},
        agreement=agreement,
        chunks=chunks,
        loads=(load_before, os.getloadavg()[0]),
        options=options,
    )
    _, slug = describe_machine()
    default = Path(__file__).with_name(f"sweep_{slug}_{datetime.now(UTC):%Y%m}.md")
    (options.out or default).write_text(report)
    print(report)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
