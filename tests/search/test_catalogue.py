import re
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling.errors import FormatError, WriteError
from nestling.search.catalogue import EMPTY, Catalogue, CatalogueState
from nestling.search.entries import Entry
from nestling.search.filter import compile_filter
from nestling.search.filter_parser import MAX_DEPTH

ALL = compile_filter("exists(id)")


def entries_of(start: int, stop: int, word: str = "text") -> list[Entry]:
    return [
        Entry(f"d{number}", f"{word} {number}", f'{{"n": {number}, "word": "{word}"}}')
        for number in range(start, stop)
    ]


def made(path: Path, *, num_rows: int = 10) -> tuple[Catalogue, CatalogueState]:
    catalogue = Catalogue.create(path)
    return catalogue, catalogue.write(EMPTY, generation=1, entries=entries_of(0, num_rows))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "catalogue.sqlite"


def ids_at(catalogue: Catalogue, generation: int, num_rows: int) -> dict[str, int]:
    rows = catalogue.select(ALL, generation=generation, num_rows=num_rows).rows.tolist()
    return {entry.doc_id: row for row, entry in catalogue.lookup(rows).items()}


def test_rows_are_looked_up_together(path: Path) -> None:
    catalogue, _ = made(path)
    found = catalogue.lookup([7, 2, 7])
    assert found == {7: entries_of(7, 8)[0], 2: entries_of(2, 3)[0]}
    assert catalogue.lookup([]) == {}
    with pytest.raises(FormatError, match=r"catalogue\.sqlite must hold every row .* lacks row 99"):
        catalogue.lookup([2, 99])


def test_fields_may_be_missing_empty_or_anything(path: Path) -> None:
    entries = [
        Entry("", None, None),
        Entry("a", "", None),
        Entry("b\0c'\"", "nul \0 and 😀\n", '{"k": null}'),
    ]
    catalogue = Catalogue.create(path)
    state = catalogue.write(EMPTY, generation=1, entries=entries)
    assert [catalogue.lookup([row])[row] for row in range(3)] == entries
    assert catalogue.measure(generation=1) == state
    assert catalogue.find_live(["b\0c'\"", "b", ""], generation=1) == {"b\0c'\"": 2, "": 0}


def test_every_generation_sees_its_own_documents(path: Path) -> None:
    catalogue, first = made(path, num_rows=4)
    second = catalogue.write(first, generation=2, buried=[1, 3])
    new = [*entries_of(0, 1, "new"), *entries_of(3, 5, "new")]
    third = catalogue.write(second, generation=3, entries=new, buried=[0])
    assert third[:2] == (7, 3)
    assert ids_at(catalogue, 1, 4) == {"d0": 0, "d1": 1, "d2": 2, "d3": 3}
    assert ids_at(catalogue, 2, 4) == {"d0": 0, "d2": 2}
    assert ids_at(catalogue, 3, 7) == {"d2": 2, "d0": 4, "d3": 5, "d4": 6}
    asked = [f"d{number}" for number in range(6)]
    for generation, num_rows in ((1, 4), (2, 4), (3, 7)):
        found = catalogue.find_live(asked, generation=generation)
        assert found == ids_at(catalogue, generation, num_rows)
    assert [catalogue.measure(generation=number) for number in (1, 2, 3)] == [first, second, third]
    assert catalogue.measure(generation=0) == EMPTY


def test_many_ids_are_asked_for_in_pieces(path: Path) -> None:
    catalogue, _ = made(path)
    asked = [f"n{number}" for number in range(1000)] + ["d9"] + [f"m{n}" for n in range(1000)]
    assert catalogue.find_live(asked, generation=1) == {"d9": 9}


