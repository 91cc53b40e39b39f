from collections.abc import Callable
from pathlib import Path

import pytest

from nestling.data.tables import read_rows, read_table
from nestling.errors import DataError

Write = Callable[[str, str | bytes], Path]


def test_tsv_keeps_stray_quotes(write: Write) -> None:
    path = write("a.tsv", 'label\ttext\r\nx\t"never closed\n\ny\tsaid "hi"\n')
    assert [row.cells for row in read_rows(path)] == [
        ["label", "text"],
        ["x", '"never closed'],
        ["y", 'said "hi"'],
    ]


def test_csv_follows_rfc_4180(write: Write) -> None:
    path = write("a.csv", 'id,text\r\n1,"a, b"\r\n2,"two\nlines and ""quotes"""\r\n3,c\r\n')
    rows = list(read_rows(path))
    assert [row.cells for row in rows] == [
        ["id", "text"],
        ["1", "a, b"],
        ["2", 'two\nlines and "quotes"'],
        ["3", "c"],
    ]
    assert [row.line for row in rows] == [1, 2, 4, 5]


def test_csv_cells_may_be_long(write: Write) -> None:
    text = "word " * 100_000
    assert next(iter(read_table(write("a.csv", f"text\n{text}\n")))).fields["text"] == text


def test_csv_with_open_quote(write: Write) -> None:
    with pytest.raises(
        DataError,
        match=r"line 2 of .*a\.csv must be CSV, got unexpected end of data\. Double the quotes",
    ):
        list(read_rows(write("a.csv", 'text\n"never closed\n')))


def test_header_names_the_columns(write: Write) -> None:
    found = list(read_table(write("a.tsv", "id\ttext\tlang\na\tx\ten\n")))
    assert [dict(record.fields) for record in found] == [{"id": "a", "text": "x", "lang": "en"}]
    assert found[0].place == "line 2"


def test_one_column_needs_no_header(write: Write) -> None:
    found = list(read_table(write("a.tsv", "first\nsecond\n")))
    assert [dict(record.fields) for record in found] == [{"text": "first"}, {"text": "second"}]


def test_missing_text_column(write: Write) -> None:
    with pytest.raises(
        DataError,
        match=r"must have a column `text`, got the columns 'id', 'body'\. Name the column",
    ):
        list(read_table(write("a.csv", "id,body\n1,x\n")))


def test_ragged_row(write: Write) -> None:
    with pytest.raises(
        DataError,
        match=r"line 3 of .* must have 2 cells like the first row, got 3\. A cell of a CSV",
    ):
        list(read_table(write("a.csv", "id,text\n1,x\n2,y,z\n")))


def test_columns_of_one_name_are_refused(write: Write) -> None:
    with pytest.raises(DataError, match=r"a\.csv must name each column once, got 'id' again"):
        list(read_table(write("a.csv", "id,text,id\n1,x,2\n")))
    assert len(list(read_table(write("b.csv", "text,,\nx,,\n")))) == 1
