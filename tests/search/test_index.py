import gc
import itertools
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling.core import Dtype, Space, cosine_scores, top_k
from nestling.data.types import Corpus
from nestling.encode import encode_corpus
from nestling.encode.static import StaticEncoder
from nestling.errors import (
    DataError,
    DimensionError,
    FingerprintError,
    FormatError,
    VectorError,
    WriteError,
)
from nestling.search import Added, Index, Plan, Stage
from nestling.search.opened import FILTERS_KEPT
from tests.search.support import (
    build_index,
    corpus_of,
    fingerprint_of,
    found,
    make_folder,
    plan_of,
    random_rows,
    scratch_folder,
    tree,
)

WIDTH = 32
ROWS = random_rows(120, WIDTH)
QUERIES = random_rows(5, WIDTH, seed=1)
FUNNEL = plan_of(WIDTH, (8, Dtype.INT8, 30), (WIDTH, Dtype.FLOAT32, None))
PLANS = {
    "exact": None,
    "funnel": FUNNEL,
    "binary": plan_of(WIDTH, (16, Dtype.BINARY, 40), (WIDTH, Dtype.FLOAT32, None)),
    "int4": plan_of(WIDTH, (15, Dtype.INT4, 40), (WIDTH, Dtype.FLOAT32, None)),
    "rotated binary": plan_of(WIDTH, (16, Dtype.ROTATED_BINARY, 40), (WIDTH, Dtype.FLOAT32, None)),
    "float16": plan_of(WIDTH, (16, Dtype.FLOAT16, 40), (WIDTH, Dtype.FLOAT32, None)),
    "three": plan_of(
        WIDTH, (8, Dtype.FLOAT32, 60), (16, Dtype.FLOAT32, 30), (WIDTH, Dtype.FLOAT32, None)
    ),
}


def add_rows(index: Index, rows: np.ndarray, first_row: int) -> Added:
    corpus = corpus_of(len(rows), first_row)
    return index.add(
        rows,
        doc_ids=corpus.doc_ids,
        fingerprint=fingerprint_of(WIDTH),
        texts=corpus.texts,
        metadata=corpus.metadata,
    )


@pytest.mark.parametrize("dtype", [Dtype.FLOAT32, Dtype.FLOAT16])
def test_without_a_plan_search_is_exact(tmp_path: Path, dtype: Dtype) -> None:
    with build_index(tmp_path / "index", ROWS, dtype=dtype) as index:
        expected = top_k(cosine_scores(QUERIES, ROWS.astype(dtype).astype(np.float32), WIDTH), 10)
        hits = index.search(QUERIES, top_k=10)
        assert [[hit.doc_id for hit in best] for best in hits] == [
            [f"d{row}" for row in best] for best in expected.rows
        ]
        scores = [[hit.score for hit in best] for best in hits]
        np.testing.assert_allclose(scores, expected.scores, atol=1e-6)
        assert index.plan.describe() == f"32-d {dtype}"
        assert index.head_bytes == 120 * 4


def test_a_hit_carries_text_and_metadata(tmp_path: Path) -> None:
    with build_index(tmp_path / "index", ROWS, plan=FUNNEL) as index:
        ((hit,),) = index.search(ROWS[17:18], top_k=1)
    assert (hit.doc_id, hit.text, hit.metadata) == ("d17", "text of document 17", {"number": 17})
    assert hit.score == pytest.approx(1.0, abs=1e-6)
    assert isinstance(hit.score, float)


def test_without_a_corpus_hits_carry_ids_only(tmp_path: Path) -> None:
    with Index.build(tmp_path / "index", make_folder(tmp_path / "vectors", ROWS)) as index:
        ((hit,),) = index.search(ROWS[17:18], top_k=1)
    assert (hit.doc_id, hit.text, hit.metadata) == ("d17", None, None)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_opened_again_finds_the_same(tmp_path: Path, plan: Plan | None) -> None:
    with build_index(tmp_path / "index", ROWS, plan=plan) as built:
        before = found(built, QUERIES, 10)
        with Index.open(tmp_path / "index") as opened:
            assert found(opened, QUERIES, 10) == before
            assert opened.plan == built.plan
            assert opened.fingerprint == built.fingerprint
            assert len(opened) == len(built) == 120
            assert opened.head_bytes == built.head_bytes
            assert opened.full_bytes == 120 * WIDTH * 4
            opened.verify()


