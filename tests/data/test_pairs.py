import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nestling.data.pairs import read_pair_classification, read_sts
from nestling.errors import DataError

Write = Callable[[str, str | bytes], Path]

HEADER = "sentence1\tsentence2\tscore\n"
ROWS = 'an owl\t"a bird\t4.5\nan owl\ta stone\t0\n'


@pytest.mark.parametrize(
    "content",
    [
        HEADER + ROWS,
        ROWS,
        "Left\tRight\tScore\n" + ROWS,
        'score\tsentence2\tsplit\tsentence1\n4.5\t"a bird\tx\tan owl\n0\ta stone\tx\tan owl\n',
    ],
)
def test_sts_with_and_without_header(write: Write, content: str) -> None:
    task = read_sts(write("a.tsv", content), name="sts:a")
    assert task.left == ["an owl", "an owl"]
    assert task.right == ['"a bird', "a stone"]
    np.testing.assert_array_equal(task.gold, [4.5, 0.0])
    assert task.notes == ("2 pairs with scores from 0 to 4.5",)


def test_sts_from_gz_and_csv(write: Write) -> None:
    packed = read_sts(write("a.tsv.gz", gzip.compress((HEADER + ROWS).encode())), name="x")
    assert packed.right == ['"a bird', "a stone"]
    comma = write("a.csv", 'sentence1,sentence2,score\n"an owl, say",a bird,4\nan owl,a stone,0\n')
    assert read_sts(comma, name="x").left == ["an owl, say", "an owl"]


@pytest.mark.parametrize("score", ["nan", "inf", "-inf", "high", ""])
def test_sts_score_must_be_finite(write: Write, score: str) -> None:
    path = write("a.tsv", f"{HEADER}a\tb\t1\nc\td\t{score}\n")
    with pytest.raises(
        DataError, match=rf"a score must be a finite number, got '{score}' in line 3 of .*a\.tsv"
    ):
        read_sts(path, name="x")


@pytest.mark.parametrize("content", ["", HEADER, HEADER + "a\tb\t1\n", "a\tb\t1\nc\td\t1\n"])
def test_sts_needs_something_to_rank(write: Write, content: str) -> None:
    with pytest.raises(
        DataError, match=r"must hold pairs with at least two different scores to rank, got \d pairs"
    ):
        read_sts(write("a.tsv", content), name="x")


@pytest.mark.parametrize(
    ("first", "separator"), [("a,b,1", "tab"), ("a\tb", "tab"), ("one\ttwo\tthree", "tab")]
)
def test_sts_missing_columns(write: Write, first: str, separator: str) -> None:
    with pytest.raises(
        DataError,
        match=rf"must have the columns sentence1, sentence2 and score, named in the first line or in this order, got the first line \[.*with a {separator} between",
    ):
        read_sts(write("a.tsv", first + "\n"), name="x")
    with pytest.raises(DataError, match="with a comma between"):
        read_sts(write("a.csv", "a\tb\t1\n"), name="x")


def test_empty_text_and_ragged_row(write: Write) -> None:
    with pytest.raises(DataError, match=r"line 2 of .* must hold two texts, got an empty one"):
        read_sts(write("a.tsv", HEADER + "a\t \t1\n"), name="x")
    with pytest.raises(
        DataError, match=r"line 2 of .* must have 3 cells like the first row, got 4"
    ):
        read_sts(write("a.tsv", HEADER + "a\tb\tc\t1\n"), name="x")


def test_png_is_no_sts_file(write: Write) -> None:
    with pytest.raises(DataError, match="must be a text file, got a PNG image"):
        read_sts(write("a.tsv", b"\x89PNG\r\n\x1a\n..."), name="x")


def test_pair_labels_as_words(write: Write) -> None:
    path = write(
        "a.tsv",
        "premise\thypothesis\tlabel\na\tb\tentailment\nc\td\tNeutral\ne\tf\tcontradiction\ng\th\t-\ni\tj\tneutral\n",
    )
    task = read_pair_classification(path, name="pairs:a")
    assert task.left == ["a", "e"]
    assert task.right == ["b", "f"]
    assert task.is_match.tolist() == [True, False]
    assert task.notes == (
        "2 pairs, 1 of them match",
        "2 pairs labelled 'neutral' left out",
        "1 pairs labelled '-' left out",
    )


def test_pair_labels_as_numbers_without_header(write: Write) -> None:
    task = read_pair_classification(write("a.tsv", "a\tb\t1\nc\td\t0\n"), name="x")
    assert task.is_match.tolist() == [True, False]
    assert task.notes == ("2 pairs, 1 of them match",)


def test_unknown_pair_label(write: Write) -> None:
    path = write("a.tsv", "a\tb\t1\nc\td\tmaybe\n")
    with pytest.raises(
        DataError,
        match=r"a label must be one of 1, entailment, 0, contradiction, neutral, -, got 'maybe' in line 2 of",
    ):
        read_pair_classification(path, name="x")


@pytest.mark.parametrize("rows", ["a\tb\t1\nc\td\t1\n", "a\tb\tneutral\n", "text1\ttext2\tlabel\n"])
def test_pairs_of_one_class(write: Write, rows: str) -> None:
    with pytest.raises(
        DataError, match=r"must hold both matching and other pairs, got \d of \d that match"
    ):
        read_pair_classification(write("a.tsv", rows), name="x")
