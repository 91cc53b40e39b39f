import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from nestling.data import open_training_pairs
from nestling.data.open_pairs import PAIR_FORMS
from nestling.data.training_pairs import (
    TrainingPairs,
    join_pairs,
    make_pairs,
    pairs_of_labels,
    pairs_of_matches,
)
from nestling.data.types import RetrievalTask
from nestling.errors import DataError


def write(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_builtin_gives_the_queries_of_the_train_split_with_their_documents():
    pairs = open_training_pairs("builtin")
    assert pairs.source == "builtin#train"
    assert len(pairs) > 1000
    assert pairs.negatives is None
    place = pairs.anchors.index("hashlib file digest")
    assert pairs.positives[place].startswith("Hash the contents of a file-like object")


def test_a_named_split_is_taken():
    assert len(open_training_pairs("builtin#validation")) < len(open_training_pairs("builtin"))


def test_beir_gives_a_pair_per_relevant_document(tmp_path):
    write(
        tmp_path / "corpus.jsonl",
        *(json.dumps({"_id": f"d{row}", "title": "T", "text": f"x{row}"}) for row in range(3)),
    )
    write(
        tmp_path / "queries.jsonl",
        json.dumps({"_id": "q0", "text": "zero"}),
        json.dumps({"_id": "q1", "text": "one"}),
    )
    (tmp_path / "qrels").mkdir()
    write(tmp_path / "qrels/train.tsv", "q0\td0\t1", "q0\td1\t2", "q1\td2\t1", "q1\td0\t0")
    pairs = open_training_pairs(f"beir:{tmp_path}")
    assert list(zip(pairs.anchors, pairs.positives, strict=True)) == [
        ("zero", "T x0"),
        ("zero", "T x1"),
        ("one", "T x2"),
    ]


@pytest.mark.parametrize(
    "header",
    ["anchor\tpositive", "query\tdocument", "Premise\tHypothesis", "left\tright"],
)
def test_two_columns_are_read_under_many_names(tmp_path, header):
    pairs = open_training_pairs(write(tmp_path / "p.tsv", header, "a b\tc d", "e f\tg h"))
    assert pairs.anchors == ["a b", "e f"]
    assert pairs.positives == ["c d", "g h"]


def test_unknown_column_names_are_told(tmp_path):
    pairs = open_training_pairs(write(tmp_path / "p.tsv", "left\tright", "a b\tc", "d e\tf"))
    assert pairs.notes == (
        "took the first line of p.tsv for the names of its columns: left, right",
    )


def test_two_columns_without_names_lose_no_line(tmp_path):
    pairs = open_training_pairs(write(tmp_path / "p.tsv", "a b\tc", "d\te"))
    assert pairs.anchors == ["a b", "d"]


def test_negatives_may_be_missing_in_some_rows(tmp_path):
    path = tmp_path / "p.csv.gz"
    path.write_bytes(gzip.compress(b"query,positive,negative\na,b,c\nd,e,\n"))
    pairs = open_training_pairs(str(path))
    assert pairs.negatives == ["c", ""]
    assert "2 pairs, 1 with a hard negative from p.csv.gz" in pairs.describe()


def test_jsonl_is_read_by_its_fields(tmp_path):
    rows = [{"question": "a", "answer": "b"}, {"question": "c", "answer": "d", "negative": "x"}]
    pairs = open_training_pairs(write(tmp_path / "p.jsonl", *map(json.dumps, rows)))
    assert pairs.positives == ["b", "d"]
    assert pairs.negatives == ["", "x"]


def test_labelled_pairs_give_hard_negatives(tmp_path):
    path = write(
        tmp_path / "nli.tsv",
        "premise\thypothesis\tlabel",
        "a\tb\tentailment",
        "a\tc\tcontradiction",
        "d\te\tentailment",
        "d\tf\tneutral",
    )
    for uri in (path, f"pairs:{path}"):
        pairs = open_training_pairs(uri)
        assert list(zip(pairs.anchors, pairs.positives, pairs.negatives or (), strict=True)) == [
            ("a", "b", "c"),
            ("d", "e", ""),
        ]


LABELLED = [
    ("a", "b", "entailment"),
    ("a", "c", "contradiction"),
    ("d", "e", "entailment"),
    ("d", "f", "neutral"),
    ("d", "g", "-"),
]


def write_records(folder: Path, kind: str, rows: Sequence[Mapping[str, object]]) -> str:
    """Write records as a file of a kind; a table has strings only."""
    path = folder / f"p.{kind}"
    if kind == "jsonl":
        return write(path, *map(json.dumps, rows))
    if kind == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows]), path)
        return str(path)
    lines: list[list[object]] = [list(rows[0]), *(list(row.values()) for row in rows)]
    return write(path, *("\t".join(map(str, line)) for line in lines))


