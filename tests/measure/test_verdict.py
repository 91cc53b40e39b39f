from typing import Any

import numpy as np
import pytest

from nestling.core import Dtype
from nestling.measure.choose import choose
from nestling.measure.decision import Decision
from tests.measure.handmade import Cut, make_results, share_lost

F32, INT8, BINARY = Dtype.FLOAT32, Dtype.INT8, Dtype.BINARY
FULL = np.full(1000, 0.5)
FULL[:2] = 0.4, 0.6  # the mean stays 0.5, and the metric is not constant

CUT, FUNNEL = ("prefix", 128, INT8), ("funnel", 64, INT8)


def decide(
    cuts: dict[Cut, float],
    *,
    num_queries: int = 1000,
    task: str = "beir:scifact",
    metric: str = "ndcg_at_10",
    **question: Any,
) -> Decision:
    values = {cut: share_lost(FULL, share)[:num_queries] for cut, share in cuts.items()}
    return choose(make_results(FULL[:num_queries], values, task=task, metric=metric), **question)


def test_a_cut_and_a_funnel():
    assert decide({CUT: 0.009, FUNNEL: 0.002}).verdict == (
        "128 of 1,024 dims in int8 keep 99.1% of ndcg_at_10 (95% sure: at least 98%), 31x smaller. "
        "As a two-stage search, 64-d int8 (keep 100, rerank at 1,024) keeps 99.8% of ndcg_at_10 "
        "(95% sure: at least 98%); the part every query scans is 60x smaller."
    )


def test_the_claim_is_the_tolerance_that_was_tested():
    decision = decide({CUT: 0.0}, max_loss=0.025, confidence=0.9)
    assert decision.steps[0].loss_bound < 0.02
    assert "keep 100.0% of ndcg_at_10 (90% sure: at least 97.5%)" in decision.verdict


def test_all_dims_in_a_smaller_format():
    assert decide({("prefix", 1024, INT8): 0.0}).verdict.startswith("All 1,024 dims in int8 keep")
    assert decide({("prefix", 1024, INT8): 0.0}).verdict.endswith("4.0x smaller.")


@pytest.mark.parametrize("metric", ["overlap_at_10", "recall_at_10_of_full"])
def test_a_task_without_judgements_speaks_of_the_ranking_and_never_of_quality(metric):
    settings = {"task": "self:vectors.npy", "metric": metric}
    certified = decide({CUT: 0.009, FUNNEL: 0.002}, **settings)
    assert certified.verdict.startswith(
        f"128 of 1,024 dims in int8 keep 99.1% of the full-width ranking ({metric}; 95% sure: at "
        f"least 98%), 31x smaller. As a two-stage search, 64-d int8 (keep 100, rerank at 1,024) "
        f"keeps 99.8% of the full-width ranking ({metric}; 95% sure"
    )
    refused = decide({CUT: 0.5}, **settings)
    assert "loses 50.0% of the full-width ranking" in refused.verdict
    for decision in (certified, refused):
        assert "quality" not in decision.verdict + decision.evidence


def test_absolute_points():
    cut = decide({CUT: 0.02, FUNNEL: 0.0}, max_loss=0.02, relative=False)
    assert cut.verdict.startswith(
        "128 of 1,024 dims in int8 lose 1 point of ndcg_at_10 (95% sure: at most 2 points lost), 31x"
    )
    assert "keep 100, rerank at 1,024) loses 0 points of ndcg_at_10 (95% sure" in cut.verdict
    better = decide({CUT: -0.01}, max_loss=0.02, relative=False)
    assert "dims in int8 gain 0.5 points of ndcg_at_10 (95% sure: at most 2" in better.verdict


def test_too_few_queries_for_any_test_says_so_first():
    decision = decide({CUT: 0.0}, num_queries=300, max_loss=0.005)
    assert decision.verdict.startswith(
        "300 queries cannot certify a loss below about 1 point of ndcg_at_10 (95% sure), and the "
        "tolerance is 0.25 points: at least 1,199 queries are needed. Nothing is certified: not "
        "enough evidence, about 1,500 queries needed; on these 300 queries 128-d int8 loses 0.0% of "
        "ndcg_at_10 (tolerated: 0.5%)."
    )


def test_too_few_queries_for_this_loss():
    decision = decide({CUT: 0.01})
    assert decision.certified
    decision = decide({CUT: 0.01}, num_queries=310)
    assert decision.queries_needed is not None
    assert decision.verdict == (
        "Nothing is certified: not enough evidence, about 700 queries needed; on these 310 queries "
        "128-d int8 loses 1.0% of ndcg_at_10 (tolerated: 2%)."
    )


def test_a_loss_above_the_tolerance():
    assert decide({CUT: 0.031}).verdict == (
        "Nothing is certified: on these 1,000 queries 128-d int8 loses 3.1% of ndcg_at_10, no less "
        "than the tolerated 2%, and more queries like them would not help."
    )
    absolute = decide({CUT: 0.1}, max_loss=0.02, relative=False).verdict
    assert "loses 5 points of ndcg_at_10, no less than the tolerated 2 points" in absolute


def test_a_refusal_speaks_of_the_step_that_came_closest():
    cuts = {CUT: 0.05, ("prefix", 1024, BINARY): 0.018, FUNNEL: 0.03}
    decision = decide(cuts)
    assert not decision.certified
    assert "1024" not in decision.verdict
    assert "1,024-d binary loses 1.8% of ndcg_at_10 (tolerated: 2%)" in decision.verdict
    del cuts[("prefix", 1024, BINARY)]
    assert "64-d int8 reranked at 1,024 loses 3.0%" in decide(cuts).verdict


def test_one_family_is_certified_and_the_other_is_not():
    funnel = decide({CUT: 0.5, FUNNEL: 0.0}).verdict
    assert funnel.startswith("As a two-stage search, 64-d int8")
    assert funnel.endswith(
        "No cut by itself is certified: on these 1,000 queries 128-d int8 loses 50.0% of ndcg_at_10, "
        "no less than the tolerated 2%, and more queries like them would not help."
    )
    cut = decide({CUT: 0.0, FUNNEL: 0.5}).verdict
    assert cut.startswith("128 of 1,024 dims in int8 keep")
    assert "No two-stage search is certified: on these" in cut


def test_no_word_on_a_family_that_was_not_measured():
    assert decide({CUT: 0.0}).verdict.count(". ") == 0


def test_evidence():
    assert decide({CUT: 0.0, FUNNEL: 0.0, ("prefix", 64, BINARY): 0.0}, seed=7).evidence == (
        "1,000 queries of beir:scifact over 5,000 documents | betting test of the paired loss per "
        "query, widest cut first, up to the first failure | confidence: prefix 95% over 2 chains, 97.5% each; funnel "
        "95% over 1 chain, 95% each | query order: seed 7 | floor of any certificate: 0.3 points | "
        "measured 2026-11-23"
    )
