from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling.core import Dtype, cosine_scores
from nestling.errors import DataError, DimensionError, FormatError, VectorError
from nestling.measure import adaptive_retrieval
from nestling.measure.adaptive_retrieval import (
    FUNNEL_SIZES,
    Stages,
    chain,
    label_metrics,
    measure_adaptive_retrieval,
    multiply_adds,
    paper_chains,
)
from nestling.search import Plan, Stage

DIMS = (4, 8, 16, 32)


def make_split(
    num_rows: int, num_queries: int, *, num_classes: int = 12, full: int = 32, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Noisy copies of class centres whose leading coordinates matter most."""
    generator = np.random.default_rng(seed)
    fading = 1.0 / np.sqrt(np.arange(1, full + 1))
    centres = generator.standard_normal((num_classes, full))
    labels = generator.integers(0, num_classes, num_rows + num_queries)
    vectors = centres[labels] + 1.2 * generator.standard_normal((len(labels), full))
    vectors = (vectors * fading).astype(np.float32)
    return vectors[:num_rows], labels[:num_rows], vectors[num_rows:], labels[num_rows:]


def retrieve_by_hand(database: np.ndarray, query: np.ndarray, stages: Stages) -> list[int]:
    """One query, one stage after the other, with plain sorts."""
    kept = list(range(len(database)))
    for stage in stages:
        scores = cosine_scores(query[None], database, stage.dim)[0]
        kept = sorted(kept, key=lambda row: (-scores[row], row))
        kept = kept[: stage.shortlist_size or 10]
    return kept


def judge_by_hand(found: list[int], labels: np.ndarray, label: int) -> dict[str, float]:
    hits = [bool(labels[row] == label) for row in found[:10]]
    precisions = [sum(hits[: place + 1]) / (place + 1) for place, hit in enumerate(hits) if hit]
    relevant = int((labels == label).sum())
    return {
        "accuracy_1nn": float(hits[0]),
        "map_at_10_paper": sum(precisions) / 10,
        "map_at_10": sum(precisions) / min(10, relevant) if relevant else 0.0,
        "precision_at_10": sum(hits) / 10,
    }


@pytest.mark.parametrize("block_places", [1 << 23, 1])
@pytest.mark.parametrize("num_rows", [6, 300])
def test_every_chain_equals_the_plain_loop(monkeypatch, num_rows, block_places):
    # With blocks of one query, seams are everywhere.
    monkeypatch.setattr(adaptive_retrieval, "BLOCK_PLACES", block_places)
    database, labels, queries, query_labels = make_split(
        num_rows, 15, num_classes=3 if num_rows == 6 else 12
    )
    chains = [*paper_chains(DIMS), chain([4, 8, 32], [40, 20]), chain([8, 16], [12])]
    rows = measure_adaptive_retrieval(database, labels, queries, query_labels, chains)
    assert [row.stages for row in rows] == chains
    for row in rows:
        for number, (query, label) in enumerate(zip(queries, query_labels, strict=True)):
            found = retrieve_by_hand(database, query, row.stages)
            full = retrieve_by_hand(database, query, chain([32], []))
            expected = judge_by_hand(found, labels, label)
            expected["overlap_at_10"] = len({*found} & {*full}) / len(full)
            measured = {name: values[number] for name, values in row.metrics.items()}
            assert measured == pytest.approx(expected, abs=1e-12), (row.describe(), number)


def test_rows_say_what_they_are():
    rows = measure_adaptive_retrieval(
        *make_split(300, 5), [chain([8], []), chain([8, 32], [200]), chain([4, 8, 32], [40, 20])]
    )
    assert [row.kind for row in rows] == ["single", "adaptive", "funnel"]
    assert rows[2].describe() == "4-d, keep 40 -> 8-d, keep 20 -> 32-d"
    assert rows[1].mean("accuracy_1nn") == rows[1].metrics["accuracy_1nn"].mean()
    assert [row.multiply_adds for row in rows] == [
        300 * 8,
        300 * 8 + 200 * 32,
        300 * 4 + 40 * 8 + 20 * 32,
    ]
    assert rows[0].full_scan_ratio == 4.0


def test_nothing_is_written_to_and_the_order_of_chains_does_not_matter():
    # The published notebook sorts a view of the shortlist in place, and feeds it to the next chain.
    given_arrays = make_split(400, 20)
    copies = [array.copy() for array in given_arrays]
    for array in given_arrays:
        array.flags.writeable = False
    chains = paper_chains(DIMS)
    forward = measure_adaptive_retrieval(*given_arrays, chains)
    backward = measure_adaptive_retrieval(*given_arrays, chains[::-1])[::-1]
    for array, copy in zip(given_arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)
    for one, other in zip(forward, backward, strict=True):
        for name in one.metrics:
            np.testing.assert_array_equal(one.metrics[name], other.metrics[name])


def test_prefixes_are_compared_each_by_its_own_norm():
    # Row 0 points the right way in front; a long tail makes its prefix short.
    database = np.array([[1, 0, 9, 9], [1, 0.5, 0, 0]], np.float32)
    queries = np.array([[1, 0, 0, 0]], np.float32)
    labels = np.array([7, 8])
    (row,) = measure_adaptive_retrieval(database, labels, queries, labels[:1], [chain([2], [])])
    assert row.mean("accuracy_1nn") == 1.0


@given(
    st.integers(1, 60),
    st.integers(0, 99),
    st.lists(st.sampled_from(DIMS), min_size=2, max_size=4),
)
@settings(max_examples=20)
def test_an_unlimited_shortlist_is_the_single_scan(num_rows, seed, dims):
    split = make_split(num_rows, 8, seed=seed)
    dims = sorted(dims)
    single, funnel = measure_adaptive_retrieval(
        *split, [chain(dims[-1:], []), chain(dims, [1000] * (len(dims) - 1))]
    )
    for name in single.metrics:
        np.testing.assert_array_equal(single.metrics[name], funnel.metrics[name])


@given(
    st.integers(1, 20).flatmap(
        lambda k: st.lists(st.lists(st.booleans(), min_size=k, max_size=k), min_size=1, max_size=5)
    ),
    st.integers(0, 30),
)
def test_metrics_lie_in_order(hits, more):
    is_relevant = np.array(hits)
    num_relevant = is_relevant.sum(axis=1) + more
    metrics = label_metrics(is_relevant, num_relevant)
    assert (metrics["map_at_10_paper"] <= metrics["precision_at_10"] + 1e-12).all()
    assert (metrics["map_at_10_paper"] <= metrics["map_at_10"] + 1e-12).all()
    assert (metrics["map_at_10"] <= 1 + 1e-12).all()
    same = num_relevant >= 10
    np.testing.assert_array_equal(metrics["map_at_10_paper"][same], metrics["map_at_10"][same])


def test_usual_map_equals_ir_measures():
    import ir_measures
    from ir_measures import AP, Qrel, ScoredDoc

    generator = np.random.default_rng(0)
    is_relevant = generator.random((40, 10)) < 0.3
    for query, hits in enumerate(is_relevant):
        # All relevant documents are in the ranking, so that AP has the same denominator.
        if not hits.any():
            continue
        qrels = [Qrel("q", f"d{place}", int(hit)) for place, hit in enumerate(hits)]
        run = [ScoredDoc("q", f"d{place}", 10.0 - place) for place in range(10)]
        (theirs,) = ir_measures.iter_calc([AP @ 10], qrels, run)
        ours = label_metrics(hits[None], np.array([hits.sum()]))["map_at_10"][0]
        assert ours == pytest.approx(theirs.value), query


def test_the_paper_divides_by_ten_where_the_class_is_smaller():
    metrics = label_metrics(np.array([[True, True, False]]), np.array([2]))
    assert metrics["map_at_10"].tolist() == [1.0]
    assert metrics["map_at_10_paper"].tolist() == [0.2]
    assert metrics["precision_at_10"].tolist() == [0.2]


def test_a_query_of_an_unknown_class_scores_zero():
    database, labels, queries, query_labels = make_split(50, 4)
    for strange in (-5, 99):
        (row,) = measure_adaptive_retrieval(
            database, labels, queries, np.full_like(query_labels, strange), [chain([8], [])]
        )
        assert [row.mean(name) for name in row.metrics if name != "overlap_at_10"] == [0.0] * 4


def test_the_claim_of_128_times_is_125_with_the_re_rank():
    num_rows, full = 1_281_167, 2048
    ratio = num_rows * full / multiply_adds(chain([16, 2048], [200]), num_rows)
    assert round(ratio) == 125
    funnel = chain([16, 32, 64, 128, 256, 2048], FUNNEL_SIZES)
    rerank = multiply_adds(funnel, num_rows) - num_rows * 16
    assert rerank == 200 * 32 + 100 * 64 + 50 * 128 + 25 * 256 + 10 * 2048 == 46_080
    assert multiply_adds(chain([16, 2048], [200]), 100) == 100 * 16 + 100 * 2048


def test_the_papers_chains_are_among_those_compared():
    dims = tuple(8 * 2**place for place in range(9))
    chains = paper_chains(dims)
    assert chains[:9] == [chain([dim], []) for dim in dims]
    assert chain([16, 2048], [200]) in chains
    assert chain([16, 32, 64, 128, 256, 2048], FUNNEL_SIZES) in chains
    assert chain([8, 16, 32, 64, 128, 2048], FUNNEL_SIZES) in chains
    assert chains[-1] == chain([512, 1024, 2048], [200, 100])
    assert len(chains) == len(set(chains)) == 9 + 36 + 7
    for stages in chains:
        Plan(stages=stages, embed_dim=2048, space=None, evidence={})


def test_progress_and_other_number_formats():
    told: list[tuple[Any, ...]] = []
    database, labels, queries, query_labels = make_split(80, 6)
    chains = paper_chains(DIMS)
    half = measure_adaptive_retrieval(
        database.astype(np.float16),
        labels,
        queries.astype(np.float64),
        query_labels,
        chains,
        progress=lambda *step: told.append(step),
    )
    assert told == [("retrieve", 6, 6)]
    rounded = database.astype(np.float16).astype(np.float32)
    whole = measure_adaptive_retrieval(rounded, labels, queries, query_labels, chains)
    assert [row.mean("map_at_10") for row in half] == pytest.approx(
        [row.mean("map_at_10") for row in whole]
    )


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"database_labels": np.zeros(3, int)}, DataError, "`database` must .* 50 vectors and 3"),
        ({"query_labels": np.zeros(3, int)}, DataError, "`queries` must .* 4 vectors and 3 labels"),
        (
            {"queries": np.ones((4, 5), np.float32)},
            VectorError,
            "as wide as the database, 32, got 5",
        ),
        ({"queries": np.full((4, 32), np.nan)}, VectorError, "`queries` must be finite, .* 4 rows"),
        ({"queries": np.tile([np.inf, -np.inf], (4, 16))}, VectorError, "`queries` must be finite"),
        ({"chains": []}, DataError, "at least one chain, got none"),
        ({"chains": [chain([16, 8], [20])]}, DimensionError, "must not get narrower"),
        ({"chains": [chain([16, 64], [20])]}, DimensionError, r"must lie in \[1, 32\]"),
        ({"chains": [chain([4, 8, 16], [20, 30])]}, FormatError, "never grow"),
        (
            {"chains": [(Stage(dim=8, dtype=Dtype.INT8),)]},
            VectorError,
            "`chains` must be in float32, got '8-d int8'",
        ),
    ],
)
def test_bad_input_is_refused(changed, error, message):
    names = ("database", "database_labels", "queries", "query_labels")
    asked = dict(zip(names, make_split(50, 4), strict=True))
    with pytest.raises(error, match=message):
        measure_adaptive_retrieval(**{**asked, "chains": [chain([8], [])], **changed})


def test_a_chain_needs_a_size_before_each_re_rank():
    with pytest.raises(DimensionError, match="one per re-rank, 1 for the widths 8,16, got 2"):
        chain([8, 16], [200, 100])
