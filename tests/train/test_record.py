import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.train.job import LoopOptions
from nestling.train.record import EpochRecord, RunningLoss, TrainingRecord, find_best_epoch
from nestling.train.schedule import rate_factor


def make_epoch(epoch: int, validation: dict[int, float] | None) -> EpochRecord:
    return EpochRecord(
        epoch=epoch,
        loss=1.5,
        loss_by_dim={2: None, 4: 0.25},
        validation_by_dim=validation,
        seconds=2.0,
    )


def make_record(**changes) -> TrainingRecord:
    values = {
        "settings": {"data": "toy"},
        "options": {"num_epochs": 3},
        "nesting_dims": (2, 4),
        "num_parameters": 10,
        "epochs": (make_epoch(1, {2: 0.1, 4: 0.5}), make_epoch(2, None)),
        "num_steps": 6,
        "num_resumes": 1,
        "stopped_early": True,
        "best_epoch": 1,
        "environment": {"torch": "2"},
    }
    return TrainingRecord(**{**values, **changes})


def test_a_record_survives_json():
    record = make_record()
    data = json.loads(json.dumps(record.to_json(), allow_nan=False))
    assert TrainingRecord.from_json({**data, "something else": 1}) == record
    assert data["seconds"] == 4.0
    assert data["epochs"][0]["validation_by_dim"] == {"2": 0.1, "4": 0.5}


@pytest.mark.parametrize(("best_epoch", "kept"), [(1, 1), (None, 2)])
def test_the_kept_epoch_is_the_best_one_or_else_the_last(best_epoch, kept):
    assert make_record(best_epoch=best_epoch).kept_epoch.epoch == kept


def test_the_first_of_equally_good_epochs_is_the_best():
    values = (0.2, 0.7, 0.3, 0.7)
    epochs = [make_epoch(1 + place, {4: value}) for place, value in enumerate(values)]
    assert find_best_epoch(epochs, 4) == 2


steps = st.lists(
    st.tuples(
        st.floats(-9, 9), st.lists(st.just(math.nan) | st.floats(-9, 9), min_size=3, max_size=3)
    ),
    max_size=8,
)


@given(steps, steps)
def test_means_run_over_the_steps_that_looked_and_go_on_through_json(before, after):
    running = RunningLoss(3)
    for total, by_dim in before:
        running.add(total, np.array(by_dim))
    again = RunningLoss.from_json(json.loads(json.dumps(running.to_json())))
    for total, by_dim in after:
        running.add(total, np.array(by_dim))
        again.add(total, np.array(by_dim))
    assert running.to_json() == again.to_json()

    both = before + after
    assert again.num_steps == len(both)
    if both:
        assert again.mean == pytest.approx(np.mean([total for total, _ in both]))
    for place, mean in enumerate(again.mean_by_dim):
        looked = [by_dim[place] for _, by_dim in both if not math.isnan(by_dim[place])]
        assert mean == (pytest.approx(np.mean(looked)) if looked else None)
    has_gaps = any(math.isnan(value) for _, by_dim in both for value in by_dim)
    assert again.has_skipped_dims == has_gaps


def test_the_first_the_middle_and_the_last_prefix_are_shown():
    running = RunningLoss(4)
    running.add(3.25, np.array([2.0, 1.0, 1.2345, math.nan]))
    assert running.describe((8, 16, 32, 64)) == "loss 3.25 (8: 2, 32: 1.23)"


def factors(num_steps: int, **changes) -> list[float]:
    options = LoopOptions(num_epochs=1, learning_rate=1.0, **changes)
    return [rate_factor(step, num_steps, options) for step in range(num_steps)]


def test_the_rate_climbs_to_the_peak_and_falls_to_zero_in_equal_parts():
    found = factors(10, schedule="linear", warmup_share=0.4)
    np.testing.assert_allclose(found, [0.2, 0.4, 0.6, 0.8, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


def test_a_cosine_is_halfway_down_in_the_middle():
    found = factors(8, schedule="cosine", warmup_share=0.0)
    np.testing.assert_allclose(found, [(1 + np.cos(np.pi * step / 8)) / 2 for step in range(8)])


def test_a_constant_rate_stays_at_the_peak_after_the_climb():
    assert factors(4, schedule="constant", warmup_share=0.5) == [1 / 3, 2 / 3, 1, 1]


@given(st.integers(1, 60), st.floats(0, 1), st.sampled_from(["linear", "cosine", "constant"]))
def test_no_step_is_wasted_at_rate_zero(num_steps, warmup_share, schedule):
    found = factors(num_steps, schedule=schedule, warmup_share=warmup_share)
    assert all(0 < factor <= 1 for factor in found)