def rows_of(pairs: TrainingPairs) -> list[tuple[str, str, str]]:
    negatives = pairs.negatives or [""] * len(pairs)
    return list(zip(pairs.anchors, pairs.positives, negatives, strict=True))


@pytest.mark.parametrize("kind", ["tsv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    "names",
    [
        ("premise", "hypothesis", "label"),
        ("sentence1", "text", "gold_label"),
        ("Query", "Answer", "Label"),
    ],
)
def test_a_label_means_the_same_in_every_kind_of_file(tmp_path, kind, names):
    rows = [dict(zip(names, row, strict=True)) for row in LABELLED]
    pairs = open_training_pairs(write_records(tmp_path, kind, rows))
    assert rows_of(pairs) == [("a", "b", "c"), ("d", "e", "")]
    assert pairs.notes[:3] == (
        "3 pairs, 2 of them match",
        "1 pairs labelled 'neutral' left out",
        "1 pairs labelled '-' left out",
    )


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    "labels", [(1, 0, 1), (True, False, True), (1.0, 0.0, 1.0), ("1", "0", "1")]
)
def test_a_label_may_be_a_number(tmp_path, kind, labels):
    texts = [("a", "b"), ("a", "c"), ("d", "e")]
    rows = [
        {"sentence1": left, "sentence2": right, "label": label}
        for (left, right), label in zip(texts, labels, strict=True)
    ]
    assert rows_of(open_training_pairs(write_records(tmp_path, kind, rows))) == [
        ("a", "b", "c"),
        ("d", "e", ""),
    ]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_parquet_needs_no_column_named_text(tmp_path, kind):
    rows = [{"anchor": "a", "positive": "b"}, {"anchor": "c", "positive": "d"}]
    assert rows_of(open_training_pairs(write_records(tmp_path, kind, rows))) == [
        ("a", "b", ""),
        ("c", "d", ""),
    ]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_each_of_several_negatives_makes_a_pair_of_its_own(tmp_path, kind):
    rows: list[dict[str, object]] = [
        {"query": "a", "positive": "b", "negative": ["x", "y"]},
        {"query": "c", "positive": "d", "negative": ["z"]},
        {"query": "e", "positive": "f", "negative": []},
        {"query": "g", "positive": "h", "negative": None},
    ]
    pairs = open_training_pairs(write_records(tmp_path, kind, rows))
    assert rows_of(pairs) == [
        ("a", "b", "x"),
        ("a", "b", "y"),
        ("c", "d", "z"),
        ("e", "f", ""),
        ("g", "h", ""),
    ]
    assert pairs.groups.tolist() == [0, 0, 1, 2, 3]
    assert pairs.notes[0] == (
        "1 rows with several negatives, each of which makes a pair of its own: 1 pairs more"
    )


