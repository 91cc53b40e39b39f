import math
import random
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn, optim

from nestling.core.files import read_json
from nestling.core.locks import locked
from nestling.errors import DimensionError, TrainingError, WriteError
from nestling.train.job import LoopOptions
from nestling.train.loop import fit
from nestling.train.losses.nesting import LossValue
from nestling.train.randomness import (
    giving_generators_back,
    read_generators,
    seed_generators,
    set_generators,
)
from nestling.train.record import TrainingRecord
from nestling.train.schedule import rate_factor
from tests.train.toy_job import (
    NUM_CLASSES,
    ScriptedJob,
    ToyJob,
    make_options,
    numbers_of,
    weights_of,
)

pytestmark = pytest.mark.usefixtures("on_cpu")


def train(folder, job=None, **changes):
    job = job or ToyJob()
    return job, fit(job, make_options(**changes), checkpoint_folder=folder, warn=pytest.fail)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_bare_loop_gives_the_same_weights(tmp_path):
    """The slow, obvious twin: no accelerate, no checkpoints."""
    job, record = train(tmp_path, ToyJob(dropout=0.0), early_stop_dim=None, schedule="cosine")
    twin = ToyJob(dropout=0.0)
    optimizer = twin.make_optimizer(0.02)
    options = make_options(schedule="cosine")
    losses = []
    for step in range(28):
        for group, peak in zip(optimizer.param_groups, (0.02, 0.04), strict=True):
            group["lr"] = peak * rate_factor(step, 28, options)
        value = twin.module(twin.batch(step // 7, step % 7), step)
        value.total.backward()
        nn.utils.clip_grad_norm_(twin.module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.total.item())
        if step % 7 == 6:
            twin.module.eval()
            twin.validate()
            twin.module.train()
    assert weights_of(job) == weights_of(twin)
    np.testing.assert_allclose(
        [epoch.loss for epoch in record.epochs], np.mean(np.reshape(losses, (4, 7)), axis=1)
    )


def test_the_record_tells_what_happened(tmp_path):
    job, record = train(tmp_path, early_stop_dim=None, num_epochs=2)
    assert record.num_steps == 14
    assert record.num_parameters == sum(weights.numel() for weights in job.module.parameters())
    assert [epoch.epoch for epoch in record.epochs] == [1, 2]
    assert list(record.epochs[0].loss_by_dim) == [2, 4, 8]
    assert record.epochs[1].validation_by_dim == job.validate()
    assert record.options["learning_rate"] == 0.02
    assert record.settings["shape"] == [6, 16]
    assert record.environment["device"] == "cpu"
    assert record.environment["torch"] == torch.__version__
    assert (record.num_resumes, record.stopped_early, record.best_epoch) == (0, False, None)
    assert 0 < record.seconds < 60
    assert TrainingRecord.from_json(record.to_json()) == record
    assert not job.module.training


def test_it_learns(tmp_path):
    job, record = train(tmp_path, ToyJob(dropout=0.0), num_epochs=8, early_stop_dim=None)
    assert record.epochs[-1].loss < 0.8 * record.epochs[0].loss
    assert job.validate()[8] > 1.5 / NUM_CLASSES


def test_a_prefix_that_is_never_looked_at_has_no_loss(tmp_path):
    _, record = train(tmp_path, ToyJob(dims_per_step=1))
    for epoch in record.epochs:
        assert epoch.loss_by_dim[2] is None
        assert epoch.loss_by_dim[4] is None
        assert epoch.loss_by_dim[8] == pytest.approx(epoch.loss)


def draw():
    return random.random(), np.random.random(), torch.rand(1).item()  # noqa: NPY002


def test_the_global_random_generators_are_given_back():
    cpu = torch.device("cpu")
    states = read_generators(cpu)
    with giving_generators_back(cpu):
        seed_generators(0, 0)
        drawn = draw()
        seed_generators(0, 1)
        other = draw()
        seed_generators(0, 0)
        assert draw() == drawn
    assert all(one != another for one, another in zip(drawn, other, strict=True))
    expected = draw()
    set_generators(states, cpu)
    assert draw() == expected


def test_training_draws_nothing_of_the_callers(tmp_path):
    def seed():
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)

    seed()
    expected = draw()[1:]
    seed()
    train(tmp_path)
    # Python's own is left out: the type checks of the tests draw from it.
    assert draw()[1:] == expected


def test_the_seed_decides(tmp_path):
    one, _ = train(tmp_path / "one")
    same, _ = train(tmp_path / "same")
    other, _ = train(tmp_path / "other", seed=4)
    assert weights_of(one) == weights_of(same)
    assert weights_of(one) != weights_of(other)


def test_bfloat16_trains_too_and_leaves_the_module_as_it_was(tmp_path):
    job, record = train(tmp_path / "bfloat16", precision="bfloat16")
    exact, _ = train(tmp_path / "float32")
    assert weights_of(job) != weights_of(exact)
    assert math.isfinite(record.epochs[-1].loss)
    assert {weights.dtype for weights in job.module.parameters()} == {torch.float32}
    assert "forward" not in vars(job.module)


# Early stopping


def test_it_stops_when_the_prefix_does_not_improve_and_keeps_the_best_weights(tmp_path):
    values = [0.1, 0.5, 0.5, 0.4]
    job, record = train(tmp_path / "early", ScriptedJob(values), num_epochs=9)
    assert (len(record.epochs), record.best_epoch, record.stopped_early) == (4, 2, True)
    assert record.kept_epoch.epoch == 2
    assert names(tmp_path / "early") == ["step-00000014", "step-00000021", "step-00000028"]

    def stop(epoch, index):
        if epoch == 2:
            raise KeyboardInterrupt

    two_epochs = ScriptedJob(values, on_batch=stop)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "two", two_epochs, num_epochs=9)
    assert weights_of(job) == weights_of(two_epochs)


