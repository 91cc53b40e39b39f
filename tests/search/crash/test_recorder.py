"""The recorder misses nothing and refuses what it does not know; the model of a disk forgets."""

from pathlib import Path

import pytest

from tests.search.crash.disk import CrashState, pending, survivors
from tests.search.crash.log import (
    CHANGES,
    ROOT,
    Enter,
    Event,
    Fsync,
    Leave,
    Mark,
    Rename,
    Truncate,
    Write,
    load,
    save,
)
from tests.search.crash.recording import check_complete, program, record, require_tracing

FILE, FOLDER, OTHER = 1, 2, 3
GONE = ("tree", "gone", "raw", "sent", "emptied")


@pytest.fixture(scope="module", autouse=True)
def _tracing() -> None:
    require_tracing()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Event], Path]:
    folder = tmp_path_factory.mktemp("recorded")
    return record(program("every_call"), folder), folder / "root"


def test_every_way_of_writing_is_recorded(recorded: tuple[list[Event], Path]) -> None:
    events, root = recorded
    kinds = {type(event) for event in events}
    assert kinds == {Write, Truncate, Enter, Leave, Rename, Fsync, Mark}
    names = {event.path for event in events if isinstance(event, Write)}
    ways = {"raw", "by the C library", "sent", "ranged", "by a thread", "by a child"}
    assert ways <= names
    check_complete(events, root)


def test_a_recording_that_missed_a_change_is_refused(
    recorded: tuple[list[Event], Path],
) -> None:
    events, root = recorded
    num_noticed = 0
    for place, event in enumerate(events):
        # What was made only to be removed or emptied leaves no trace.
        if isinstance(event, CHANGES) and not event.path.startswith(GONE):
            with pytest.raises((AssertionError, KeyError)):
                check_complete(events[:place] + events[place + 1 :], root)
            num_noticed += 1
    assert num_noticed >= 12


@pytest.mark.parametrize("call", ["mmap", "symlink", "open", "sync", "rename"])
def test_what_the_model_does_not_know_is_refused(call: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=f"does not know.*{call} of"):
        record(program("unknown", call), tmp_path / "record")


def test_a_log_survives_its_file(recorded: tuple[list[Event], Path], tmp_path: Path) -> None:
    save(recorded[0], tmp_path / "log")
    assert load(tmp_path / "log") == recorded[0]


def test_a_file_may_be_durable_and_have_no_name() -> None:
    events: list[Event] = [
        Enter(ROOT, "a", "a", FILE, False),
        Write(FILE, "a", 0, b"data"),
        Fsync(FILE, "a", 2),
    ]
    assert pending(events, 3) == [0]
    assert survivors(events, CrashState(3)) == {"a": b"data"}
    assert survivors(events, CrashState(3, frozenset({0}))) == {}
    assert pending([*events, Fsync(ROOT, ".", 3)], 4) == []


def test_an_fsync_covers_only_what_came_before_it_began() -> None:
    events: list[Event] = [
        Enter(ROOT, "a", "a", FILE, False),
        Write(FILE, "a", 0, b"old"),
        Write(FILE, "a", 0, b"new"),
        Fsync(FILE, "a", 2),
    ]
    assert pending(events, 4) == [0, 2]
    assert pending(events, 4, without={3}) == [0, 1, 2]


def test_a_write_may_be_torn_and_a_file_may_grow_without_its_data() -> None:
    events: list[Event] = [
        Enter(ROOT, "a", "a", FILE, False),
        Write(FILE, "a", 0, b"x" * 500),
        Write(FILE, "a", 500, b"y" * 1000),
    ]

    def content(*sectors: int) -> bytes | None:
        return survivors(events, CrashState(3, frozenset(), {2: frozenset(sectors)}))["a"]

    assert content() == b"x" * 500 + bytes(1000)
    # The second write begins 12 bytes before the end of a sector.
    assert content(0) == b"x" * 500 + b"y" * 12 + bytes(988)
    assert content(1) == b"x" * 500 + bytes(12) + b"y" * 512 + bytes(476)
    assert content(0, 1, 2) == b"x" * 500 + b"y" * 1000


def test_a_rename_is_whole_and_durable_with_the_folder_of_the_new_name() -> None:
    events: list[Event] = [
        Enter(ROOT, "from", "from", FOLDER, True),
        Enter(ROOT, "to", "to", OTHER, True),
        Enter(FOLDER, "from/a", "a", FILE, False),
        Fsync(ROOT, ".", 3),
        Fsync(FOLDER, "from", 4),
        Rename(OTHER, "to/b", "b", FILE, FOLDER, "a"),
        Fsync(FOLDER, "from", 6),
    ]
    assert pending(events, 7) == [5]
    assert survivors(events, CrashState(7)) == {"from": None, "to": None, "to/b": b""}
    before = {"from": None, "from/a": b"", "to": None}
    assert survivors(events, CrashState(7, frozenset({5}))) == before
    assert pending([*events, Fsync(OTHER, "to", 7)], 8) == []


def test_what_is_in_a_folder_is_lost_with_the_folder() -> None:
    events: list[Event] = [
        Enter(ROOT, "new", "new", FOLDER, True),
        Enter(FOLDER, "new/a", "a", FILE, False),
        Fsync(FILE, "new/a", 2),
        Fsync(FOLDER, "new", 3),
    ]
    assert survivors(events, CrashState(4, frozenset({0}))) == {}


def test_removals_may_be_lost_and_outlive_what_came_later() -> None:
    events: list[Event] = [
        Enter(ROOT, "a", "a", FILE, False),
        Write(FILE, "a", 0, b"kept"),
        Fsync(FILE, "a", 2),
        Fsync(ROOT, ".", 3),
        Leave(ROOT, "a", "a"),
        Enter(ROOT, "b", "b", OTHER, False),
    ]
    assert survivors(events, CrashState(6, frozenset({4}))) == {"a": b"kept", "b": b""}
    assert survivors(events, CrashState(6, frozenset({5}))) == {}