@pytest.mark.parametrize("kind", ["tsv", "jsonl", "parquet"])
def test_a_score_is_told_of_and_changes_nothing(tmp_path, kind):
    names = ("anchor", "positive", "Score")
    rows = [dict(zip(names, row, strict=True)) for row in (("a", "b", "0.9"), ("c", "d", "0.1"))]
    pairs = open_training_pairs(write_records(tmp_path, kind, rows))
    assert rows_of(pairs) == [("a", "b", ""), ("c", "d", "")]
    note = "2 rows have a score, which changes nothing: leave out low ones yourself"
    assert pairs.notes == (note,)
    labelled = [{**row, "label": "1"} for row in rows]
    assert open_training_pairs(write_records(tmp_path, kind, labelled)).notes[-1] == note


def test_rows_without_a_value_in_the_column_of_scores_have_none(tmp_path):
    lines = ["anchor\tpositive\tscore", "a\tb\t0.9", "c\td\t"]
    assert open_training_pairs(write(tmp_path / "p.tsv", *lines)).notes == (
        "1 rows have a score, which changes nothing: leave out low ones yourself",
    )
    assert (
        open_training_pairs(write(tmp_path / "p.tsv", *lines[:1], "a\tb\t", "c\td\t")).notes == ()
    )


BAD_RECORDS: list[tuple[dict[str, object], str]] = [
    ({"query": "a", "answer": 3}, r"`positive` in line 2 of .* must be a string, got 3"),
    ({"query": ["a"], "answer": "b"}, r"`anchor` in line 2 of .* must be a string, got \['a'\]"),
    ({"query": None, "answer": "b"}, r"`anchor` in line 2 of .* must be a string, got None"),
    (
        {"query": "a", "answer": "b", "negative": 3},
        r"`negative` in line 2 of .* must be a string or a list of them, got 3",
    ),
    (
        {"query": "a", "answer": "b", "negative": ["x", None]},
        r"`negative` in line 2 of .* must be a string or a list of them, got \['x', None\]",
    ),
    ({"query": "a"}, r"line 2 of .* must have the fields anchor and positive .* got query"),
    ({}, r"line 2 of .* must have the fields anchor and positive .* got none"),
    ({"query": "a", "answer": " "}, r"line 2 of .* must hold an anchor and a positive text"),
    (
        {"query": "a", "answer": "b", "label": 1},
        r"line 2 of .* must have no label, as line 1 has none",
    ),
]


@pytest.mark.parametrize(("record", "message"), BAD_RECORDS)
def test_bad_records_are_refused_by_place_and_rule(tmp_path, record, message):
    good = {"query": "q", "answer": "p"}
    with pytest.raises(DataError, match=message):
        open_training_pairs(write(tmp_path / "p.jsonl", json.dumps(good), json.dumps(record)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": 2}, r"a label must be one of 1, entailment, .* got 2 in line 2 of"),
        ({"label": "topic"}, "got 'topic' in line 2 of"),
        ({"label": None}, "got None in line 2 of"),
        ({"label": [1]}, r"got \[1\] in line 2 of"),
        ({"label": 0.7}, r"got 0\.7 in line 2 of"),
        ({"negative": "n"}, r"line 2 of .* must hold a label or a negative, got both"),
    ],
)
def test_bad_labels_are_refused_by_place_and_rule(tmp_path, changes, message):
    good = {"query": "q", "answer": "p", "label": 1}
    with pytest.raises(DataError, match=message):
        open_training_pairs(
            write(tmp_path / "p.jsonl", json.dumps(good), json.dumps({**good, **changes}))
        )


def test_a_record_without_label_among_labelled_ones_is_refused(tmp_path):
    rows = [{"query": "q", "answer": "p", "label": 1}, {"query": "a", "answer": "b"}]
    with pytest.raises(DataError, match=r"line 2 of .* must have a label, as line 1 has one"):
        open_training_pairs(write(tmp_path / "p.jsonl", *map(json.dumps, rows)))


def test_something_else_that_ends_in_parquet_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"p\.parquet must be a Parquet file"):
        open_training_pairs(write(tmp_path / "p.parquet", "x"))
    rows: list[dict[str, object]] = [{"one": "a", "two": "b"}]
    with pytest.raises(
        DataError, match=r"must have the fields anchor and positive .* got one, two"
    ):
        open_training_pairs(write_records(tmp_path, "parquet", rows))


