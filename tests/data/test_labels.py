import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from nestling.data.labels import read_labelled_texts, read_labels
from nestling.errors import DataError

Write = Callable[[str, str | bytes], Path]


@pytest.mark.parametrize(
    "content",
    [
        "label\ttext\nbird\tan owl\nrock\ta stone\n",
        "bird\tan owl\nrock\ta stone\n",
        "domain\tintent\ttext\nx\tbird\tan owl\ny\trock\ta stone\n",
        "text\tid\tlabel\nan owl\t1\tbird\na stone\t2\trock\n",
    ],
)
def test_columns(write: Write, content: str) -> None:
    found = read_labelled_texts(write("a.tsv", content))
    assert found.texts == ["an owl", "a stone"]
    assert found.labels == ["bird", "rock"]


def test_train_file_beside_a_test_file(write: Write) -> None:
    write("birds-train.tsv.gz", gzip.compress(b"label\ttext\nbird\towl\nrock\tflint\nbird\tlark\n"))
    path = write("birds-test.tsv.gz", gzip.compress(b"label\ttext\nbird\towl\nfish\tcod\n"))
    task = read_labels(path, name="labels:x")
    assert task.train_inputs == ["owl", "flint", "lark"]
    assert task.train_labels == ["bird", "rock", "bird"]
    assert task.test_inputs == ["owl", "cod"]
    assert task.notes == (
        "3 train and 2 test texts, 2 labels; trained on birds-train.tsv.gz beside it",
        "1 labels of the test side are not on the train side",
        "1 texts are on both sides",
    )


def test_single_file_is_split_by_a_hash_of_the_text(write: Write) -> None:
    rows = [f"{'odd' if number % 2 else 'even'}\tnumber {number}" for number in range(1000)]
    task = read_labels(write("a.tsv", "\n".join([*rows, rows[0]])), name="x")
    assert len(task.train_inputs) + len(task.test_inputs) == 1001
    assert 150 < len(task.test_inputs) < 250
    assert not set(task.train_inputs) & set(task.test_inputs)
    assert "split by a hash of the text, 80% train and 20% test" in task.notes[0]
    moved = read_labels(write("b.tsv", "\n".join(reversed(rows))), name="x")
    assert set(moved.test_inputs) == set(task.test_inputs)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "must hold at least one labelled text, got none"),
        ("label\ttext\n", "must hold at least one labelled text, got none"),
        (
            "just one column\n",
            "must have a label and a text in each line, or .*got 1 columns",
        ),
        (
            "label\tsentence\nx\ty\n",
            "must have the columns `label` and `text`, got 'label', 'sentence' without `text`",
        ),
        (
            "text\tclass\nx\ty\n",
            "must have the columns `label` and `text`, got 'text', 'class' without `label`",
        ),
        ("a\tx\nb\n", "line 2 of .* must have 2 cells like the first row, got 1"),
        ("a\tx\n\ty\n", r"line 2 of .* must hold a label and a text, got \['', 'y'\]"),
    ],
)
def test_bad_files(write: Write, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_labelled_texts(write("a.tsv", content))


def test_nothing_to_tell_apart(write: Write) -> None:
    with pytest.raises(
        DataError,
        match=r"must give at least two labels to train on and one text to test, got 1 labels",
    ):
        read_labels(write("a.tsv", "x\ta\nx\tb\nx\tc\n"), name="x")
