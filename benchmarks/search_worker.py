"""Each engine in a process of its own, so that its RAM can be told and no library meets another."""

import ctypes
import json
import multiprocessing
import os
import re
import sys
import time
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from peers import Peer, Searcher
from search_data import open_set

NUM_BUILD_THREADS = 2
MODULES = {"scalable-vs": "svs", "qdrant-edge-py": "qdrant_edge", "faiss-cpu": "faiss"}
"""Packages that are imported by another name."""
FIRST_KNOB = 64
"""What the knob is set to while RAM is measured."""
WARM_UP = 100
"""Queries before a measurement: the caches belonged to another engine."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a worker is to be: picklable, so the peer goes by its name."""

    peer: str
    set_name: str
    work: Path
    num_queries: int


@dataclass(frozen=True, kw_only=True)
class Built:
    """What a build took."""

    seconds: float
    peak_anonymous_bytes: int
    disk_bytes: int


class Worker:
    """A process that holds one opened engine."""

    def __init__(self, setup: Setup) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(setup, other), daemon=True)
        self._process.start()
        other.close()

    def ask(self, what: str, **more: Any) -> Any:
        """Have something done, and return what came of it."""
        self._pipe.send((what, more))
        status, answer = self._pipe.recv()
        if status == "failed":
            raise RuntimeError(answer)
        return answer

    def close(self) -> None:
        self._pipe.close()
        self._process.join(timeout=20)
        if self._process.is_alive():
            self._process.kill()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def index_folder(setup: Setup, peer: Peer) -> Path:
    return setup.work / "indexes" / setup.set_name / peer.folder_name


def built(setup: Setup, peer: Peer) -> Built:
    """Return what the build took; it is done in a process of its own, unless it is there."""
    note = index_folder(setup, peer).with_suffix(".json")
    if not note.exists():
        with Worker(setup) as worker:
            told = asdict(worker.ask("build"))
        note.write_text(json.dumps(told))
    return Built(**json.loads(note.read_text()))


# --- In the worker -----------------------------------------------------------------------------------