def test_pairs_that_do_not_match_and_serve_nobody_are_counted():
    pairs = pairs_of_matches(
        ["a", "a", "a", "b", "c"],
        ["x", "n", "m", "y", "z"],
        [True, False, False, True, False],
        source="s",
    )
    assert pairs.notes == (
        "2 pairs that do not match left out: their first text has a hard negative already, or no match",
    )


def test_texts_of_one_label_are_a_group(tmp_path):
    lines = [f"l{row % 3}\ttext {row}" for row in range(60)]
    write(tmp_path / "x-train.tsv", "label\ttext", *lines)
    path = write(tmp_path / "x-test.tsv", "label\ttext", "l0\tother")
    pairs = open_training_pairs(f"labels:{path}")
    label = {line.split("\t")[1]: line.split("\t")[0] for line in lines}
    assert len(pairs) == 60
    for anchor, positive, group in zip(pairs.anchors, pairs.positives, pairs.groups, strict=True):
        assert anchor != positive
        assert label[anchor] == label[positive] == f"l{group}"


def test_equal_positives_are_one_group():
    pairs = make_pairs([("a", "x", ""), ("b", "y", ""), ("c", "x", "")], source="s")
    assert pairs.groups.tolist() == [0, 1, 0]


def test_equal_anchors_are_one_group():
    pairs = make_pairs([("q", "d1", ""), ("q", "d2", ""), ("r", "d3", "")], source="s")
    assert pairs.groups.tolist() == [0, 0, 1]


def test_a_text_that_is_an_anchor_here_and_a_positive_there_links_its_rows():
    rows = [("a", "b", ""), ("b", "c", ""), ("d", "e", "")]
    assert make_pairs(rows, source="s").groups.tolist() == [0, 0, 1]


def test_a_mirrored_pair_is_never_a_negative_of_itself():
    rows = [("a", "b", ""), ("c", "d", "a"), ("b", "a", ""), ("e", "f", "b"), ("d", "c", "")]
    halves = [make_pairs(part, source="s") for part in (rows[:2], rows[2:])]
    for pairs in (make_pairs(rows, source="s"), join_pairs(halves)):
        documents = [*pairs.positives, *(pairs.negatives or ())]
        groups = [*pairs.groups.tolist(), *pairs.negative_groups.tolist()]
        for anchor, own in zip(pairs.anchors, pairs.groups.tolist(), strict=True):
            negatives = [
                text for text, group in zip(documents, groups, strict=True) if group != own
            ]
            assert anchor not in negatives
        assert pairs.groups.tolist() == [0, 1, 0, 2, 1]


def plain_components(rows: Sequence[tuple[str, str]]) -> list[int]:
    """Give every row a colour, and repaint until rows that share a text share their colour."""
    colours = list(range(len(rows)))
    for _ in rows:
        for one, (anchor, positive) in enumerate(rows):
            for other, (anchor_too, positive_too) in enumerate(rows):
                if {anchor, positive} & {anchor_too, positive_too}:
                    colours[one] = colours[other] = min(colours[one], colours[other])
    return [sorted(set(colours)).index(colour) for colour in colours]


some_rows = st.lists(
    st.tuples(st.sampled_from("abcdefghijkl"), st.sampled_from("ijklmnopqrst")),
    min_size=2,
    max_size=12,
)


@given(some_rows)
def test_groups_equal_those_of_a_plain_loop_and_are_numbered_by_their_first_row(rows):
    expected = plain_components(rows)
    if len(set(expected)) < 2:
        with pytest.raises(DataError, match="that share no text"):
            make_pairs([(*row, "") for row in rows], source="s")
        return
    assert make_pairs([(*row, "") for row in rows], source="s").groups.tolist() == expected


