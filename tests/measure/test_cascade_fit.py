import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nestling.errors import EvidenceError
from nestling.measure import cascade_grid
from nestling.measure.cascade import Cascade, WidthAnswers, answers_correctly, evaluate_cascade
from nestling.measure.cascade_fit import (
    CostCount,
    fit_certified_thresholds,
    fit_greedy_thresholds,
    fit_thresholds,
)
from nestling.measure.cascade_grid import make_grid, total_of
from tests.measure.nested_answers import make_answers, random_answers

DIMS = (8, 16, 32, 64, 128)
COSTS: tuple[CostCount, ...] = ("dim", "cumulative_dim")


def cost_of(cascade: Cascade, answers: WidthAnswers, cost: str) -> float:
    outcome = evaluate_cascade(cascade, answers)
    return outcome.mean_dim if cost == "dim" else outcome.mean_cumulative_dim


def accuracy_of(cascade: Cascade, answers: WidthAnswers) -> float:
    return evaluate_cascade(cascade, answers).accuracy


def try_everything(answers: WidthAnswers, cost: str, min_accuracy: float) -> float:
    """The least mean cost over all thresholds of the grid, cascade by cascade."""
    greedy = fit_greedy_thresholds(answers)
    grid = make_grid(answers, greedy, is_cumulative=cost == "cumulative_dim")
    choices = [[*values, math.inf] for values in grid.thresholds[:-1]]
    found = [
        Cascade(dims=answers.dims, thresholds=tuple(map(float, chosen)))
        for chosen in itertools.product(*choices)
    ]
    return min(
        cost_of(cascade, answers, cost)
        for cascade in found
        if accuracy_of(cascade, answers) >= min_accuracy - 1e-12
    )


def greedy_by_hand(answers: WidthAnswers) -> tuple[float, ...]:
    thresholds = []
    for place in range(len(answers.dims) - 1):
        best, chosen = -1, 0.0
        for threshold in np.linspace(0, 1, 100):
            is_sure = answers.confidences[place] > threshold
            right = np.where(is_sure, answers.is_correct[place], answers.is_correct[place + 1])
            if right.sum() > best:
                best, chosen = right.sum(), float(threshold)
        thresholds.append(chosen)
    return tuple(thresholds)


@pytest.mark.parametrize("make", [make_answers, random_answers])
@pytest.mark.parametrize("seed", range(4))
def test_greedy_thresholds_equal_the_plain_loop(make, seed):
    answers = make(300, DIMS, seed)
    assert fit_greedy_thresholds(answers).thresholds == greedy_by_hand(answers)


def test_greedy_takes_the_smallest_of_equal_thresholds():
    # Both widths are always right: any threshold will do.
    answers = WidthAnswers(
        dims=(8, 16), confidences=np.full((2, 5), 0.5), is_correct=np.ones((2, 5), bool)
    )
    assert fit_greedy_thresholds(answers).thresholds == (0.0,)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("make", [make_answers, random_answers])
@pytest.mark.parametrize("seed", range(3))
def test_pair_tables_equal_one_evaluation_per_cell(make, seed, cost):
    answers = make(60, DIMS, seed)
    grid = make_grid(
        answers, fit_greedy_thresholds(answers), is_cumulative=cost == "cumulative_dim"
    )
    generator = np.random.default_rng(seed)
    levels = (*(int(generator.integers(0, len(each) + 1)) for each in grid.thresholds[:-1]), 0)
    for first in range(len(DIMS) - 1):
        correct, costs = cascade_grid.pair_tables(grid, levels, first)
        num_rows, num_columns = (len(grid.thresholds[place]) + 1 for place in (first, first + 1))
        for row in range(num_rows):
            for column in range(num_columns if first + 2 < len(DIMS) else 1):
                moved = (*levels[:first], row, column, *levels[first + 2 :])
                assert total_of(grid, moved) == (correct[row, column], costs[row, column])


