import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nestling.errors import EvidenceError
from nestling.measure import certify
from nestling.measure.certify import (
    certificate_floor,
    certifies,
    log_wealth,
    loss_bound,
    queries_needed,
    stake_shares,
)
from tests.measure.handmade import SHAPES, Shape, gains_and_losses, lost_whole

NUM_TRIALS = 1000
DELTA = 0.05
LOSS = 0.05

# Three standard errors of a rate of delta over 1,000 trials: what chance alone may add.
ALLOWED = DELTA + 3.0 * math.sqrt(DELTA * (1.0 - DELTA) / NUM_TRIALS)

unit_pairs = st.integers(1, 30).flatmap(
    lambda num: hnp.arrays(np.float64, (2, 1, num), elements=st.floats(0.0, 1.0))
)
losses = st.floats(0.001, 0.9)


def wealth_by_hand(
    full: np.ndarray, cut: np.ndarray, *, max_loss: float, relative: bool, confidence: float
) -> list[float]:
    """The process as it stands in the paper: stakes lambda on Z, one query after the other."""
    upper = 1.0 - max_loss
    wealth, squares, history = 1.0, 0.25, []
    for place, (whole, part) in enumerate(zip(full, cut, strict=True)):
        z = (1.0 - max_loss) * whole - part if relative else whole - part - max_loss
        spread = squares / (place + 1)
        share = math.sqrt(2.0 * math.log(1.0 / (1.0 - confidence)) / (len(full) * spread))
        stake = min(0.85, share) / upper
        wealth *= 1.0 - stake * z
        squares += (whole - part) ** 2
        history.append(wealth)
    return history


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_wealth_equals_the_plain_loop(shape, relative):
    full, cut = shape(np.random.default_rng(3), (2, 200), 0.1)
    fast = log_wealth(full, cut, max_loss=0.03, relative=relative, confidence=0.9)
    for series in range(2):
        slow = wealth_by_hand(
            full[series], cut[series], max_loss=0.03, relative=relative, confidence=0.9
        )
        np.testing.assert_allclose(np.exp(fast[series]), slow, rtol=1e-10)


@pytest.mark.parametrize("confidence", [0.6, 0.95])
@pytest.mark.parametrize("relative", [True, False])
def test_wealth_is_a_martingale_at_the_edge_of_the_null(relative, confidence):
    # Every outcome of 12 queries, each lost whole with a probability of exactly the tolerance.
    max_loss, num_queries = 0.3, 12
    cut = np.array(list(itertools.product([0.0, 1.0], repeat=num_queries)))
    chance = np.where(cut == 1.0, 1.0 - max_loss, max_loss).prod(axis=1)
    wealth = log_wealth(
        np.ones_like(cut), cut, max_loss=max_loss, relative=relative, confidence=confidence
    )
    np.testing.assert_allclose(chance @ np.exp(wealth), 1.0, rtol=1e-12)
    passed = certifies(
        np.ones_like(cut), cut, max_loss=max_loss, relative=relative, confidence=confidence
    )
    assert 0.0 < chance @ passed <= 1.0 - confidence


@given(unit_pairs, unit_pairs, losses, st.booleans())
def test_what_comes_later_changes_no_stake_and_no_wealth_so_far(early, late, max_loss, relative):
    num_early = early.shape[-1]
    other = np.concatenate([early, 1.0 - late], axis=-1)
    both = np.concatenate([early, late], axis=-1)
    stakes = [stake_shares(*pair, confidence=0.95) for pair in (both, other)]
    wealth = [
        log_wealth(*pair, max_loss=max_loss, relative=relative, confidence=0.95)
        for pair in (both, other)
    ]
    # The stake on the first changed query is still the same: it is placed before looking.
    assert (stakes[0] == stakes[1])[:, : num_early + 1].all()
    assert (wealth[0] == wealth[1])[:, :num_early].all()


@given(unit_pairs, losses, losses, st.booleans(), st.floats(0.55, 0.999))
def test_a_larger_tolerance_never_turns_a_pass_into_a_fail(pair, one, other, relative, confidence):
    small, large = sorted((one, other))
    with_small, with_large = (
        log_wealth(*pair, max_loss=max_loss, relative=relative, confidence=confidence)
        for max_loss in (small, large)
    )
    assert (with_large >= with_small - 1e-9).all()


@given(unit_pairs, st.booleans(), st.floats(0.55, 0.99))
def test_the_bound_is_where_the_test_turns(pair, relative, confidence):
    bound = float(loss_bound(*pair, relative=relative, confidence=confidence)[0])
    assert 0.0 < bound <= 1.0
    settings = {"relative": relative, "confidence": confidence}
    if bound < 1.0:
        assert certifies(*pair, max_loss=bound, **settings)[0]
    if bound > 1e-6:
        assert not certifies(*pair, max_loss=bound - 1e-7, **settings)[0]


