"""What happened in a training run, as data."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """One pass over the training data.

    Attributes:
        epoch: Counted from 1.
        loss: Mean over the steps of what was minimised.
        loss_by_dim: Mean unweighted loss of each prefix, over the steps that looked at it; None
            where no step did.
        validation_by_dim: Value of each prefix on held-out data, higher is better; None if there
            is none.
        seconds: Of training and validation. What a killed run did after its last checkpoint is
            done again and counts once.
    """

    epoch: int
    loss: float
    loss_by_dim: Mapping[int, float | None]
    validation_by_dim: Mapping[int, float] | None
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return plain data that `from_json` reads back."""
        validation = self.validation_by_dim
        return {
            "epoch": self.epoch,
            "loss": self.loss,
            "loss_by_dim": {str(dim): value for dim, value in self.loss_by_dim.items()},
            "validation_by_dim": validation and {str(dim): validation[dim] for dim in validation},
            "seconds": self.seconds,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "EpochRecord":
        """Read what `to_json` wrote."""
        validation = data["validation_by_dim"]
        return cls(
            epoch=data["epoch"],
            loss=data["loss"],
            loss_by_dim={int(dim): value for dim, value in data["loss_by_dim"].items()},
            validation_by_dim=validation and {int(dim): validation[dim] for dim in validation},
            seconds=data["seconds"],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRecord:
    """A finished training run.

    Attributes:
        settings: What the job says about itself.
        options: The `LoopOptions`.
        nesting_dims: The widths it was trained at.
        num_parameters: Numbers that were trained or kept fixed.
        epochs: One record per epoch.
        num_steps: Optimiser steps.
        num_resumes: How often it was continued from a checkpoint.
        stopped_early: Whether it ended before `num_epochs`.
        best_epoch: The epoch whose weights the module has, counted from 1; None without early
            stopping, when it has the last ones.
        environment: Versions, hardware, device and number of processes.
    """

    settings: Mapping[str, Any]
    options: Mapping[str, Any]
    nesting_dims: tuple[int, ...]
    num_parameters: int
    epochs: tuple[EpochRecord, ...]
    num_steps: int
    num_resumes: int
    stopped_early: bool
    best_epoch: int | None
    environment: Mapping[str, Any]

    @property
    def seconds(self) -> float:
        """Training and validation, all parts of an interrupted run together."""
        return math.fsum(epoch.seconds for epoch in self.epochs)

    @property
    def kept_epoch(self) -> EpochRecord:
        """The epoch whose weights the module has."""
        return self.epochs[(self.best_epoch or len(self.epochs)) - 1]

    def to_json(self) -> dict[str, Any]:
        """Return plain data, for `NestManifest.training`."""
        epochs = [epoch.to_json() for epoch in self.epochs]
        data = asdict(replace(self, epochs=()))
        return {
            **data,
            "nesting_dims": list(self.nesting_dims),
            "epochs": epochs,
            "seconds": self.seconds,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "TrainingRecord":
        """Read what `to_json` wrote; what else is in the data is passed over."""
        known = {field.name: data[field.name] for field in fields(cls)}
        return cls(
            **{
                **known,
                "nesting_dims": tuple(data["nesting_dims"]),
                "epochs": tuple(EpochRecord.from_json(epoch) for epoch in data["epochs"]),
            }
        )


def find_best_epoch(epochs: Sequence[EpochRecord], dim: int) -> int:
    """Return the epoch (from 1) with the highest validation value of a prefix, the first of equals."""
    values = [(epoch.validation_by_dim or {})[dim] for epoch in epochs]
    return 1 + values.index(max(values))


class RunningLoss:
    """Sums over the steps of the epoch that is under way.

    Attributes:
        num_steps: Steps so far.
        seconds: Time so far.
    """

    def __init__(self, num_dims: int) -> None:
        self.num_steps = 0
        self.seconds = 0.0
        self._total = 0.0
        self._by_dim: Float64[np.ndarray, " dims"] = np.zeros(num_dims)
        self._counts: Int64[np.ndarray, " dims"] = np.zeros(num_dims, np.int64)

    def add(self, total: float, by_dim: Float64[np.ndarray, " dims"]) -> None:
        """Add one step; NaN in `by_dim` means that the step did not look at that prefix."""
        looked_at = ~np.isnan(by_dim)
        self.num_steps += 1
        self._total += total
        self._by_dim[looked_at] += by_dim[looked_at]
        self._counts += looked_at

    @property
    def mean(self) -> float:
        """Mean loss of the steps so far; NaN before the first."""
        return self._total / self.num_steps if self.num_steps else math.nan

    @property
    def mean_by_dim(self) -> list[float | None]:
        """Mean loss of each prefix over the steps that looked at it; None where none did."""
        sums, counts = self._by_dim.tolist(), self._counts.tolist()
        return [value / count if count else None for value, count in zip(sums, counts, strict=True)]

    @property
    def has_skipped_dims(self) -> bool:
        """Whether some step did not look at every prefix."""
        return bool((self._counts < self.num_steps).any())

    def describe(self, dims: Sequence[int]) -> str:
        """Return the mean loss, and those of the first, the middle and the last prefix, for people."""
        means = self.mean_by_dim
        shown = sorted({0, len(means) // 2, len(means) - 1})
        losses = ", ".join(
            f"{dims[place]}: {loss:.3g}" for place in shown if (loss := means[place]) is not None
        )
        return f"loss {self.mean:.3g} ({losses})"

    def to_json(self) -> dict[str, Any]:
        """Return plain data that `from_json` reads back to the bit."""
        return {
            "num_steps": self.num_steps,
            "seconds": self.seconds,
            "total": self._total,
            "by_dim": self._by_dim.tolist(),
            "counts": self._counts.tolist(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "RunningLoss":
        """Read what `to_json` wrote."""
        running = cls(len(data["counts"]))
        running.num_steps = data["num_steps"]
        running.seconds = data["seconds"]
        running._total = data["total"]
        running._by_dim[:] = data["by_dim"]
        running._counts[:] = data["counts"]
        return running
