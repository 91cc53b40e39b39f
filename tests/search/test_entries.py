import subprocess
import sys
from typing import Any

import pytest

from nestling.errors import DataError
from nestling.search.entries import Entry, make_entries


def test_entries_pair_up_or_are_refused() -> None:
    assert make_entries(["a"], None, None) == [Entry("a", None, None)]
    assert make_entries(["a"], ["x"], [{"k": [1]}]) == [Entry("a", "x", '{"k": [1]}')]
    with pytest.raises(DataError, match="`metadata` must hold one value per document: 1, got 2"):
        make_entries(["a"], None, [{}, {}])


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"a": float("nan")}, "not JSON compliant"),
        ({"a": {1, 2}}, "not JSON serializable"),
        ({"a": "\ud800"}, "surrogates not allowed"),
        ({"\ud800": 1}, "surrogates not allowed"),
        ({"a": "x\0"}, r"the character U\+0000 in metadata"),
        ({"a": ["\\\0"]}, r"the character U\+0000 in metadata"),
        ({"a": nested(100)}, "metadata nested more than 100 deep"),
        ({"a": nested(100_000)}, "recursion"),
    ],
)
def test_metadata_that_no_filter_could_read_is_refused(metadata: Any, reason: str) -> None:
    with pytest.raises(DataError, match=f"metadata must be JSON, got .*{reason}.* in document 'b'"):
        make_entries(["a", "b"], None, [{}, metadata])


def test_what_only_looks_like_it_is_taken() -> None:
    metadata = {"a": "\\u0000", "b": "[" * 200, "c": nested(99), "d": [[]] * 200}
    (entry,) = make_entries(["a"], None, [metadata])
    assert entry.metadata is not None


def test_a_checksum_covers_row_birth_and_every_field() -> None:
    entry = Entry("d", "text", "{}")
    expected = entry.checksum(row=1, born=1)
    others = [
        entry.checksum(row=2, born=1),
        entry.checksum(row=1, born=2),
        entry.checksum(row=11, born=1),
        Entry("dt", "ext", "{}").checksum(row=1, born=1),
        Entry("d", "text{}", None).checksum(row=1, born=1),
        Entry("d", None, "{}").checksum(row=1, born=1),
        Entry("d", "None", "{}").checksum(row=1, born=1),
        Entry("d", "", "{}").checksum(row=1, born=1),
    ]
    assert len({expected, *others}) == 9


@pytest.mark.parametrize("arguments", ["[7], ['x'], None", "['a'], [7], None", "['a'], [0], None"])
def test_numbers_are_not_taken_for_ids_or_texts(arguments: str) -> None:
    # In a process of its own, without the type checks of the tests: SQLite would turn the number
    # into text, which its checksum then does not fit.
    program = (
        "from nestling.search.entries import make_entries, DataError\n"
        f"try: make_entries({arguments})\n"
        "except DataError as error: print(error)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "must be Unicode" in finished.stdout
    assert "expected str instance, int found in document" in finished.stdout
