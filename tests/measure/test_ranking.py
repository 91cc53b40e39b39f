import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling.core import Dtype, Int8Codec, cosine_scores, top_k
from nestling.core.progress import silent
from nestling.measure.cuts import make_cuts
from nestling.measure.metrics import overlap
from nestling.measure.ranking import measure_search, rank, rescore_shortlists

DIMS = (4, 16, 64)


def judge(rows, reference):
    return {"overlap_at_10": overlap(rows[:, :10], reference), "found": overlap(rows, reference)}


@pytest.fixture(scope="module")
def measured(nested_vectors, nested_queries):
    cuts = make_cuts(nested_vectors, dims=DIMS, dtypes=[Dtype.INT8], seed=0)
    return measure_search(
        nested_vectors, nested_queries, cuts, judge=judge, shortlist_size=50, progress=silent
    )


def test_every_cut_ranks_as_from_scratch(nested_vectors, nested_queries):
    cuts = make_cuts(nested_vectors, dims=DIMS, dtypes=list(Dtype), seed=0)
    rankings = rank(nested_vectors, nested_queries, cuts, 20, progress=silent)
    assert set(rankings) == {cut.name for cut in cuts}
    for cut in cuts:
        corpus, queries = cut.corpus_side(nested_vectors), cut.query_side(nested_queries)
        for dim in cut.dims:
            found = rankings[cut.name].by_dim[dim]
            scores = cosine_scores(queries, corpus, dim)
            expected = top_k(scores, 20).scores
            np.testing.assert_allclose(found.scores, expected, atol=1e-6)
            again = np.take_along_axis(scores, found.rows, axis=1)
            np.testing.assert_allclose(again, expected, atol=1e-6)


def test_int8_scores_are_cosines_of_decoded_values(nested_vectors, nested_queries):
    # Scales that differ per dimension: a product of bare codes would rank differently.
    stretched = nested_vectors * np.linspace(0.1, 10, 64, dtype=np.float32)
    cuts = make_cuts(stretched, dims=DIMS, dtypes=[Dtype.INT8], seed=0)
    (int8,) = [cut for cut in cuts if (cut.family, cut.dtype) == ("prefix", Dtype.INT8)]
    found = rank(stretched, nested_queries, [int8], 1, progress=silent)[int8.name].by_dim[16]
    codec = Int8Codec.calibrate(stretched)
    decoded = codec.decode(codec.encode(stretched)[0])
    np.testing.assert_allclose(
        found.scores[:, 0], cosine_scores(nested_queries, decoded, 16).max(axis=1), atol=1e-6
    )


def test_the_reference_overlaps_itself_in_full(measured):
    (full,) = [
        row for row in measured if (row.family, row.dim, row.dtype) == ("prefix", 64, "float32")
    ]
    assert (full.metrics["overlap_at_10"] == 1.0).all()


def test_funnels_have_a_head_each_and_the_full_width_is_none(measured):
    funnels = [(row.dim, str(row.dtype)) for row in measured if row.family == "funnel"]
    assert funnels == [
        (4, "float32"),
        (16, "float32"),
        (4, "int8"),
        (16, "int8"),
        (64, "int8"),
        (64, "binary"),
    ]
    assert {row.shortlist_size for row in measured if row.family == "funnel"} == {50}
    assert {row.shortlist_size for row in measured if row.family != "funnel"} == {None}


def test_a_funnel_may_start_with_either_new_format(nested_vectors, nested_queries):
    dtypes = [Dtype.INT4, Dtype.ROTATED_BINARY]
    cuts = make_cuts(nested_vectors, dims=DIMS, dtypes=dtypes, seed=0)
    measured = measure_search(
        nested_vectors, nested_queries, cuts, judge=judge, shortlist_size=50, progress=silent
    )
    for family in ("prefix", "pca", "funnel"):
        found = [
            (str(row.dtype), row.dim)
            for row in measured
            if row.family == family and row.dtype in dtypes
        ]
        assert found == [(str(dtype), dim) for dtype in dtypes for dim in DIMS]


def test_a_funnel_finds_what_its_shortlist_holds(nested_vectors, nested_queries, measured):
    scores = cosine_scores(nested_queries, nested_vectors, 64)
    reference = top_k(scores, 10).rows
    for row in measured:
        if row.family != "funnel" or row.dtype is not Dtype.FLOAT32:
            continue
        head = top_k(cosine_scores(nested_queries, nested_vectors, row.dim), 50).rows
        # Re-scored at full width, the reference documents on the shortlist come out on top.
        np.testing.assert_allclose(row.metrics["overlap_at_10"], overlap(head, reference))


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 30))
@settings(max_examples=60)
def test_rescored_shortlists_are_sorted_by_full_width_scores(seed, num_lists, size):
    generator = np.random.default_rng(seed)
    corpus = generator.standard_normal((40, 8)).astype(np.float32)
    corpus[7] = corpus[3]
    queries = generator.standard_normal((3, 8)).astype(np.float32)
    shortlists = []
    for _ in range(num_lists):
        rows = np.array([generator.permutation(40)[:size] for _ in range(3)])
        rows[:, generator.random(size) < 0.2] = -1
        shortlists.append(rows)
    scores = np.c_[cosine_scores(queries, corpus, 8), np.full(3, -np.inf)].astype(np.float32)
    # Two equal rows: matrix products may round them apart, re-scoring must not.
    scores[:, 7] = scores[:, 3]
    for rows, found in zip(
        shortlists, rescore_shortlists(corpus, queries, shortlists), strict=True
    ):
        expected = top_k(np.take_along_axis(scores, rows, axis=1), size, rows=rows).rows
        np.testing.assert_array_equal(found, expected)


def test_no_shortlists_are_no_work(nested_vectors, nested_queries):
    assert rescore_shortlists(nested_vectors, nested_queries, []) == []


def test_a_memory_mapped_corpus_gives_the_same(tmp_path, nested_vectors, nested_queries, measured):
    np.save(tmp_path / "corpus.npy", nested_vectors)
    mapped = np.load(tmp_path / "corpus.npy", mmap_mode="r")
    cuts = make_cuts(nested_vectors, dims=DIMS, dtypes=[Dtype.INT8], seed=0)
    again = measure_search(
        mapped, nested_queries, cuts, judge=judge, shortlist_size=50, progress=silent
    )
    for first, second in zip(measured, again, strict=True):
        np.testing.assert_array_equal(
            first.metrics["overlap_at_10"], second.metrics["overlap_at_10"]
        )


def test_a_float16_corpus_is_scored_in_float32(nested_vectors, nested_queries):
    halved = nested_vectors.astype(np.float16)
    cuts = make_cuts(nested_vectors, dims=DIMS, dtypes=[Dtype.INT8], seed=0)
    first, second = (
        measure_search(
            corpus, nested_queries, cuts, judge=judge, shortlist_size=50, progress=silent
        )
        for corpus in (halved, halved.astype(np.float32))
    )
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.metrics["found"], other.metrics["found"])
        np.testing.assert_array_equal(one.metrics["overlap_at_10"], other.metrics["overlap_at_10"])
