from typing import Any

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import AP, RR, Qrel, R, ScoredDoc, nDCG
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score

from nestling.errors import DataError
from nestling.measure.metrics import Judgements, average_precision, overlap, spearman

THEIRS = {
    "ndcg_at_10": nDCG @ 10,
    "mrr_at_10": RR @ 10,
    "recall_at_10": R @ 10,
    "recall_at_100": R @ 100,
    "map_at_100": AP @ 100,
}


def ask_ir_measures(
    rows: Any, qrels: Any, query_ids: Any, doc_ids: Any, measures: Any = THEIRS
) -> Any:
    """Per metric the values per query, from strictly descending scores so that no tie matters."""
    run = [
        ScoredDoc(query_id, doc_ids[row], float(len(ranking) - place))
        for query_id, ranking in zip(query_ids, rows, strict=True)
        for place, row in enumerate(ranking)
        if row >= 0
    ]
    judged = [
        Qrel(query_id, name, grade) for query_id in qrels for name, grade in qrels[query_id].items()
    ]
    values = {name: dict.fromkeys(query_ids, 0.0) for name in measures}
    names = {measure: name for name, measure in measures.items()}
    for found in ir_measures.iter_calc(list(measures.values()), judged, run):
        values[names[found.measure]][found.query_id] = found.value
    return {
        name: [by_query[query_id] for query_id in query_ids] for name, by_query in values.items()
    }


@st.composite
def rankings(draw):
    num_docs = draw(st.integers(1, 150))
    num_queries = draw(st.integers(1, 5))
    seed = draw(st.integers(0, 2**32 - 1))
    highest_grade = draw(st.sampled_from([1, 2, 3]))
    num_judged = draw(st.integers(1, num_docs))
    depth = draw(st.sampled_from([100, 120]))
    generator = np.random.default_rng(seed)
    rows = np.full((num_queries, depth), -1)
    qrels = {}
    for query in range(num_queries):
        kept = min(depth, num_docs)
        rows[query, :kept] = generator.permutation(num_docs)[:kept]
        judged = generator.choice(num_docs, num_judged, replace=False)
        qrels[f"q{query}"] = {
            f"d{row}": int(generator.integers(-1, highest_grade + 1)) for row in judged
        }
    return rows, qrels, [f"d{row}" for row in range(num_docs)]


@given(rankings())
@settings(max_examples=150)
def test_metrics_equal_ir_measures(drawn):
    rows, qrels, doc_ids = drawn
    query_ids = list(qrels)
    judgements = Judgements(qrels, query_ids=query_ids, doc_ids=doc_ids)
    ours = judgements.evaluate(rows)
    for name, values in ask_ir_measures(rows, qrels, query_ids, doc_ids).items():
        np.testing.assert_allclose(ours[name], values, rtol=0, atol=1e-9, err_msg=name)
    binary = {
        query_id: {name: int(grade > 0) for name, grade in judged.items()}
        for query_id, judged in qrels.items()
    }
    name = "ndcg_at_10_binary" if judgements.has_grades else "ndcg_at_10"
    values = ask_ir_measures(rows, binary, query_ids, doc_ids, {name: nDCG @ 10})[name]
    np.testing.assert_allclose(ours[name], values, rtol=0, atol=1e-9)


def test_graded_gain_is_linear_and_not_exponential():
    judgements = Judgements({"q": {"a": 3, "b": 1}}, query_ids=["q"], doc_ids=["a", "b"])
    values = judgements.evaluate(np.array([[1, 0]]))
    discount = 1 / np.log2(3)
    assert values["ndcg_at_10"] == pytest.approx((1 + 3 * discount) / (3 + discount), abs=1e-12)
    assert values["ndcg_at_10_binary"] == pytest.approx(1.0, abs=1e-12)


def test_binary_judgements_have_no_second_ndcg():
    judgements = Judgements({"q": {"a": 1}}, query_ids=["q"], doc_ids=["a"])
    assert "ndcg_at_10_binary" not in judgements.evaluate(np.array([[0]]))


def test_ideal_ranking_holds_more_than_ten_relevant_documents():
    doc_ids = [f"d{row}" for row in range(30)]
    judgements = Judgements({"q": dict.fromkeys(doc_ids, 1)}, query_ids=["q"], doc_ids=doc_ids)
    values = judgements.evaluate(np.arange(30)[None])
    assert values["ndcg_at_10"] == pytest.approx(1.0, abs=1e-12)
    assert values["recall_at_10"] == pytest.approx(10 / 30)
    assert values["recall_at_100"] == 1.0


def test_a_relevant_document_outside_the_corpus_still_counts_as_missed():
    judgements = Judgements({"q": {"a": 1, "gone": 1}}, query_ids=["q"], doc_ids=["a"])
    assert judgements.evaluate(np.array([[0]]))["recall_at_10"] == 0.5


def test_a_query_without_relevant_documents_scores_zero():
    judgements = Judgements({"q": {"a": 0}}, query_ids=["q"], doc_ids=["a"])
    assert all(values == 0 for values in judgements.evaluate(np.array([[0]])).values())


def test_an_empty_place_never_scores():
    # The row before a query's block of keys belongs to the query before it.
    judgements = Judgements(
        {"p": {"b": 1}, "q": {"a": 1}}, query_ids=["p", "q"], doc_ids=["a", "b"]
    )
    grades = judgements.grades(np.array([[0, -1], [-1, -1]]))
    assert not grades.any()


def test_overlap_ignores_order_and_empty_places():
    reference = np.array([[3, 1, 2], [5, 6, -1]])
    rows = np.array([[2, 9, 3, 8], [-1, 5, 7, 4]])
    np.testing.assert_allclose(overlap(rows, reference), [2 / 3, 1 / 2])


@given(st.integers(0, 2**32 - 1), st.integers(3, 40))
def test_spearman_equals_scipy_with_ties(seed, num_pairs):
    generator = np.random.default_rng(seed)
    gold = np.r_[0.0, 1.0, generator.integers(0, 5, num_pairs).astype(float)]
    scores = np.r_[0.0, 1.0, generator.integers(0, 9, num_pairs) / 9].astype(np.float32)
    assert spearman(gold, scores) == pytest.approx(spearmanr(gold, scores).statistic, abs=1e-12)


def test_scores_that_rank_nothing_get_zero():
    assert spearman(np.array([1.0, 2.0]), np.ones(2, dtype=np.float32)) == 0.0


def test_constant_gold_scores_are_refused():
    with pytest.raises(
        DataError, match=r"`gold` must hold at least two different scores .* \[2\.0\]"
    ):
        spearman(np.array([2.0, 2.0]), np.array([0.1, 0.2], dtype=np.float32))


def test_average_precision_equals_scikit_learn():
    generator = np.random.default_rng(0)
    is_match = generator.random(50) < 0.4
    scores = generator.random(50).astype(np.float32)
    assert average_precision(is_match, scores) == average_precision_score(is_match, scores)


@pytest.mark.parametrize("value", [True, False])
def test_pairs_of_one_kind_are_refused(value):
    with pytest.raises(DataError, match="`is_match` must hold pairs that match and pairs that do"):
        average_precision(np.full(3, value), np.zeros(3, dtype=np.float32))
