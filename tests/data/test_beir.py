import gzip
from pathlib import Path

import pytest

from nestling.data.beir import is_beir_folder, read_beir, read_beir_corpus, read_qrels
from nestling.errors import DataError
from tests.data.conftest import write_jsonl


def set_qrels(folder: Path, *lines: str) -> None:
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "\n".join(lines))


def test_reads_a_split(beir_folder: Path) -> None:
    task = read_beir(beir_folder, "test", name="beir:x")
    assert task.corpus.doc_ids == ["d1", "d2", "d3"]
    assert task.corpus.texts == [
        "Owls hunt at night.",
        "Larks sing at dawn.",
        "Swifts sleep on the wing.",
    ]
    assert task.corpus.metadata == [{"title": "Owls"}, {}, {}]
    assert task.query_ids == ["q1", "q3"]
    assert task.queries == ["who hunts at night", "who sleeps flying"]
    assert task.qrels == {"q1": {"d1": 1}, "q3": {"d3": 2, "d2": 0}}
    assert task.notes == (task.corpus.describe(), "2 judged queries of the split 'test'")


def test_gz_reads_the_same(beir_folder: Path) -> None:
    plain = read_beir(beir_folder, "test", name="x")
    for path in [*beir_folder.glob("*.jsonl"), *beir_folder.glob("qrels/*.tsv")]:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert is_beir_folder(beir_folder)
    packed = read_beir(beir_folder, "test", name="x")
    assert packed.corpus.corpus_hash == plain.corpus.corpus_hash
    assert packed.qrels == plain.qrels


def test_the_corpus_needs_no_judgements(beir_folder: Path) -> None:
    (beir_folder / "qrels" / "test.tsv").unlink()
    (beir_folder / "queries.jsonl").unlink()
    assert len(read_beir_corpus(beir_folder)) == 3


def test_query_without_relevant_document_is_left_out_with_a_note(beir_folder: Path) -> None:
    set_qrels(beir_folder, "q1\td1\t1", "q2\td2\t0", "q2\td3\t0")
    task = read_beir(beir_folder, "test", name="x")
    assert task.query_ids == ["q1"]
    assert task.qrels == {"q1": {"d1": 1}}
    assert "1 queries without a relevant document were left out" in task.notes


def test_judgements_without_header(beir_folder: Path) -> None:
    (beir_folder / "qrels" / "test.tsv").write_text("q1\td1\t1\n")
    assert read_beir(beir_folder, "test", name="x").qrels == {"q1": {"d1": 1}}


def test_unknown_documents_are_named_up_to_five(beir_folder: Path) -> None:
    set_qrels(beir_folder, *(f"q1\tx{number}\t1" for number in range(7)))
    with pytest.raises(
        DataError,
        match=r"test\.tsv must name only documents that exist, got 7 that are not in .*corpus\.jsonl: 'x0', 'x1', 'x2', 'x3', 'x4'\. Check",
    ):
        read_beir(beir_folder, "test", name="x")


def test_unknown_queries_are_named(beir_folder: Path) -> None:
    set_qrels(beir_folder, "q9\td1\t1", "q1\td1\t1")
    with pytest.raises(
        DataError,
        match=r"must name only queries that exist, got 1 that are not in .*queries\.jsonl: 'q9'",
    ):
        read_beir(beir_folder, "test", name="x")


def test_missing_split_lists_those_there(beir_folder: Path) -> None:
    (beir_folder / "qrels" / "train.tsv.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(
        DataError,
        match=r"`split` must be one of 'test', 'train' in .*, got 'dev'\. Name it as beir:.*#test",
    ):
        read_beir(beir_folder, "dev", name="x")


def test_no_splits_at_all(beir_folder: Path) -> None:
    (beir_folder / "qrels" / "test.tsv").unlink()
    with pytest.raises(DataError, match=r"`split` must be one of none \(no qrels/\*\.tsv\)"):
        read_beir(beir_folder, "test", name="x")


def test_all_grades_zero(beir_folder: Path) -> None:
    set_qrels(beir_folder, "q1\td1\t0")
    with pytest.raises(DataError, match="must judge at least one document relevant, got none"):
        read_beir(beir_folder, "test", name="x")


@pytest.mark.parametrize("grade", ["-1", "0.5", "yes", "", "¹"])
def test_bad_grade(beir_folder: Path, grade: str) -> None:
    set_qrels(beir_folder, "q1\td1\t1", f"q3\td3\t{grade}")
    with pytest.raises(
        DataError, match=rf"a grade must be a whole number from 0 up, got '{grade}' in line 3 of"
    ):
        read_beir(beir_folder, "test", name="x")


def test_conflicting_and_repeated_judgements(tmp_path: Path) -> None:
    path = tmp_path / "test.tsv"
    path.write_text("q1\td1\t1\nq1\td1\t1\n")
    assert read_qrels(path) == {"q1": {"d1": 1}}
    path.write_text("q1\td1\t1\nq1\td1\t2\n")
    with pytest.raises(
        DataError,
        match=r"line 2 of .* grades document 'd1' for query 'q1' as 2, an earlier line as 1\. Keep one",
    ):
        read_qrels(path)


def test_wrong_number_of_cells(tmp_path: Path) -> None:
    path = tmp_path / "test.tsv"
    path.write_text("q1 0 d1 1\n")
    with pytest.raises(
        DataError,
        match=r"line 1 of .* must hold query id, document id and grade with tabs between, got 1 cells",
    ):
        read_qrels(path)


def test_empty_judgements(tmp_path: Path) -> None:
    path = tmp_path / "test.tsv"
    path.write_text("query-id\tcorpus-id\tscore\n")
    with pytest.raises(DataError, match="must hold at least one judgement, got none"):
        read_qrels(path)


def test_duplicate_document_ids(beir_folder: Path) -> None:
    write_jsonl(beir_folder / "corpus.jsonl", *[{"_id": "d1", "text": "x"}] * 2)
    with pytest.raises(
        DataError, match=r"ids in .*corpus\.jsonl must be unique, got 1 repeated: 'd1'"
    ):
        read_beir_corpus(beir_folder)


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl"])
def test_empty_or_missing_files(beir_folder: Path, name: str) -> None:
    kind = "document" if name.startswith("corpus") else "query"
    (beir_folder / name).write_text("")
    with pytest.raises(DataError, match=rf"{name} must hold at least one {kind}, got none"):
        read_beir(beir_folder, "test", name="x")
    (beir_folder / name).unlink()
    with pytest.raises(
        DataError, match=rf"a BEIR folder must hold {name} or {name}\.gz, got .* without it"
    ):
        read_beir(beir_folder, "test", name="x")


def test_missing_folder(tmp_path: Path) -> None:
    assert not is_beir_folder(tmp_path)
    with pytest.raises(DataError, match="`path` must exist"):
        read_beir(tmp_path / "nothing", "test", name="x")