@given(some_rows, st.data())
def test_joining_parts_gives_the_groups_of_the_whole(rows, data):
    cut = data.draw(st.integers(1, len(rows) - 1))
    parts = [[(*row, "") for row in part] for part in (rows[:cut], rows[cut:])]
    try:
        opened = [make_pairs(part, source="s") for part in parts]
    except DataError:
        return
    assert join_pairs(opened).groups.tolist() == plain_components(rows)


def test_a_very_large_group_is_told():
    rows = [("the", f"p{row}", "") for row in range(6)]
    rows += [(f"a{row}", f"q{row}", "") for row in range(94)]
    (note,) = make_pairs(rows, source="s").notes
    assert note.startswith("the largest group of pairs linked by equal texts holds 6 of 100")
    assert make_pairs(rows[2:], source="s").notes == ()
    halves = [
        make_pairs(part, source="s") for part in ([*rows[:3], *rows[6:]], rows[3:6] + rows[9:12])
    ]
    assert "holds 6 of 103" in join_pairs(halves).notes[-1]


def test_labels_are_no_large_group_to_tell_of():
    pairs = pairs_of_labels([f"t{row}" for row in range(20)], ["x", "y"] * 10, source="s")
    assert len(pairs.notes) == 1


def test_a_hard_negative_has_the_group_of_the_positive_it_equals():
    rows = [("a", "x", "z"), ("b", "y", "x"), ("c", "z", ""), ("d", "w", "other"), ("a", "v", "x")]
    pairs = make_pairs(rows, source="s")
    assert pairs.groups.tolist() == [0, 1, 2, 3, 0]
    assert pairs.negative_groups.tolist() == [2, 0, -1, -1, 0]
    assert pairs.negative_groups.dtype == np.int64
    assert make_pairs([("a", "x", ""), ("b", "y", "")], source="s").negative_groups.tolist() == [
        -1,
        -1,
    ]
    some = pairs.take(np.array([1, 0]))
    assert (some.groups.tolist(), some.negative_groups.tolist()) == ([1, 0], [0, -1])


def test_a_hard_negative_has_the_group_of_the_anchor_it_equals():
    pairs = make_pairs([("a", "x", "b"), ("b", "y", ""), ("c", "z", "x")], source="s")
    assert pairs.negative_groups.tolist() == [1, -1, 0]


def test_joining_finds_the_positive_of_another_source_in_a_hard_negative():
    one = make_pairs([("a", "x", "z"), ("b", "y", "")], source="one")
    two = make_pairs([("c", "z", ""), ("d", "w", "y")], source="two")
    assert join_pairs([one, two]).negative_groups.tolist() == [2, -1, -1, 1]


def test_the_hash_depends_on_every_text_and_group():
    rows = [("a", "x", "n"), ("b", "y", "")]
    hashes = {
        make_pairs(rows, source="s").pairs_hash,
        make_pairs([("A", "x", "n"), rows[1]], source="s").pairs_hash,
        make_pairs([("a", "X", "n"), rows[1]], source="s").pairs_hash,
        make_pairs([("a", "x", "N"), rows[1]], source="s").pairs_hash,
        make_pairs(rows[::-1], source="s").pairs_hash,
        make_pairs(rows, source="s", groups=[3, 4]).pairs_hash,
    }
    assert len(hashes) == 6
    assert make_pairs(rows, source="other").pairs_hash in hashes


def test_joined_sources_share_the_groups_of_their_equal_texts():
    one = make_pairs([("a", "x", ""), ("b", "y", "")], source="one")
    two = make_pairs(
        [("c", "x", "n"), ("d", "z", ""), ("b", "w", "")], source="two", notes=["told"]
    )
    both = join_pairs([one, two])
    assert both.groups.tolist() == [0, 1, 0, 2, 1]
    assert both.negatives == ["", "", "n", "", ""]
    assert both.source == "one + two"
    assert both.notes[0] == "told"