def test_what_a_dead_writer_left_is_unseen_and_then_removed(path: Path, tmp_path: Path) -> None:
    catalogue, first = made(path)
    # It replaced d1, removed d2 and added d10, but never got to its manifest.
    left = [*entries_of(1, 2, "lost"), *entries_of(10, 11, "lost")]
    catalogue.write(first, generation=2, entries=left, buried=[1, 2])
    asked = ["d1", "d2", "d10", "d11"]
    assert catalogue.find_live(asked, generation=1) == {"d1": 1, "d2": 2}
    assert catalogue.measure(generation=1) == first
    second = catalogue.write(first, generation=2, entries=entries_of(10, 12), buried=[2])
    assert catalogue.find_live(asked, generation=2) == {"d1": 1, "d10": 10, "d11": 11}
    assert catalogue.lookup([10])[10] == entries_of(10, 11)[0]
    # As if there had been none.
    other, state = made(tmp_path / "other.sqlite")
    assert other.write(state, generation=2, entries=entries_of(10, 12), buried=[2]) == second
    assert catalogue.measure(generation=2) == second


@settings(max_examples=40)  # every step is flushed to the disk
@given(
    st.lists(
        st.tuples(st.sets(st.integers(0, 7)), st.sets(st.integers(0, 7)), st.booleans()),
        max_size=6,
    )
)
def test_any_history_equals_a_dictionary(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[set[int], set[int], bool]]
) -> None:
    catalogue = Catalogue.create(tmp_path_factory.mktemp("any") / "catalogue.sqlite")
    state, live, history = EMPTY, dict[str, int](), [dict[str, int]()]
    for put, removed, is_lost in steps:
        entries = [Entry(f"d{number}", None, None) for number in sorted(put)]
        dying = {f"d{number}" for number in put | removed} & live.keys()
        written = catalogue.write(
            state,
            generation=len(history),
            entries=entries,
            buried=[live[doc_id] for doc_id in dying],
        )
        if is_lost:
            continue
        live = {doc_id: row for doc_id, row in live.items() if doc_id not in dying}
        live |= {entry.doc_id: state.num_rows + place for place, entry in enumerate(entries)}
        state = written
        history.append(live)
    assert catalogue.measure(generation=len(history) - 1) == state
    asked = [f"d{number}" for number in range(8)]
    for generation, expected in enumerate(history):
        assert catalogue.find_live(asked, generation=generation) == expected
        assert ids_at(catalogue, generation, state.num_rows) == expected
    catalogue.close()


def test_a_failed_write_leaves_nothing(path: Path) -> None:
    catalogue, state = made(path)
    with pytest.raises(WriteError, match=r"cannot write .*catalogue\.sqlite: UNIQUE"):
        catalogue.write(
            state, generation=2, entries=[*entries_of(10, 14), Entry("d0", None, None)], buried=[5]
        )
    with pytest.raises(FormatError, match="must hold 2 living rows to delete, it has 1"):
        catalogue.write(state, generation=2, entries=entries_of(10, 12), buried=[5, 77])

    def failing() -> "list[Entry]":
        raise RuntimeError("the caller's own")

    with pytest.raises(RuntimeError, match="the caller's own"):
        catalogue.write(
            state, generation=2, entries=(entry for _ in (1,) for entry in failing()), buried=[5]
        )
    assert catalogue.measure(generation=9) == state


def test_a_full_disk_is_named_and_leaves_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue, state = made(path)

    def connect_small(path: Path) -> sqlite3.Connection:
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("PRAGMA max_page_count = 12")
        return connection

    monkeypatch.setattr("nestling.search.catalogue_file.connect", connect_small)
    with pytest.raises(WriteError, match=r"database or disk is full\. Free some space"):
        catalogue.write(state, generation=2, entries=entries_of(10, 10_000))
    monkeypatch.undo()
    assert catalogue.measure(generation=2) == state


def test_commits_flush_the_folder_too(path: Path) -> None:
    catalogue, _ = made(path)
    assert catalogue._ask("PRAGMA synchronous") == [(3,)]  # EXTRA
    assert catalogue._ask("PRAGMA journal_mode") == [("delete",)]


def test_an_open_catalogue_must_hold_all_rows(path: Path, tmp_path: Path) -> None:
    made(path)[0].close()
    Catalogue.open(path, num_rows=10).close()
    with pytest.raises(FormatError, match="must hold 11 rows, it has 10"):
        Catalogue.open(path, num_rows=11)
    Catalogue.create(tmp_path / "empty.sqlite").close()
    Catalogue.open(tmp_path / "empty.sqlite", num_rows=0).close()
    with pytest.raises(FormatError, match="must hold 1 rows, it has 0"):
        Catalogue.open(tmp_path / "empty.sqlite", num_rows=1)


