import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.data import open_training_pairs
from nestling.data.open_pairs import PAIR_FORMS
from nestling.data.training_pairs import join_pairs, make_pairs, pairs_of_labels, pairs_of_matches
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


def test_joined_sources_keep_their_groups_apart():
    one = make_pairs([("a", "x", ""), ("b", "y", "")], source="one")
    two = make_pairs([("c", "x", "n"), ("d", "z", "")], source="two", notes=["told"])
    both = join_pairs([one, two])
    assert both.groups.tolist() == [0, 1, 2, 3]
    assert both.negatives == ["", "", "n", ""]
    assert both.source == "one + two"
    assert both.notes == ("told",)


@given(st.integers(5, 60), st.integers(0, 5), st.floats(0.01, 0.6))
def test_held_out_pairs_take_their_group_with_them(num_pairs, repeats, share):
    rows = [(f"a{row}", f"p{row // (repeats + 1)}", "") for row in range(num_pairs)]
    try:
        pairs = make_pairs(rows, source="s")
    except DataError:
        return
    kept, task = pairs.hold_out(share)
    if task is None:
        assert len(kept) == len(pairs)
        return
    assert not set(kept.positives) & set(task.corpus.texts)
    assert len(kept) + len(task.queries) == len(pairs)
    texts = dict(zip(task.corpus.doc_ids, task.corpus.texts, strict=True))
    positive = dict(zip(pairs.anchors, pairs.positives, strict=True))
    for query_id, query in zip(task.query_ids, task.queries, strict=True):
        assert [texts[doc_id] for doc_id in task.qrels[query_id]] == [positive[query]]


def test_the_hold_out_does_not_depend_on_the_order_of_the_pairs():
    rows = [(f"a{row}", f"p{row}", "") for row in range(100)]
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
            "must hold at least two pairs with different positives, got 0 pairs",
        ),
        (["anchor\tpositive", "a\tx", "b\tx"], "at least two pairs with different positives"),
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