def test_joined_labels_keep_their_groups_apart():
    labelled = pairs_of_labels(["a", "b", "c", "d"], ["l", "l", "m", "m"], source="labels")
    pairs = make_pairs([("a", "b", ""), ("e", "f", ""), ("e", "g", "")], source="pairs")
    assert join_pairs([labelled, pairs]).groups.tolist() == [0, 0, 1, 1, 2, 3, 3]
    assert join_pairs([pairs, labelled]).groups.tolist() == [0, 1, 1, 2, 2, 3, 3]
    assert join_pairs([labelled, labelled]).groups.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def texts_of(task: RetrievalTask, query_id: str) -> list[str]:
    texts = dict(zip(task.corpus.doc_ids, task.corpus.texts, strict=True))
    return [texts[doc_id] for doc_id in task.qrels[query_id]]


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=5, max_size=60),
    st.floats(0.05, 0.6),
)
def test_neither_anchors_nor_positives_cross_the_hold_out(numbers, share):
    rows = [(f"a{anchor}", f"p{positive}", "") for anchor, positive in numbers]
    try:
        pairs = make_pairs(rows, source="s")
    except DataError:
        return
    kept, task = pairs.hold_out(share)
    if task is None:
        assert len(kept) == len(pairs)
        return
    assert not set(kept.positives) & set(task.corpus.texts)
    assert not set(kept.anchors) & set(task.queries)
    assert set(kept.positives) | set(task.corpus.texts) == set(pairs.positives)
    assert set(kept.anchors) | set(task.queries) == set(pairs.anchors)
    assert len(set(task.queries)) == len(task.queries)
    for query_id, query in zip(task.query_ids, task.queries, strict=True):
        own = [positive for anchor, positive, _ in rows if anchor == query]
        assert texts_of(task, query_id) == list(dict.fromkeys(own))


def test_an_anchor_counts_all_its_positives_and_not_those_of_its_group():
    rows = [(f"a{row}", f"p{row}", "") for row in range(40)]
    rows += [(f"b{row}", f"{side}{row}", "") for row in range(40) for side in ("q", "r")]
    rows += [(f"c{row}", f"r{row}", "") for row in range(40)]
    _, task = make_pairs(rows, source="s").hold_out(0.5)
    assert task is not None
    found = {
        query: texts_of(task, query_id)
        for query_id, query in zip(task.query_ids, task.queries, strict=True)
    }
    assert {query[0] for query in found} == set("abc")
    for query, texts in found.items():
        expected = {"a": ["p"], "b": ["q", "r"], "c": ["r"]}[query[0]]
        assert texts == [f"{side}{query[1:]}" for side in expected]


def test_of_mirrored_pairs_one_is_held_out_for_a_query_and_neither_is_trained_on():
    rows = [(f"a{row}", f"p{row}", "") for row in range(40)]
    rows += [(positive, anchor, "") for anchor, positive, _ in rows]
    kept, task = make_pairs(rows, source="s").hold_out(0.25)
    assert task is not None
    assert len(task.queries) == len(task.corpus) == 10
    assert all(
        texts_of(task, f"q{row}") == [f"p{query[1:]}"] for row, query in enumerate(task.queries)
    )
    assert len(kept) == 60
    assert not {*kept.anchors, *kept.positives} & {*task.queries, *task.corpus.texts}


def test_a_query_that_is_a_document_itself_is_no_query():
    rows = [(f"a{row}", f"p{row}", "") for row in range(20)]
    rows += [(text, text, "") for text in (f"same {row}" for row in range(20))]
    kept, task = make_pairs(rows, source="s").hold_out(0.5)
    assert task is not None
    assert not set(task.queries) & set(task.corpus.texts)
    assert any(text.startswith("same") for text in task.corpus.texts)
    assert all(query.startswith("a") for query in task.queries)
    assert len(kept) == 20