# int8 and int4 are calibrated on what the index is built from, so pieces give other codes.
UNCALIBRATED = {name: plan for name, plan in PLANS.items() if name not in ("funnel", "int4")}


@pytest.mark.parametrize("plan", UNCALIBRATED.values(), ids=UNCALIBRATED)
@settings(max_examples=4)
@given(cuts=st.lists(st.integers(1, 119), max_size=4, unique=True))
def test_added_in_pieces_finds_what_was_built_at_once(plan: Plan | None, cuts: list[int]) -> None:
    with scratch_folder() as folder:
        check_pieces(folder, plan, cuts)


def check_pieces(folder: Path, plan: Plan | None, cuts: list[int]) -> None:
    edges = [*sorted(cuts), 120]
    with build_index(folder / "whole", ROWS, plan=plan) as whole:
        expected = found(whole, QUERIES, 15)
    with build_index(folder / "pieces", ROWS[: edges[0]], plan=plan) as index:
        for start, stop in itertools.pairwise(edges):
            assert add_rows(index, ROWS[start:stop], start) == Added(stop - start, 0)
        assert found(index, QUERIES, 15) == expected
        assert index.generation == len(edges)
        index.verify()
    with Index.open(folder / "pieces") as opened:
        assert found(opened, QUERIES, 15) == expected
        opened.verify()
    one, other = tree(folder / "whole"), tree(folder / "pieces")
    assert one.keys() == other.keys()
    for name in one.keys() - {"index.json", "rows-1/catalogue.sqlite"}:
        assert one[name] == other[name]


def test_int8_keeps_its_scale_and_counts_what_it_clips(tmp_path: Path) -> None:
    with build_index(tmp_path / "index", ROWS, plan=FUNNEL) as index:
        scale = (tmp_path / "index/tier-1-8-int8/scale.bin").read_bytes()
        assert add_rows(index, 0.1 * ROWS[:3], 200) == Added(3, 0)
        assert add_rows(index, 100.0 * np.abs(ROWS[:2]), 300) == Added(2, 16)
        assert (tmp_path / "index/tier-1-8-int8/scale.bin").read_bytes() == scale
        ((hit, *_),) = index.search(np.abs(ROWS[:1]), top_k=3)
        assert hit.doc_id == "d300"
        index.verify()


def test_int4_keeps_its_scale_and_finds_what_was_added(tmp_path: Path) -> None:
    with build_index(tmp_path / "index", ROWS[:100], plan=PLANS["int4"]) as index:
        scale = (tmp_path / "index/tier-1-15-int4/scale.bin").read_bytes()
        assert add_rows(index, ROWS[100:], 100) == Added(20, 0)
        assert add_rows(index, 100.0 * np.abs(ROWS[:2]), 300) == Added(2, 0)
        assert (tmp_path / "index/tier-1-15-int4/scale.bin").read_bytes() == scale
        assert index.head_bytes == 122 * (8 + 4)
        hits = index.search(ROWS[100:], top_k=1)
        assert [best[0].doc_id for best in hits] == [f"d{row}" for row in range(100, 120)]
        index.verify()
        expected = found(index, QUERIES, 10)
    with Index.open(tmp_path / "index") as opened:
        assert found(opened, QUERIES, 10) == expected
        opened.verify()


def test_added_rows_take_the_stored_format(tmp_path: Path) -> None:
    with build_index(tmp_path / "index", ROWS, dtype=Dtype.FLOAT16) as index:
        add_rows(index, ROWS[:4].astype(np.float64), 200)
        assert index.full_bytes == 124 * WIDTH * 2
        with pytest.raises(VectorError, match="got 1 bad of 1: 'd300'"):
            add_rows(index, np.full((1, WIDTH), 1e5, np.float32), 300)


def test_adding_nothing_changes_nothing(tmp_path: Path) -> None:
    with build_index(tmp_path / "index", ROWS) as index:
        before = tree(tmp_path / "index")
        assert add_rows(index, ROWS[:0], 200) == Added(0, 0)
        assert index.generation == 1
        assert tree(tmp_path / "index") == before


