import numpy as np
import pytest

from nestling.measure import intervals
from nestling.measure.intervals import bootstrap_loss_intervals, bootstrap_mean_interval


def resampled_by_hand(num_queries: int, *, seed: int, num_resamples: int) -> np.ndarray:
    """Which queries each resample draws, one row of places each."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, num_queries, size=(num_resamples, num_queries), dtype=np.int32)


def test_mean_interval_equals_the_plain_loop():
    values = np.random.default_rng(0).random(37)
    means = [
        sum(values[place] for place in places) / 37
        for places in resampled_by_hand(37, seed=4, num_resamples=300)
    ]
    low, high = bootstrap_mean_interval(values, confidence=0.9, seed=4, num_resamples=300)
    np.testing.assert_allclose([low, high], np.quantile(means, [0.05, 0.95]), rtol=1e-12)


@pytest.mark.parametrize("relative", [True, False])
def test_loss_intervals_equal_the_plain_loop(relative):
    generator = np.random.default_rng(1)
    full, cuts = generator.random(29), generator.random((3, 29))
    drawn = resampled_by_hand(29, seed=2, num_resamples=200)
    found = bootstrap_loss_intervals(
        full, cuts, relative=relative, confidence=0.95, seed=2, num_resamples=200
    )
    for cut, interval in zip(cuts, found, strict=True):
        losses = []
        for places in drawn:
            loss = full[places].mean() - cut[places].mean()
            losses.append(loss / full[places].mean() if relative else loss)
        np.testing.assert_allclose(interval, np.quantile(losses, [0.025, 0.975]), rtol=1e-9)


def test_blocks_do_not_change_the_draws(monkeypatch):
    values = np.random.default_rng(3).random(101)
    whole = bootstrap_mean_interval(values, confidence=0.95, seed=0)
    monkeypatch.setattr(intervals, "_BLOCK_VALUES", 7 * 101)
    in_blocks = bootstrap_mean_interval(values, confidence=0.95, seed=0)
    np.testing.assert_allclose(in_blocks, whole, rtol=1e-12)


def test_same_seed_same_bits_and_another_seed_another_interval():
    values = np.random.default_rng(5).random(80)
    first, again = (bootstrap_mean_interval(values, confidence=0.95, seed=7) for _ in range(2))
    assert first == again
    assert first != bootstrap_mean_interval(values, confidence=0.95, seed=8)


def test_a_mean_lies_in_its_interval_about_as_often_as_said():
    generator = np.random.default_rng(6)
    covered = 0
    for seed in range(300):
        low, high = bootstrap_mean_interval(
            generator.random(60), confidence=0.9, seed=seed, num_resamples=200
        )
        covered += low <= 0.5 <= high
    assert 0.83 <= covered / 300 <= 0.95


def test_more_confidence_is_wider_and_constant_values_have_no_width():
    values = np.random.default_rng(7).random(100)
    narrow = bootstrap_mean_interval(values, confidence=0.8, seed=0)
    wide = bootstrap_mean_interval(values, confidence=0.99, seed=0)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    assert bootstrap_mean_interval(np.full(20, 0.5), confidence=0.95, seed=0) == (0.5, 0.5)


def test_pairing_makes_the_interval_of_a_small_loss_narrow():
    full = np.random.default_rng(8).random(200)
    alone = bootstrap_mean_interval(full, confidence=0.95, seed=0)
    ((low, high),) = bootstrap_loss_intervals(
        full, full[None, :] * 0.99, relative=True, confidence=0.95, seed=0
    )
    assert low == pytest.approx(0.01)
    assert high - low < 1e-9 < alone[1] - alone[0]


def test_a_resample_with_nothing_to_lose_counts_as_no_loss():
    full = np.zeros(10)
    full[0] = 1.0
    ((low, high),) = bootstrap_loss_intervals(
        full, np.zeros((1, 10)), relative=True, confidence=0.95, seed=0
    )
    assert (low, high) == (0.0, 1.0)
