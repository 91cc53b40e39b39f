"""Run by `test_kill.py` in a process of its own: kills writers and looks at what they leave.

A writer is forked, and killed by signal 9 either just before its n-th flush, rename, removal, cut or
commit, for every n until it gets through, or at random moments. What is left must open, verify, and
equal a model in memory before or after the change. Prints how many writers were killed.
"""

import itertools
import os
import random
import shutil
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nestling.search import Index
from nestling.search.rowfile import RowWriter
from tests.search.support import build_index, contents, corpus_of, make_folder, random_rows
from tests.search.workload import (
    CODES,
    FLAT,
    GRAPH,
    SIGNS,
    WIDTH,
    Model,
    Step,
    add_step,
    delete_step,
    start,
    steps,
)

NUM_ROWS = 30
NUM_RANDOM = 170
NUM_SEEN = 40
MOST_CHANGES = 2000


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

    def count() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **options: Any) -> Any:
            count()
            return function(*args, **options)

        return wrapper

    class Connection(sqlite3.Connection):
        def execute(self, statement: str, *args: Any) -> Any:
            if statement in ("COMMIT", "BEGIN IMMEDIATE"):
                count()
            return super().execute(statement, *args)

    os.fsync = counted(os.fsync)
    os.unlink = counted(os.unlink)
    os.rmdir = counted(os.rmdir)
    shutil.rmtree = counted(shutil.rmtree)  # type: ignore[assignment]
    RowWriter.__init__ = counted(RowWriter.__init__)  # type: ignore[method-assign]
    for name in ("rename", "replace", "unlink", "mkdir"):
        setattr(Path, name, counted(getattr(Path, name)))
    connect = sqlite3.connect
    sqlite3.connect = lambda *args, **options: connect(*args, factory=Connection, **options)  # type: ignore[assignment]


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


def check_holds(path: Path, allowed: Sequence[Model]) -> Model:
    """Open what a dead writer left, and return which of the models it holds."""
    with Index.open(path) as index:
        index.verify()
        found = contents(index)
    held = [model for model in allowed if model == found]
    assert held, f"{path} holds none of {len(allowed)} states"
    return held[0]


def build(folder: Path) -> int:
    rows = random_rows(NUM_ROWS, WIDTH)
    vectors = make_folder(folder / "vectors", rows)
    path = folder / "index"

    def job() -> None:
        Index.build(path, vectors, corpus_of(NUM_ROWS), plan=CODES).close()

    job()
    with Index.open(path) as index:
        after = contents(index)
    shutil.rmtree(path)

    def check() -> None:
        if path.exists():
            check_holds(path, [after])
            shutil.rmtree(path)

    return kill_at_every_step(job, check)


def overwrite(folder: Path) -> int:
    path = folder / "index"
    before = start(path, 20, CODES)
    vectors = make_folder(folder / "vectors", random_rows(NUM_ROWS, WIDTH))
    build_index(folder / "other", random_rows(NUM_ROWS, WIDTH), plan=GRAPH).close()
    with Index.open(folder / "other") as index:
        after = contents(index)
    shutil.copytree(path, folder / "pristine")

    def job() -> None:
        Index.build(path, vectors, corpus_of(NUM_ROWS), plan=GRAPH, overwrite=True).close()

    def check() -> None:
        check_holds(path, [before, after])
        job()
        check_holds(path, [after])
        check_no_leftovers(path)
        shutil.rmtree(path)
        shutil.copytree(folder / "pristine", path)

    return kill_at_every_step(job, check)


def check_no_leftovers(path: Path) -> None:
    with Index.open(path) as index:
        named = {*index.snapshot.manifest.folders, "index.json"}
        assert {entry.name for entry in path.iterdir()} <= named


def change(
    folder: Path, prepare: Sequence[Callable[[Model], Step]], final: Callable[[Model], Step]
) -> int:
    """Kill one change at every step; the next change clears what is left, and nothing is lost."""
    pristine, path = folder / "pristine", folder / "index"
    model = start(pristine, NUM_ROWS, GRAPH)
    with Index.open(pristine) as index:
        for make in prepare:
            step = make(model)
            step.apply(index)
            model = step.model
    last = final(model)
    shutil.copytree(pristine, path)

    def job() -> None:
        with Index.open(path) as index:
            last.apply(index)

    def check() -> None:
        held = check_holds(path, [model, last.model])
        with Index.open(path) as index:
            if held == model:  # the same change meets what is left of it
                last.apply(index)
                assert contents(index) == last.model
            again = add_step(last.model, ["again"], 77)
            again.apply(index)
        check_holds(path, [again.model])
        check_no_leftovers(path)
        shutil.rmtree(path)
        shutil.copytree(pristine, path)

    return kill_at_every_step(job, check)