def test_a_reader_keeps_its_generation_until_opened_again(tmp_path: Path) -> None:
    with build_index(tmp_path / "index", ROWS[:100], plan=FUNNEL) as writer:
        with Index.open(tmp_path / "index") as reader:
            before = found(reader, QUERIES, 10)
            add_rows(writer, ROWS[100:], 100)
            assert found(reader, QUERIES, 10) == before
            assert len(reader) == 100
        with Index.open(tmp_path / "index") as reader:
            assert found(reader, QUERIES, 10) == found(writer, QUERIES, 10)
            assert len(reader) == 120


def test_a_writer_first_takes_in_what_others_wrote(tmp_path: Path) -> None:
    with build_index(tmp_path / "index", ROWS[:100]) as one, Index.open(one.path) as other:
        add_rows(one, ROWS[100:110], 100)
        with pytest.raises(DataError, match="got 1 known: 'd100'"):
            add_rows(other, ROWS[100:101], 100)
        add_rows(other, ROWS[110:], 110)
        assert other.generation == 3
        with build_index(tmp_path / "whole", ROWS) as whole:
            assert found(other, QUERIES, 10) == found(whole, QUERIES, 10)
        other.verify()


def test_what_was_never_acknowledged_is_ignored_and_cut_off(tmp_path: Path) -> None:
    with build_index(tmp_path / "index", ROWS[:100], plan=FUNNEL) as index:
        before = found(index, QUERIES, 10)
        manifest = (tmp_path / "index/index.json").read_bytes()
        add_rows(index, ROWS[100:], 100)
        grown = tree(tmp_path / "index")
    (tmp_path / "index/index.json").write_bytes(manifest)  # as if killed just before the switch
    with Index.open(tmp_path / "index") as index:
        assert len(index) == 100
        assert found(index, QUERIES, 10) == before
        index.verify()
        add_rows(index, ROWS[100:], 100)
        index.verify()
    again = tree(tmp_path / "index")
    assert again.keys() == grown.keys()
    assert again["index.json"] == grown["index.json"]
    for name in grown.keys() - {"rows-1/catalogue.sqlite"}:
        assert again[name] == grown[name]


def test_only_the_documents_that_have_vectors_are_taken(tmp_path: Path) -> None:
    vectors = make_folder(tmp_path / "vectors", ROWS[:10])
    corpus = corpus_of(20)
    backwards = Corpus(
        doc_ids=corpus.doc_ids[::-1],
        texts=corpus.texts[::-1],
        metadata=list(corpus.metadata or [])[::-1],
        source="backwards",
    )
    with Index.build(tmp_path / "index", vectors, backwards) as index:
        assert len(index) == 10
        ((hit,),) = index.search(ROWS[3:4], top_k=1)
    assert (hit.doc_id, hit.text, hit.metadata) == ("d3", "text of document 3", {"number": 3})


def test_real_vectors_and_texts(tmp_path: Path) -> None:
    texts = ["open a file", "close a socket", "sort a list of numbers", "read lines of a file"]
    corpus = Corpus(doc_ids=list("abcd"), texts=texts, source="made up")
    encoder = StaticEncoder("wordllama")
    folder = encode_corpus(encoder, corpus, tmp_path / "vectors").folder
    plan = plan_of(256, (64, Dtype.INT8, 3), (256, Dtype.FLOAT32, None))
    with Index.build(tmp_path / "index", folder, corpus, plan=plan) as index:
        index.check_encoder(encoder.fingerprint)
        queries = encoder.encode(["sorting numbers", "reading files"], role="query")
        sorting, reading = index.search(queries, top_k=1)
    assert (sorting[0].doc_id, reading[0].doc_id) == ("c", "d")


def test_strange_ids_and_texts_come_back_whole(tmp_path: Path) -> None:
    names = ["", "a'b\"c", "naïve/päth#1:0", "nul\x00nul", "x" * 10_000, "--", "{}", "; DROP TABLE"]
    texts = [f"{name} {row}" for row, name in enumerate(names)]
    with build_index(tmp_path / "index", ROWS[:5]) as index:
        index.add(
            ROWS[20 : 20 + len(names)],
            doc_ids=names,
            fingerprint=fingerprint_of(WIDTH),
            texts=texts,
            metadata=[{"é": [1, None, {"deep": 0.5}]}] * len(names),
        )
        hits = [best[0] for best in index.search(ROWS[20 : 20 + len(names)], top_k=1)]
        assert [hit.doc_id for hit in hits] == names
        assert [hit.text for hit in hits] == texts
        assert hits[0].metadata == {"é": [1, None, {"deep": 0.5}]}
        with pytest.raises(DataError, match="known"):
            index.add(ROWS[:1], doc_ids=["nul\x00nul"], fingerprint=fingerprint_of(WIDTH))
        index.verify()


