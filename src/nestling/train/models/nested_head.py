"""A linear classifier on every prefix of an embedding."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from nestling.core.dims import check_dim, check_dims
from nestling.errors import DataError, DimensionError
from nestling.train.losses._head_kernel import head_columns


class NestedHead(nn.Module):
    """Linear heads of all nesting dims, packed as `NestedCrossEntropy` reads them.

    Kusupati et al. 2022, Section 3 (arXiv:2205.13147). Untied (MRL): a head of its own per prefix;
    columns `head_columns(dims)` of the weight, the shortest prefix first, so the head of dims[i]
    starts at sum(dims[:i]). Tied (MRL-E): one weight, whose first m columns are the head of width m,
    for any m, trained or not. Tied heads take half the memory where widths are halved.

    Attributes:
        nesting_dims: Ascending widths, the last the full one.
        tied: Whether the heads share their columns.
        weight: [classes, full width] if tied, [classes, sum of the widths] if not.
        bias: [classes] if tied, [widths, classes] if not; None without bias.
    """

    def __init__(
        self, nesting_dims: Sequence[int], num_classes: int, *, tied: bool, bias: bool = True
    ) -> None:
        """Draw the parameters as `nn.Linear` does: within 1 / sqrt(inputs of the head).

        Raises:
            DimensionError: If the widths are not ascending and unique.
            DataError: If there are fewer than 2 classes.
        """
        super().__init__()
        self.nesting_dims = check_dims(nesting_dims, max(nesting_dims, default=1))
        if num_classes < 2:
            raise DataError(
                f"`num_classes` must be at least 2, got {num_classes}. With one class there is nothing to tell apart."
            )
        self.tied = tied
        width = self.nesting_dims[-1] if tied else sum(self.nesting_dims)
        self.weight = nn.Parameter(torch.empty(num_classes, width))
        shape = (num_classes,) if tied else (len(self.nesting_dims), num_classes)
        self.register_parameter("bias", nn.Parameter(torch.empty(shape)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters anew."""
        columns = [slice(None)] if self.tied else head_columns(self.nesting_dims)
        biases = None if self.bias is None else self.bias.view(len(columns), -1)
        with torch.no_grad():
            for place, head in enumerate(columns):
                weight = self.weight[:, head]
                bound = weight.shape[1] ** -0.5
                weight.uniform_(-bound, bound)
                if biases is not None:
                    biases[place].uniform_(-bound, bound)

    def logits(
        self, embeddings: Float[Tensor, "batch width"], dim: int
    ) -> Float[Tensor, "batch classes"]:
        """Return the logits of the head of one width.

        Args:
            embeddings: Full width, or at least `dim` coordinates of it.
            dim: Width of the head.

        Raises:
            DimensionError: If the embeddings are narrower, or no head has this width: untied heads exist
                for the nesting dims alone.
        """
        weight, bias = self._head(dim)
        check_dim(dim, embeddings.shape[1])
        return nn.functional.linear(embeddings[:, :dim], weight, bias)

    def predict(
        self, embeddings: Float[Tensor, "batch width"], dim: int
    ) -> Int64[Tensor, " batch"]:
        """Return the most likely class of each row by the head of one width; see `logits`."""
        return self.logits(embeddings, dim).argmax(-1)

    def all_logits(
        self, embeddings: Float[Tensor, "batch dim"]
    ) -> dict[int, Float[Tensor, "batch classes"]]:
        """Return the logits of every nesting dim.

        Those of tied heads are running sums over blocks of columns: all together cost one product of
        full width, and going from a prefix to the next costs the columns between them.

        Raises:
            DimensionError: If the embeddings are not of full width.
        """
        if embeddings.shape[1] != self.nesting_dims[-1]:
            raise DimensionError(
                f"`embeddings` must be as wide as the last nesting dim, {self.nesting_dims[-1]}, got "
                f"{embeddings.shape[1]}. For a prefix alone, call `logits` with its `dim`."
            )
        if not self.tied:
            return {dim: self.logits(embeddings, dim) for dim in self.nesting_dims}
        first = self.nesting_dims[0]
        logits = {first: self.logits(embeddings, first)}
        for start, stop in pairwise(self.nesting_dims):
            block = self.weight[:, start:stop]
            logits[stop] = torch.addmm(logits[start], embeddings[:, start:stop], block.t())
        return logits

    def forward(
        self, embeddings: Float[Tensor, "batch dim"]
    ) -> dict[int, Float[Tensor, "batch classes"]]:
        """Return `all_logits`."""
        return self.all_logits(embeddings)

    def extra_repr(self) -> str:
        """Say what `print` shows of it."""
        return f"nesting_dims={self.nesting_dims}, num_classes={len(self.weight)}, tied={self.tied}"

    def _head(self, dim: int) -> tuple[Tensor, Tensor | None]:
        check_dim(dim, self.nesting_dims[-1])
        if self.tied:
            return self.weight[:, :dim], self.bias
        if dim not in self.nesting_dims:
            raise DimensionError(
                f"`dim` must be one of {','.join(map(str, self.nesting_dims))}, the widths that untied heads were "
                f"made for, got {dim}. A tied head (`tied=True`) has every width."
            )
        place = self.nesting_dims.index(dim)
        bias = None if self.bias is None else self.bias[place]
        return self.weight[:, head_columns(self.nesting_dims)[place]], bias
