"""What a run through the sentence-transformers Trainer does at its steps."""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor

from nestling.core.progress import Progress
from nestling.errors import MissingExtraError, TrainingError
from nestling.train import loop
from nestling.train.job import LoopOptions
from nestling.train.losses.nesting import LossValue
from nestling.train.losses.quantized_prefixes import QuantizedPrefixes
from nestling.train.record import EpochRecord, RunningLoss, find_best_epoch
from nestling.train.sentence_transformers.checkpoints import seal_checkpoint
from nestling.train.sentence_transformers.loss import SentenceTransformersLoss
from nestling.train.settings import changed_facts

try:
    import torch
    from transformers import TrainerCallback
except ImportError as error:
    raise MissingExtraError("sentence-transformers", "train-st") from error


@final
class StepCallback(TrainerCallback):
    """Tells a loss which step it is: the Trainer's own count, which a resumed run goes on with."""

    def __init__(self, loss: SentenceTransformersLoss) -> None:
        self._loss = loss

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Hand the step on before the batch is looked at."""
        self._loss.step = state.global_step


@final
class FiniteCallback(TrainerCallback):
    """Stops before a loss or a gradient that is not finite reaches the weights."""

    def __init__(self, loss: SentenceTransformersLoss) -> None:
        self._loss = loss

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any
    ) -> None:
        """Look at the loss and at all gradients.

        Raises:
            TrainingError: If one of them is not finite; the weights are still those of the step
                before.
        """
        value = self._loss.last
        if value is not None and not value.total.isfinite():
            what = f"the loss became {value.total:g}"
            raise TrainingError(_stopped(what, self._place(value), args, state))
        gradients = [weights.grad for weights in model.parameters() if weights.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not norm.isfinite():
            what = f"the norm of the gradients became {norm:g}"
            raise TrainingError(_stopped(what, "", args, state))

    def _place(self, value: LossValue) -> str:
        """Return which of the prefixes that were looked at is to blame."""
        nesting, by_dim = self._loss.nesting, value.by_dim.tolist()
        looked_at = nesting.at_step(self._loss.step).positions
        bad = [str(nesting.dims[row]) for row in looked_at if not math.isfinite(by_dim[row])]
        if bad:
            return f" at prefix {', '.join(bad)}"
        others = {
            "the codes": isinstance(self._loss.nested, QuantizedPrefixes),
            "the self-distillation": self._loss.self_distillation is not None,
            "the spread": self._loss.spread_out is not None,
        }
        there = [name for name, is_there in others.items() if is_there]
        return f" in {' or '.join(there)}" if there else ", though that of every prefix is finite"


@final
class RecordCallback(TrainerCallback):
    """Keeps the record of a run, reports where it stands, and stops it when it no longer improves.

    Attributes:
        epochs: Those that are finished, validation included.
        num_resumes: How often the run was continued.
        environment: Of this run, or of the one that finished it.
    """

    def __init__(
        self,
        loss: SentenceTransformersLoss,
        options: LoopOptions,
        progress: Progress,
        environment: Mapping[str, Any],
    ) -> None:
        self._loss = loss
        self._options = options
        self._progress = progress
        self._running = RunningLoss(len(loss.nesting.dims))
        self._clock_s = self._reported_s = time.perf_counter()
        self.epochs: list[EpochRecord] = []
        self.num_resumes = 0
        self.environment = environment

    @property
    def best_epoch(self) -> int | None:
        """The best epoch so far; None without early stopping."""
        dim = self._options.early_stop_dim
        return find_best_epoch(self.epochs, dim) if dim is not None and self.epochs else None

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to train."""
        best = self.best_epoch
        has_stalled = best is not None and len(self.epochs) - best >= self._options.patience
        return has_stalled or len(self.epochs) == self._options.num_epochs

    def restore(self, progress: Mapping[str, Any], warn: Callable[[str], object]) -> None:
        """Go on from what `to_json` returned.

        Args:
            progress: What it returned.
            warn: Told if the machine changed in a way that may show in the result.
        """
        self._running = RunningLoss.from_json(progress["running"])
        self.epochs = [EpochRecord.from_json(epoch) for epoch in progress["epochs"]]
        self.num_resumes = progress["num_resumes"]
        if self.is_finished:
            self.environment = progress["environment"]
            return
        self.num_resumes += 1
        changed = changed_facts(progress["environment"], self.environment)
        if changed:
            warn(f"the training goes on with {changed}: the result may differ in its last digits")

    def to_json(self) -> dict[str, Any]:
        """Return plain data for a checkpoint."""
        self._lap()
        return {
            "running": self._running.to_json(),
            "epochs": [epoch.to_json() for epoch in self.epochs],
            "num_resumes": self.num_resumes,
            "environment": dict(self.environment),
        }

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._clock_s = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the step to the means, and report."""
        value = self._loss.last
        if value is not None:
            total, *by_dim = _mean_over_processes(
                torch.cat([value.total.reshape(1), value.by_dim.to(value.total)]).double()
            ).tolist()
            self._running.add(total, np.array(by_dim))
        now_s = time.perf_counter()
        if now_s - self._reported_s >= loop.SECONDS_BETWEEN_REPORTS:
            self._reported_s = now_s
            epoch = f"epoch {len(self.epochs) + 1}/{self._options.num_epochs}"
            losses = self._running.describe(self._loss.nesting.dims)
            self._progress(f"train | {epoch} {losses}", state.global_step, state.max_steps + 1)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the epoch, if no validation follows."""
        if args.eval_strategy == "no":
            self._close_epoch(None)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, *, metrics: Mapping[str, float], **kwargs: Any
    ) -> None:
        """Close the epoch with its validation values, and look whether to go on.

        Raises:
            TrainingError: If a value is not finite.
        """
        values = {dim: float(metrics[f"eval_dim_{dim}"]) for dim in self._loss.nesting.dims}
        if not all(map(math.isfinite, values.values())):
            raise TrainingError(
                f"validation values must be finite, got {values} after epoch {len(self.epochs) + 1}. "
                f"{_last_checkpoint(args)}"
            )
        self._close_epoch(values)
        control.should_training_stop |= self.is_finished

    def _close_epoch(self, validation: Mapping[int, float] | None) -> None:
        self._lap()
        dims = self._loss.nesting.dims
        self.epochs.append(
            EpochRecord(
                epoch=len(self.epochs) + 1,
                loss=self._running.mean,
                loss_by_dim=dict(zip(dims, self._running.mean_by_dim, strict=True)),
                validation_by_dim=validation,
                seconds=self._running.seconds,
            )
        )
        self._running = RunningLoss(len(dims))

    def _lap(self) -> None:
        now_s = time.perf_counter()
        self._running.seconds += now_s - self._clock_s
        self._clock_s = now_s


