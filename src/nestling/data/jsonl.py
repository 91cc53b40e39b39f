"""JSON lines: one object with `text` per line."""

import json
from collections.abc import Iterator
from pathlib import Path

from nestling.data.lines import read_lines
from nestling.data.records import Record
from nestling.errors import DataError


def read_jsonl(path: Path) -> Iterator[Record]:
    """Yield one record per line of a JSONL file, plain or gz; blank lines are skipped.

    Raises:
        DataError: If a line is not a JSON object; the message names file and line.
    """
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:  # also a number of thousands of digits
            raise DataError(
                f"line {number} of {path} must be JSON, got {_short(line)}: {error}. "
                f"Mend or remove this line."
            ) from error
        if not isinstance(fields, dict):
            raise DataError(
                f"line {number} of {path} must be a JSON object with `text`, got {_short(line)}. "
                f'Write it as {{"id": ..., "text": ...}}.'
            )
        yield Record(f"line {number}", fields)


def _short(line: str) -> str:
    text = line.strip()
    return repr(text if len(text) <= 60 else text[:60] + "...")