def test_a_missing_or_foreign_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"cannot read .*nowhere\.sqlite: unable to open"):
        Catalogue.open(tmp_path / "nowhere.sqlite", num_rows=1)
    (tmp_path / "text.sqlite").write_text("not a database, whatever its name says" * 100)
    with pytest.raises(FormatError, match=r"cannot read .*text\.sqlite: file is not a database"):
        Catalogue.open(tmp_path / "text.sqlite", num_rows=1)
    sqlite3.connect(tmp_path / "old.sqlite").execute(
        "CREATE TABLE documents (row)"
    ).connection.close()
    with pytest.raises(FormatError, match="must be a catalogue of version 2, got version 0"):
        Catalogue.open(tmp_path / "old.sqlite", num_rows=0)


def test_a_path_may_hold_any_character(tmp_path: Path) -> None:
    path = tmp_path / "a b?mode=ro#%41é.sqlite"
    Catalogue.create(path).close()
    assert path.exists()
    with pytest.raises(WriteError):
        Catalogue.create(path)


def test_filters_see_one_generation(path: Path) -> None:
    catalogue, first = made(path)
    second = catalogue.write(first, generation=2, entries=entries_of(3, 4, "new"), buried=[3, 5])

    def found(expression: str, generation: int, num_rows: int) -> list[int]:
        wanted = compile_filter(expression)
        rows = catalogue.select(wanted, generation=generation, num_rows=num_rows)
        assert rows.num_rows == num_rows
        return rows.rows.tolist()

    assert found("n >= 3 and n < 6", 1, first.num_rows) == [3, 4, 5]
    assert found("n >= 3 and n < 6", 2, second.num_rows) == [4, 10]
    assert found('word == "new" or id in ("d1", "d5")', 2, second.num_rows) == [1, 10]
    assert found('word == "new" or id in ("d1", "d5")', 1, first.num_rows) == [1, 5]
    assert found("n > 100", 2, second.num_rows) == []
    deepest = "n == 2"
    for _ in range(MAX_DEPTH):
        deepest = f"n == 0 or n != 99 and ({deepest})"
    assert found(deepest, 1, first.num_rows) == [0, 2]


def test_a_copy_holds_one_generation_and_lives_on(path: Path, tmp_path: Path) -> None:
    catalogue, first = made(path)
    second = catalogue.write(first, generation=2, entries=entries_of(1, 2, "new"), buried=[1, 4])
    for generation, state in ((1, first), (2, second)):
        target = tmp_path / f"copy-{generation}.sqlite"
        catalogue.copy(target, generation=generation)
        copy = Catalogue.open(target, num_rows=state.num_rows)
        assert copy.measure(generation=9) == state
        copy.write(state, generation=generation + 1, entries=entries_of(20, 21), buried=[0])
    with pytest.raises(WriteError, match=r"cannot write .*copy-1\.sqlite"):
        catalogue.copy(tmp_path / "copy-1.sqlite", generation=1)
    assert catalogue.measure(generation=2) == second


def test_a_copy_is_made_of_a_file_that_a_writer_removes_meanwhile(
    path: Path, tmp_path: Path
) -> None:
    catalogue, state = made(path)
    path.unlink()
    catalogue.copy(tmp_path / "copy.sqlite", generation=1)
    assert Catalogue.open(tmp_path / "copy.sqlite", num_rows=10).measure(generation=1) == state


def test_living_rows_are_numbered_anew(path: Path, tmp_path: Path) -> None:
    catalogue, first = made(path)
    catalogue.write(first, generation=2, entries=entries_of(1, 2, "new"), buried=[0, 1, 4])
    state = catalogue.copy_live(tmp_path / "new.sqlite", generation=2, born=3)
    copy = Catalogue.open(tmp_path / "new.sqlite", num_rows=8)
    expected = [*entries_of(2, 4), *entries_of(5, 10), *entries_of(1, 2, "new")]
    assert copy.lookup(range(8)) == dict(enumerate(expected))
    assert copy.measure(generation=3) == state
    assert state[:2] == (8, 0)
    assert copy.measure(generation=2) == EMPTY
    assert catalogue.copy_live(tmp_path / "old.sqlite", generation=1, born=3)[:2] == (10, 0)


