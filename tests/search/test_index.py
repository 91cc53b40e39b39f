import errno
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
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
from tests.search.support import (
    build_index,
    corpus_of,
    fingerprint_of,
    found,
    make_folder,
    plan_of,
    random_rows,
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


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


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
@settings(max_examples=8)
@given(cuts=st.lists(st.integers(1, 119), max_size=4, unique=True))
def test_added_in_pieces_finds_what_was_built_at_once(
    tmp_path_factory: pytest.TempPathFactory, plan: Plan | None, cuts: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("pieces")
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
    for name in ("full/vectors.bin", "head-1/codes.bin", "head-1/norms.bin"):
        one, other = folder / "whole" / name, folder / "pieces" / name
        assert one.exists() == other.exists()
        assert not one.exists() or one.read_bytes() == other.read_bytes()


def test_int8_keeps_its_scale_and_counts_what_it_clips(tmp_path: Path) -> None:
    with build_index(tmp_path / "index", ROWS, plan=FUNNEL) as index:
        scale = (tmp_path / "index/head-1/scale.bin").read_bytes()
        assert add_rows(index, 0.1 * ROWS[:3], 200) == Added(3, 0)
        assert add_rows(index, 100.0 * np.abs(ROWS[:2]), 300) == Added(2, 16)
        assert (tmp_path / "index/head-1/scale.bin").read_bytes() == scale
        ((hit, *_),) = index.search(np.abs(ROWS[:1]), top_k=3)
        assert hit.doc_id == "d300"
        index.verify()


def test_int4_keeps_its_scale_and_finds_what_was_added(tmp_path: Path) -> None:
    with build_index(tmp_path / "index", ROWS[:100], plan=PLANS["int4"]) as index:
        scale = (tmp_path / "index/head-1/scale.bin").read_bytes()
        assert add_rows(index, ROWS[100:], 100) == Added(20, 0)
        assert add_rows(index, 100.0 * np.abs(ROWS[:2]), 300) == Added(2, 0)
        assert (tmp_path / "index/head-1/scale.bin").read_bytes() == scale
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
    assert again["full/vectors.bin"] == grown["full/vectors.bin"]


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
            patch.setattr("nestling.search.tier.Tier.extended", run_out_of_memory)
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


def full_disk_after(num_flushes: int) -> Callable[[int], None]:
    left = num_flushes

    def flush(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    return flush


@pytest.mark.parametrize("num_flushes", range(4))
def test_a_full_disk_is_named_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_flushes: int
) -> None:
    with build_index(tmp_path / "index", ROWS[:100], plan=FUNNEL) as index:
        before = found(index, QUERIES, 10)
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full_disk_after(num_flushes))
            with pytest.raises(WriteError, match="the disk is full"):
                add_rows(index, ROWS[100:], 100)
        assert found(index, QUERIES, 10) == before
        with Index.open(tmp_path / "index") as reader:
            reader.verify()
            assert found(reader, QUERIES, 10) == before
        assert add_rows(index, ROWS[100:], 100).num_rows == 20
        index.verify()


@pytest.mark.parametrize("num_flushes", range(9))
def test_a_full_disk_during_a_build_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_flushes: int
) -> None:
    vectors = make_folder(tmp_path / "vectors", ROWS)
    monkeypatch.setattr(os, "fsync", full_disk_after(num_flushes))
    with pytest.raises(WriteError, match=r"cannot write .*index.*: the disk is full"):
        Index.build(tmp_path / "index", vectors, corpus_of(120), plan=FUNNEL)
    assert {path.name for path in tmp_path.iterdir()} == {"vectors"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    build_index(tmp_path / "index", ROWS).close()
    for path in [tmp_path / "index", *(tmp_path / "index").rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    with Index.open(tmp_path / "index") as index, pytest.raises(WriteError, match="permission"):
        add_rows(index, ROWS[:1], 500)


# Damage: named when the index is opened (sizes) or verified (every byte).


def test_a_folder_without_a_manifest_is_not_an_index(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"is not an index: it has no index\.json"):
        Index.open(tmp_path)
    with pytest.raises(FormatError, match="is not an index"):
        Index.open(tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["full/vectors.bin", "head-1/codes.bin", "head-1/norms.bin"])
def test_a_truncated_or_missing_file_is_named(tmp_path: Path, name: str) -> None:
    build_index(tmp_path / "index", ROWS, plan=FUNNEL).close()
    path = tmp_path / "index" / name
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(FormatError, match=rf"{name} must hold [\d,]+ bytes, it has"):
        Index.open(tmp_path / "index")
    path.unlink()
    with pytest.raises(FormatError, match=rf"{name} must hold [\d,]+ bytes, it is missing"):
        Index.open(tmp_path / "index")


def test_a_missing_catalogue_is_named(tmp_path: Path) -> None:
    build_index(tmp_path / "index", ROWS).close()
    (tmp_path / "index/catalogue.sqlite").unlink()
    with pytest.raises(FormatError, match=r"catalogue\.sqlite"):
        Index.open(tmp_path / "index")
    assert not (tmp_path / "index/catalogue.sqlite").exists()


FILES = ["full/vectors.bin", "head-1/codes.bin", "head-1/norms.bin", "head-1/scale.bin"]


@pytest.fixture(scope="module")
def small_index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    with build_index(tmp_path_factory.mktemp("small") / "index", ROWS[:20], plan=FUNNEL) as index:
        yield index


@given(name=st.sampled_from(FILES), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_named(small_index: Index, name: str, place: float, bit: int) -> None:
    path = small_index.path / name
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[int(place * len(content))] ^= 1 << bit
    path.write_bytes(flipped)
    with pytest.raises(FormatError, match=rf"differ from their checksum: {name}\."):
        small_index.verify()
    path.write_bytes(content)
    small_index.verify()


def test_a_changed_catalogue_is_named(tmp_path: Path) -> None:
    build_index(tmp_path / "index", ROWS).close()
    path = tmp_path / "index/catalogue.sqlite"
    content = path.read_bytes()
    place = content.index(b"text of document 77")
    path.write_bytes(content[:place] + b"T" + content[place + 1 :])
    with Index.open(tmp_path / "index") as index:
        assert index.search(ROWS[77:78], top_k=1)[0][0].text == "Text of document 77"
        with pytest.raises(FormatError, match=r"checksum: catalogue\.sqlite"):
            index.verify()


def test_a_destroyed_catalogue_is_named(tmp_path: Path) -> None:
    build_index(tmp_path / "index", ROWS).close()
    path = tmp_path / "index/catalogue.sqlite"
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(FormatError, match=r"catalogue\.sqlite"), Index.open(path.parent) as index:
        index.search(QUERIES)


def rewrite_manifest(folder: Path, **changes: object) -> None:
    path = folder / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    build_index(tmp_path / "index", ROWS).close()
    rewrite_manifest(tmp_path / "index", index_version=2)
    with pytest.raises(FormatError, match=r"`index_version` 2 .* newer than 1.*Upgrade nestling"):
        Index.open(tmp_path / "index")


@pytest.mark.parametrize("changes", [{"num_rows": 7}, {"engine": "warp"}, {"head": "head-2"}])
def test_an_edited_manifest_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    build_index(tmp_path / "index", ROWS).close()
    rewrite_manifest(tmp_path / "index", **changes)
    with pytest.raises(FormatError, match=r"index\.json is damaged"):
        Index.open(tmp_path / "index")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"index_version": "new"}', "null"])
def test_a_file_that_is_no_manifest_is_refused(tmp_path: Path, content: str) -> None:
    build_index(tmp_path / "index", ROWS).close()
    (tmp_path / "index/index.json").write_text(content)
    with pytest.raises(FormatError, match=r"index\.json is not"):
        Index.open(tmp_path / "index")


def test_opening_needs_no_compiler_and_no_heavy_part() -> None:
    program = (
        "import sys, nestling.search\n"
        "print(' '.join({'numba', 'torch', 'sklearn', 'faiss'} & set(sys.modules)))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert finished.stdout.strip() == ""