def test_all_epochs_may_pass_and_the_best_is_still_kept(tmp_path):
    _, record = train(tmp_path, ScriptedJob([0.1, 0.2, 0.9, 0.3]))
    assert (len(record.epochs), record.best_epoch, record.stopped_early) == (4, 3, False)


def test_without_early_stopping_the_last_weights_are_kept(tmp_path):
    job, record = train(tmp_path, ScriptedJob([0.9, 0.1, 0.1, 0.1]), early_stop_dim=None)
    assert record.best_epoch is None
    written = load_file(tmp_path / "step-00000028" / "model.safetensors")
    for name, value in job.module.state_dict().items():
        assert torch.equal(value, written[name])


def test_early_stopping_without_validation_values_is_refused(tmp_path):
    with pytest.raises(
        TrainingError, match=r"`early_stop_dim` 4 needs a validation value.*got None\."
    ):
        train(tmp_path, ScriptedJob([None]))


def test_early_stopping_on_an_unknown_prefix_is_refused(tmp_path):
    with pytest.raises(DimensionError, match=r"must be one of the nesting dims 2,4,8, got 5\."):
        train(tmp_path, early_stop_dim=5)


def test_a_validation_value_that_is_not_finite_is_refused(tmp_path):
    with pytest.raises(TrainingError, match=r"`validate` must return finite values.*after epoch 2"):
        train(tmp_path, ScriptedJob([0.5, math.nan]))


# Losses that are not finite


def spoil_at(step, value):
    def spoil(epoch, index, inputs):
        return inputs * value if 7 * epoch + index == step else inputs

    return spoil


def test_a_nan_loss_stops_before_it_does_harm(tmp_path):
    job = ToyJob(spoil=spoil_at(9, math.nan), dims_per_step=None)
    with pytest.raises(TrainingError) as caught:
        train(tmp_path, job)
    message = str(caught.value)
    assert "the loss became nan at step 10 (epoch 2) at prefix 2, 4, 8;" in message
    assert f"is kept: {tmp_path / 'step-00000007'}, after 7 steps." in message
    assert "Lower --learning-rate" in message
    assert all(torch.isfinite(weights).all() for weights in job.module.parameters())
    assert names(tmp_path) == ["step-00000007"]


def test_after_a_nan_the_kept_checkpoint_can_be_continued(tmp_path):
    with pytest.raises(TrainingError):
        train(tmp_path / "spoilt", ToyJob(spoil=spoil_at(9, math.nan)))
    mended, record = train(tmp_path / "spoilt")
    whole, expected = train(tmp_path / "whole")
    assert weights_of(mended) == weights_of(whole)
    assert numbers_of(record) == numbers_of(expected)
    assert record.num_resumes == 1


