import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.core import Dtype, Fingerprint, Space
from nestling.encode.nest_manifest import NestManifest
from nestling.errors import EvidenceError
from nestling.measure import (
    PlanBudget,
    PlanChoice,
    PlanGoal,
    PlanPoint,
    Sample,
    pareto_front,
    plan_search,
)
from nestling.measure.planner.bench import Workbench
from nestling.measure.planner.cost_model import CostModel, PowerLaw
from nestling.measure.planner.heads import candidate_heads, candidate_widths
from nestling.measure.planner.refine import (
    LineCost,
    Reaches,
    Refinement,
    Shortlists,
    cheapest,
    share_kept,
)
from nestling.measure.planner.sample import Judge
from nestling.search import Plan, Stage

WIDTH = 64
NUM_ROWS = 600
NUM_QUERIES = 40


def fingerprint(width: int = WIDTH) -> Fingerprint:
    space = Space(model="m", revision="r", pooling="mean", normalization="l2", embed_dim=width)
    return Fingerprint(space=space, encoder={})


@pytest.fixture(scope="module")
def vectors():
    generator = np.random.default_rng(0)
    spread = np.linspace(2.0, 0.2, WIDTH)
    rows = generator.standard_normal((NUM_ROWS, WIDTH)) * spread
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def sample(vectors):
    generator = np.random.default_rng(1)
    rows = generator.permutation(NUM_ROWS)[:NUM_QUERIES]
    noise = 0.05 * generator.standard_normal((NUM_QUERIES, WIDTH))
    ids = [f"q{number}" for number in range(NUM_QUERIES)]
    return Sample(
        queries=(vectors[rows] + noise).astype(np.float32),
        query_ids=ids,
        doc_ids=[f"d{row}" for row in range(NUM_ROWS)],
        qrels={name: {f"d{row}": 1} for name, row in zip(ids, rows.tolist(), strict=True)},
        metric="mrr_at_10",
        source="made up",
    )


