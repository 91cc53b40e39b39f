"""Train any job: one loop, on one device or many, that can be killed and goes on to the same bits."""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    broadcast_object_list,
    gather_object,
    send_to_device,
)
from jaxtyping import Float64
from torch import Tensor

from nestling.core.dims import check_nesting_dims
from nestling.core.files import naming_write_errors
from nestling.core.locks import locked
from nestling.core.progress import Progress, silent
from nestling.errors import TrainingError
from nestling.train.checkpoints import Checkpoint, Checkpoints
from nestling.train.job import LoopOptions, TrainingJob, check_early_stopping
from nestling.train.losses.nesting import LossValue
from nestling.train.processes import leave_group_at_exit
from nestling.train.randomness import (
    giving_generators_back,
    read_generators,
    seed_generators,
    set_generators,
)
from nestling.train.record import EpochRecord, RunningLoss, TrainingRecord, find_best_epoch
from nestling.train.schedule import rate_factor
from nestling.train.settings import (
    as_json,
    changed_facts,
    check_same_settings,
    continuation_settings,
    describe_machine,
)

SECONDS_BETWEEN_REPORTS = 0.25


def fit(
    job: TrainingJob,
    options: LoopOptions,
    *,
    checkpoint_folder: Path,
    restart: bool = False,
    progress: Progress = silent,
    warn: Callable[[str], object] = warnings.warn,
) -> TrainingRecord:
    """Train a job, or go on with what an earlier run began in `checkpoint_folder`.

    Afterwards the module is in evaluation mode and has the weights of the last epoch, or, with
    `early_stop_dim`, those of its best epoch. A run that is interrupted and started again ends with
    the weights, to the bit, of one that was not, on a CPU with the same number of threads: the
    batches, the learning rate and the drawn prefixes depend on the step alone, and the global random
    generators (dropout) are part of a checkpoint. The caller's generators are left as they were.

    With several processes (`accelerate launch`), process r of w takes the batches r, r + w, ... of
    an epoch, gradients are averaged, and up to w - 1 batches at the end of an epoch are left out.
    All processes must see the same `checkpoint_folder`.

    Args:
        job: What is trained; its module is changed in place.
        options: How.
        checkpoint_folder: Where checkpoints are; remove it once the trained model is stored.
        restart: Start over where the checkpoints there were made with other settings, and remove
            them, instead of refusing to go on.
        progress: Told at most four times per second; what stands before " | " in its label
            does not change, the rest tells epoch and losses.
        warn: Told what a person should know, such as that a damaged checkpoint was passed over.

    Raises:
        DimensionError: If `early_stop_dim` is not among the nesting dims.
        TrainingError: If a loss, a clipped gradient or a weight is not finite (the last good
            checkpoint stays); if the checkpoints there were made with other settings; if there are
            fewer batches than processes; or if early stopping has no validation value to look at.
        WriteError: If another process trains there, or checkpoints cannot be written.
    """
    accelerator = Accelerator(
        mixed_precision="no",  # the loop has its own autocast, which leaves the module as it is
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    leave_group_at_exit()
    _check(job, options, accelerator.num_processes)
    folder = checkpoint_folder.resolve()
    with _one_writer(folder, accelerator), giving_generators_back(accelerator.device):
        loop = _Loop(job, options, accelerator, Checkpoints(folder), progress, warn)
        return loop.run(restart=restart)


class _Loop:
    def __init__(
        self,
        job: TrainingJob,
        options: LoopOptions,
        accelerator: Accelerator,
        checkpoints: Checkpoints,
        progress: Progress,
        warn: Callable[[str], object],
    ) -> None:
        self.job = job
        self.options = options
        self.accelerator = accelerator
        self.checkpoints = checkpoints
        self.progress = progress if accelerator.is_main_process else silent
        self.warn = warn if accelerator.is_main_process else _ignore
        self.steps_per_epoch = job.num_batches // accelerator.num_processes
        self.num_steps = options.num_epochs * self.steps_per_epoch

        seed_generators(options.seed, accelerator.process_index)
        self.model = accelerator.prepare_model(job.module)
        self.optimizer = job.make_optimizer(options.learning_rate)
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.parameters = [weights for weights in job.module.parameters() if weights.requires_grad]

        self.step = 0
        self.running = RunningLoss(len(job.nesting_dims))
        self.epochs: list[EpochRecord] = []
        self.num_resumes = 0
        self.environment = describe_machine(accelerator, options)
        self.settings = continuation_settings(
            job.settings,
            options,
            nesting_dims=job.nesting_dims,
            num_batches=job.num_batches,
            num_processes=accelerator.num_processes,
        )
        self.clock_s = self.written_s = time.perf_counter()
        self.reported_s = 0.0

    def run(self, *, restart: bool) -> TrainingRecord:
        checkpoint = self.checkpoints.newest(self.warn)
        is_other = checkpoint is not None and checkpoint.state["settings"] != self.settings
        if restart and is_other:
            checkpoint = None
        self.accelerator.wait_for_everyone()  # nobody writes before everybody has read
        if self.accelerator.is_main_process:
            self.checkpoints.remove_parts()
            if restart and is_other:
                self.checkpoints.remove_all()
        if checkpoint is not None:
            self._resume(checkpoint)
        while not self._is_finished:
            self._train_epoch()
            self._end_epoch()
        return self._finish()

    def _resume(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        check_same_settings(state["settings"], self.settings, checkpoint.path)
        checkpoint.load_into(self.job.module, self.optimizer)
        set_generators(state["generators"][self.accelerator.process_index], self.accelerator.device)
        self.step = checkpoint.step
        self.running = RunningLoss.from_json(state["running"])
        self.epochs = [EpochRecord.from_json(epoch) for epoch in state["epochs"]]
        self.num_resumes = state["num_resumes"]
        if self._is_finished:
            self.environment = state["environment"]
            return
        self.num_resumes += 1
        if changed := changed_facts(state["environment"], self.environment):
            self.warn(
                f"the training goes on with {changed}: the result may differ in its last digits"
            )

    def _train_epoch(self) -> None:
        self.model.train()
        end = (len(self.epochs) + 1) * self.steps_per_epoch
        batch = self._batch(self.step)
        while self.step < end:
            is_last = self.step + 1 == end
            batch, is_due = self._train_step(batch, is_last=is_last)
            # The last step of an epoch is written after its validation.
            if is_due and not is_last:
                self._write_checkpoint()
            self._report()

    def _train_step(self, batch: Any, *, is_last: bool) -> tuple[Any, bool]:
        """Take one step; return the next batch, and whether a checkpoint is due."""
        factor = rate_factor(self.step, self.num_steps, self.options)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        with torch.autocast(
            self.accelerator.device.type,
            torch.bfloat16,
            enabled=self.options.precision == "bfloat16",
        ):
            value = self.model(batch, self.step)
        self.accelerator.backward(value.total)
        norm = None
        if self.options.max_grad_norm is not None:
            norm = self.accelerator.clip_grad_norm_(self.parameters, self.options.max_grad_norm)
        # While an accelerator computes, the next batch is made.
        next_batch = None if is_last else self._batch(self.step + 1)
        total, norm_size, is_due, *by_dim = self._read(value, norm)
        self._check_finite(total, norm_size, np.array(by_dim))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.running.add(total, np.array(by_dim))
        self.step += 1
        return next_batch, bool(is_due)

    def _batch(self, step: int) -> Any:
        epoch, place = divmod(step, self.steps_per_epoch)
        index = place * self.accelerator.num_processes + self.accelerator.process_index
        return send_to_device(self.job.batch(epoch, index), self.accelerator.device)

    def _read(self, value: LossValue, norm: Tensor | None) -> Float64[np.ndarray, " numbers"]:
        """Return loss, gradient norm, whether a checkpoint is due, and the losses by dim.

        They are means over the processes, which therefore agree; one wait for the device.
        """
        total = value.total.detach().reshape(1)
        is_due = time.perf_counter() - self.written_s >= self.options.checkpoint_every_s
        numbers = torch.cat(
            [
                total,
                torch.zeros_like(total) if norm is None else norm.reshape(1).to(total),
                torch.full_like(total, float(is_due)),
                value.by_dim.detach().to(total),
            ]
        )
        everyone = self.accelerator.gather(numbers[None])
        return everyone.cpu().double().numpy().mean(axis=0)

    def _check_finite(
        self, total: float, norm: float, by_dim: Float64[np.ndarray, " dims"]
    ) -> None:
        if np.isfinite(total) and np.isfinite(norm) and not np.isinf(by_dim).any():
            return
        what, place = f"the loss became {total:g}", ""
        if np.isfinite(total) and not np.isinf(by_dim).any():
            what = f"the norm of the gradients became {norm:g}"
        else:
            is_bad = np.isinf(by_dim) if np.isinf(by_dim).any() else np.isnan(by_dim)
            bad = ", ".join(
                str(dim) for dim, bad in zip(self.job.nesting_dims, is_bad, strict=True) if bad
            )
            place = f" at prefix {bad}" if bad else ", though that of every prefix is finite"
            if self.running.has_skipped_dims and not np.isinf(by_dim).any():
                place += " (those not drawn in this step among them)"
        raise TrainingError(
            f"{what} at step {self.step + 1:,} (epoch {len(self.epochs) + 1}){place}; the training stopped "
            f"before that step changed the weights. {self.checkpoints.describe_newest()} Lower "
            f"--learning-rate, and train again with another --out, or with --overwrite."
        )

    def _end_epoch(self) -> None:
        self.progress(f"{self._label()} validating", self.step, self.num_steps + 1)
        validation = self._validate()
        self._lap()
        self.epochs.append(
            EpochRecord(
                epoch=len(self.epochs) + 1,
                loss=self.running.mean,
                loss_by_dim=dict(zip(self.job.nesting_dims, self.running.mean_by_dim, strict=True)),
                validation_by_dim=validation,
                seconds=self.running.seconds,
            )
        )
        self.running = RunningLoss(len(self.job.nesting_dims))
        self._write_checkpoint()

    def _validate(self) -> dict[int, float] | None:
        """Validate in one process, so that all of them take the same decision."""
        found: list[Mapping[int, float] | None] = [None]
        self.model.eval()
        if self.accelerator.is_main_process:
            found = [self.job.validate()]
        (values,) = broadcast_object_list(found)
        if values is not None:
            values = {int(dim): float(value) for dim, value in values.items()}
            if not np.isfinite(list(values.values())).all():
                raise TrainingError(
                    f"`validate` must return finite values, got {values} after epoch {len(self.epochs) + 1}. "
                    f"{self.checkpoints.describe_newest()}"
                )
        dim = self.options.early_stop_dim
        if dim is not None and dim not in (values or {}):
            raise TrainingError(
                f"`early_stop_dim` {dim} needs a validation value of that prefix, got {values}. "
                f"Hold some data out, or train without --early-stop-dim."
            )
        return values

    @property
    def _best_epoch(self) -> int | None:
        dim = self.options.early_stop_dim
        return find_best_epoch(self.epochs, dim) if dim is not None and self.epochs else None

    @property
    def _is_finished(self) -> bool:
        best = self._best_epoch
        is_stopped = best is not None and len(self.epochs) - best >= self.options.patience
        return is_stopped or len(self.epochs) == self.options.num_epochs

    def _write_checkpoint(self) -> None:
        generators = gather_object([read_generators(self.accelerator.device)])
        self._lap()
        best = self._best_epoch
        if self.accelerator.is_main_process:
            self.checkpoints.write(
                self.step,
                module=self.job.module,
                optimizer=self.optimizer,
                state={
                    "settings": self.settings,
                    "best_step": best and best * self.steps_per_epoch,
                    "running": self.running.to_json(),
                    "epochs": [epoch.to_json() for epoch in self.epochs],
                    "num_resumes": self.num_resumes,
                    "environment": self.environment,
                    "generators": generators,
                },
            )
        self.written_s = time.perf_counter()

    def _lap(self) -> None:
        now_s = time.perf_counter()
        self.running.seconds += now_s - self.clock_s
        self.clock_s = now_s

    def _report(self) -> None:
        now_s = time.perf_counter()
        if now_s - self.reported_s >= SECONDS_BETWEEN_REPORTS:
            self.reported_s = now_s
            self.progress(self._label(), self.step, self.num_steps + 1)

    def _label(self) -> str:
        epoch = f"epoch {len(self.epochs) + 1}/{self.options.num_epochs}"
        return f"train | {epoch} {self.running.describe(self.job.nesting_dims)}"

    def _finish(self) -> TrainingRecord:
        best = self._best_epoch
        self.accelerator.wait_for_everyone()
        if best is not None:
            self.checkpoints.load_weights(best * self.steps_per_epoch, self.job.module)
        self.job.module.eval()
        self.optimizer.zero_grad()
        last = self.epochs[-1]
        label = f"train | {last.epoch} of {self.options.num_epochs} epochs, loss {last.loss:.3g}"
        self.progress(label, self.step, self.step)
        return TrainingRecord(
            settings=as_json(self.job.settings),
            options=asdict(self.options),
            nesting_dims=self.job.nesting_dims,
            num_parameters=sum(weights.numel() for weights in self.job.module.parameters()),
            epochs=tuple(self.epochs),
            num_steps=self.step,
            num_resumes=self.num_resumes,
            stopped_early=last.epoch < self.options.num_epochs,
            best_epoch=best,
            environment=self.environment,
        )


@contextmanager
def _one_writer(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    if not accelerator.is_main_process:
        yield
        return
    with naming_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        yield


def _check(job: TrainingJob, options: LoopOptions, num_processes: int) -> None:
    dims = check_nesting_dims(job.nesting_dims, job.nesting_dims[-1])
    # Whether there is anything to validate is known after the first epoch.
    check_early_stopping(options, dims, has_validation=True)
    if job.num_batches < num_processes:
        raise TrainingError(
            f"an epoch must have at least one batch for each process, got {job.num_batches} batches for "
            f"{num_processes} processes. Take smaller batches or more data."
        )


def _ignore(message: str) -> None:
    """A message that another process tells already."""