def test_several_threads_may_search(tmp_path: Path) -> None:
    with build_index(tmp_path / "index", ROWS, plan=FUNNEL) as index:
        expected = found(index, QUERIES, 10)
        with ThreadPoolExecutor(4) as threads:
            results = list(threads.map(lambda _: found(index, QUERIES, 10), range(100)))
        assert all(result == expected for result in results)


def test_pages_join(tmp_path: Path) -> None:
    for name, plan in PLANS.items():
        with build_index(tmp_path / name, ROWS, plan=plan) as index:
            whole = index.search(QUERIES, top_k=120)
            for offset in (0, 7, 40, 99):
                pages = index.search(QUERIES, top_k=13, offset=offset)
                assert pages == [hits[offset : offset + 13] for hits in whole]
            assert index.search(QUERIES, top_k=3, offset=120) == [[]] * 5


def test_a_filter_finds_what_there_is(tmp_path: Path) -> None:
    with build_index(tmp_path / "index", ROWS, plan=FUNNEL) as index:
        hits = index.search(QUERIES, where="number in (3, 50, 117)", top_k=5)
        assert [{hit.doc_id for hit in found} for found in hits] == [{"d3", "d50", "d117"}] * 5
        assert index.search(QUERIES, where="number > 500") == [[]] * 5
        index.delete(["d50"])
        hits = index.search(QUERIES, where="number in (3, 50, 117)", top_k=5)
        assert [{hit.doc_id for hit in found} for found in hits] == [{"d3", "d117"}] * 5
        for number in range(2 * FILTERS_KEPT):  # more than are kept
            ((hit,),) = index.search(QUERIES[:1], where=f"number == {number}")
            assert hit.doc_id == f"d{number}"
        with pytest.raises(DataError, match="`where` must be a filter"):
            index.search(QUERIES, where="number ==")


def test_explain_names_rows_stages_and_the_generation(tmp_path: Path) -> None:
    with build_index(tmp_path / "index", ROWS, plan=FUNNEL) as index:
        index.delete(["d0"])
        found = index.explain(QUERIES, top_k=4, offset=1)
        hits = index.search(QUERIES, top_k=4, offset=1)
        assert found.rows.shape == found.scores.shape == (5, 4)
        assert [index.doc_ids(rows) for rows in found.rows] == [
            [hit.doc_id for hit in best] for best in hits
        ]
        assert found.trace.generation == 2
        assert [(stage.dim, stage.dtype) for stage in found.trace.stages] == [
            (8, Dtype.INT8), (WIDTH, Dtype.FLOAT32)
        ]  # fmt: skip
        assert index.explain(QUERIES[:0]).rows.shape == (0, 0)


@pytest.mark.parametrize("is_enabled", [True, False])
def test_the_garbage_collector_waits_for_a_batch_and_is_left_as_it_was(
    tmp_path: Path, is_enabled: bool
) -> None:
    index = build_index(tmp_path / "index", ROWS)
    collected: list[str] = []

    def note(phase: str, info: object) -> None:
        collected.append(phase)

    index.search(QUERIES, with_documents=False)
    threshold = gc.get_threshold()
    gc.callbacks.append(note)
    try:
        (gc.enable if is_enabled else gc.disable)()
        found = index.explain(np.tile(QUERIES, (40, 1)), top_k=100)
        gc.collect()
        collected.clear()
        gc.set_threshold(1000, 1, 1)
        hits = index._opened.hits(found, with_documents=False)
        assert gc.isenabled() == is_enabled
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(note)
        gc.enable()
    assert sum(map(len, hits)) == 20_000
    assert len(collected) <= 4