class _Bench:
    def __init__(self, setup: Setup) -> None:
        from search import find_peer

        self._set = open_set(setup.work, setup.set_name).take_queries(setup.num_queries)
        self._peer: Peer = find_peer(setup.peer, self._set.embed_dim)
        self._folder = index_folder(setup, self._peer)
        self._searcher: Searcher | None = None

    def build(self) -> Built:
        self._peer.prepare(self._set.vectors)
        self._folder.mkdir(parents=True)
        before = memory("VmHWM")
        started_s = time.perf_counter()
        self._peer.build(self._set.vectors, self._folder, NUM_BUILD_THREADS)
        return Built(
            seconds=time.perf_counter() - started_s,
            peak_anonymous_bytes=memory("VmHWM") - before,
            disk_bytes=disk_bytes(self._folder),
        )

    def open(self) -> dict[str, float]:
        """Open, search a little, and say what it cost; libraries and compiled code count apart."""
        empty = memory("RssAnon")
        __import__("faiss")
        __import__(MODULES.get(self._peer.package, self._peer.package))
        self._peer.load_code()
        ctypes.CDLL(None).malloc_trim(0)
        baseline = memory("RssAnon"), memory("RssFile")
        started_s = time.perf_counter()
        searcher = self._peer.open(self._set.vectors, self._folder)
        seconds = time.perf_counter() - started_s
        self._searcher = searcher
        searcher.use_threads(1)
        knob = self._peer.low if self._peer.is_fixed else max(self._peer.low, FIRST_KNOB)
        searcher.tune(knob, **self._peer.variants[0])
        searcher.search(self._set.queries[:WARM_UP], 10)
        ctypes.CDLL(None).malloc_trim(0)
        return {
            "open_s": seconds,
            "code_bytes": baseline[0] - empty,
            "anonymous_bytes": memory("RssAnon") - baseline[0],
            "file_bytes": memory("RssFile") - baseline[1],
        }

    def memory(self) -> dict[str, int]:
        ctypes.CDLL(None).malloc_trim(0)
        return {"anonymous_bytes": memory("RssAnon"), "file_bytes": memory("RssFile")}

    def rows(self, knob: int, settings: dict[str, int], k: int = 10) -> np.ndarray:
        """Return what is found for all queries, as quickly as can be."""
        searcher = self._turned(knob, settings, NUM_BUILD_THREADS)
        return searcher.to_rows(searcher.search(self._set.queries, k))

    def single(
        self, knob: int, settings: dict[str, int], count: int, k: int = 10
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return rows and seconds of single queries on one thread."""
        searcher = self._turned(knob, settings, 1)
        queries = self._set.queries[:count]
        for row in range(WARM_UP):
            searcher.search(queries[-row - 1 : len(queries) - row], k)
        found, seconds = [], np.empty(len(queries))
        clock = time.perf_counter
        for row in range(len(queries)):
            query = queries[row : row + 1]
            started_s = clock()
            hits = searcher.search(query, k)
            seconds[row] = clock() - started_s
            found.append(searcher.to_rows(hits))
        return np.concatenate(found), seconds

    def batch(self, knob: int, settings: dict[str, int], threads: int, k: int = 10) -> float:
        """Return seconds per query of all queries at once."""
        searcher = self._turned(knob, settings, threads)
        searcher.search(self._set.queries[:WARM_UP], k)
        started_s = time.perf_counter()
        searcher.search(self._set.queries, k)
        return (time.perf_counter() - started_s) / len(self._set.queries)

    def cold(self, knob: int, settings: dict[str, int], count: int) -> dict[str, float]:
        """Open, drop every page of every file, and ask single queries; none is repeated."""
        self._searcher = self._peer.open(self._set.vectors, self._folder)
        searcher = self._turned(knob, settings, 1)
        for row in range(count, min(count + 10, len(self._set.queries))):
            searcher.search(self._set.queries[row : row + 1], 10)
        files = [path for path in self._folder.rglob("*") if path.is_file()]
        for path in [*files, Path(self._set.vectors.filename)]:
            drop_pages(path)
        before = read_bytes()
        seconds = np.empty(count)
        for row in range(count):
            started_s = time.perf_counter()
            searcher.search(self._set.queries[row : row + 1], 10)
            seconds[row] = time.perf_counter() - started_s
        return {
            "single_s": float(seconds.mean()),
            "p50_s": float(np.quantile(seconds, 0.5)),
            "p99_s": float(np.quantile(seconds, 0.99)),
            "read_bytes": (read_bytes() - before) / count,
        }

    def told(self, knob: int, settings: dict[str, int]) -> dict[str, Any]:
        return self._turned(knob, settings, 1).told(self._set.queries)

    def _turned(self, knob: int, settings: dict[str, int], threads: int) -> Searcher:
        assert self._searcher is not None, "`open` comes first"
        if self._peer.one_core:
            cores = sorted(_ALL_CORES)[:threads]
            for thread in Path("/proc/self/task").iterdir():
                os.sched_setaffinity(int(thread.name), cores)
        self._searcher.use_threads(threads)
        self._searcher.tune(knob, **settings)
        return self._searcher


_ALL_CORES = os.sched_getaffinity(0)


def _serve(setup: Setup, pipe: Connection) -> None:
    bench = None
    while True:
        try:
            what, more = pipe.recv()
        except EOFError:
            # Some libraries hang or crash when they are taken down; nothing here needs that.
            sys.stdout.flush()
            os._exit(0)
        try:
            bench = bench or _Bench(setup)
            pipe.send(("done", getattr(bench, what)(**more)))
        except Exception as error:
            pipe.send(("failed", f"{setup.peer}, {what}: {error!r}"))


def memory(name: str) -> int:
    """Return a line of /proc/self/status in bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    return int(found[1]) * 1024 if found else 0


def drop_pages(path: Path) -> None:
    """Have the system forget what it keeps of a file; what it must still write, it writes first."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fdatasync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def read_bytes() -> int:
    """Return what this process has had read from the disk so far."""
    found = re.search(r"^read_bytes: (\d+)", Path("/proc/self/io").read_text(), re.M)
    return int(found[1]) if found else 0


def disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())
