"""A residual perceptron that makes prefixes say more, at the price of the full-width scores."""

from collections.abc import Callable, Sequence
from typing import Literal, final

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn, optim
from torch.nn import functional

from nestling.core.progress import Progress, silent
from nestling.encode.vector_map import ResidualMap

NUM_STEPS = 300
LEARNING_RATE = 1e-3
SEEDS_PER_BATCH = 24
NEIGHBOURS_PER_SEED = 6
TEMPERATURE = 0.05

ResidualLoss = Literal["listwise", "published"]


@final
class ResidualAdaptor(nn.Module):
    """x + W2 relu(W1 x + b1) + b2, the identity at first; `hidden` is as wide as x."""

    def __init__(self, embed_dim: int, *, generator: torch.Generator) -> None:
        super().__init__()
        # Their own first weights would be drawn from the global generator.
        self.inner = nn.utils.skip_init(nn.Linear, embed_dim, embed_dim)
        self.outer = nn.utils.skip_init(nn.Linear, embed_dim, embed_dim)
        bound = embed_dim**-0.5
        with torch.no_grad():
            self.inner.weight.uniform_(-bound, bound, generator=generator)
            self.inner.bias.zero_()
            self.outer.weight.zero_()
            self.outer.bias.zero_()

    def forward(self, rows: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows dim"]:
        """Return the adapted rows, not scaled to unit length."""
        return rows + self.outer(functional.relu(self.inner(rows)))

    def export(self) -> ResidualMap:
        """Return the same as NumPy applies it."""
        return ResidualMap(
            inner=_array(self.inner.weight.T),
            inner_bias=_array(self.inner.bias),
            outer=_array(self.outer.weight.T),
            outer_bias=_array(self.outer.bias),
        )


def learn_residual(
    rows: Float32[np.ndarray, "rows dim"],
    dims: Sequence[int],
    *,
    loss: ResidualLoss,
    seed: int,
    progress: Progress = silent,
) -> ResidualMap:
    """Fit the adaptor of Yoon et al. 2024 (Matryoshka-Adaptor, arXiv:2407.20243) without labels.

    A batch is some random rows and their nearest neighbours. Two losses between the cosines of the
    original full width, S, and those of each adapted prefix, S_m:

    - "published": the paper's unsupervised objective, L_topk + L_pair + L_rec, each of weight 1: per
      row, |S - S_m| summed over its neighbours, over all others, and over the widths, and the L1
      distance of the adapted row from the original one;
    - "listwise": KL( softmax(S / T) || softmax(S_m / T) ), summed over the widths, the full one
      among them, as in `SelfDistillation`, but of the original vectors.

    Args:
        rows: Unit rows.
        dims: Widths, the last the full one.
        loss: Which of the two.
        seed: Of weights and batches.
        progress: Told after every step.
    """
    generator = torch.Generator().manual_seed(seed)
    documents = torch.from_numpy(np.ascontiguousarray(rows))
    adaptor = ResidualAdaptor(rows.shape[1], generator=generator)
    optimizer = optim.Adam(adaptor.parameters(), lr=LEARNING_RATE)
    value = _LOSSES[loss]
    for step in range(NUM_STEPS):
        originals = documents[_draw_batch(documents, generator)]
        total = value(originals, adaptor(originals), dims)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        progress("fit a residual map", step + 1, NUM_STEPS)
    return adaptor.export()


def _draw_batch(
    documents: Float[Tensor, "rows dim"], generator: torch.Generator
) -> Int64[Tensor, " batch"]:
    seeds = torch.randperm(len(documents), generator=generator)[:SEEDS_PER_BATCH]
    k = min(1 + NEIGHBOURS_PER_SEED, len(documents))
    neighbours = (documents[seeds] @ documents.T).topk(k).indices  # each seed its own first one
    return torch.unique(neighbours)


def _published(
    originals: Float[Tensor, "batch dim"], adapted: Float[Tensor, "batch dim"], dims: Sequence[int]
) -> Float[Tensor, ""]:
    full = originals @ originals.T
    itself = torch.eye(len(full), dtype=torch.bool)
    k = min(NEIGHBOURS_PER_SEED, len(full) - 1)
    nearest = full.masked_fill(itself, -torch.inf).topk(k).indices
    total = (originals - adapted).abs().sum(1)
    for dim in dims:
        gap = (full - _cosines(adapted, dim)).abs().masked_fill(itself, 0.0)
        total = total + gap.sum(1) + gap.gather(1, nearest).sum(1)
    return total.mean()


def _listwise(
    originals: Float[Tensor, "batch dim"], adapted: Float[Tensor, "batch dim"], dims: Sequence[int]
) -> Float[Tensor, ""]:
    targets = _log_shares(originals @ originals.T)
    losses = [
        functional.kl_div(
            _log_shares(_cosines(adapted, dim)), targets, log_target=True, reduction="batchmean"
        )
        for dim in dims
    ]
    return torch.stack(losses).sum()


def _log_shares(cosines: Float[Tensor, "batch batch"]) -> Float[Tensor, "batch batch"]:
    """Return the log-softmax over the others of a batch."""
    itself = torch.eye(len(cosines), dtype=torch.bool)
    # Not -inf: its share of zero must make zero of the difference of logarithms.
    return (cosines / TEMPERATURE).masked_fill(itself, -1e4).log_softmax(1)


def _cosines(rows: Float[Tensor, "batch dim"], dim: int) -> Float[Tensor, "batch batch"]:
    prefix = functional.normalize(rows[:, :dim], dim=1)
    return prefix @ prefix.T


def _array(weight: Tensor) -> Float32[np.ndarray, "..."]:
    return np.ascontiguousarray(weight.detach().numpy())


_LOSSES: dict[ResidualLoss, Callable[[Tensor, Tensor, Sequence[int]], Tensor]] = {
    "published": _published,
    "listwise": _listwise,
}
