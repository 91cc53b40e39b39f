import subprocess
import sys
from pathlib import Path

import pytest

from nestling.errors import DataError, FormatError, WriteError
from nestling.search.catalogue import Catalogue, Entry, make_entries


def entries_of(start: int, stop: int) -> list[Entry]:
    return [Entry(f"d{number}", f"text {number}", '{"a": 1}') for number in range(start, stop)]


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    made = Catalogue.create(tmp_path / "catalogue.sqlite")
    made.append(entries_of(0, 10), first_row=0, checksum=0)
    return made


def test_rows_are_looked_up_together(catalogue: Catalogue) -> None:
    found = catalogue.lookup([7, 2, 99])
    assert found == {7: entries_of(7, 8)[0], 2: entries_of(2, 3)[0]}
    assert catalogue.lookup([]) == {}


def test_the_checksum_is_continued(catalogue: Catalogue, tmp_path: Path) -> None:
    whole = Catalogue.create(tmp_path / "whole.sqlite")
    expected = whole.append(entries_of(0, 15), first_row=0, checksum=0)
    _, so_far = catalogue.measure(10)
    assert catalogue.append(entries_of(10, 15), first_row=10, checksum=so_far) == expected
    assert catalogue.measure(15) == whole.measure(15) == (15, expected)


def test_what_is_behind_the_counted_rows_does_not_count(catalogue: Catalogue) -> None:
    counted = catalogue.measure(4)
    assert counted[0] == 4
    assert catalogue.find_known(["d3", "d4", "new"], num_rows=4) == ["d3"]
    catalogue.cut(4)
    assert catalogue.measure(10) == counted
    assert catalogue.find_known(["d4"], num_rows=10) == []


def test_many_ids_are_asked_for_in_pieces(catalogue: Catalogue) -> None:
    asked = [f"n{number}" for number in range(5000)] + ["d9"] + [f"m{n}" for n in range(5000)]
    assert catalogue.find_known(asked, num_rows=10) == ["d9"]


def test_a_failed_append_leaves_nothing(catalogue: Catalogue) -> None:
    before = catalogue.measure(100)
    with pytest.raises(WriteError, match=r"cannot write .*catalogue\.sqlite: UNIQUE"):
        catalogue.append([*entries_of(10, 14), Entry("d0", None, None)], first_row=10, checksum=0)
    assert catalogue.measure(100) == before


def test_a_full_disk_is_named_and_leaves_nothing(catalogue: Catalogue) -> None:
    before = catalogue.measure(100_000)
    catalogue._connection.execute("PRAGMA max_page_count = 8")
    with pytest.raises(WriteError, match=r"database or disk is full\. Free some space"):
        catalogue.append(entries_of(10, 10_000), first_row=10, checksum=0)
    assert catalogue.measure(100_000) == before


def test_an_open_catalogue_must_hold_all_rows(catalogue: Catalogue, tmp_path: Path) -> None:
    path = tmp_path / "catalogue.sqlite"
    Catalogue.open(path, num_rows=10).close()
    with pytest.raises(FormatError, match="must hold 11 documents, it has 10"):
        Catalogue.open(path, num_rows=11)
    Catalogue.create(tmp_path / "empty.sqlite").close()
    with pytest.raises(FormatError, match="must hold 1 documents, it has 0"):
        Catalogue.open(tmp_path / "empty.sqlite", num_rows=1)


def test_a_missing_or_foreign_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"cannot read .*nowhere\.sqlite: unable to open"):
        Catalogue.open(tmp_path / "nowhere.sqlite", num_rows=1)
    (tmp_path / "text.sqlite").write_text("not a database, whatever its name says" * 100)
    with pytest.raises(FormatError, match=r"cannot read .*text\.sqlite: file is not a database"):
        Catalogue.open(tmp_path / "text.sqlite", num_rows=1)


def test_a_path_may_hold_any_character(tmp_path: Path) -> None:
    path = tmp_path / "a b?mode=ro#%41é.sqlite"
    Catalogue.create(path).close()
    assert path.exists()


def test_entries_pair_up_or_are_refused() -> None:
    assert make_entries(["a"], None, None) == [Entry("a", None, None)]
    assert make_entries(["a"], ["x"], [{"k": [1]}]) == [Entry("a", "x", '{"k": [1]}')]
    with pytest.raises(DataError, match="`metadata` must hold one value per document: 1, got 2"):
        make_entries(["a"], None, [{}, {}])


@pytest.mark.parametrize("arguments", ["[7], ['x'], None", "['a'], [7], None"])
def test_numbers_are_not_taken_for_ids_or_texts(arguments: str) -> None:
    # In a process of its own, without the type checks of the tests: SQLite would turn the number
    # into text, which its checksum then does not fit.
    program = (
        "from nestling.search.catalogue import make_entries, DataError\n"
        f"try: make_entries({arguments})\n"
        "except DataError as error: print(error)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "must be Unicode" in finished.stdout
    assert "expected str instance, int found in document" in finished.stdout