def test_hits_need_not_carry_documents(tmp_path: Path) -> None:
    with build_index(tmp_path / "index", ROWS, plan=FUNNEL) as index:
        whole = index.search(QUERIES)
        bare = index.search(QUERIES, with_documents=False)
        assert [[(hit.doc_id, hit.score) for hit in hits] for hits in bare] == [
            [(hit.doc_id, hit.score) for hit in hits] for hits in whole
        ]
        assert {(hit.text, hit.metadata) for hits in bare for hit in hits} == {(None, None)}


def test_a_short_query_is_searched_at_its_width(tmp_path: Path) -> None:
    with build_index(tmp_path / "index", ROWS, plan=PLANS["three"]) as index:
        hits = index.search(QUERIES[:, :20], top_k=120)
        for best, scores in zip(hits, cosine_scores(QUERIES, ROWS, 20), strict=True):
            rows = [int(hit.doc_id[1:]) for hit in best]
            np.testing.assert_allclose([hit.score for hit in best], scores[rows], atol=1e-5)
        with pytest.raises(VectorError, match="8"):
            index.search(QUERIES[:, :7])


def test_an_index_may_lose_all_its_documents_and_get_new_ones(tmp_path: Path) -> None:
    with build_index(tmp_path / "index", ROWS[:9], plan=FUNNEL) as index:
        assert index.delete([f"d{row}" for row in range(9)]) == 9
        assert len(index) == 0
        assert index.search(QUERIES) == [[]] * 5
        assert index.compact()
        assert (len(index), index.num_rows, index.full_bytes) == (0, 0, 0)
        assert index.search(QUERIES, where="number > 3") == [[]] * 5
        with Index.open(index.path) as opened:
            opened.verify()
            add_rows(opened, ROWS[:5], 0)
        assert index.refresh()
        assert [hits[0].doc_id for hits in index.search(ROWS[:5], top_k=1)] == [
            f"d{row}" for row in range(5)
        ]
        index.resize(FUNNEL)
        index.verify()


def test_refresh_follows_an_index_that_was_replaced(tmp_path: Path) -> None:
    with build_index(tmp_path / "index", ROWS, plan=FUNNEL) as index:
        before = found(index, QUERIES, 5)
        build_index(tmp_path / "index", ROWS[:50], plan=PLANS["binary"], overwrite=True).close()
        assert found(index, QUERIES, 5) == before
        assert index.refresh()
        assert (len(index), index.plan) == (50, PLANS["binary"])
        shutil.rmtree(tmp_path / "index")
        with pytest.raises(FormatError, match="is not an index"):
            index.refresh()
        assert len(index) == 50
        shutil.rmtree(tmp_path / "index-vectors-50")
        build_index(tmp_path / "index", 2 * ROWS[:50], plan=PLANS["binary"]).close()
        assert index.refresh()
        assert index.generation == 1
        index.verify()
        rows = index.snapshot.vectors.rows
        np.testing.assert_array_equal(rows, 2 * ROWS[:50])


def test_refresh_knows_another_index_of_the_same_names(tmp_path: Path) -> None:
    build_index(tmp_path / "other", ROWS[::-1], plan=FUNNEL).close()
    with build_index(tmp_path / "index", ROWS, plan=FUNNEL) as index:
        index.search(QUERIES)
        (tmp_path / "index").rename(tmp_path / "old")
        (tmp_path / "other").rename(tmp_path / "index")
        assert index.refresh()
        with Index.open(tmp_path / "index") as opened:
            assert found(index, QUERIES, 9) == found(opened, QUERIES, 9)
            np.testing.assert_array_equal(index.snapshot.vectors.rows, ROWS[::-1])
            assert index.snapshot.catalogue is not opened.snapshot.catalogue


def test_a_writer_and_its_readers_share_what_has_not_changed(tmp_path: Path) -> None:
    with build_index(tmp_path / "index", ROWS[:100], plan=FUNNEL) as index:
        before = index.snapshot
        add_rows(index, ROWS[100:], 100)
        after = index.snapshot
        assert np.shares_memory(before.head.codes, after.head.codes)
        assert before.catalogue is after.catalogue
        assert len(before.head) == 100
        assert len(after.head) == 120