def _add(model: Model) -> Step:
    return add_step(model, ["new", "newer"], 1)


def _upsert(model: Model) -> Step:
    return add_step(model, ["d3", "d5", "newest"], 2)


def _delete(model: Model) -> Step:
    return delete_step(model, ["d1", "d7", "d11"])


def add(folder: Path) -> int:
    return change(folder, [], _add)


def upsert(folder: Path) -> int:
    return change(folder, [_add], _upsert)


def delete(folder: Path) -> int:
    return change(folder, [_add, _upsert], _delete)


def compact(folder: Path) -> int:
    last = Step("compact", lambda index: index.compact(), {})
    return change(folder, [_add, _upsert, _delete], lambda model: last._replace(model=model))


def absorb(folder: Path) -> int:
    """Compact when there is nothing but a tail that the engine does not know."""
    last = Step("compact", lambda index: index.compact(), {})
    return change(folder, [_add], lambda model: last._replace(model=model))


def resize(folder: Path) -> int:
    last = Step("resize", lambda index: index.resize(CODES), {})
    return change(folder, [_add, _delete], lambda model: last._replace(model=model))


def resize_back(folder: Path) -> int:
    last = Step("resize", lambda index: index.resize(SIGNS), {})
    return change(folder, [_delete], lambda model: last._replace(model=model))


def at_random(folder: Path) -> int:
    """Kill a writer that changes an index without end at random moments; what it reported is there."""
    generator = random.Random(0)
    path = folder / "index"
    held = start(path, NUM_ROWS, FLAT)
    num_killed = 0
    while num_killed < NUM_RANDOM:
        reader, writer = os.pipe()
        changes = steps(held, seed=num_killed)

        def job(writer: int = writer, changes: Any = changes) -> None:
            with Index.open(path) as index:
                for step in changes:
                    step.apply(index)
                    os.write(writer, b".")

        process = fork(job)
        os.close(writer)
        told = sum(len(os.read(reader, 1)) for _ in range(generator.randrange(4)))
        time.sleep(generator.uniform(0.0, 0.02))
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        num_killed += os.WIFSIGNALED(status)
        while content := os.read(reader, 1 << 16):
            told += len(content)
        os.close(reader)
        states = [held, *(step.model for step in itertools.islice(changes, told + 1))]
        # At most the change that was never acknowledged may be there beyond the others.
        held = check_holds(path, states[told:])
    return num_killed


def read_while_written(folder: Path) -> int:
    """Readers that refresh, and readers that open anew, see one generation while a writer changes it."""
    path = folder / "index"
    begun = start(path, NUM_ROWS, FLAT)

    def write() -> None:
        with Index.open(path) as index:
            for step in steps(begun):
                step.apply(index)

    def read(refreshes: bool) -> None:
        changes = steps(begun)
        model = begun
        seen: set[int] = set()
        index = Index.open(path)
        while len(seen) < NUM_SEEN:
            if refreshes:
                index.refresh()
            else:
                index.close()
                index = Index.open(path)
            found = contents(index)
            # What is seen is the model after this change or a later one, whole.
            for step in itertools.islice(changes, MOST_CHANGES if found != model else 0):
                model = step.model
                if found == model:
                    break
            assert found == model
            seen.add(index.generation)

    writer = fork(write)
    try:
        readers = [fork(lambda kind=kind: read(kind)) for kind in (True, False)]  # type: ignore[misc]
        for reader in readers:
            _, status = os.waitpid(reader, 0)
            assert os.WIFEXITED(status)
            assert os.WEXITSTATUS(status) == 0
    finally:
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
    return 1


SCENARIOS = {
    job.__name__: job
    for job in (
        build,
        overwrite,
        add,
        upsert,
        delete,
        compact,
        absorb,
        resize,
        resize_back,
        at_random,
        read_while_written,
    )
}

if __name__ == "__main__":
    print(SCENARIOS[sys.argv[1]](Path(sys.argv[2])))  # noqa: T201
