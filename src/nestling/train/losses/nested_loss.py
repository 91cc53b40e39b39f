"""Any loss, on every prefix."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nestling.errors import DataError, DimensionError
from nestling.train.losses.nesting import LossValue, Nesting


class NestedLoss(nn.Module):
    """Sum over the prefixes m of c_m base(z_{1:m}, ...), for any base loss.

    Kusupati et al. 2022, eq. 1 (arXiv:2205.13147). A plain loop: it costs what the base loss costs at every
    width, and it is the twin that judges the fused losses.

    Positional tensors are embeddings and are cut; keyword arguments go to the base as they are (labels,
    masks, scores of a teacher). Embeddings that the base takes by keyword are cut if `cut_keywords`
    names them. Targets that are embeddings (MSE to a teacher's) must be cut and rescaled like the rest,
    or a perfect student would have a loss above 0.

    Attributes:
        base: The loss.
        nesting: The prefixes and their weights.
        renormalize: Whether each prefix is rescaled to unit L2 norm, the full width included.
        cut_keywords: Keyword arguments that are embeddings, too.
    """

    def __init__(
        self,
        base: Callable[..., Tensor],
        nesting_dims: Sequence[int],
        dim_weights: Sequence[float] | None = None,
        *,
        renormalize: bool,
        cut_keywords: Sequence[str] = (),
        dims_per_step: int | None = None,
        seed: int = 0,
    ) -> None:
        """Check the options.

        Raises:
            DimensionError: If the prefixes break a rule of `Nesting.of`.
        """
        super().__init__()
        self.base = base
        self.nesting = Nesting.of(nesting_dims, dim_weights, dims_per_step=dims_per_step, seed=seed)
        self.renormalize = renormalize
        self.cut_keywords = tuple(cut_keywords)

    def value(
        self, *embeddings: Float[Tensor, "... dim"], step: int | None = None, **keywords: Any
    ) -> LossValue:
        """Return the loss, by prefix and in total.

        Args:
            embeddings: What the base takes by position, full width on the last axis.
            step: Number of the step, which draws the prefixes where they are sampled.
            keywords: What the base takes by keyword.

        Raises:
            DimensionError: If an embedding's last axis is not the last nesting dim.
            DataError: If a keyword to cut is not passed, or the base returns more than one number.
        """
        self._check_widths(embeddings, keywords)
        positions, weights = self.nesting.at_step(step)
        losses = [
            self._at(self.nesting.dims[position], embeddings, keywords) for position in positions
        ]
        total = torch.stack(
            [weight * loss for weight, loss in zip(weights, losses, strict=True)]
        ).sum()
        by_dim = torch.full_like(total, torch.nan).repeat(len(self.nesting.dims)).detach()
        by_dim[list(positions)] = torch.stack(losses).detach()
        return LossValue(total, by_dim)

    def forward(
        self, *embeddings: Float[Tensor, "... dim"], step: int | None = None, **keywords: Any
    ) -> Float[Tensor, ""]:
        """Return the total of `value`."""
        return self.value(*embeddings, step=step, **keywords).total

    def _at(self, dim: int, embeddings: Sequence[Tensor], keywords: dict[str, Any]) -> Tensor:
        cut = {name: self._prefix(keywords[name], dim) for name in self.cut_keywords}
        loss = self.base(*(self._prefix(whole, dim) for whole in embeddings), **(keywords | cut))
        if loss.ndim:
            raise DataError(
                f"`base` must return one number, got a tensor of shape {list(loss.shape)}. Let it average, "
                f"e.g. with reduction='mean'."
            )
        return loss

    def _prefix(self, embeddings: Tensor, dim: int) -> Tensor:
        prefix = embeddings[..., :dim]
        if not self.renormalize:
            return prefix
        # Float32 at least: norms overflow float16. A zero row stays zero, with a finite gradient.
        wide = torch.promote_types(prefix.dtype, torch.float32)
        norms = torch.linalg.vector_norm(prefix, dim=-1, keepdim=True, dtype=wide)
        return (prefix / torch.where(norms == 0, 1, norms)).to(prefix.dtype)

    def _check_widths(self, embeddings: Sequence[Tensor], keywords: dict[str, Any]) -> None:
        missing = [name for name in self.cut_keywords if name not in keywords]
        if missing:
            raise DataError(
                f"`{missing[0]}` is one of `cut_keywords` and must be passed by keyword, got "
                f"{', '.join(keywords) or 'no keywords'}."
            )
        named = {f"positional argument {place}": one for place, one in enumerate(embeddings)}
        named |= {f"`{name}`": keywords[name] for name in self.cut_keywords}
        full = self.nesting.dims[-1]
        for name, one in named.items():
            if one.ndim == 0 or one.shape[-1] != full:
                raise DimensionError(
                    f"{name} must be embeddings as wide as the last nesting dim, {full}, got shape "
                    f"{list(one.shape)}. Pass labels, masks and other uncut tensors by keyword."
                )
