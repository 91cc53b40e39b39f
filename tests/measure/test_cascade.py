import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling.errors import DataError, DimensionError, FormatError
from nestling.measure.cascade import (
    Cascade,
    CascadeOutcome,
    WidthAnswers,
    equal_fixed_width,
    evaluate_cascade,
)
from tests.measure.nested_answers import make_answers, make_logits, random_answers

DIMS = (8, 16, 32, 64)

thresholds = st.sampled_from([0.0, 0.25, 0.5, 1.0, math.inf]) | st.floats(0.0, 1.0)


# What beartype checks is drawn at random, so a strategy may only hand over plain values.
problems = st.tuples(st.lists(thresholds, max_size=3), st.integers(1, 30), st.integers(0, 99))


def make_problem(drawn: tuple[list[float], int, int]) -> tuple[Cascade, WidthAnswers]:
    values, num_inputs, seed = drawn
    dims = DIMS[: len(values) + 1]
    cascade = Cascade(dims=dims, thresholds=tuple(values))
    return cascade, random_answers(num_inputs, dims, seed)


def walk_by_hand(cascade: Cascade, answers: WidthAnswers) -> CascadeOutcome:
    """One input after the other, one width after the other."""
    num_inputs = answers.is_correct.shape[1]
    right, exit_dims, tried_dims = 0, [], []
    for number in range(num_inputs):
        tried = 0
        for place, dim in enumerate(cascade.dims):
            is_last = place == len(cascade.dims) - 1
            if not is_last and cascade.thresholds[place] == math.inf:
                continue
            tried += dim
            if is_last or answers.confidences[place, number] > cascade.thresholds[place]:
                right += bool(answers.is_correct[place, number])
                exit_dims.append(dim)
                tried_dims.append(tried)
                break
    return CascadeOutcome(
        accuracy=right / num_inputs,
        mean_dim=sum(exit_dims) / num_inputs,
        mean_cumulative_dim=sum(tried_dims) / num_inputs,
        share_by_dim={dim: exit_dims.count(dim) / num_inputs for dim in cascade.dims},
    )


@given(problems)
@settings(max_examples=200)
def test_a_cascade_does_what_the_plain_loop_does(drawn):
    cascade, answers = make_problem(drawn)
    fast, slow = evaluate_cascade(cascade, answers), walk_by_hand(cascade, answers)
    assert fast.accuracy == pytest.approx(slow.accuracy, abs=1e-12)
    assert fast.mean_dim == pytest.approx(slow.mean_dim, abs=1e-9)
    assert fast.mean_cumulative_dim == pytest.approx(slow.mean_cumulative_dim, abs=1e-9)
    assert fast.share_by_dim == pytest.approx(slow.share_by_dim, abs=1e-12)


@given(problems)
def test_shares_sum_to_one_and_costs_are_in_order(drawn):
    cascade, answers = make_problem(drawn)
    outcome = evaluate_cascade(cascade, answers)
    assert sum(outcome.share_by_dim.values()) == pytest.approx(1.0, abs=1e-12)
    assert cascade.dims[0] - 1e-9 <= outcome.mean_dim <= outcome.mean_cumulative_dim + 1e-9
    assert outcome.mean_head_cost == outcome.mean_dim


@given(problems)
def test_infinite_thresholds_are_the_full_width_and_nothing_else_is_paid(drawn):
    cascade, answers = make_problem(drawn)
    dims = cascade.dims
    skipping = Cascade(dims=dims, thresholds=(math.inf,) * (len(dims) - 1))
    outcome = evaluate_cascade(skipping, answers)
    assert outcome.accuracy == pytest.approx(answers.accuracy_by_dim[dims[-1]])
    assert outcome.mean_dim == outcome.mean_cumulative_dim == dims[-1]


@given(problems)
def test_json_keeps_every_bit(drawn):
    cascade, _ = make_problem(drawn)
    text = json.dumps(cascade.to_json(), allow_nan=False)
    assert Cascade.from_json(json.loads(text)) == cascade


def test_a_threshold_of_zero_always_stops_and_the_bound_is_strict():
    answers = WidthAnswers(
        dims=(8, 16),
        confidences=np.array([[0.5, 0.6], [0.9, 0.9]]),
        is_correct=np.ones((2, 2), bool),
    )
    at = {t: Cascade(dims=(8, 16), thresholds=(t,)).exits(answers.confidences) for t in (0.0, 0.5)}
    assert at[0.0].tolist() == [0, 0]
    assert at[0.5].tolist() == [1, 0]


