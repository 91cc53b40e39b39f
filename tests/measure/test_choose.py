import json
from collections.abc import Sequence

import numpy as np
import pytest

from nestling.core import Dtype
from nestling.errors import EvidenceError
from nestling.measure import walk
from nestling.measure.certify import certifies
from nestling.measure.choose import choose
from nestling.measure.decision import Step
from nestling.measure.intervals import bootstrap_loss_intervals
from nestling.measure.results import Results
from nestling.search.plan import Plan, Stage
from tests.measure.handmade import EMBED_DIM, Cut, Values, make_results, share_lost

F32, F16, INT8, BINARY = Dtype.FLOAT32, Dtype.FLOAT16, Dtype.INT8, Dtype.BINARY
FULL = np.random.default_rng(0).choice([0.4, 1.0], size=800)


def keep(share: float, *cuts: Cut) -> dict[Cut, Values]:
    return {cut: share_lost(FULL, 1.0 - share) for cut in cuts}


def prefix(dim: int, dtype: Dtype) -> Cut:
    return ("prefix", dim, dtype)


def funnel(dim: int, dtype: Dtype) -> Cut:
    return ("funnel", dim, dtype)


def labels(steps: Sequence[Step]) -> list[tuple[int, Dtype, bool]]:
    return [(step.dim, step.dtype, step.passed) for step in steps]


def test_walks_down_until_the_first_failure():
    cuts = {
        **keep(1.0, prefix(1024, INT8)),
        **keep(0.999, prefix(512, F32)),
        **keep(0.998, prefix(512, INT8)),
        **keep(0.9, prefix(256, F32)),
        **keep(1.0, prefix(256, INT8), prefix(64, F32)),
    }
    decision = choose(make_results(FULL, cuts))
    assert labels(decision.steps) == [
        (1024, INT8, True),
        (512, F32, True),
        (512, INT8, True),
        (256, F32, False),
    ]
    assert [step.kept for step in decision.steps] == pytest.approx([1.0, 0.999, 0.998, 0.9])
    assert decision.cut == decision.steps[2]
    assert decision.certified
    assert decision.funnel is None


def test_chooses_the_fewest_bytes_even_if_a_later_step_is_bigger():
    # int8 at 1,024 dims is smaller than float32 at 512, which is tested after it.
    cuts = keep(1.0, prefix(1024, INT8), prefix(512, F32))
    decision = choose(make_results(FULL, cuts))
    assert all(step.passed for step in decision.steps)
    assert decision.cut is not None
    assert (decision.cut.dim, decision.cut.dtype) == (1024, INT8)


def test_equal_bytes_go_to_the_wider():
    cuts = keep(1.0, prefix(512, F16), prefix(256, F32))
    decision = choose(make_results(FULL, cuts))
    assert decision.cut is not None
    assert decision.cut.dim == 512


def test_binary_is_a_chain_of_its_own_and_shares_the_level():
    cuts = keep(1.0, prefix(512, F32), prefix(256, F32))
    alone = choose(make_results(FULL, cuts))
    fails_at_once = {**cuts, **keep(0.5, prefix(1024, BINARY))}
    beside = choose(make_results(FULL, fails_at_once))
    assert labels(beside.steps) == [(512, F32, True), (256, F32, True), (1024, BINARY, False)]
    assert beside.steps[0].loss_bound > alone.steps[0].loss_bound
    assert "prefix 95% over 2 chains, 97.5% each" in beside.evidence
    assert "prefix 95% over 1 chain, 95% each" in alone.evidence


def test_families_do_not_share_a_level():
    cuts = keep(1.0, prefix(512, F32))
    alone = choose(make_results(FULL, cuts))
    both = choose(make_results(FULL, {**cuts, **keep(0.5, funnel(512, F32))}))
    assert both.steps[0] == alone.steps[0]


def test_the_plan_of_a_funnel_reranks_at_full_width():
    cuts = keep(1.0, prefix(512, INT8), funnel(64, INT8))
    results = make_results(FULL, cuts)
    plan = choose(results).plan
    assert plan is not None
    assert plan.stages == (
        Stage(dim=64, dtype=INT8, shortlist_size=100),
        Stage(dim=EMBED_DIM, dtype=F32),
    )
    assert plan.space == results.fingerprint.space
    assert plan.embed_dim == EMBED_DIM