def test_the_search_starts_from_greedy_at_each_size_and_from_each_width():
    answers = make_answers(80, DIMS, 0)
    greedy = fit_greedy_thresholds(answers)
    grid = make_grid(answers, greedy, is_cumulative=True)
    met = {total_of(grid, levels) for levels in cascade_grid.starts(grid, greedy)}
    wanted = [greedy.capped(dim) for dim in DIMS]
    wanted += [Cascade(dims=(dim,), thresholds=()) for dim in DIMS]
    outcomes = [evaluate_cascade(cascade, answers) for cascade in wanted]
    assert met == {
        (round(80 * each.accuracy), round(80 * each.mean_cumulative_dim)) for each in outcomes
    }


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("max_loss", [0.0, 0.02])
@pytest.mark.parametrize("make", [make_answers, random_answers])
def test_with_three_widths_no_cascade_of_the_grid_is_cheaper(monkeypatch, make, max_loss, cost):
    monkeypatch.setattr(cascade_grid, "NUM_QUANTILES", 8)
    for seed in range(3):
        answers = make(120, DIMS[:3], seed)
        target = answers.accuracy_by_dim[32] - max_loss
        fitted = fit_thresholds(answers, cost=cost, max_loss=max_loss)
        assert accuracy_of(fitted, answers) >= target - 1e-12
        assert cost_of(fitted, answers, cost) == pytest.approx(
            try_everything(answers, cost, target)
        )


@pytest.mark.parametrize("cost", COSTS)
def test_with_four_widths_nearly_none_is_cheaper(monkeypatch, cost):
    monkeypatch.setattr(cascade_grid, "NUM_QUANTILES", 5)
    excess = []
    for seed in range(3):
        answers = make_answers(120, DIMS[:4], seed)
        fitted = fit_thresholds(answers, cost=cost, max_loss=0.01)
        least = try_everything(answers, cost, answers.accuracy_by_dim[64] - 0.01)
        excess.append(cost_of(fitted, answers, cost) / least - 1.0)
    assert min(excess) > -1e-9
    assert max(excess) < 0.02


@given(
    st.sampled_from([make_answers, random_answers]),
    st.integers(1, 60),
    st.integers(1, 4),
    st.integers(0, 999),
    st.sampled_from(COSTS),
)
@settings(max_examples=15)
def test_joint_is_never_dearer_than_greedy_at_its_own_accuracy(make, num, num_dims, seed, cost):
    answers = make(num, DIMS[:num_dims], seed)
    greedy = fit_greedy_thresholds(answers)
    for dim in answers.dims:
        capped = greedy.capped(dim)
        accuracy = accuracy_of(capped, answers)
        assume(accuracy > 0)
        joint = fit_thresholds(answers, cost=cost, min_accuracy=accuracy)
        assert accuracy_of(joint, answers) >= accuracy - 1e-12
        assert cost_of(joint, answers, cost) <= cost_of(capped, answers, cost) + 1e-9


@given(st.integers(1, 60), st.integers(0, 999), st.sampled_from(COSTS))
@settings(max_examples=15)
def test_joint_is_never_dearer_than_a_width_alone(num, seed, cost):
    answers = random_answers(num, DIMS[:3], seed)
    for dim, accuracy in answers.accuracy_by_dim.items():
        assume(accuracy > 0)
        joint = fit_thresholds(answers, cost=cost, min_accuracy=accuracy)
        assert cost_of(joint, answers, cost) <= dim + 1e-9


def test_a_useless_width_is_skipped_and_untied_heads_do_not_pay_for_it():
    answers = make_answers(2000, (8, 16, 32), 0)
    useless = WidthAnswers(
        dims=(4, 8, 16, 32),
        confidences=np.concatenate([np.full((1, 2000), 0.5), answers.confidences]),
        is_correct=np.concatenate([np.zeros((1, 2000), bool), answers.is_correct]),
    )
    with_it = fit_thresholds(useless, cost="cumulative_dim", max_loss=0.01)
    without = fit_thresholds(answers, cost="cumulative_dim", max_loss=0.01)
    assert with_it.thresholds[0] == math.inf
    assert cost_of(with_it, useless, "cumulative_dim") == cost_of(
        without, answers, "cumulative_dim"
    )


def test_a_width_as_good_as_the_widest_ends_the_cascade():
    answers = make_answers(500, (8, 16), 0)
    same = WidthAnswers(
        dims=(8, 16, 32, 64),
        confidences=np.concatenate([answers.confidences, answers.confidences[1:].repeat(2, 0)]),
        is_correct=np.concatenate([answers.is_correct, answers.is_correct[1:].repeat(2, 0)]),
    )
    assert fit_thresholds(same, cost="dim", max_loss=0.0).dims in {(8,), (8, 16)}


def test_on_new_inputs_joint_costs_less_than_greedy_at_no_less_accuracy():
    dims = (8, 16, 32, 64, 128, 256)
    fitted, new = make_answers(4000, dims, 0), make_answers(8000, dims, 1)
    greedy = fit_greedy_thresholds(fitted)
    for cost in COSTS:
        joint = fit_thresholds(fitted, cost=cost, min_accuracy=accuracy_of(greedy, fitted))
        assert accuracy_of(joint, new) >= accuracy_of(greedy, new) - 0.003
        assert cost_of(joint, new, cost) < 0.9 * cost_of(greedy, new, cost)