@given(unit_pairs, st.floats(0.55, 0.99), st.booleans())
def test_nothing_is_certified_below_the_floor(pair, confidence, relative):
    # A cut that never beats the full width, and a tolerance that n lossless queries cannot show.
    full, cut = pair[0], np.minimum(*pair)
    exact_floor = 1.0 - (1.0 - confidence) ** (1.0 / full.shape[-1])
    assert exact_floor <= certificate_floor(full.shape[-1], confidence)
    assert not certifies(
        full, cut, max_loss=exact_floor * 0.999, relative=relative, confidence=confidence
    )[0]


def test_the_floor_of_300_queries_is_one_point():
    assert certificate_floor(300, 0.95) == pytest.approx(0.00999, abs=1e-5)


def test_wealth_that_reached_its_target_may_be_lost_again():
    full, cut = np.ones((1, 800)), np.ones((1, 800))
    cut[0, 700:] = 0.0
    settings: dict[str, Any] = {"max_loss": 0.02, "relative": True, "confidence": 0.95}
    assert log_wealth(full, cut, **settings)[0, -1] < 0.0
    assert certifies(full, cut, **settings)[0]


Test = Callable[[np.ndarray, np.ndarray, float, float], np.ndarray]


def error_rate(test: Test, shape: Shape, *, num_queries: int = 400) -> float:
    """How often `test` certifies a mean loss that lies exactly at the edge of the tolerance."""
    full, cut = shape(np.random.default_rng(11), (NUM_TRIALS, num_queries), LOSS)
    return float(test(full, cut, LOSS, 1.0 - DELTA).mean())


def betting(full: np.ndarray, cut: np.ndarray, max_loss: float, confidence: float) -> np.ndarray:
    return certifies(full, cut, max_loss=max_loss, relative=True, confidence=confidence)


@pytest.mark.parametrize("num_queries", [100, 400, 1000])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_errors_stay_under_delta(shape, num_queries):
    assert error_rate(betting, shape, num_queries=num_queries) <= ALLOWED


def test_errors_stay_under_delta_over_all_shapes_together():
    assert np.mean([error_rate(betting, shape) for shape in SHAPES.values()]) <= DELTA


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_errors_stay_under_delta_for_absolute_losses(shape):
    generator = np.random.default_rng(12)
    full, cut = shape(generator, (NUM_TRIALS, 400), LOSS)
    mean_full = shape(generator, (100, 10_000), LOSS)[0].mean()
    passed = certifies(full, cut, max_loss=LOSS * mean_full, relative=False, confidence=0.95)
    assert passed.mean() <= ALLOWED


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_bound_covers_the_true_loss(shape):
    full, cut = shape(np.random.default_rng(13), (NUM_TRIALS, 400), LOSS)
    bounds = loss_bound(full, cut, relative=True, confidence=0.95)
    assert (bounds < LOSS).mean() <= ALLOWED


def test_the_errors_are_not_far_below_delta():
    # A test that never certifies anything would pass the ones above.
    assert error_rate(betting, lost_whole) > DELTA / 2


def normal_bound(
    full: np.ndarray, cut: np.ndarray, max_loss: float, confidence: float
) -> np.ndarray:
    shortfall = (1.0 - max_loss) * full - cut
    error = shortfall.std(axis=1) / math.sqrt(full.shape[1])
    return shortfall.mean(axis=1) + 1.645 * error <= 0.0


def normal_bound_after_every_query(
    full: np.ndarray, cut: np.ndarray, max_loss: float, confidence: float
) -> np.ndarray:
    ends = range(50, full.shape[1] + 1, 10)
    looks = [normal_bound(full[:, :end], cut[:, :end], max_loss, confidence) for end in ends]
    return np.any(looks, axis=0)


def divided_by_the_sample_mean(
    full: np.ndarray, cut: np.ndarray, max_loss: float, confidence: float
) -> np.ndarray:
    loss = (full - cut) / full.mean(axis=1, keepdims=True)
    factors = 1.0 - certify.MAX_SHARE * (loss - max_loss) / (1.0 - max_loss)
    wealth = np.cumsum(np.log(factors.clip(1e-12, None)), axis=1)
    return wealth.max(axis=1) >= math.log(1.0 / (1.0 - confidence))


def stakes_over_the_cap(
    full: np.ndarray, cut: np.ndarray, max_loss: float, confidence: float
) -> np.ndarray:
    factors = 1.0 - 3.0 * (full - cut / (1.0 - max_loss))
    return np.cumprod(factors, axis=1).max(axis=1) >= 1.0 / (1.0 - confidence)


def the_best_order(
    full: np.ndarray, cut: np.ndarray, max_loss: float, confidence: float
) -> np.ndarray:
    order = np.argsort(full - cut, axis=1)
    full, cut = (np.take_along_axis(values, order, axis=1) for values in (full, cut))
    return betting(full, cut, max_loss, confidence)