def test_the_plan_of_a_cut_alone_has_one_stage():
    cuts = {**keep(1.0, prefix(64, INT8)), **keep(0.9, funnel(64, INT8))}
    plan = choose(make_results(FULL, cuts)).plan
    assert plan is not None
    assert plan.stages == (Stage(dim=64, dtype=INT8),)


def test_without_a_certificate_there_is_no_plan():
    decision = choose(make_results(FULL, keep(0.9, prefix(64, INT8))))
    assert (decision.plan, decision.cut, decision.certified) == (None, None, False)
    assert decision.queries_needed is None
    assert decision.steps[0].queries_needed is None


def test_says_how_many_queries_would_do():
    decision = choose(make_results(FULL[:60], {prefix(512, F32): FULL[:60]}), max_loss=0.02)
    assert not decision.certified
    needed = decision.queries_needed
    assert needed is not None
    assert needed == decision.steps[0].queries_needed
    again = np.resize(FULL, needed + 20)
    assert choose(make_results(again, {prefix(512, F32): again}), max_loss=0.02).certified


def test_needs_more_queries_than_it_has_if_they_failed():
    # Small first stakes cost a few queries that the estimate leaves out.
    numbers = []
    for num_queries in range(260, 320):
        full = np.full(num_queries, 0.5)
        full[0] = 0.6
        (step,) = choose(make_results(full, {prefix(512, F32): full}), max_loss=0.025).steps
        assert step.passed == (step.queries_needed is None)
        numbers.append(step.queries_needed)
        assert step.queries_needed is None or step.queries_needed > num_queries
    assert None in numbers


def test_numbers_of_a_step():
    decision = choose(make_results(FULL, keep(0.99, prefix(128, INT8))), max_loss=0.05)
    (step,) = decision.steps
    assert decision.full_value == pytest.approx(FULL.mean())
    assert step.value == pytest.approx(0.99 * FULL.mean())
    assert step.kept == pytest.approx(0.99)
    assert step.loss == pytest.approx(0.01 * FULL.mean())
    assert 0.01 < step.loss_bound <= 0.05
    assert step.interval == pytest.approx((0.01, 0.01))
    assert decision.floor == pytest.approx(np.log(20.0) / 800)


def test_the_interval_is_at_the_stated_confidence_whatever_the_chains():
    generator = np.random.default_rng(3)
    cut = FULL * (generator.random(800) >= 0.002)
    results = make_results(FULL, {prefix(512, F32): cut, prefix(1024, BINARY): cut})
    first, second = choose(results).steps
    order = np.random.default_rng(0).permutation(800)
    (expected,) = bootstrap_loss_intervals(
        FULL[order], cut[None, order], relative=True, confidence=0.95, seed=0
    )
    assert first.interval == second.interval == pytest.approx(tuple(expected))


def test_absolute_losses_are_counted_in_the_metric_itself():
    results = make_results(FULL, keep(0.97, prefix(128, INT8)))
    mean = FULL.mean()
    assert not choose(results, max_loss=0.025).certified
    assert choose(results, max_loss=0.04, relative=False).certified
    step = choose(results, max_loss=0.04, relative=False).steps[0]
    low, high = step.interval
    assert low <= 0.03 * mean <= high < step.loss_bound <= 0.04


def test_chooses_by_the_metric_named():
    results = make_results(FULL, keep(1.0, prefix(64, INT8)), metric="mrr_at_10")
    assert choose(results, metric="mrr_at_10").metric == "mrr_at_10"
    with pytest.raises(EvidenceError, match="metrics are mrr_at_10"):
        choose(results, metric="ndcg_at_10")


def test_same_seed_same_bits():
    generator = np.random.default_rng(2)
    cuts = {
        prefix(dim, dtype): FULL * (generator.random(800) >= 0.01)
        for dim in (512, 64)
        for dtype in (F32, INT8)
    }
    results = make_results(FULL, cuts)
    first = choose(results, seed=3)
    assert choose(results, seed=3) == first
    bounds = {choose(results, seed=seed).steps[0].loss_bound for seed in range(3)}
    assert len(bounds) == 3


