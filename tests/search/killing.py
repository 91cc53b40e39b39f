"""Run by `test_kill.py` in a process of its own: kills writers and looks at what they leave.

A writer is forked, and killed by signal 9 either just before its n-th flush, rename or removal, for
every n until it gets through, or at random moments. What is left must open, verify, and equal the
state before or after the write. Prints how many writers were killed.
"""

import itertools
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nestling.core import Dtype
from nestling.search import Index
from tests.search.support import (
    build_index,
    corpus_of,
    fingerprint_of,
    found,
    make_folder,
    plan_of,
    random_rows,
)

WIDTH = 32
ROWS = random_rows(160, WIDTH)
QUERIES = random_rows(3, WIDTH, seed=1)
PLAN = plan_of(WIDTH, (16, Dtype.FLOAT16, 40), (WIDTH, Dtype.FLOAT32, None))
BATCH = 2


def fork(job: Callable[[], None]) -> int:
    process = os.fork()
    if process == 0:
        status = 1
        try:
            job()
            status = 0
        finally:
            os._exit(status)
    return process


def die_before(step: int) -> None:
    left = step

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        return wrapper

    os.fsync = counted(os.fsync)
    shutil.rmtree = counted(shutil.rmtree)  # type: ignore[assignment]
    for name in ("rename", "replace", "unlink"):
        setattr(Path, name, counted(getattr(Path, name)))


def kill_at_every_step(job: Callable[[], None], check: Callable[[], None]) -> int:
    def doomed(step: int) -> None:
        die_before(step)
        job()

    for step in itertools.count(1):
        _, status = os.waitpid(fork(lambda step=step: doomed(step)), 0)  # type: ignore[misc]
        check()
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            return step - 1
    raise AssertionError


def hits_of(path: Path) -> list[list[tuple[str, float]]]:
    with Index.open(path) as index:
        index.verify()
        return found(index, QUERIES, 10)


def expect(path: Path, allowed: Sequence[Any]) -> None:
    state = hits_of(path)
    assert state in allowed, f"{path} holds neither the old nor the new state"


def build(folder: Path) -> int:
    vectors = make_folder(folder / "vectors", ROWS)
    path = folder / "index"

    def job() -> None:
        Index.build(path, vectors, corpus_of(160), plan=PLAN).close()

    job()
    after = hits_of(path)
    shutil.rmtree(path)

    def check() -> None:
        if path.exists():
            expect(path, [after])
            shutil.rmtree(path)

    return kill_at_every_step(job, check)


def overwrite(folder: Path) -> int:
    path = folder / "index"
    build_index(path, ROWS[:100], plan=PLAN).close()
    before = hits_of(path)
    vectors = make_folder(folder / "vectors", ROWS)
    build_index(folder / "other", ROWS, plan=PLAN).close()
    after = hits_of(folder / "other")
    old = make_folder(folder / "old-vectors", ROWS[:100])

    def job() -> None:
        Index.build(path, vectors, corpus_of(160), plan=PLAN, overwrite=True).close()

    def check() -> None:
        expect(path, [before, after])
        Index.build(path, old, corpus_of(100), plan=PLAN, overwrite=True).close()
        assert hits_of(path) == before
        assert not [entry for entry in folder.iterdir() if entry.name.startswith(".")]

    return kill_at_every_step(job, check)


def add(folder: Path) -> int:
    pristine, path = folder / "pristine", folder / "index"
    build_index(pristine, ROWS[:100], plan=PLAN).close()
    before = hits_of(pristine)
    build_index(folder / "other", ROWS, plan=PLAN).close()
    after = hits_of(folder / "other")
    shutil.copytree(pristine, path)

    def job() -> None:
        with Index.open(path) as index:
            add_rows(index, 100, 160)

    def check() -> None:
        expect(path, [before, after])
        job_after = hits_of(path) == before
        if job_after:
            job()
        assert hits_of(path) == after
        shutil.rmtree(path)
        shutil.copytree(pristine, path)

    return kill_at_every_step(job, check)


def add_rows(index: Index, start: int, stop: int) -> None:
    corpus = corpus_of(stop - start, start)
    index.add(
        ROWS[start:stop],
        doc_ids=corpus.doc_ids,
        fingerprint=fingerprint_of(WIDTH),
        texts=corpus.texts,
    )


def add_at_random(folder: Path) -> int:
    generator = random.Random(0)
    path = folder / "index"
    build_index(path, ROWS[:20], plan=PLAN).close()
    num_killed = 0
    acknowledged = 20
    while acknowledged < 160:
        reader, writer = os.pipe()

        def job(writer: int = writer) -> None:
            with Index.open(path) as index:
                for start in range(len(index), 160, BATCH):
                    add_rows(index, start, start + BATCH)
                    os.write(writer, b".")

        process = fork(job)
        os.close(writer)
        told = sum(len(os.read(reader, 1)) for _ in range(generator.randrange(8)))
        time.sleep(generator.uniform(0.0, 0.005))
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        num_killed += os.WIFSIGNALED(status)
        while content := os.read(reader, 1 << 16):
            told += len(content)
        os.close(reader)
        acknowledged += told * BATCH
        with Index.open(path) as index:
            # At most the batch that was never acknowledged may be there beyond the others.
            assert len(index) in (acknowledged, acknowledged + BATCH)
            acknowledged = len(index)
            index.verify()
            hits = index.search(ROWS[: len(index)], top_k=1)
            assert [best.doc_id for (best,) in hits] == [f"d{row}" for row in range(len(index))]
    return num_killed


def read_while_overwritten(folder: Path) -> int:
    sizes = (60, 160)
    vectors = [make_folder(folder / str(size), ROWS[:size]) for size in sizes]
    path = folder / "index"
    states = []
    for folder_of_vectors in vectors:
        Index.build(path, folder_of_vectors, plan=PLAN, overwrite=True).close()
        states.append(hits_of(path))

    def job() -> None:
        for folder_of_vectors in itertools.cycle(vectors):
            Index.build(path, folder_of_vectors, plan=PLAN, overwrite=True).close()

    process = fork(job)
    seen: list[list[list[tuple[str, float]]]] = []
    try:
        while len(seen) < 300 or not all(state in seen for state in states):
            with Index.open(path) as index:
                seen.append(found(index, QUERIES, 10))
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    assert all(state in states for state in seen)
    return 1


SCENARIOS = {
    job.__name__: job for job in (build, overwrite, add, add_at_random, read_while_overwritten)
}

if __name__ == "__main__":
    print(SCENARIOS[sys.argv[1]](Path(sys.argv[2])))  # noqa: T201