def test_threads_may_write_and_search_one_index(tmp_path: Path) -> None:
    with build_index(tmp_path / "index", ROWS[:60], plan=FUNNEL) as index:

        def work(number: int) -> None:
            if number % 3 == 0:
                add_rows(index, ROWS[60 + number : 61 + number], 60 + number)
            else:
                (hits,) = index.search(ROWS[:1], top_k=100)
                assert hits[0].doc_id == "d0"
                assert len(hits) >= 60

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(work, range(60)))
        assert len(index) == 80
        index.verify()


# Bad input: every refusal says what to do, and changes nothing.


def test_top_k_above_the_rows_returns_all_of_them(tmp_path: Path) -> None:
    with build_index(tmp_path / "index", ROWS, plan=FUNNEL) as index:
        (hits,) = index.search(QUERIES[:1], top_k=5000)
        assert len(hits) == len({hit.doc_id for hit in hits}) == 120


def test_no_queries_give_no_hits(tmp_path: Path) -> None:
    with build_index(tmp_path / "index", ROWS, plan=FUNNEL) as index:
        assert index.search(QUERIES[:0], top_k=3) == []


@pytest.mark.parametrize("top_k_asked", [0, -1])
def test_top_k_below_one_is_refused(tmp_path: Path, top_k_asked: int) -> None:
    with (
        build_index(tmp_path / "index", ROWS) as index,
        pytest.raises(DataError, match=f"`top_k` must be at least 1, got {top_k_asked}"),
    ):
        index.search(QUERIES, top_k=top_k_asked)


@pytest.mark.parametrize("queries", [QUERIES[0], QUERIES[:, :16], QUERIES[None]])
def test_queries_of_another_shape_are_refused(tmp_path: Path, queries: np.ndarray) -> None:
    with (
        build_index(tmp_path / "index", ROWS) as index,
        pytest.raises(VectorError, match=r"`queries` must have the shape \(rows, 32\).*got \("),
    ):
        index.search(queries)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 1e300])
def test_queries_that_cannot_be_compared_are_numbered(tmp_path: Path, value: float) -> None:
    queries = QUERIES.astype(np.float64)
    queries[3] = value
    with (
        build_index(tmp_path / "index", ROWS) as index,
        pytest.raises(VectorError, match="got 1 bad of 5: query 3"),
    ):
        index.search(queries)


def test_another_encoder_is_refused(tmp_path: Path) -> None:
    with build_index(tmp_path / "index", ROWS) as index:
        index.check_encoder(fingerprint_of(WIDTH))
        with pytest.raises(
            FingerprintError, match=r"index .*index is 'fake' and the encoder is 'new'"
        ):
            index.check_encoder(fingerprint_of(WIDTH, "new"))


def bad_row(value: float) -> np.ndarray:
    rows = ROWS[:3].copy()
    rows[1] = value
    return rows