def test_one_width_is_a_cascade_too():
    answers = make_answers(50, (8,), 0)
    alone = Cascade(dims=(8,), thresholds=())
    assert fit_greedy_thresholds(answers) == alone
    assert fit_thresholds(answers, cost="cumulative_dim", max_loss=0.1) == alone


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ({}, r"exactly one of `min_accuracy` and `max_loss` must be given, got None and None"),
        ({"min_accuracy": 0.5, "max_loss": 0.1}, r"exactly one of .* got 0.5 and 0.1"),
        (
            {"min_accuracy": 76.0},
            r"`min_accuracy` must lie in \(0, 1\], got 76.0. For 76% pass 0.76",
        ),
        ({"max_loss": -0.1}, r"`max_loss` must lie in \[0, 1\), got -0.1"),
        ({"max_loss": math.nan}, r"`max_loss` must lie in \[0, 1\), got nan"),
    ],
)
def test_bad_targets_are_refused(targets, message):
    with pytest.raises(EvidenceError, match=message):
        fit_thresholds(make_answers(20, (8, 16), 0), cost="dim", **targets)


def test_an_accuracy_out_of_reach_is_refused_with_the_best_there_is():
    answers = make_answers(200, (8, 16), 0)
    hopeless = WidthAnswers(
        dims=(8, 16),
        confidences=answers.confidences,
        is_correct=np.zeros_like(answers.is_correct),
    )
    with pytest.raises(EvidenceError, match=r"0\.9000 was asked for, and the best .* has 0\.0000"):
        fit_thresholds(hopeless, cost="dim", min_accuracy=0.9)


def test_a_certificate_is_rarely_wrong():
    # Draws from a population whose loss is known; one in five may be wrong. The threshold is fitted on
    # so few inputs that without the test every other would be.
    population = make_answers(20_000, (8, 16), 0)
    full = population.accuracy_by_dim[16]
    num_wrong = num_certified = num_wrong_untested = 0
    for seed in range(50):
        drawn = population.take(np.random.default_rng(seed).integers(0, 20_000, 600))
        certified = fit_certified_thresholds(
            drawn, cost="dim", max_loss=0.04, confidence=0.8, seed=seed
        )
        loss = full - float(answers_correctly(certified.cascade, population).mean())
        num_certified += certified.is_certified
        num_wrong += certified.is_certified and loss > 0.04
        untested = fit_thresholds(drawn, cost="dim", max_loss=0.04)
        loss = full - float(answers_correctly(untested, population).mean())
        num_wrong_untested += loss > 0.04
    assert num_certified > 25
    assert num_wrong <= 10
    assert num_wrong_untested > 15


def test_a_certified_cascade_is_cheaper_and_says_what_was_tested():
    answers = make_answers(4000, (8, 16, 32, 64), 3)
    certified = fit_certified_thresholds(
        answers, cost="cumulative_dim", max_loss=0.02, confidence=0.95, seed=0
    )
    assert certified.is_certified
    assert certified.num_tested == 2000
    assert certified.inputs_needed is None
    assert certified.loss <= certified.loss_bound <= 0.02 + 1e-6
    assert cost_of(certified.cascade, answers, "cumulative_dim") < 64
    again = fit_certified_thresholds(
        answers, cost="cumulative_dim", max_loss=0.02, confidence=0.95, seed=0
    )
    assert again == certified


def test_too_few_inputs_certify_nothing_and_the_widest_width_is_kept():
    certified = fit_certified_thresholds(
        make_answers(60, (8, 16, 32), 0), cost="dim", max_loss=0.02, confidence=0.95, seed=0
    )
    assert not certified.is_certified
    assert certified.cascade == Cascade(dims=(32,), thresholds=())
    assert (certified.loss, certified.loss_bound) == (0.0, 0.0)
    assert certified.inputs_needed is None or certified.inputs_needed > 30


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"max_loss": 0.0}, "`max_loss` must lie between 0 and 1"),
        ({"confidence": 0.4}, "`confidence` must lie between 0.5 and 1"),
        ({"answers": make_answers(1, (8, 16), 0)}, "at least two inputs, .* got 1"),
    ],
)
def test_bad_certificates_are_refused(changed, message):
    asked = {
        "answers": make_answers(20, (8, 16), 0),
        "max_loss": 0.1,
        "confidence": 0.9,
        "cost": "dim",
        "seed": 0,
        **changed,
    }
    with pytest.raises(EvidenceError, match=message):
        fit_certified_thresholds(asked.pop("answers"), **asked)