class FakeClock:
    """Every look takes a microsecond, so that all plans take equally long and nothing is random."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 1e-6
        return self.now_s


def choose(
    vectors: np.ndarray,
    sample: Sample,
    goal: PlanGoal | None = None,
    budget: PlanBudget | None = None,
    **options: Any,
) -> PlanChoice:
    return plan_search(
        vectors,
        fingerprint(),
        sample,
        goal or PlanGoal(min_quality=0.95),
        budget or PlanBudget(time_s=1e9),
        engines=("flat",),
        clock=FakeClock(),
        nesting_dims=(16, 32, WIDTH),
        **options,
    )


@pytest.mark.parametrize(
    ("given_goal", "message"),
    [
        ({}, "exactly one of `min_quality` and `min_recall`"),
        ({"min_quality": 0.9, "min_recall": 0.9}, "exactly one"),
        ({"min_quality": 1.5}, r"`min_quality` must lie in \(0, 1\], got 1.5"),
        ({"min_recall": 0.0}, r"`min_recall` must lie in \(0, 1\], got 0.0"),
    ],
)
def test_a_goal_is_one_share(given_goal, message):
    with pytest.raises(EvidenceError, match=message):
        PlanGoal(**given_goal)


def test_a_budget_is_above_zero():
    with pytest.raises(EvidenceError, match="`memory_bytes` must be above 0, got 0"):
        PlanBudget(memory_bytes=0)


def test_the_chosen_plan_keeps_what_was_asked_for(vectors, sample):
    choice = choose(vectors, sample)
    assert choice.plan is not None
    assert choice.chosen is not None
    assert choice.chosen.reaches
    assert choice.chosen.quality > 0.9
    assert choice.chosen.quality_low <= choice.chosen.quality
    assert choice.plan.stages == choice.chosen.plan.stages
    assert choice.plan.evidence["chosen"]["quality"] == choice.chosen.quality
    assert choice.plan.evidence["evidence"]["num_queries_to_tell"] == NUM_QUERIES // 2
    assert Plan.from_json(choice.plan.to_json()) == choice.plan
    assert f"keeps {choice.chosen.quality:.1%} of mrr_at_10" in choice.verdict


def test_the_same_seed_measures_the_same(vectors, sample):
    one, other = (choose(vectors, sample, seed=3) for _ in range(2))
    assert [p.quality for p in one.points] == [p.quality for p in other.points]
    assert one.plan is not None
    assert other.plan is not None
    assert one.plan.stages == other.plan.stages


def test_what_is_over_the_memory_budget_is_not_chosen(vectors, sample):
    free = choose(vectors, sample)
    limit = min(point.memory_bytes for point in free.points)
    tight = choose(vectors, sample, budget=PlanBudget(memory_bytes=limit, time_s=1e9))
    assert tight.plan is not None
    assert all(point.memory_bytes <= limit for point in tight.points)


def test_an_impossible_budget_yields_no_plan_and_says_why(vectors, sample):
    choice = choose(vectors, sample, budget=PlanBudget(memory_bytes=1, time_s=1e9))
    assert choice.plan is None
    assert "Allow more memory" in choice.verdict
    late = choose(vectors, sample, budget=PlanBudget(latency_ms=1e-9, time_s=1e9))
    assert late.plan is None
    assert "Nearest:" in late.verdict
    assert not any(point.fits for point in late.points)


def test_recall_needs_no_judgements_and_documents_may_be_the_queries(vectors):
    doc_ids = [f"d{row}" for row in range(NUM_ROWS)]
    sample = Sample.of_documents(vectors, doc_ids, num_queries=40)
    choice = choose(vectors, sample, goal=PlanGoal(min_recall=0.9))
    assert choice.chosen is not None
    assert choice.chosen.recall > 0.8
    with pytest.raises(EvidenceError, match="the queries have no judgements"):
        choose(vectors, sample)


def test_too_few_queries_choose_nothing(vectors, sample):
    few = sample.take(np.arange(9))
    with pytest.raises(EvidenceError, match="at least 10 queries, got 9"):
        choose(vectors, few)


def test_halves_share_no_query(sample):
    chooser, teller = sample.split(0)
    assert len(chooser) + len(teller) == NUM_QUERIES
    assert not set(chooser.query_ids) & set(teller.query_ids)
    assert set(chooser.qrels) == set(chooser.query_ids)


def test_a_document_does_not_find_itself(vectors):
    sample = Sample.of_documents(vectors, [str(row) for row in range(NUM_ROWS)], num_queries=20)
    scores = sample.queries @ vectors.T
    exact = np.argsort(-scores, axis=1)[:, : sample.num_results]
    assert sample.own_rows is not None
    assert (exact[:, 0] == sample.own_rows).all()
    kept = sample.drop_own(exact)
    assert kept.shape == (20, 10)
    assert not (kept == sample.own_rows[:, None]).any()
    np.testing.assert_array_equal(kept, exact[:, 1:])
    # One that was not found drops the last result instead.
    missed = np.where(exact == sample.own_rows[:, None], -1, exact)
    np.testing.assert_array_equal(sample.drop_own(missed)[:, 1:], exact[:, 1:10])


REFINEMENTS = [
    Refinement(shortlist_size=None),
    Refinement(shortlist_size=40, final=(WIDTH, Dtype.FLOAT32)),
    Refinement(shortlist_size=40, final=(WIDTH, Dtype.INT8)),
    Refinement(
        shortlist_size=60, middle=(32, Dtype.INT8), middle_size=20, final=(WIDTH, Dtype.FLOAT32)
    ),
]


@pytest.mark.parametrize("refinement", REFINEMENTS)
def test_a_shortlist_is_refined_as_the_funnel_does_it(vectors, sample, refinement):
    bench = Workbench(vectors, num_threads=1)
    head = (16, Dtype.INT8)
    plan = Plan(
        stages=refinement.stages(head), embed_dim=WIDTH, space=fingerprint().space, evidence={}
    )
    from nestling.search.engines.flat import FlatEngine

    engine = FlatEngine.build(bench.head_tier(head), vectors, settings={})
    expected = bench.funnel(plan, engine).run(sample.queries, num_results=10).best.rows
    rows = engine.search(sample.queries, 100, settings={}).best.rows
    keys = {key for key in (refinement.middle, refinement.final) if key is not None}
    shortlists = Shortlists(rows, {key: bench.scores(key, sample.queries, rows) for key in keys})
    np.testing.assert_array_equal(shortlists.ranking(refinement, 10), expected)


def test_the_cheapest_refinement_is_the_cheapest_of_all_that_do(vectors, sample):
    bench = Workbench(vectors, num_threads=1)
    head, final = (16, Dtype.INT8), (WIDTH, Dtype.FLOAT32)
    rows = bench.scores(
        (WIDTH, Dtype.FLOAT32), sample.queries, np.tile(np.arange(200), (NUM_QUERIES, 1))
    )
    order = np.argsort(-rows, axis=1)
    lists = np.random.default_rng(2).permuted(order, axis=1)
    shortlists = Shortlists(lists, {final: bench.scores(final, sample.queries, lists)})
    judge = Judge(sample, bench.find_exact(sample.queries, 10))
    reaches = Reaches(min_quality=0.1, min_recall=None)
    costs = {final: LineCost(fixed_ms=0.0, per_row_ms=0.001)}
    found = cheapest(
        shortlists,
        head,
        judge,
        num_results=10,
        reaches=reaches,
        middles=[],
        finals=[final],
        head_ms=lambda size: 0.01 * size,
        costs=costs,
    )
    sizes = [10, 15, 20, 30, 40, 60, 80, 120, 160]
    good = [
        size
        for size in sizes
        if reaches(judge, shortlists.ranking(Refinement(shortlist_size=size, final=final), 10))
    ]
    assert (found is None) == (not good)
    if found is not None:
        assert found[1].shortlist_size == min(good)
        assert found[0] == pytest.approx(0.011 * min(good))


def point(quality: float, latency_ms: float, memory_bytes: int) -> PlanPoint:
    plan = Plan(stages=(Stage(dim=8, dtype=Dtype.FLOAT32),), embed_dim=8, space=None, evidence={})
    return PlanPoint(
        plan=plan,
        quality=quality,
        quality_low=quality,
        recall=quality,
        latency_ms=latency_ms,
        latency_p50_ms=latency_ms,
        latency_p99_ms=latency_ms,
        memory_bytes=memory_bytes,
        mapped_bytes=0,
        build_s=0.0,
        reaches=True,
        fits=True,
    )


numbers = st.integers(0, 3)


@given(st.lists(st.tuples(numbers, numbers, numbers), max_size=12))
def test_the_front_holds_what_nothing_beats(triples):
    points = [point(float(q), float(ms), memory) for q, ms, memory in triples]
    front = pareto_front(points)

    def at_least_as_good(a: PlanPoint, b: PlanPoint) -> bool:
        return (
            a.quality >= b.quality
            and a.latency_ms <= b.latency_ms
            and (a.memory_bytes <= b.memory_bytes)
        )

    for one, other in itertools.permutations(front, 2):
        if at_least_as_good(one, other):
            assert at_least_as_good(other, one)
    for left in points:
        assert any(at_least_as_good(member, left) for member in front)


@given(st.floats(0.01, 100.0), st.floats(-1.0, 2.0))
def test_a_power_law_is_found_again(factor, exponent):
    sizes = [1000, 2000, 4000]
    law = PowerLaw.fit(sizes, [factor * size**exponent for size in sizes])
    assert law.exponent == pytest.approx(exponent, abs=1e-6)
    assert law.at(16_000) == pytest.approx(factor * 16_000**exponent, rel=1e-6)


def test_one_size_tells_nothing_of_growth():
    with pytest.raises(EvidenceError, match="two different sizes"):
        PowerLaw.fit([10, 10], [1.0, 2.0])


def test_a_cost_says_when_it_is_extrapolated():
    flat, line = PowerLaw(factor=0.5, exponent=0.0), PowerLaw(factor=2.0, exponent=1.0)
    model = CostModel(
        head_ms=flat, later_ms=0.25, memory_bytes=line, build_s=line, measured_rows=(10, 40)
    )
    cost = model.predict(100)
    assert (cost.latency_ms, cost.memory_bytes, cost.is_extrapolated) == (0.75, 200, True)
    assert not model.predict(40).is_extrapolated


def test_nothing_to_lose_is_kept_whole():
    assert share_kept(np.zeros(3), np.zeros(3)) == 1.0


def test_heads_are_prefixes_that_are_worth_trying():
    assert candidate_widths(1024, None) == (16, 32, 64, 128, 256, 512, 1024)
    assert candidate_widths(256, (8, 64, 256)) == (8, 64, 256)
    # None of these can be a head, and too many would take too long.
    assert candidate_widths(1024, (8, 512, 1024)) == (8, 16, 32, 64, 128, 256, 512, 1024)
    assert candidate_widths(256, (256,)) == candidate_widths(256, None) == (16, 32, 64, 128, 256)
    assert candidate_widths(768, range(10, 769, 10)) == (20, 50, 100, 190, 380, 768)
    heads = candidate_heads(candidate_widths(1024, None))
    assert all(head.dim >= 16 for head in heads)
    assert len(set(heads)) == len(heads)
    assert (128, Dtype.ROTATED_BINARY) in {head.key for head in heads}


def test_the_widths_of_the_model_are_tried_where_they_are_known(vectors, sample, tmp_path):
    made_by = replace(fingerprint(), origin={"model": f"nest:{tmp_path}"})
    goal, budget = PlanGoal(min_quality=0.5), PlanBudget(time_s=1e9)

    def widths(**options: Any) -> tuple[list[int], set[int]]:
        choice = plan_search(
            vectors,
            made_by,
            sample,
            goal,
            budget,
            engines=("flat",),
            clock=FakeClock(),
            **options,
        )
        return choice.evidence["widths"], {point.plan.head.dim for point in choice.points}

    assert widths()[0] == [16, 32, 64]
    NestManifest(
        kind="static",
        model="m",
        embed_dim=WIDTH,
        nesting_dims=(8, 20, 40, WIDTH),
        fingerprint=made_by,
    ).save(tmp_path)
    tried, heads = widths()
    assert tried == [8, 20, 40, 64]
    assert heads <= {20, 40, 64}
    assert heads & {20, 40}
    assert widths(nesting_dims=(24, WIDTH))[0] == [24, 64]