class OneBadPrefix(nn.Module):
    """A loss that is not finite at one prefix only, at the third step."""

    def __init__(self, bad, gradient=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.bad = bad
        self.gradient = gradient

    def forward(self, batch, step):
        by_dim = torch.tensor([1.0, math.nan, 2.0])
        total = self.weight.sum() * self.gradient
        if step == 2:
            by_dim[0] = self.bad
            total = total + (self.bad if self.bad != 1.0 else 0.0)
        return LossValue(total, by_dim)


class BadPrefixJob(ToyJob):
    def __init__(self, bad, gradient=1.0):
        super().__init__()
        self.bad_module = OneBadPrefix(bad, gradient)

    @property
    def module(self):
        return self.bad_module

    def make_optimizer(self, learning_rate):
        return optim.SGD(self.bad_module.parameters(), lr=learning_rate)

    def validate(self):
        return None


def test_an_infinite_prefix_is_named(tmp_path):
    with pytest.raises(
        TrainingError, match=r"became inf at step 3 \(epoch 1\) at prefix 2; .*No checkpoint"
    ):
        train(tmp_path, BadPrefixJob(math.inf), early_stop_dim=None)


def test_a_nan_prefix_cannot_be_told_from_one_that_was_not_drawn(tmp_path):
    with pytest.raises(
        TrainingError, match=r"at prefix 2, 4 \(those not drawn in this step among them\)"
    ):
        train(tmp_path, BadPrefixJob(math.nan), early_stop_dim=None)


def test_a_gradient_that_cannot_be_clipped_stops_the_training(tmp_path):
    with pytest.raises(TrainingError, match=r"the norm of the gradients became inf at step 1 "):
        train(tmp_path, BadPrefixJob(1.0, gradient=1e38), early_stop_dim=None)


def test_weights_that_overflow_unseen_are_never_written(tmp_path):
    class Overflowing(BadPrefixJob):
        def make_optimizer(self, learning_rate):
            return optim.SGD(self.bad_module.parameters(), lr=1e38)

    job = Overflowing(1.0, gradient=1e3)
    with pytest.raises(
        TrainingError, match=r"weights must be finite.*these are not: weight\. No check"
    ):
        train(tmp_path, job, early_stop_dim=None, max_grad_norm=None, checkpoint_every_s=0.0)
    assert names(tmp_path) == []


# Going on


def test_a_finished_training_is_not_done_again(tmp_path):
    job, record = train(tmp_path)
    again = ToyJob(on_batch=lambda epoch, index: pytest.fail("trained again"))
    _, found = train(tmp_path, again)
    assert found == record
    assert weights_of(again) == weights_of(job)


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"job": {"dims": (8,), "dims_per_step": None}}, r"nesting_dims \[8\] against \[2, 4, 8\]"),
        ({"job": {"num_batches": 8}}, "num_batches 8 against 7"),
        ({"learning_rate": 0.1}, r"learning_rate 0\.1 against 0\.02"),
        ({"num_epochs": 5}, "num_epochs 5 against 4"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(tmp_path, changes, difference):
    """A rigid checkpoint among them. More epochs are another schedule, so another training."""
    job = ToyJob(**changes.pop("job", {}))
    train(tmp_path, job, early_stop_dim=None, **changes)
    with pytest.raises(
        TrainingError, match=rf"differ in {difference}\. Give the same settings, name"
    ):
        train(tmp_path, early_stop_dim=None)


def test_the_time_between_checkpoints_may_change(tmp_path):
    job, record = train(tmp_path, checkpoint_every_s=0.0)
    again, found = train(tmp_path, checkpoint_every_s=5.0)
    assert weights_of(again) == weights_of(job)
    assert numbers_of(found) == numbers_of(record)


def test_a_damaged_checkpoint_is_passed_over_and_the_end_is_the_same(tmp_path):
    job, record = train(tmp_path, early_stop_dim=None)
    (tmp_path / "step-00000028" / "optimizer.safetensors").write_bytes(b"half")
    notes: list[str] = []
    again = ToyJob()
    options = make_options(early_stop_dim=None)
    found = fit(again, options, checkpoint_folder=tmp_path, warn=notes.append)
    assert weights_of(again) == weights_of(job)
    assert numbers_of(found) == numbers_of(record)
    (note,) = notes
    assert "step-00000028" in note
    assert "goes on from step-00000021" in note


def test_by_default_a_damaged_checkpoint_is_a_python_warning(tmp_path):
    train(tmp_path, early_stop_dim=None)
    (tmp_path / "step-00000028" / "state.json").write_text("{")
    with pytest.warns(UserWarning, match="step-00000028"):
        fit(ToyJob(), make_options(early_stop_dim=None), checkpoint_folder=tmp_path)


def test_another_number_of_threads_is_told(tmp_path):
    train(tmp_path, early_stop_dim=None)
    shutil.rmtree(tmp_path / "step-00000028")
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    notes: list[str] = []
    try:
        options = make_options(early_stop_dim=None)
        fit(ToyJob(), options, checkpoint_folder=tmp_path, warn=notes.append)
    finally:
        torch.set_num_threads(before)
    (note,) = notes
    assert f"num_threads {before} against {before + 1}: the result may differ" in note


def test_two_trainings_cannot_share_a_folder(tmp_path):
    with locked(tmp_path), pytest.raises(WriteError, match="is being written by another process"):
        train(tmp_path)


def test_checkpoints_are_due_by_time(tmp_path):
    seen = []

    def look(epoch, index):
        if epoch == 0 and index == 6:
            seen.extend(names(tmp_path / "often"))

    train(tmp_path / "often", ToyJob(on_batch=look), num_epochs=1, checkpoint_every_s=0.0)
    assert seen == ["step-00000004", "step-00000005"]  # the sixth batch is made during step six
    state = read_json(tmp_path / "often" / "step-00000007" / "state.json")
    assert len(state["epochs"]) == 1


# What is told


def test_progress_has_one_name_and_tells_epoch_and_losses(tmp_path):
    calls = []
    job = ToyJob(dims_per_step=None)
    options = make_options(num_epochs=2, early_stop_dim=None)
    fit(job, options, checkpoint_folder=tmp_path, progress=lambda *call: calls.append(call))
    assert {label.partition(" | ")[0] for label, _, _ in calls} == {"train"}
    first, *_, last = calls
    assert first[0].startswith("train | epoch 1/2 loss ")
    assert all(f"{dim}: " in first[0] for dim in (2, 4, 8))
    assert all(done < total for _, done, total in calls[:-1])
    assert last[1] == last[2] == 14


def test_progress_ends_where_the_training_stops_early(tmp_path):
    calls = []
    job = ScriptedJob([0.5, 0.1, 0.1])
    fit(
        job,
        make_options(num_epochs=9),
        checkpoint_folder=tmp_path,
        progress=lambda *call: calls.append(call),
    )
    label, done, total = calls[-1]
    assert label.startswith("train | 3 of 9 epochs, loss ")
    assert done == total == 21


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("num_epochs", 0, "must be at least 1"),
        ("learning_rate", 0.0, "must be positive"),
        ("learning_rate", math.nan, "must be positive"),
        ("schedule", "steps", "must be one of linear, cosine, constant"),
        ("warmup_share", 1.5, r"must lie in \[0, 1\]"),
        ("max_grad_norm", 0.0, "must be positive"),
        ("precision", "float16", "must be one of float32, bfloat16"),
        ("checkpoint_every_s", -1.0, "must be at least 0"),
        ("patience", 0, "must be at least 1"),
        ("seed", -1, "must be at least 0"),
    ],
)
def test_options_that_break_a_rule_are_named(name, value, rule):
    values = {"num_epochs": 1, "learning_rate": 0.1, name: value}
    unchecked = LoopOptions.__init__
    while hasattr(unchecked, "__wrapped__"):  # past the types, as a user without a checker
        unchecked = unchecked.__wrapped__
    with pytest.raises(TrainingError, match=rf"`{name}` {rule}, got {value}\. Change it"):
        unchecked(object.__new__(LoopOptions), **values)


def test_an_epoch_without_batches_is_refused(tmp_path):
    with pytest.raises(
        TrainingError, match=r"got 0 batches for 1 processes\. Take smaller batches"
    ):
        train(tmp_path, ToyJob(num_batches=0))
