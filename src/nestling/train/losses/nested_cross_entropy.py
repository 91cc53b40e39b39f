"""Cross-entropy of classification heads on every prefix: MRL (untied) and MRL-E (tied)."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nestling.errors import DataError, DimensionError
from nestling.train.losses._head_kernel import (
    Gradients,
    Inputs,
    Plan,
    Wanted,
    losses_and_gradients,
    make_plan,
)
from nestling.train.losses.nesting import LossValue, Nesting


class NestedCrossEntropy(nn.Module):
    """Sum over the prefixes m of c_m CE(W_m z_{1:m} + b_m, y), averaged over the batch.

    Kusupati et al. 2022, eq. 1 (arXiv:2205.13147). The heads are tied (MRL-E: W_m is the first m
    columns of one W, all with one bias) or untied (MRL: each has its own); the width of the weight
    tells which. Both are computed without autograd's stack of logits: tied heads with all prefixes
    cost three full-width products, as one plain head does. Memory beside the gradients is at
    most that of the weight (or 16 MiB), however many prefixes there are.

    The gradients are made in the forward pass. On a CPU, an upstream gradient of exactly 1 spares one
    pass over them: put weights into `dim_weights` rather than around the loss.

    Attributes:
        nesting: The prefixes and their weights.
        label_smoothing: Share of each target that is spread over all classes, in [0, 1).
    """

    def __init__(
        self,
        nesting_dims: Sequence[int],
        dim_weights: Sequence[float] | None = None,
        *,
        label_smoothing: float = 0.0,
        dims_per_step: int | None = None,
        seed: int = 0,
    ) -> None:
        """Check the options.

        Raises:
            DimensionError: If the prefixes break a rule of `Nesting.of`.
            DataError: If `label_smoothing` is outside [0, 1).
        """
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise DataError(
                f"`label_smoothing` must lie in [0, 1), got {label_smoothing:g}. The paper takes 0.1."
            )
        self.nesting = Nesting.of(nesting_dims, dim_weights, dims_per_step=dims_per_step, seed=seed)
        self.label_smoothing = label_smoothing

    def value(
        self,
        embeddings: Float[Tensor, "batch dim"],
        labels: Shaped[Tensor, " labels"],
        weight: Float[Tensor, "classes columns"],
        bias: Float[Tensor, "..."] | None = None,
        *,
        step: int | None = None,
    ) -> LossValue:
        """Return the loss, by prefix and in total.

        Under autocast the products are taken in its number format, the softmax in float32 at
        least. With no gradients enabled none are made.

        Args:
            embeddings: Full width; a linear head takes them as they are, not normalised.
            labels: Class numbers from 0.
            weight: [classes, last nesting dim] for tied heads, [classes, sum of the nesting dims] for
                untied ones: the columns of the shortest prefix first.
            bias: [classes] for tied heads, [nesting dims, classes] for untied ones, or None.
            step: Number of the step, which draws the prefixes where they are sampled. Untied heads
                that are not drawn get a gradient of zero.

        Raises:
            DimensionError: If embeddings, weight or bias do not fit the nesting dims.
            DataError: If there is no row, or labels are not one class number per row. Reading
                the labels makes a GPU wait.
        """
        tied = self._check_shapes(embeddings, weight, bias)
        _check_labels(labels, len(embeddings), len(weight))
        positions, weights = self.nesting.at_step(step)
        device = embeddings.device.type
        plan = make_plan(
            self.nesting.dims,
            positions,
            weights,
            tied=tied,
            label_smoothing=self.label_smoothing,
            dtype=torch.get_autocast_dtype(device)
            if torch.is_autocast_enabled(device)
            else torch.promote_types(embeddings.dtype, weight.dtype),
        )
        inputs = Inputs(embeddings, labels.long(), weight, bias)
        if torch.is_grad_enabled() and any(
            tensor is not None and tensor.requires_grad for tensor in (embeddings, weight, bias)
        ):
            total, losses = _Fused.apply(plan, *inputs)
        else:
            losses, _ = losses_and_gradients(plan, inputs, Wanted(False, False, False))
            total = _weighted_sum(plan, losses)
        by_dim = losses.new_full((len(self.nesting.dims),), float("nan"))
        by_dim[list(positions)] = losses
        return LossValue(total, by_dim)

    def forward(
        self,
        embeddings: Float[Tensor, "batch dim"],
        labels: Shaped[Tensor, " labels"],
        weight: Float[Tensor, "classes columns"],
        bias: Float[Tensor, "..."] | None = None,
        *,
        step: int | None = None,
    ) -> Float[Tensor, ""]:
        """Return the total of `value`."""
        return self.value(embeddings, labels, weight, bias, step=step).total

    def _check_shapes(self, embeddings: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
        """Return whether the heads are tied."""
        dims = self.nesting.dims
        if embeddings.shape[1] != dims[-1]:
            raise DimensionError(
                f"`embeddings` must be as wide as the last nesting dim, {dims[-1]}, got "
                f"{embeddings.shape[1]}. Pass full-width embeddings; the loss takes the prefixes."
            )
        num_classes, width = weight.shape
        if width not in (dims[-1], sum(dims)):
            raise DimensionError(
                f"`weight` must have {dims[-1]} columns for tied heads or {sum(dims)} for untied ones, "
                f"got {width}. Make it with NestedHead({dims}, ...)."
            )
        # With a single width both are the same; the bias tells which head it came from.
        tied = width == dims[-1] and (len(dims) > 1 or bias is None or bias.ndim == 1)
        wanted = (num_classes,) if tied else (len(dims), num_classes)
        if bias is not None and tuple(bias.shape) != wanted:
            raise DimensionError(
                f"`bias` must have the shape {list(wanted)} for {'tied' if tied else 'untied'} heads, got "
                f"{list(bias.shape)}. Make it with NestedHead({dims}, ...)."
            )
        return tied


class _Fused(torch.autograd.Function):
    """All losses at once; the gradients wait in `ctx` for the upstream gradient, a scalar."""

    @staticmethod
    def forward(
        ctx: Any,
        plan: Plan,
        embeddings: Tensor,
        labels: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        _, at_embeddings, _, at_weight, at_bias = ctx.needs_input_grad
        ctx.plan, ctx.wanted = plan, Wanted(at_embeddings, at_weight, at_bias)
        ctx.save_for_backward(embeddings, labels, weight, bias)
        inputs = Inputs(embeddings, labels, weight, bias)
        losses, ctx.gradients = losses_and_gradients(plan, inputs, ctx.wanted)
        ctx.mark_non_differentiable(losses)
        return _weighted_sum(plan, losses), losses

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(
        ctx: Any, upstream: Tensor, _: Tensor
    ) -> tuple[None, Tensor | None, None, Tensor | None, Tensor | None]:
        # Given away, not kept: a parameter takes an unshared gradient as its own, without a copy. Only a
        # second pass through the same graph has to make them again.
        gradients: Gradients | None = ctx.gradients
        ctx.gradients = None
        if gradients is None:
            _, gradients = losses_and_gradients(ctx.plan, Inputs(*ctx.saved_tensors), ctx.wanted)
        if upstream.device.type != "cpu" or upstream.item() != 1:
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(upstream)
        return None, gradients.embeddings, None, gradients.weight, gradients.bias


def _weighted_sum(plan: Plan, losses: Tensor) -> Tensor:
    # No dot product: autocast would take it in low precision.
    return (losses * losses.new_tensor([slot.factor for slot in plan.slots])).sum()


def _check_labels(labels: Tensor, num_rows: int, num_classes: int) -> None:
    if labels.is_floating_point() or tuple(labels.shape) != (num_rows,):
        raise DataError(
            f"`labels` must be one whole number per row of {num_rows} embeddings, got {labels.dtype} of shape "
            f"{list(labels.shape)}. Pass class numbers, not one-hot rows."
        )
    if num_rows == 0:
        raise DataError(
            "`embeddings` must hold at least one row, got none. Leave empty batches out."
        )
    smallest, largest = (int(bound) for bound in labels.aminmax())
    if smallest < 0 or largest >= num_classes:
        row = int(((labels < 0) | (labels >= num_classes)).nonzero()[0])
        raise DataError(
            f"`labels` must lie in [0, {num_classes}) for a head with {num_classes} classes, got "
            f"{int(labels[row])} in row {row}. Number the classes from 0, or make the head wider."
        )