def stakes_after_looking(
    full: np.ndarray, cut: np.ndarray, max_loss: float, confidence: float
) -> np.ndarray:
    shortfalls = full - cut / (1.0 - max_loss)
    shares = np.where(shortfalls > 0.0, 0.4, 0.8)
    wealth = np.cumsum(np.log1p(-shares * shortfalls), axis=1)
    return wealth.max(axis=1) >= math.log(1.0 / (1.0 - confidence))


@pytest.mark.parametrize(
    "wrong",
    [
        normal_bound,
        normal_bound_after_every_query,
        divided_by_the_sample_mean,
        stakes_over_the_cap,
        the_best_order,
        stakes_after_looking,
    ],
)
def test_a_wrong_bound_is_caught(wrong):
    assert max(error_rate(wrong, shape) for shape in SHAPES.values()) > 2 * DELTA


@pytest.mark.parametrize(
    ("shape", "num_queries"), [(lost_whole, 950), (gains_and_losses, 1900)], ids=["rare", "graded"]
)
def test_a_loss_well_inside_the_tolerance_is_certified(shape, num_queries):
    full, cut = shape(np.random.default_rng(14), (300, num_queries), 0.002)
    passed = certifies(full, cut, max_loss=0.01, relative=True, confidence=0.95)
    assert passed.mean() >= 0.8
    gap = 0.008 * full.mean()
    hoeffding = math.log(20.0) * (2.0 - 0.01) ** 2 / (2.0 * gap**2)
    assert hoeffding > 50 * num_queries


@pytest.mark.parametrize("name", sorted(set(SHAPES) - {"unrelated"}))
def test_the_queries_said_to_be_needed_mostly_suffice(name):
    generator = np.random.default_rng(15)
    full, cut = SHAPES[name](generator, (1, 100_000), 0.005)
    needed = queries_needed(full[0], cut[0], max_loss=0.02, relative=True, confidence=0.95)
    assert needed is not None
    full, cut = SHAPES[name](generator, (200, needed), 0.005)
    passed = certifies(full, cut, max_loss=0.02, relative=True, confidence=0.95)
    assert 0.65 <= passed.mean() <= 0.95


def test_needs_more_queries_for_a_smaller_tolerance_or_more_confidence():
    full, cut = (values[0] for values in lost_whole(np.random.default_rng(16), (1, 5000), 0.002))
    needed = [
        queries_needed(full, cut, max_loss=max_loss, relative=True, confidence=confidence)
        for max_loss, confidence in ((0.05, 0.95), (0.01, 0.95), (0.01, 0.99))
    ]
    known = [number for number in needed if number is not None]
    assert len(known) == 3
    assert known == sorted(known)


def test_no_queries_help_against_a_loss_above_the_tolerance():
    full = np.full(50, 0.8)
    settings: dict[str, Any] = {"max_loss": 0.02, "relative": True, "confidence": 0.95}
    assert queries_needed(full, full * 0.97, **settings) is None
    assert queries_needed(full, full * 0.98, **settings) is None


def test_equal_values_need_about_the_floor():
    full = np.ones(50)
    needed = queries_needed(full, full, max_loss=0.01, relative=True, confidence=0.95)
    assert needed is not None
    assert 300 <= needed <= 400
    same = np.ones((1, needed + 20))
    assert certifies(same, same, max_loss=0.01, relative=True, confidence=0.95)[0]


@pytest.mark.parametrize("max_loss", [0.0, 1.0, -0.1, float("nan")])
def test_refuses_a_tolerance_out_of_range(max_loss):
    ones = np.ones((1, 20))
    with pytest.raises(EvidenceError, match=r"`max_loss` must lie between 0 and 1.*For 2% pass"):
        certifies(ones, ones, max_loss=max_loss, relative=True, confidence=0.95)


@pytest.mark.parametrize("confidence", [0.5, 1.0, 95.0])
def test_refuses_a_confidence_out_of_range(confidence):
    ones = np.ones((1, 20))
    with pytest.raises(EvidenceError, match=r"`confidence` must lie between 0\.5 and 1.*0\.95"):
        loss_bound(ones, ones, relative=True, confidence=confidence)


@pytest.mark.parametrize("value", [1.5, -0.1, float("nan")])
def test_refuses_a_metric_that_leaves_the_unit_interval(value):
    full, cut = np.ones((1, 20)), np.ones((1, 20))
    cut[0, 7] = value
    with pytest.raises(EvidenceError, match=rf"`cut` must hold values.*got {value}"):
        certifies(full, cut, max_loss=0.02, relative=True, confidence=0.95)


def test_refuses_no_queries():
    with pytest.raises(EvidenceError, match="at least one query"):
        loss_bound(np.ones((1, 0)), np.ones((1, 0)), relative=True, confidence=0.95)
