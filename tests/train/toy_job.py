"""Small jobs for the tests of the loop: dropout, drawn prefixes, Adam, validation; milliseconds a step."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn, optim
from torch.nn import functional

from nestling.train import LoopOptions
from nestling.train.losses.nesting import LossValue, Nesting

DIMS = (2, 4, 8)
NUM_CLASSES = 3


def make_options(**changes: Any) -> LoopOptions:
    values: dict[str, Any] = {
        "num_epochs": 4,
        "learning_rate": 0.02,
        "max_grad_norm": 1.0,
        "checkpoint_every_s": 1e9,
        "early_stop_dim": 4,
        "patience": 2,
        "seed": 3,
    }
    return LoopOptions(**{**values, **changes})


class ToyModule(nn.Module):
    """An encoder with dropout and batch norm, and one head per prefix."""

    def __init__(self, dims: tuple[int, ...], dims_per_step: int | None, dropout: float) -> None:
        super().__init__()
        self.nesting = Nesting.of(dims, dims_per_step=dims_per_step, seed=7)
        layers = [nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout)]
        self.encoder = nn.Sequential(*layers, nn.Linear(16, dims[-1]))
        self.heads = nn.ModuleList([nn.Linear(dim, NUM_CLASSES) for dim in dims])

    def forward(self, batch: Any, step: int) -> LossValue:
        embeddings = self.encoder(batch["inputs"])
        drawn = self.nesting.at_step(step)
        by_dim = torch.full((len(self.nesting.dims),), torch.nan)
        total = embeddings.new_zeros(())
        for position, weight in zip(drawn.positions, drawn.weights, strict=True):
            logits = self.heads[position](embeddings[:, : self.nesting.dims[position]])
            loss = functional.cross_entropy(logits, batch["labels"])
            by_dim[position] = loss.detach()
            total = total + weight * loss
        return LossValue(total, by_dim)


class ToyJob:
    """Points around three centres.

    Args:
        dims: Nesting dims.
        dims_per_step: Drawn per step.
        on_batch: Called with the epoch and the index of each batch that is made.
        spoil: Changes the inputs of a batch, given its epoch and index.
        validation: Values to return, epoch by epoch, in the place of the accuracy.
    """

    def __init__(
        self,
        *,
        dims: tuple[int, ...] = DIMS,
        dims_per_step: int | None = 2,
        num_batches: int = 7,
        dropout: float = 0.3,
        on_batch: Callable[[int, int], None] | None = None,
        spoil: Callable[[int, int, torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self.dims = dims
        self._num_batches = num_batches
        self._on_batch = on_batch
        self._spoil = spoil
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self._module = ToyModule(dims, dims_per_step, dropout)
        generator = np.random.default_rng(5)
        centres = generator.standard_normal((NUM_CLASSES, 6))
        self.labels = generator.integers(NUM_CLASSES, size=200)
        self.inputs = (centres[self.labels] + 1.5 * generator.standard_normal((200, 6))).astype(
            "f4"
        )

    @property
    def module(self) -> ToyModule:
        return self._module

    @property
    def nesting_dims(self) -> tuple[int, ...]:
        return self.dims

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"data": "toy", "batch_size": 16, "shape": (6, 16)}

    @property
    def num_batches(self) -> int:
        return self._num_batches

    def batch(self, epoch: int, index: int) -> Any:
        if self._on_batch:
            self._on_batch(epoch, index)
        rows = np.random.default_rng([epoch, index]).integers(150, size=16)
        inputs = torch.from_numpy(self.inputs[rows])
        if self._spoil:
            inputs = self._spoil(epoch, index, inputs)
        return {"inputs": inputs, "labels": torch.from_numpy(self.labels[rows])}

    def make_optimizer(self, learning_rate: float) -> optim.Optimizer:
        encoder, heads = self._module.encoder.parameters(), self._module.heads.parameters()
        groups = [{"params": list(encoder)}, {"params": list(heads), "lr": 2 * learning_rate}]
        return optim.AdamW(groups, lr=learning_rate, weight_decay=0.01)

    def validate(self) -> Mapping[int, float] | None:
        with torch.no_grad():
            embeddings = self._module.encoder(torch.from_numpy(self.inputs[150:]))
            accuracies = {}
            for dim, head in zip(self.dims, self._module.heads, strict=True):
                found = head(embeddings[:, :dim]).argmax(-1).numpy()
                accuracies[dim] = float((found == self.labels[150:]).mean())
        return accuracies


class ScriptedJob(ToyJob):
    """Validates to given values, so that early stopping is known beforehand."""

    def __init__(self, values: list[Any], **changes: Any) -> None:
        super().__init__(**changes)
        self.values = values
        self.num_validated = 0

    def validate(self) -> Mapping[int, float] | None:
        value = self.values[self.num_validated]
        self.num_validated += 1
        return None if value is None else {2: 0.0, 4: value, 8: 1.0}


def weights_of(job: ToyJob) -> dict[str, bytes]:
    """All parameters and buffers, as bytes: equal means equal to the bit."""
    return {name: value.numpy().tobytes() for name, value in job.module.state_dict().items()}


def numbers_of(record: Any) -> list[dict[str, Any]]:
    """The epochs of a record without the times."""
    return [{**epoch.to_json(), "seconds": None} for epoch in record.epochs]
