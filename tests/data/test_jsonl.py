from collections.abc import Callable
from pathlib import Path

import pytest

from nestling.data.jsonl import read_jsonl
from nestling.errors import DataError

Write = Callable[[str, str | bytes], Path]


def test_reads_objects_and_skips_blank_lines(write: Write) -> None:
    found = list(read_jsonl(write("a.jsonl", '{"text": "a\\u2028b"}\r\n\n  \n{"text": "c"}')))
    assert [record.place for record in found] == ["line 1", "line 4"]
    assert [record.fields["text"] for record in found] == ["a\u2028b", "c"]


def test_malformed_line_is_named(write: Write) -> None:
    path = write("a.jsonl", '{"text": "fine"}\n{"text": "cut o')
    with pytest.raises(
        DataError,
        match=r"line 2 of .*a\.jsonl must be JSON, got .*cut o.*: Unterminated string.*Mend or remove",
    ):
        list(read_jsonl(path))


def test_long_malformed_line_is_shortened(write: Write) -> None:
    with pytest.raises(DataError, match=r"got 'x{60}\.\.\.':"):
        list(read_jsonl(write("a.jsonl", "x" * 500)))


def test_line_must_be_an_object(write: Write) -> None:
    with pytest.raises(
        DataError,
        match=r"line 1 of .* must be a JSON object with `text`, got '\[1, 2\]'\. Write it as",
    ):
        list(read_jsonl(write("a.jsonl", "[1, 2]\n")))


def test_deep_nesting_is_an_error_not_a_crash(write: Write) -> None:
    with pytest.raises(DataError, match="must be JSON"):
        list(read_jsonl(write("a.jsonl", "[" * 100_000)))


def test_a_number_too_long_to_read_is_named(write: Write) -> None:
    with pytest.raises(DataError, match=r"line 2 of .* must be JSON, got .*4300 digits"):
        list(
            read_jsonl(write("a.jsonl", '{"text": "x"}\n{"text": "x", "n": ' + "1" * 5000 + "}\n"))
        )
