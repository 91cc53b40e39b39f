"""The power may be lost at any moment: what was acknowledged is there afterwards.

Every call that changes the disk is recorded, and played back up to any place less whatever was not
flushed yet (`tests/search/crash/disk.py` says what a disk may do). Each fsync is then left out in
turn, which must show: a flush that nothing needs is a flush in the wrong place.
"""

import itertools
import re
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.search.crash.disk import split
from tests.search.crash.life import LIVES, expected, look, look_and_add
from tests.search.crash.log import Enter, Event, Fsync, Leave, Rename, Truncate, Write
from tests.search.crash.programs import FILES, LIFE
from tests.search.crash.recording import program, record, require_tracing
from tests.search.crash.states import Judge, fault_without, faults
from tests.search.support import scratch_folder

NUMBERS = [None, [], [0], [0, 1]]


@pytest.fixture(scope="module", autouse=True)
def _tracing() -> None:
    require_tracing()


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Event]]:
    events = record(program("lives"), tmp_path_factory.mktemp("lives"))
    return split(events, LIFE)


@pytest.fixture(scope="module")
def judges(lives: dict[str, list[Event]]) -> Iterator[dict[str, Judge]]:
    with scratch_folder() as scratch:
        yield {name: judge_of(name, events, scratch / name) for name, events in lives.items()}


def judge_of(name: str, events: Sequence[Event], scratch: Path) -> Judge:
    scratch.mkdir()
    turns = itertools.count()

    def look_below(root: Path) -> Any:
        # Looking disturbs as little as possible; a next writer comes to every tenth state.
        return (look if next(turns) % 10 else look_and_add)(root / name)

    return Judge(events=events, look=look_below, states=expected(LIVES[name]), scratch=scratch)


def read_numbers(root: Path) -> list[int] | None:
    connection = sqlite3.connect(root / "numbers.sqlite")
    try:
        return [number for (number,) in connection.execute("SELECT number FROM numbers")]
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            return None
        raise
    finally:
        connection.close()


def read_files(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and not path.name.endswith(".part")
    }


def judge_sqlite(level: str, folder: Path) -> Judge:
    events = record(program("sqlite", level), folder / "record")
    return Judge(events=events, look=read_numbers, states=NUMBERS, scratch=folder)


def test_sqlite_loses_commits_unless_it_flushes_the_removal_of_its_journal(tmp_path: Path) -> None:
    found = faults(judge_sqlite("FULL", tmp_path))
    assert found
    # Never torn, and nothing else is lost: the model is as hard as SQLite says it can bear.
    for fault in found:
        assert re.match(r"write \d was acknowledged, found the state after write \d;", fault)
        assert "leave numbers.sqlite-journal" in fault


def test_sqlite_keeps_every_commit_at_its_most_careful(tmp_path: Path) -> None:
    judge = judge_sqlite("EXTRA", tmp_path)
    assert faults(judge) == []
    assert judge.num_judged >= 40


def test_sqlite_needs_every_kind_of_flush(tmp_path: Path) -> None:
    judge = judge_sqlite("EXTRA", tmp_path)
    for kind in ("database", "journal", "folder"):
        places = [n for n in range(len(judge.events)) if sqlites(judge.events, n) == kind]
        assert len(places) >= 3
        assert fault_without(judge, places), kind


def test_a_file_written_atomically_is_there_whole_once_that_returned(tmp_path: Path) -> None:
    contents: list[dict[str, bytes]] = [{}]
    for name, content in FILES:
        contents.append({**contents[-1], name: content})
    events = record(program("atomic_files"), tmp_path / "record")
    judge = Judge(events=events, look=read_files, states=contents, scratch=tmp_path)
    assert faults(judge) == []
    assert not useless_fsyncs(judge)


@pytest.mark.parametrize("name", LIVES)
def test_an_index_is_what_was_acknowledged_or_the_next(name: str, judges: dict[str, Judge]) -> None:
    judge = judges[name]
    found = faults(judge)
    assert not found, "\n".join([f"{len(found)} of {judge.num_judged}:", *found[:5]])
    assert judge.num_judged >= 100


@pytest.mark.parametrize("name", LIVES)
def test_every_flush_of_an_index_is_needed(name: str, judges: dict[str, Judge]) -> None:
    # The first two events are the program's own: a folder for this life, and its flush.
    assert not useless_fsyncs(judges[name], first=2)


def test_a_writer_flushes_for_a_builder_that_was_killed(judges: dict[str, Judge]) -> None:
    judge = judges["interrupted"]
    own = [
        place for place in range(2, len(judge.events)) if is_for_the_builder(judge.events, place)
    ]
    assert fault_without(judge, own)


@pytest.mark.parametrize("kind", ["database", "journal", "folder"])
def test_every_kind_of_flush_of_the_catalogue_is_needed(
    kind: str, judges: dict[str, Judge]
) -> None:
    judge = judges["growing"]
    places = [place for place in range(len(judge.events)) if sqlites(judge.events, place) == kind]
    assert places
    assert fault_without(judge, places)


def test_at_least_300_crash_states_were_looked_at(judges: dict[str, Judge]) -> None:
    assert sum(judge.num_judged for judge in judges.values()) >= 300


def useless_fsyncs(judge: Judge, first: int = 0) -> list[str]:
    """Return the fsyncs that could be left out, each alone, without a crash state that tells."""
    events = judge.events
    return [
        judge.name(place)
        for place in range(first, len(events))
        if isinstance(events[place], Fsync)
        and sqlites(events, place) is None
        and not is_for_the_builder(events, place)
        and not is_of_an_empty_file(events, place)
        and not fault_without(judge, {place})
    ]


def is_of_an_empty_file(events: Sequence[Event], place: int) -> bool:
    """Whether an fsync is of a file that nothing was written to: there is nothing to lose."""
    node = events[place].node  # type: ignore[union-attr]
    is_file = any(isinstance(e, Enter) and e.child == node and not e.is_folder for e in events)
    changes = (e for e in events[:place] if isinstance(e, Write | Truncate) and e.node == node)
    return is_file and not any(changes)


def is_for_the_builder(events: Sequence[Event], place: int) -> bool:
    """Whether an fsync is a writer's of the folder above the index, for a builder that was killed.

    Of use only after such a death; a builder's own comes right after its rename.
    """
    event, before = events[place], events[place - 1]
    is_builders = isinstance(before, Rename) and before.path.count("/") == 1
    return isinstance(event, Fsync) and "/" not in event.path and not is_builders


def sqlites(events: Sequence[Event], place: int) -> str | None:
    """Return which kind of SQLite's flushes an event is, or None.

    These are not ours to leave out one by one, only by kind, as a lower `PRAGMA synchronous` would.
    """
    event, before = events[place], events[place - 1]
    if not isinstance(event, Fsync):
        return None
    if event.path.endswith(".sqlite"):
        return "database"
    if event.path.endswith("-journal"):
        return "journal"
    # SQLite flushes the folder as soon as it has flushed or removed its journal.
    about_journal = isinstance(before, Fsync | Leave) and before.path.endswith("-journal")
    return "folder" if about_journal else None