@pytest.mark.parametrize("common", [f"common {number}" for number in range(10)])
def test_a_group_larger_than_the_share_stays_in_training(common):
    rows = [(f"a{row}", common, "") for row in range(50)]
    rows += [(f"b{row}", f"p{row}", "") for row in range(50)]
    for share in (0.1, 0.3, 0.49):
        kept, task = make_pairs(rows, source="s").hold_out(share)
        assert task is not None
        assert list(kept.positives).count(common) == 50
        assert common not in task.corpus.texts


def label_data(num_texts: int, num_labels: int) -> tuple[list[str], list[str]]:
    texts = [f"text {row}" for row in range(num_texts)]
    return texts, [f"l{row % num_labels}" for row in range(num_texts)]


@given(st.integers(4, 120), st.integers(2, 12), st.floats(0.05, 0.6))
def test_held_out_texts_of_labels_seek_other_held_out_texts(num_texts, num_labels, share):
    texts, labels = label_data(num_texts, num_labels)
    label = dict(zip(texts, labels, strict=True))
    try:
        pairs = pairs_of_labels(texts, labels, source="s")
    except DataError:
        return
    kept, task = pairs.hold_out(share)
    if task is None:
        assert len(kept) == len(pairs)
        return
    held = {*task.queries, *task.corpus.texts}
    assert not held & {*kept.anchors, *kept.positives}
    assert not set(task.queries) & set(task.corpus.texts)
    for query_id, query in zip(task.query_ids, task.queries, strict=True):
        same = {text for text in task.corpus.texts if label[text] == label[query]}
        assert set(texts_of(task, query_id)) == same != set()
    # Whoever lost a neighbour to the hold-out is one text per label at most.
    assert len(kept) >= len(pairs) - len(held) * 2 - num_labels


def test_few_labels_are_held_out_of_by_their_texts():
    pairs = pairs_of_labels(*label_data(600, 3), source="s")
    kept, task = pairs.hold_out(0.1)
    assert task is not None
    assert len(task.queries) + len(task.corpus) == 60
    assert abs(len(task.queries) - len(task.corpus)) <= 3
    assert 537 <= len(kept) <= 540
    assert set(kept.groups.tolist()) == {0, 1, 2}
    assert kept.has_label is not None
    assert kept.has_label.all()


def test_a_text_of_two_labels_is_query_or_document_and_never_both():
    texts, labels = label_data(100, 4)
    others = [f"m{row % 3}" for row in range(100)]
    pairs = pairs_of_labels([*texts, *texts], [*labels, *others], source="s")
    _, task = pairs.hold_out(0.5)
    assert task is not None
    assert not set(task.queries) & set(task.corpus.texts)
    assert len(set(task.queries)) == len(task.queries)
    both = dict(zip(texts, zip(labels, others, strict=True), strict=True))
    for query_id, query in zip(task.query_ids, task.queries, strict=True):
        same = {text for text in task.corpus.texts if set(both[text]) & set(both[query])}
        assert set(texts_of(task, query_id)) == same


def test_labels_and_pairs_are_held_out_each_in_its_way():
    texts, labels = label_data(100, 4)
    rows = [(f"a{row}", f"p{row}", "") for row in range(60)] + [("a0", "text 1", "")]
    both = join_pairs([pairs_of_labels(texts, labels, source="l"), make_pairs(rows, source="p")])
    kept, task = both.hold_out(0.3)
    assert task is not None
    assert not set(task.queries) & set(task.corpus.texts)
    assert {query[0] for query in task.queries} == {"a", "t"}
    assert {text[0] for text in task.corpus.texts} == {"p", "t"}
    assert {anchor[0] for anchor in kept.anchors} == {"a", "t"}


def test_at_most_so_many_queries():
    pairs = make_pairs([(f"a{row}", f"p{row}", "") for row in range(50)], source="s")
    labelled = pairs_of_labels(*label_data(100, 2), source="s")
    for held_out_of in (pairs, labelled):
        _, task = held_out_of.hold_out(0.5, most=10)
        assert task is not None
        assert 8 <= len(task.queries) <= 10
        assert len(task.corpus) <= 12


