"""The seam between what is trained and the loop that trains it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from torch import nn, optim

from nestling.errors import DimensionError, TrainingError

Schedule = Literal["linear", "cosine", "constant"]
Precision = Literal["float32", "bfloat16"]
SCHEDULES: tuple[str, ...] = get_args(Schedule)
PRECISIONS: tuple[str, ...] = get_args(Precision)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopOptions:
    """How a job is trained; every field is part of the training record.

    Attributes:
        num_epochs: Passes over the training data.
        learning_rate: Peak of the schedule.
        schedule: From the peak down to zero ("linear", "cosine"), or "constant".
        warmup_share: Share of all steps in which the rate climbs from zero to its peak.
        max_grad_norm: Gradients are scaled down to this L2 norm; None leaves them.
        precision: "float32", or "bfloat16" for autocast.
        checkpoint_every_s: A checkpoint is due after so many seconds of training; one is also
            written after each epoch.
        early_stop_dim: Stop when the validation value of this prefix has not improved for
            `patience` epochs, and keep the weights of its best epoch; None trains all epochs.
        patience: See `early_stop_dim`.
        seed: Of shuffling, initialisation and sampling.
    """

    num_epochs: int
    learning_rate: float
    schedule: Schedule = "linear"
    warmup_share: float = 0.1
    max_grad_norm: float | None = None
    precision: Precision = "float32"
    checkpoint_every_s: float = 60.0
    early_stop_dim: int | None = None
    patience: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            TrainingError: If a field breaks its rule; the message names it.
        """
        clip = self.max_grad_norm
        rules = (
            ("num_epochs", "must be at least 1", self.num_epochs >= 1),
            ("learning_rate", "must be positive", 0 < self.learning_rate < math.inf),
            ("schedule", f"must be one of {', '.join(SCHEDULES)}", self.schedule in SCHEDULES),
            ("warmup_share", "must lie in [0, 1]", 0 <= self.warmup_share <= 1),
            ("max_grad_norm", "must be positive", clip is None or 0 < clip < math.inf),
            ("precision", f"must be one of {', '.join(PRECISIONS)}", self.precision in PRECISIONS),
            ("checkpoint_every_s", "must be at least 0", self.checkpoint_every_s >= 0),
            ("patience", "must be at least 1", self.patience >= 1),
            ("seed", "must be at least 0", self.seed >= 0),
        )
        for name, rule, is_kept in rules:
            if not is_kept:
                raise TrainingError(
                    f"`{name}` {rule}, got {getattr(self, name)}. Change it and train again."
                )


@runtime_checkable
class TrainingJob(Protocol):
    """What the loop needs to know; no inheritance needed."""

    @property
    def module(self) -> nn.Module:
        """All parameters. `module(batch, step)` returns a `LossValue`; steps count from 0 over all epochs."""

    @property
    def nesting_dims(self) -> tuple[int, ...]:
        """The widths `LossValue.by_dim` runs over."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """JSON that must be equal for a checkpoint to be continued: data hash, batch size ..."""

    @property
    def num_batches(self) -> int:
        """Batches of an epoch; each is one optimiser step on one device."""

    def batch(self, epoch: int, index: int) -> Any:
        """Return a batch of tensors (in tuples, lists or dicts), the same whenever it is asked for.

        The next one is asked for while the step before it is still under way.
        """

    def make_optimizer(self, learning_rate: float) -> optim.Optimizer:
        """Return the optimiser over the parameters of `module`."""

    def validate(self) -> Mapping[int, float] | None:
        """Return the validation value of every prefix, higher is better; None if nothing is held out."""


def check_early_stopping(
    options: LoopOptions, nesting_dims: Sequence[int], *, has_validation: bool
) -> None:
    """Refuse to watch a prefix that is not trained, or not measured.

    Raises:
        DimensionError: If `early_stop_dim` is not among the nesting dims.
        TrainingError: If nothing is held out to look at.
    """
    dim = options.early_stop_dim
    if dim is None:
        return
    if dim not in nesting_dims:
        raise DimensionError(
            f"`early_stop_dim` must be one of the nesting dims {','.join(map(str, nesting_dims))}, got {dim}."
        )
    if not has_validation:
        raise TrainingError(
            f"`early_stop_dim` {dim} needs a validation value of that prefix, but nothing is held out. "
            f"Hold some data out with --validate, or train without --early-stop-dim."
        )
