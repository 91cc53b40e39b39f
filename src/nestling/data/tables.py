"""CSV and TSV: rows of cells, and rows of named fields."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from nestling.data.lines import kind_of, read_lines
from nestling.data.records import Record
from nestling.errors import DataError

LARGEST_CELL = 2**31 - 1
"""The csv module refuses cells above 128 KiB unless told otherwise; documents can be longer."""


class Row(NamedTuple):
    """The cells of one row and the line it ends on."""

    line: int
    cells: list[str]


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file, plain or gz; blank lines are skipped.

    A file named .csv is read with commas and double quotes (RFC 4180). Any other is read with tabs
    and no quoting at all, since published TSV files hold stray quotes: a cell then cannot contain a
    tab or a line break.

    Raises:
        DataError: If the file cannot be read or its quotes do not match.
    """
    if kind_of(path) != ".csv":
        for number, line in enumerate(read_lines(path), 1):
            if line.strip():
                yield Row(number, line.rstrip("\r\n").split("\t"))
        return
    csv.field_size_limit(LARGEST_CELL)
    reader = csv.reader(read_lines(path), strict=True)
    try:
        for cells in reader:
            if cells:
                yield Row(reader.line_num, cells)
    except csv.Error as error:
        raise DataError(
            f"line {reader.line_num} of {path} must be CSV, got {error}. "
            f"Double the quotes inside a quoted cell, and close every quote."
        ) from error


def read_table(path: Path) -> Iterator[Record]:
    """Yield one record per row.

    The first row names the columns if it names a column `text`. A file of one column needs no
    header: each cell is a text.

    Raises:
        DataError: If several columns come without a column `text`, a name is repeated, or a row is
            too short or long.
    """
    names: list[str] = []
    for row in read_rows(path):
        if not names:
            names = [name.strip() for name in row.cells]
            if repeated := {name for name in names if name and names.count(name) > 1}:
                raise DataError(
                    f"{path} must name each column once, got {', '.join(map(repr, sorted(repeated)))} again. "
                    f"Rename or remove the others."
                )
            if "text" in names:
                continue
            if len(names) > 1:
                raise DataError(
                    f"{path} must have a column `text`, got the columns {', '.join(map(repr, names))}. "
                    f"Name the column with the texts `text` in the first line."
                )
            names = ["text"]
        check_num_cells(row, len(names), path)
        yield Record(f"line {row.line}", dict(zip(names, row.cells, strict=True)))


def check_num_cells(row: Row, num_columns: int, path: Path) -> None:
    """Refuse a row that is shorter or longer than the first one.

    Raises:
        DataError: If it is.
    """
    if len(row.cells) != num_columns:
        raise DataError(
            f"line {row.line} of {path} must have {num_columns} cells like the first row, got "
            f"{len(row.cells)}. A cell of a CSV file that contains a comma needs double quotes; a cell "
            f"of a TSV file cannot contain a tab."
        )
