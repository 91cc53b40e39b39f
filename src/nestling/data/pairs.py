"""Pairs of texts: with a similarity score (STS), or with the answer whether they belong together."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nestling.data.records import check_encodable
from nestling.data.tables import check_num_cells, read_rows
from nestling.data.types import PairClassificationTask, SimilarityTask
from nestling.errors import DataError

LABELS = {"1": True, "entailment": True, "0": False, "contradiction": False}
LEFT_OUT = ("neutral", "-")
"""Natural language inference: neither yes nor no, and no agreement among the annotators."""


class Pair(NamedTuple):
    """Two texts and what the file says about them, still as text."""

    line: int
    left: str
    right: str
    value: str


def read_sts(path: Path, *, name: str) -> SimilarityTask:
    """Read an STS file: two texts and a score per row; the header is optional.

    A header names the columns sentence1, sentence2 and score, or score and two others.

    Raises:
        DataError: If the file is malformed, has fewer than two pairs, a score is not a finite
            number, or all scores are equal, so that there is nothing to rank.
    """
    pairs = list(_read_pairs(path, value_name="score", is_value=_is_number))
    gold = np.array([_parse_score(pair, path) for pair in pairs], dtype=np.float64)
    if len(np.unique(gold)) < 2:
        raise DataError(
            f"{path} must hold pairs with at least two different scores to rank, got {len(pairs)} pairs "
            f"and {len(np.unique(gold))} different scores."
        )
    return SimilarityTask(
        name=name,
        left=[pair.left for pair in pairs],
        right=[pair.right for pair in pairs],
        gold=gold,
        notes=(f"{len(pairs):,} pairs with scores from {gold.min():g} to {gold.max():g}",),
    )


def read_pair_classification(path: Path, *, name: str) -> PairClassificationTask:
    """Read pairs labelled 1 or entailment, 0 or contradiction; the header is optional.

    Neutral pairs, and those without an agreed label (-), are left out and counted in the notes.
    A header names the columns sentence1, sentence2 and label, or label and two others.

    Raises:
        DataError: If the file is malformed, a label is another, or only one of the two classes is
            there.
    """
    labels = (*LABELS, *LEFT_OUT)
    pairs = list(
        _read_pairs(path, value_name="label", is_value=lambda cell: cell.lower() in labels)
    )
    for pair in pairs:
        if pair.value.lower() not in labels:
            raise DataError(
                f"a label must be one of {', '.join(labels)}, got {pair.value!r} in line {pair.line} of {path}."
            )
    kept = [pair for pair in pairs if pair.value.lower() in LABELS]
    is_match = np.array([LABELS[pair.value.lower()] for pair in kept], dtype=np.bool_)
    if len(np.unique(is_match)) < 2:
        raise DataError(
            f"{path} must hold both matching and other pairs, got {int(is_match.sum())} of "
            f"{len(is_match)} that match. Without both there is nothing to tell apart."
        )
    left_out = Counter(pair.value.lower() for pair in pairs) - Counter(
        pair.value.lower() for pair in kept
    )
    notes = [f"{len(kept):,} pairs, {int(is_match.sum()):,} of them match"]
    notes += [f"{count:,} pairs labelled {label!r} left out" for label, count in left_out.items()]
    return PairClassificationTask(
        name=name,
        left=[pair.left for pair in kept],
        right=[pair.right for pair in kept],
        is_match=is_match,
        notes=tuple(notes),
    )


def _read_pairs(path: Path, *, value_name: str, is_value: Callable[[str], bool]) -> Iterator[Pair]:
    columns: tuple[int, int, int] | None = None
    num_columns = 0
    for row in read_rows(path):
        if columns is None:
            columns = _find_columns(row.cells, value_name, is_value, path)
            num_columns = len(row.cells)
            if value_name in _names(row.cells):
                continue
        check_num_cells(row, num_columns, path)
        left, right, value = (row.cells[column].strip() for column in columns)
        if not left or not right:
            raise DataError(
                f"line {row.line} of {path} must hold two texts, got an empty one. "
                f"Mend or remove this line."
            )
        place = f"line {row.line} of {path}"
        yield Pair(row.line, check_encodable(left, place), check_encodable(right, place), value)


def _find_columns(
    first_row: list[str], value_name: str, is_value: Callable[[str], bool], path: Path
) -> tuple[int, int, int]:
    """Return the places of both texts and of the value."""
    names = _names(first_row)
    if value_name in names and "sentence1" in names and "sentence2" in names:
        return names.index("sentence1"), names.index("sentence2"), names.index(value_name)
    if len(names) == 3 and value_name in names:
        value = names.index(value_name)
        left, right = (column for column in range(3) if column != value)
        return left, right, value
    if len(names) == 3 and is_value(names[2]):
        return 0, 1, 2
    raise DataError(
        f"{path} must have the columns sentence1, sentence2 and {value_name}, named in the first line or in "
        f"this order, got the first line {first_row}. Name the columns so, with a "
        f"{'comma' if path.name.lower().removesuffix('.gz').endswith('.csv') else 'tab'} between."
    )


def _names(cells: list[str]) -> list[str]:
    return [cell.strip().lower() for cell in cells]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _parse_score(pair: Pair, path: Path) -> float:
    if not _is_number(pair.value) or not np.isfinite(float(pair.value)):
        raise DataError(
            f"a score must be a finite number, got {pair.value!r} in line {pair.line} of {path}. "
            f"Mend or remove this line."
        )
    return float(pair.value)
