"""Nest a PyTorch module of your own: two lines of loss, and the loop if you want one.

The module here maps scikit-learn's digits to 32 coordinates; two views of an image (it and a noisy
copy) belong together. Whatever returns a tensor of embeddings will do.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn, optim

from nestling.train import LoopOptions, fit
from nestling.train.losses import LossValue, NestedInfoNCE

DIMS = (4, 8, 16, 32)
BATCH_SIZE = 256


class Views(nn.Module):
    """The encoder and its loss; `fit` calls it with a batch and the number of the step."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, DIMS[-1]))
        self.loss = NestedInfoNCE(DIMS, temperature=0.1, symmetric=True)

    def forward(self, batch: tuple[Tensor, Tensor], step: int) -> LossValue:
        left, right = (self.encoder(view) for view in batch)
        return self.loss.value(left, right, step=step)


class DigitViews:
    """A training job: batches are a function of epoch and index, so that a killed run can go on."""

    nesting_dims = DIMS
    settings: Mapping[str, Any] = {"data": "digits", "batch_size": BATCH_SIZE}

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.module = Views()
        self._pixels = torch.from_numpy(load_digits().data.astype(np.float32) / 16)
        self.num_batches = len(self._pixels) // BATCH_SIZE

    def batch(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(epoch)
        order = torch.randperm(len(self._pixels), generator=generator)
        pixels = self._pixels[order[index * BATCH_SIZE : (index + 1) * BATCH_SIZE]]
        generator.manual_seed(1000 * epoch + index)
        return pixels, pixels + 0.2 * torch.randn(pixels.shape, generator=generator)

    def make_optimizer(self, learning_rate: float) -> optim.Optimizer:
        return optim.AdamW(self.module.parameters(), lr=learning_rate)

    def validate(self) -> None:
        return None


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        record = fit(
            DigitViews(),
            LoopOptions(num_epochs=10, learning_rate=3e-3),
            checkpoint_folder=Path(folder),
        )
    for epoch in (record.epochs[0], record.epochs[-1]):
        losses = ", ".join(f"{dim}: {loss:.2f}" for dim, loss in epoch.loss_by_dim.items())
        print(f"epoch {epoch.epoch:>2}  loss by width  {losses}")


if __name__ == "__main__":
    main()
