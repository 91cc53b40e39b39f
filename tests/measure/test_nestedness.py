import numpy as np
import pytest

from nestling.core import Dtype
from nestling.measure.nestedness import looks_nested
from nestling.measure.table import Measured

METRIC = "overlap_at_10"


def measured(
    *,
    prefix_gain: float,
    draw_gains: tuple[float, ...] = (0.0, 0.0, 0.0),
    num_queries: int = 400,
    dims: tuple[int, ...] = (8, 16, 32),
) -> list[Measured]:
    """Small widths where the prefix and each draw lie above a shared noisy score by given gains."""
    generator = np.random.default_rng(0)
    rows = []
    for dim in dims:
        shared = generator.random(num_queries) * 0.5
        ways = [("prefix", 0, prefix_gain)]
        ways += [("random", draw, gain) for draw, gain in enumerate(draw_gains)]
        for family, draw, gain in ways:
            noise = 0.02 * generator.standard_normal(num_queries)
            rows.append(
                Measured(
                    family=family,
                    dim=dim,
                    dtype=Dtype.FLOAT32,
                    draw=draw,
                    metrics={METRIC: shared + gain + noise},
                    seconds=0.0,
                )
            )
    return rows


def test_a_clear_gain_looks_nested():
    rows = measured(prefix_gain=0.1)
    assert looks_nested(rows, metric=METRIC, embed_dim=128) is True


def test_no_gain_does_not():
    assert looks_nested(measured(prefix_gain=0.0), metric=METRIC, embed_dim=128) is False


def test_a_loss_does_not():
    assert looks_nested(measured(prefix_gain=-0.1), metric=METRIC, embed_dim=128) is False


def test_a_gain_within_the_spread_of_the_draws_does_not():
    # Clear over queries, but the draws differ by as much among themselves.
    rows = measured(prefix_gain=0.03, draw_gains=(-0.03, 0.0, 0.03))
    assert looks_nested(rows, metric=METRIC, embed_dim=128) is False


@pytest.mark.parametrize(("gain", "verdict"), [(0.042, True), (0.028, False)])
def test_the_bound_is_one_sided(gain, verdict):
    # Draws 0.01 apart: Student's t asks for a gain of 0.034 on one side, 0.050 on two.
    rows = measured(prefix_gain=gain, draw_gains=(-0.01, 0.0, 0.01))
    assert looks_nested(rows, metric=METRIC, embed_dim=128) is verdict


@pytest.mark.parametrize(("noise", "verdict"), [(0.5, False), (0.01, True)])
def test_a_gain_within_the_noise_of_the_queries_does_not(noise, verdict):
    # The draws agree among themselves, so that only the queries can cast doubt.
    swings = np.tile([1.0, -1.0], 10)
    ways = [
        ("prefix", 0, 0.55 + noise * swings),
        *(("random", d, np.full(20, 0.5)) for d in (0, 1, 2)),
    ]
    rows = [
        Measured(
            family=family,
            dim=8,
            dtype=Dtype.FLOAT32,
            draw=draw,
            metrics={METRIC: values},
            seconds=0.0,
        )
        for family, draw, values in ways
    ]
    assert looks_nested(rows, metric=METRIC, embed_dim=128) is verdict


def test_only_small_widths_count():
    rows = measured(prefix_gain=0.0, dims=(8, 32)) + measured(prefix_gain=0.5, dims=(64,))
    assert looks_nested(rows, metric=METRIC, embed_dim=128) is False


@pytest.mark.parametrize("rows", [[], measured(prefix_gain=0.1, dims=(64,))])
def test_no_small_width_is_no_answer(rows):
    assert looks_nested(rows, metric=METRIC, embed_dim=128) is None


def test_a_metric_without_values_per_query_is_no_answer():
    rows = [
        Measured(
            family=family,
            dim=8,
            dtype=Dtype.FLOAT32,
            metrics={"spearman": 0.5},
            seconds=0.0,
        )
        for family in ("prefix", "random")
    ]
    assert looks_nested(rows, metric="spearman", embed_dim=128) is None