def measure_or_refusal(path: Path, *, generation: int) -> CatalogueState | str:
    try:
        return Catalogue.open(path, num_rows=1).measure(generation=generation)
    except FormatError as error:
        return str(error)


def damaged_copy(path: Path, target: Path, offset: int) -> Path:
    content = bytearray(path.read_bytes())
    content[offset] ^= 0xFF
    target.write_bytes(content)
    return target


def test_a_flipped_byte_is_found_or_carries_nothing(path: Path, tmp_path: Path) -> None:
    catalogue, first = made(path, num_rows=20)
    state = catalogue.write(first, generation=2, entries=entries_of(3, 6, "new"), buried=[3, 4, 5])
    everything = catalogue.lookup(range(23))
    catalogue.close()
    content = path.read_bytes()
    carrying = {
        found.start() + place
        for found in re.finditer(rb'd12|text 12|"n": 12|new 4', content)
        for place in range(len(found[0]))
    }
    assert len(carrying) > 20
    unnoticed = set()
    for offset in {*range(100), *range(100, len(content), 41), *carrying}:
        target = damaged_copy(path, tmp_path / "flipped.sqlite", offset)
        measured = measure_or_refusal(target, generation=2)
        assert not isinstance(measured, str) or "flipped.sqlite" in measured
        if measured == state:
            unnoticed.add(offset)
            flipped = Catalogue.open(target, num_rows=23)
            assert flipped.lookup(range(23)) == everything
            assert flipped.find_live(["d3", "d9"], generation=2) == {"d3": 20, "d9": 9}
        else:
            serve_nothing_wrong(target, everything)
        target.unlink()
    assert not unnoticed & carrying


def serve_nothing_wrong(target: Path, everything: dict[int, Entry]) -> None:
    for row in range(23):
        try:
            found = Catalogue.open(target, num_rows=23).lookup([row])
        except FormatError:
            continue
        assert found == {row: everything[row]}


def change(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(statement)
    connection.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE documents SET doc_id = 'd77' WHERE row = 7",
        "UPDATE documents SET metadata = '{\"n\": 8}' WHERE row = 7",
        "UPDATE documents SET metadata = NULL WHERE row = 7",
        "UPDATE documents SET metadata = x'00' WHERE row = 7",
        "UPDATE documents SET born = 0 WHERE row = 7",
        "UPDATE documents SET checksum = checksum + 1 WHERE row = 7",
        "UPDATE texts SET text = 'text 8' WHERE row = 7",
        "DELETE FROM texts WHERE row = 7",
        "DELETE FROM documents WHERE row = 7",
        "UPDATE documents SET row = 70 WHERE row = 7",
    ],
)
def test_a_changed_row_is_refused_everywhere(path: Path, tmp_path: Path, statement: str) -> None:
    catalogue, state = made(path)
    change(path, statement)
    with pytest.raises(FormatError, match=r"catalogue\.sqlite (is damaged: row 7|.*lacks row 7)"):
        catalogue.lookup([7])
    assert catalogue.lookup([6]) == {6: entries_of(6, 7)[0]}
    measured = measure_or_refusal(path, generation=1)
    assert "is damaged: row 7" in measured if isinstance(measured, str) else measured != state
    if "DELETE FROM documents" not in statement and "SET row" not in statement:
        with pytest.raises(FormatError, match=r"catalogue\.sqlite is damaged: row 7"):
            catalogue.copy_live(tmp_path / "new.sqlite", generation=1, born=2)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE documents SET died = 2 WHERE row = 7",
        "UPDATE documents SET died = NULL WHERE row = 5",
        "UPDATE documents SET died = 1 WHERE row = 5",
        "UPDATE documents SET died = CASE row WHEN 4 THEN 2 WHEN 5 THEN NULL END WHERE row IN (4, 5)",
    ],
)
def test_a_changed_death_is_measured(path: Path, statement: str) -> None:
    catalogue, state = made(path)
    state = catalogue.write(state, generation=2, buried=[5])
    change(path, statement)
    assert catalogue.measure(generation=2) != state


