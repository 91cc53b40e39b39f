"""Labelled texts: train and test side."""

from pathlib import Path
from typing import NamedTuple

from nestling.data.records import check_encodable
from nestling.data.splits import TRAIN_SHARE, unit_hash
from nestling.data.tables import check_num_cells, read_rows
from nestling.data.types import ClassificationTask
from nestling.errors import DataError


class LabelledTexts(NamedTuple):
    """Texts and their labels side by side."""

    texts: list[str]
    labels: list[str]


def read_labels(path: Path, *, name: str) -> ClassificationTask:
    """Read a classification task from a file of labelled texts.

    `X-test.tsv` takes `X-train.tsv` beside it as its train side. Any other file is split by a hash
    of the text, 80% train and 20% test, so that equal texts stay on one side.

    Raises:
        DataError: If a file is malformed, or a side is empty or of a single label.
    """
    test = read_labelled_texts(path)
    train_path = path.with_name(path.name.replace("-test.", "-train."))
    if train_path != path and train_path.exists():
        train = read_labelled_texts(train_path)
        origin = f"trained on {train_path.name} beside it"
    else:
        train, test = _split(test)
        origin = "no train file beside it: split by a hash of the text, 80% train and 20% test"
    if not test.texts or len(set(train.labels)) < 2:
        raise DataError(
            f"{path} must give at least two labels to train on and one text to test, got "
            f"{len(set(train.labels))} labels in {len(train.texts)} train texts and {len(test.texts)} test texts."
        )
    size = f"{len(train.texts):,} train and {len(test.texts):,} test texts"
    notes = [f"{size}, {len(set(train.labels)):,} labels; {origin}"]
    if unseen := set(test.labels) - set(train.labels):
        notes.append(f"{len(unseen):,} labels of the test side are not on the train side")
    if shared := len(set(test.texts) & set(train.texts)):
        notes.append(f"{shared:,} texts are on both sides")
    return ClassificationTask(
        name=name,
        train_inputs=train.texts,
        train_labels=train.labels,
        test_inputs=test.texts,
        test_labels=test.labels,
        notes=tuple(notes),
    )


def read_labelled_texts(path: Path) -> LabelledTexts:
    """Read one file.

    A header must name `text`; the label is the column `label`, or else the one before `text`.
    Without a header there must be two columns, label and text.

    Raises:
        DataError: If the file is malformed or empty, or a text or label is empty.
    """
    found = LabelledTexts([], [])
    label_column, text_column, num_columns = -2, -1, 0
    for row in read_rows(path):
        names = [cell.strip().lower() for cell in row.cells]
        if not num_columns:
            num_columns = len(names)
            if "text" in names or "label" in names:
                label_column, text_column = _named_columns(names, path)
                continue
            if num_columns != 2:
                raise DataError(
                    f"{path} must have a label and a text in each line, or name its columns `label` and `text` "
                    f"in the first, got {num_columns} columns: {row.cells}."
                )
        check_num_cells(row, num_columns, path)
        text, label = row.cells[text_column].strip(), row.cells[label_column].strip()
        if not text or not label:
            raise DataError(
                f"line {row.line} of {path} must hold a label and a text, got {row.cells}. "
                f"Mend or remove this line."
            )
        found.texts.append(check_encodable(text, f"line {row.line} of {path}"))
        found.labels.append(label)
    if not found.texts:
        raise DataError(f"{path} must hold at least one labelled text, got none.")
    return found


def _named_columns(names: list[str], path: Path) -> tuple[int, int]:
    if "text" not in names or ("label" not in names and names.index("text") == 0):
        missing = "text" if "text" not in names else "label"
        raise DataError(
            f"{path} must have the columns `label` and `text`, got {', '.join(map(repr, names))} without "
            f"`{missing}`. Name them in the first line."
        )
    text = names.index("text")
    return (names.index("label") if "label" in names else text - 1), text


def _split(found: LabelledTexts) -> tuple[LabelledTexts, LabelledTexts]:
    train, test = LabelledTexts([], []), LabelledTexts([], [])
    for text, label in zip(*found, strict=True):
        side = train if unit_hash(text) < TRAIN_SHARE else test
        side.texts.append(text)
        side.labels.append(label)
    return train, test