def test_nothing_is_held_out_where_less_than_two_groups_would_stay_or_leave():
    pairs = make_pairs([(f"a{row}", f"p{row}", "") for row in range(20)], source="s")
    assert pairs.hold_out(0.05) == (pairs, None)
    assert pairs.hold_out(0.99) == (pairs, None)
    rows = [(f"a{row}", f"{side}{row}", "") for row in range(20) for side in "pq"]
    pairs = make_pairs(rows, source="s")
    assert pairs.hold_out(0.05) == (pairs, None)


def test_the_hold_out_does_not_depend_on_the_order_of_the_pairs():
    rows = [(f"a{row}", f"p{row // 2}{row % 3}", "") for row in range(100)]
    rows += [(f"a{row}", f"o{row}", "") for row in range(50)]
    _, one = make_pairs(rows, source="s").hold_out(0.1)
    _, other = make_pairs(rows[::-1], source="s").hold_out(0.1)
    assert one is not None
    assert other is not None
    assert set(one.queries) == set(other.queries)


def test_nothing_held_out_on_request():
    pairs = make_pairs([(f"a{row}", f"p{row}", "") for row in range(9)], source="s")
    assert pairs.hold_out(0.0) == (pairs, None)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["anchor\tpositive"],
            "must hold at least two pairs that share no text, got 0 pairs",
        ),
        (["anchor\tpositive", "a\tx", "b\tx"], "that share no text, got 2"),
        (["anchor\tpositive", "a\tx", "x\ty"], "that share no text, got 2"),
        (["anchor\tpositive", "a\t", "b\tx"], "line 2 of .* must hold an anchor and a positive"),
        (["a\tb\tc", "a\tb\tc"], "must name the columns anchor and positive"),
        (["anchor\tpositive", "a\tb\tc"], "must have 2 cells like the first row"),
    ],
)
def test_bad_files_are_refused_by_place_and_rule(tmp_path, lines, message):
    with pytest.raises(DataError, match=message):
        open_training_pairs(write(tmp_path / "p.tsv", *lines))


@pytest.mark.parametrize("uri", ["sts:x.tsv", "self:x", "images:x"])
def test_tasks_without_pairs_are_refused(uri):
    with pytest.raises(DataError, match="has no pairs that belong together"):
        open_training_pairs(uri)


def test_a_file_of_another_kind_is_refused_with_the_forms(tmp_path):
    with pytest.raises(DataError, match="Convert it") as caught:
        open_training_pairs(write(tmp_path / "p.pdf", "x"))
    assert all(form in str(caught.value) for form in PAIR_FORMS)


def test_a_missing_file_and_an_empty_list_are_refused():
    with pytest.raises(DataError, match=r"must exist, got nowhere\.tsv"):
        open_training_pairs("nowhere.tsv")
    with pytest.raises(DataError, match="at least one of"):
        open_training_pairs([])


def test_labels_with_one_text_each_give_no_pairs():
    with pytest.raises(DataError, match="at least two pairs"):
        pairs_of_labels(["a", "b"], ["l", "m"], source="s")


def test_matches_take_the_first_that_does_not_match():
    pairs = pairs_of_matches(
        ["a", "a", "a", "b"], ["x", "n", "m", "y"], [True, False, False, True], source="s"
    )
    assert pairs.negatives == ["n", ""]
    assert np.array_equal(pairs.groups, [0, 1])


@pytest.mark.data
def test_the_public_sets_open(nestling_data):
    snli = open_training_pairs(str(nestling_data / "snli_devtest/snli-dev.tsv.gz"))
    wiki = open_training_pairs(str(nestling_data / "wiki_split/wiki_split-tune.tsv.gz"))
    assert (len(snli), len(wiki)) == (3329, 5000)
    scifact = open_training_pairs(f"beir:{nestling_data / 'ir_scifact'}")
    assert len(scifact) == 919