def test_damage_met_while_writing_is_named(path: Path, tmp_path: Path) -> None:
    catalogue, state = made(path, num_rows=2000)
    catalogue.close()
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    catalogue = Catalogue(path)
    with pytest.raises(FormatError, match=r"cannot read .*catalogue\.sqlite: .*malformed"):
        catalogue.write(state, generation=2, entries=entries_of(2000, 2001))
    with pytest.raises(FormatError, match=r"cannot read .*catalogue\.sqlite: .*malformed"):
        catalogue.copy(tmp_path / "copy.sqlite", generation=1)


def test_threads_share_a_catalogue_while_one_writes(path: Path) -> None:
    catalogue, state = made(path)
    failures: list[BaseException] = []
    is_done = threading.Event()

    def read() -> None:
        try:
            while not is_done.is_set():
                assert catalogue.lookup([3, 9]) == {3: entries_of(3, 4)[0], 9: entries_of(9, 10)[0]}
                assert len(catalogue.find_live(["d3", "d9"], generation=1)) == 2
                assert len(catalogue.select(ALL, generation=1, num_rows=10)) == 10
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for generation in range(2, 22):
        new = entries_of(3, 4, str(generation)) + entries_of(generation * 10, generation * 10 + 10)
        live = catalogue.find_live(["d3"], generation=generation - 1)
        state = catalogue.write(
            state, generation=generation, entries=new, buried=list(live.values())
        )
    is_done.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert catalogue.measure(generation=21) == state


DIE_WHILE_WRITING = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 1")
connection.execute("BEGIN IMMEDIATE")
connection.execute("UPDATE documents SET metadata = '{}', died = 7")
connection.execute("UPDATE texts SET text = text || '!'")
os.kill(os.getpid(), signal.SIGKILL)
"""


def left_by_a_dead_writer(path: Path) -> CatalogueState:
    catalogue, state = made(path, num_rows=500)
    catalogue.close()
    before = path.read_bytes()
    subprocess.run([sys.executable, "-c", DIE_WHILE_WRITING, str(path)], check=False)
    assert path.with_name(f"{path.name}-journal").stat().st_size > 0
    assert path.read_bytes() != before
    return state


def test_a_reader_undoes_what_a_killed_writer_left(path: Path) -> None:
    state = left_by_a_dead_writer(path)
    catalogue = Catalogue.open(path, num_rows=500)
    assert catalogue.lookup([499]) == {499: entries_of(499, 500)[0]}
    assert catalogue.measure(generation=9) == state


READ_AS_NOBODY = """
import os, sys
from pathlib import Path
from nestling.search.catalogue import Catalogue
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
path = Path(sys.argv[1])
assert not os.access(path.parent, os.W_OK)
try:
    catalogue = Catalogue.open(path, num_rows=10)
    print(catalogue.lookup([7])[7].text, catalogue.measure(generation=1).num_rows)
    catalogue.write(catalogue.measure(generation=1), generation=2, buried=[1])
except Exception as error:
    print(error)
"""


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A folder that other users reach, which pytest's are not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder) / "catalogue.sqlite"


def read_as_nobody(path: Path) -> str:
    path.parent.chmod(0o555)
    path.chmod(0o444)
    try:
        finished = subprocess.run(
            [sys.executable, "-c", READ_AS_NOBODY, str(path)],
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        path.parent.chmod(0o755)
    return finished.stdout


def test_a_read_only_folder_is_read(open_to_all: Path) -> None:
    made(open_to_all)[0].close()
    told = read_as_nobody(open_to_all).splitlines()
    assert told[0] == "text 7 10"
    assert told[1].startswith(f"cannot write {open_to_all}: attempt to write a readonly database.")


def test_what_cannot_be_undone_in_a_read_only_folder_is_said(open_to_all: Path) -> None:
    state = left_by_a_dead_writer(open_to_all)
    told = read_as_nobody(open_to_all)
    assert told.startswith(f"cannot read {open_to_all}: ")
    assert "A writer died in the middle of a change, which is undone when the index is" in told
    open_to_all.chmod(0o644)
    assert Catalogue.open(open_to_all, num_rows=500).measure(generation=1) == state