def test_a_capped_cascade_answers_with_its_last_width():
    cascade = Cascade(dims=DIMS, thresholds=(0.3, 0.6, math.inf))
    capped = cascade.capped(32)
    assert capped == Cascade(dims=(8, 16, 32), thresholds=(0.3, 0.6))
    answers = make_answers(200, DIMS, 0)
    # Answers of more widths than the cascade has are fine.
    np.testing.assert_allclose(
        evaluate_cascade(capped, answers).mean_dim, walk_by_hand(capped, answers).mean_dim
    )
    assert cascade.capped(64) == cascade
    with pytest.raises(DimensionError, match=r"`dim` must be a width .* 8,16,32,64, got 12"):
        cascade.capped(12)


def test_confidences_are_the_softmax_and_survive_large_logits():
    logits, labels = make_logits(50, DIMS, 1)
    answers = WidthAnswers.of_logits(dict(reversed(logits.items())), labels)
    assert answers.dims == DIMS
    for row, dim in enumerate(DIMS):
        odds = np.exp(logits[dim])
        np.testing.assert_allclose(
            answers.confidences[row], (odds / odds.sum(axis=1, keepdims=True)).max(axis=1)
        )
        assert answers.is_correct[row].tolist() == (logits[dim].argmax(axis=1) == labels).tolist()
    huge = WidthAnswers.of_logits(
        {8: np.array([[1e4, -1e4], [0.0, 0.0]], np.float32)}, labels[:2] * 0
    )
    assert huge.confidences.tolist() == [[1.0, 0.5]]


def test_the_equal_fixed_width_is_the_smallest_that_is_as_good():
    answers = WidthAnswers(
        dims=(8, 16, 32),
        confidences=np.full((3, 4), 0.5),
        is_correct=np.array([[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0]], bool),
    )
    outcome = CascadeOutcome(
        accuracy=0.75, mean_dim=10.0, mean_cumulative_dim=20.0, share_by_dim={}
    )
    fixed = equal_fixed_width(outcome, answers)
    assert fixed is not None
    assert (fixed.dim, fixed.accuracy) == (16, 0.75)
    assert (fixed.dim_ratio, fixed.cumulative_ratio) == (1.6, 0.8)
    better = CascadeOutcome(accuracy=0.8, mean_dim=10.0, mean_cumulative_dim=20.0, share_by_dim={})
    assert equal_fixed_width(better, answers) is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"dims": [8]}, r"not a cascade: KeyError\('cascade_version'\)"),
        ({"cascade_version": 2}, r"`cascade_version` 2 is newer than 1"),
        ({"cascade_version": 1, "dims": [8.5], "thresholds": []}, r"not a cascade: TypeError"),
        (
            {"cascade_version": 1, "dims": [8, 16], "thresholds": []},
            r"one per width but the last, 1",
        ),
        ([], r"not a cascade"),
    ],
)
def test_a_file_that_is_no_cascade_is_refused(data, message):
    with pytest.raises(FormatError, match=message):
        Cascade.from_json(data)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, -math.inf, math.nan])
def test_thresholds_must_be_probabilities_or_infinite(threshold):
    with pytest.raises(FormatError, match=r"`thresholds` must lie in \[0, 1\].* Fit them with"):
        Cascade(dims=(8, 16), thresholds=(threshold,))


def test_widths_must_ascend():
    with pytest.raises(DimensionError, match="`dims` must ascend without repeats"):
        Cascade(dims=(16, 8), thresholds=(0.5,))


def test_answers_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match=r"one row per width, 2, .* got shapes \(1, 3\)"):
        WidthAnswers(dims=(8, 16), confidences=np.ones((1, 3)), is_correct=np.ones((1, 3), bool))
    with pytest.raises(DataError, match="at least one input, got none"):
        WidthAnswers(dims=(8,), confidences=np.ones((1, 0)), is_correct=np.ones((1, 0), bool))
    for value in (0.0, 1.5, math.nan):
        with pytest.raises(
            DataError, match=r"`confidences` must be probabilities in \(0, 1\], got"
        ):
            WidthAnswers(
                dims=(8,), confidences=np.array([[value]]), is_correct=np.ones((1, 1), bool)
            )
    answers = random_answers(3, (8, 16), 0)
    with pytest.raises(DimensionError, match=r"widths that gave answers, among 8,16, got 32"):
        evaluate_cascade(Cascade(dims=(8, 32), thresholds=(0.5,)), answers)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((2, 3)), [0, 3], r"`labels` must be columns of the logits, 0 to 2, got 3"),
        (np.zeros((2, 3)), [-1, 0], r"0 to 2, got -1"),
        (np.zeros((2, 3)), [0], r"one row per label, 1, .* got shape \(2, 3\) at width 8"),
        (np.zeros((0, 3)), [], r"one row per label, 0"),
        (np.array([[0.0, math.nan]]), [0], r"must be finite, got NaN or infinity at width 8"),
    ],
)
def test_bad_logits_are_refused(logits, labels, message):
    with pytest.raises(DataError, match=message):
        WidthAnswers.of_logits({8: logits}, np.array(labels, dtype=np.int64))