REFUSED: dict[str, tuple[tuple[np.ndarray, list[str]], dict[str, Any], type[Exception], str]] = {
    "known": ((ROWS[:1], ["d5"]), {}, DataError, "got 1 known: 'd5'"),
    "repeated": ((ROWS[:2], ["x", "x"]), {}, DataError, "got 1 repeated: 'x'"),
    "width": ((ROWS[:1, :8], ["x"]), {}, VectorError, r"shape \(rows, 32\).*got \(1, 8\)"),
    "ids": ((ROWS[:2], ["x"]), {}, DataError, "`doc_ids` must hold one id per row: 2, got 1"),
    "nan": ((bad_row(np.nan), ["x", "y", "z"]), {}, VectorError, "got 1 bad of 3: 'y'"),
    "zero": ((bad_row(0.0), ["x", "y", "z"]), {}, VectorError, "got 1 bad of 3: 'y'"),
    "texts": ((ROWS[:1], ["x"]), {"texts": []}, DataError, "`texts` must hold one value per"),
    "surrogate": ((ROWS[:1], ["x"]), {"texts": ["\ud800"]}, DataError, "document 'x'"),
    "metadata": (
        (ROWS[:1], ["x"]),
        {"metadata": [{"a": {1, 2}}]},
        DataError,
        "metadata must be JSON, got .*document 'x'",
    ),
    "nan metadata": ((ROWS[:1], ["x"]), {"metadata": [{"a": np.nan}]}, DataError, "JSON"),
    "space": (
        (ROWS[:1], ["x"]),
        {"fingerprint": fingerprint_of(WIDTH, "other")},
        FingerprintError,
        "is 'fake' and the encoder is 'other'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_addition_changes_nothing(tmp_path: Path, case: str) -> None:
    (rows, doc_ids), options, error, message = REFUSED[case]
    with build_index(tmp_path / "index", ROWS, plan=FUNNEL) as index:
        before, hits = tree(tmp_path / "index"), found(index, QUERIES, 10)
        with pytest.raises(error, match=message):
            index.add(rows, doc_ids=doc_ids, **{"fingerprint": fingerprint_of(WIDTH), **options})
        assert tree(tmp_path / "index") == before
        assert found(index, QUERIES, 10) == hits
        assert len(index) == 120


def test_an_addition_that_memory_cuts_short_is_taken_in_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out_of_memory(*_: object) -> None:
        raise MemoryError

    with build_index(tmp_path / "index", ROWS[:100], plan=FUNNEL) as index:
        with monkeypatch.context() as patch:
            patch.setattr("nestling.search.index.open_newest", run_out_of_memory)
            with pytest.raises(MemoryError):
                add_rows(index, ROWS[100:110], 100)
        add_rows(index, ROWS[110:], 110)
        with Index.open(tmp_path / "index") as opened:
            assert len(opened) == len(index) == 120
            assert found(index, QUERIES, 10) == found(opened, QUERIES, 10)


def test_an_index_is_not_overwritten_silently(tmp_path: Path) -> None:
    build_index(tmp_path / "index", ROWS).close()
    before = tree(tmp_path / "index")
    with pytest.raises(WriteError, match=r"is an index already.*--overwrite"):
        build_index(tmp_path / "index", ROWS[:50])
    assert tree(tmp_path / "index") == before
    with build_index(tmp_path / "index", ROWS[:50], overwrite=True) as index:
        assert len(index) == 50
    assert not list(tmp_path.glob(".*"))


def test_nothing_but_an_index_is_ever_replaced(tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    (tmp_path / "index/thesis.txt").write_text("years of work")
    with pytest.raises(WriteError, match="is not an index, so that it is never replaced"):
        build_index(tmp_path / "index", ROWS, overwrite=True)
    assert (tmp_path / "index/thesis.txt").read_text() == "years of work"


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    vectors = make_folder(tmp_path / "vectors", ROWS)
    with pytest.raises(DimensionError, match="for vectors of width 32, got one for 16"):
        Index.build(tmp_path / "index", vectors, plan=plan_of(16, (16, Dtype.INT8, None)))
    with (vectors.path / "vectors.bin").open("r+b") as file:
        file.write(np.full(WIDTH, np.nan, np.float32).tobytes())
    with pytest.raises(FormatError, match=r"rows 0 to 119 in .*vectors\.bin differ"):
        Index.build(tmp_path / "index", vectors)
    assert {path.name for path in tmp_path.iterdir()} == {"vectors"}


def test_a_plan_from_another_space_is_refused(tmp_path: Path) -> None:
    space = Space(
        model="other", revision="1", pooling="none", normalization="none", embed_dim=WIDTH
    )
    plan = Plan(
        stages=(Stage(dim=WIDTH, dtype=Dtype.INT8),), embed_dim=WIDTH, space=space, evidence={}
    )
    with pytest.raises(FingerprintError, match="the plan is 'other'"):
        build_index(tmp_path / "index", ROWS, plan=plan)


def test_a_corpus_that_lacks_documents_is_refused(tmp_path: Path) -> None:
    vectors = make_folder(tmp_path / "vectors", ROWS)
    with pytest.raises(DataError, match="got 20 missing: 'd100', 'd101'"):
        Index.build(tmp_path / "index", vectors, corpus_of(100))


def test_texts_that_changed_since_they_were_encoded_are_refused(tmp_path: Path) -> None:
    vectors = make_folder(tmp_path / "vectors", ROWS)
    corpus = corpus_of(120)
    texts = [*corpus.texts[:7], "another text", *corpus.texts[8:]]
    changed = Corpus(doc_ids=corpus.doc_ids, texts=texts, source="changed")
    with pytest.raises(DataError, match=r"got 1 others: 'd7'\. Encode the corpus again"):
        Index.build(tmp_path / "index", vectors, changed)