def test_a_decision_and_its_plan_survive_json(tmp_path):
    cuts = {**keep(1.0, prefix(512, INT8), funnel(64, INT8)), **keep(0.9, prefix(64, BINARY))}
    decision = choose(make_results(FULL, cuts))
    data = json.loads(json.dumps(decision.to_json(), allow_nan=False))
    assert data["certified"] is True
    assert data["verdict"] == decision.verdict
    assert [step["dim"] for step in data["steps"]] == [512, 64, 64]
    assert decision.plan is not None
    assert Plan.from_json(data["plan"]) == decision.plan
    decision.plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == decision.plan
    assert decision.plan.evidence["verdict"] == decision.verdict
    assert decision.plan.evidence["funnel"]["dim"] == 64
    assert "plan" not in decision.plan.evidence


@pytest.mark.parametrize("changes", [{"max_loss": 0.0}, {"max_loss": 2.0}, {"confidence": 0.3}])
def test_refuses_arguments_out_of_range(changes):
    results = make_results(FULL, keep(1.0, prefix(64, INT8)))
    with pytest.raises(EvidenceError, match=f"`{next(iter(changes))}` must lie between"):
        choose(results, **changes)


def test_refuses_a_metric_outside_the_unit_interval():
    results = make_results(FULL * 100.0, {prefix(64, INT8): FULL})
    with pytest.raises(EvidenceError, match=r"metric in \[0, 1\].*got (40|100)\.0"):
        choose(results)


def test_refuses_results_without_the_full_width():
    results = make_results(FULL, keep(1.0, prefix(64, INT8)))
    with pytest.raises(EvidenceError, match="no row for prefix 1024-d float32"):
        choose(
            type(results).from_json({**results.to_json(), "rows": results.to_json()["rows"][1:]})
        )


MAX_LOSS = 0.1


def random_results(generator: np.random.Generator) -> tuple[Results, set[Cut]]:
    """Two chains whose first violators lose exactly the tolerance, and candidates after them.

    Losses are independent of what the full width gets, so the mean loss is exact for each.
    """
    full = generator.choice([0.4, 1.0], size=150)

    def lose(share: float) -> np.ndarray:
        return full * (generator.random(150) >= share)

    violators = {
        prefix(256, F32): lose(MAX_LOSS),
        prefix(256, INT8): lose(1.5 * MAX_LOSS),
        prefix(1024, BINARY): lose(MAX_LOSS),
        prefix(64, BINARY): lose(2.0 * MAX_LOSS),
    }
    harmless = {prefix(1024, INT8): full, prefix(512, F32): lose(0.002)}
    return make_results(full, {**harmless, **violators}), set(violators)


@pytest.fixture
def without_figures(monkeypatch):
    """Leave out what decides nothing and takes most of the time."""
    monkeypatch.setattr(
        walk, "bootstrap_loss_intervals", lambda full, cuts, **_: np.zeros((len(cuts), 2))
    )
    monkeypatch.setattr(walk, "loss_bound", lambda full, cuts, **_: np.ones(len(cuts)))


def rate_of_wrong_certificates(num_trials: int) -> float:
    generator = np.random.default_rng(20)
    num_wrong = num_reached = 0
    for trial in range(num_trials):
        results, violators = random_results(generator)
        steps = choose(results, max_loss=MAX_LOSS, seed=trial).steps
        num_reached += any(
            (step.family, step.dim, step.dtype) == prefix(256, F32) for step in steps
        )
        num_wrong += any(
            step.passed and (step.family, step.dim, step.dtype) in violators for step in steps
        )
    assert num_reached > 0.9 * num_trials, "the walk must get to the violators to be tempted"
    return num_wrong / num_trials


@pytest.mark.usefixtures("without_figures")
def test_the_walk_is_wrong_at_most_delta_of_the_time():
    assert 0.01 < rate_of_wrong_certificates(1000) <= 0.05


@pytest.mark.usefixtures("without_figures")
def test_a_walk_with_a_wrong_bound_is_caught(monkeypatch):
    def normal_bound(full, cut, *, max_loss, relative, confidence):
        shortfall = (1.0 - max_loss) * full - cut
        return shortfall.mean(axis=1) <= 0.0

    monkeypatch.setattr(walk, "certifies", normal_bound)
    assert rate_of_wrong_certificates(100) > 0.1


@pytest.mark.usefixtures("without_figures")
def test_a_walk_that_does_not_share_its_level_is_caught(monkeypatch):
    def at_the_whole_level(full, cut, *, max_loss, relative, confidence):
        return certifies(full, cut, max_loss=max_loss, relative=relative, confidence=0.95)

    monkeypatch.setattr(walk, "certifies", at_the_whole_level)
    assert rate_of_wrong_certificates(300) > 0.07