@final
class CheckpointCallback(TrainerCallback):
    """Makes checkpoints due by the clock, besides those after each epoch, and seals them."""

    def __init__(
        self,
        every_s: float,
        settings: Mapping[str, dict[str, Any]],
        record: RecordCallback,
        *,
        steps_per_epoch: int,
    ) -> None:
        self._every_s = every_s
        self._steps_per_epoch = steps_per_epoch
        self._settings = settings
        self._record = record
        self._last_s = time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._last_s = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a checkpoint, except where that of the epoch follows, after its validation."""
        if state.global_step % self._steps_per_epoch:
            is_due = time.perf_counter() - self._last_s >= self._every_s
            due = torch.tensor(float(is_due), device=args.device)
            # All processes write their part of a checkpoint, so all must find it due.
            control.should_save |= bool(_mean_over_processes(due) > 0)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Seal what was written, by all processes."""
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            seal_checkpoint(folder, self._settings, self._record.to_json())
        self._last_s = time.perf_counter()


def _mean_over_processes(numbers: Tensor) -> Tensor:
    return reduce(numbers, reduction="mean") if PartialState().num_processes > 1 else numbers


def _stopped(what: str, place: str, args: Any, state: Any) -> str:
    return (
        f"{what} at step {state.global_step + 1:,}{place}; the training stopped before that step changed the "
        f"weights. {_last_checkpoint(args)} Lower --learning-rate, and train again with another --out, or "
        f"with --overwrite."
    )


def _last_checkpoint(args: Any) -> str:
    kept = sorted(Path(args.output_dir).glob("checkpoint-*"), key=lambda path: path.stat().st_mtime)
    if not kept:
        return "No checkpoint has been written yet."
    return f"The last good checkpoint is kept: {kept[-1]}."
