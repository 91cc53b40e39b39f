"""Rows that do not belong together should be as far apart as random ones, at every prefix."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn
from torch.nn import functional

from nestling.errors import DataError
from nestling.train.losses._info_nce_kernel import check_widths, in_full_precision
from nestling.train.losses.nesting import LossValue, Nesting


class SpreadOut(nn.Module):
    """Global orthogonal regularisation at every prefix (Zhang et al. 2017, arXiv:1708.06320, eq. 5 to 7).

    Cosines of unrelated unit vectors that fill their space evenly have mean 0 and mean square
    1 / m. With both means taken over the pairs (i, j) that do not belong together,

        L_m = mean(cos_m(q_i, d_j))^2 + max(0, mean(cos_m(q_i, d_j)^2) - 1 / m),
        L   = sum_m c_m L_m.

    Each prefix is normalised by itself; a zero prefix has cosine 0 with everything. Where all pairs
    belong together the loss is 0. Inputs of half precision, and autocast, are computed in float32.

    The means need no matrix of all pairs: with second moments of m x m numbers they are those of
    all pairs less those of the pairs that belong together. Where that costs more than the matrix,
    as with small batches, the matrix is taken.

    Args:
        nesting_dims: Ascending widths, the last the full one.
        dim_weights: c_m; 1 by default.
        dims_per_step: See `Nesting`.
        seed: See `Nesting`.

    Raises:
        DimensionError: If the widths or weights break a rule of `Nesting`.
    """

    def __init__(
        self,
        nesting_dims: Sequence[int],
        dim_weights: Sequence[float] | None = None,
        *,
        dims_per_step: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.nesting = Nesting.of(nesting_dims, dim_weights, dims_per_step=dims_per_step, seed=seed)

    def value(
        self,
        queries: Float[Tensor, "queries dim"],
        documents: Float[Tensor, "documents dim"] | None = None,
        *,
        query_groups: Shaped[Tensor, " queries"] | None = None,
        document_groups: Shaped[Tensor, " documents"] | None = None,
        step: int | None = None,
    ) -> LossValue:
        """Return the loss of a batch.

        Args:
            queries: One row per query; any length, they are normalised here.
            documents: The other side of the pairs. None pairs the queries with each other.
            query_groups: What each query is about; a pair of one group belongs together. None
                pairs row i with row i.
            document_groups: The same of the documents, and given with it.
            step: Number of the training step, for `dims_per_step`.

        Raises:
            DimensionError: If a width is not the last nesting dim.
            DataError: If there is not one group per row.
        """
        others, other_groups = documents, document_groups
        if others is None:
            others, other_groups = queries, query_groups
        check_widths(self.nesting.dims[-1], queries=queries, documents=others)
        _check_groups(query_groups, other_groups, (len(queries), len(others)))
        pairs = _Pairs.of(query_groups, other_groups, queries, others)
        positions, weights = self.nesting.at_step(step)
        with torch.autocast(queries.device.type, enabled=False):
            left, right = in_full_precision(queries, others)
            losses = torch.stack(
                [_at(self.nesting.dims[position], left, right, pairs) for position in positions]
            )
            total = (losses * losses.new_tensor(weights)).sum()
        by_dim = losses.detach().new_full((len(self.nesting.dims),), torch.nan)
        by_dim[list(positions)] = losses.detach()
        return LossValue(total, by_dim)

    def forward(
        self,
        queries: Float[Tensor, "queries dim"],
        documents: Float[Tensor, "documents dim"] | None = None,
        *,
        query_groups: Shaped[Tensor, " queries"] | None = None,
        document_groups: Shaped[Tensor, " documents"] | None = None,
        step: int | None = None,
    ) -> Float[Tensor, ""]:
        """Return the total of `value`."""
        return self.value(
            queries,
            documents,
            query_groups=query_groups,
            document_groups=document_groups,
            step=step,
        ).total


class _Pairs(NamedTuple):
    """The pairs that belong together, by their row in either side, and the shape of all."""

    rows: Int64[Tensor, " together"]
    columns: Int64[Tensor, " together"]
    num_queries: int
    num_documents: int

    @classmethod
    def of(
        cls,
        query_groups: Tensor | None,
        document_groups: Tensor | None,
        queries: Tensor,
        documents: Tensor,
    ) -> "_Pairs":
        """List them without comparing every query with every document."""
        shape = (len(queries), len(documents))
        if query_groups is None or document_groups is None:
            same = torch.arange(min(shape), device=queries.device)
            return cls(same, same, *shape)
        ordered, order = document_groups.sort(stable=True)
        first = torch.searchsorted(ordered, query_groups)
        counts = torch.searchsorted(ordered, query_groups, right=True) - first
        rows = torch.repeat_interleave(counts)
        places = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
        return cls(rows, order[first[rows] + places], *shape)

    @property
    def num_apart(self) -> int:
        """How many pairs do not belong together; 1 rather than 0, as it divides."""
        return max(1, self.num_queries * self.num_documents - len(self.rows))

    def prefers_moments(self, dim: int) -> bool:
        """Whether second moments, and the cosines of the pairs, take fewer products than all cosines."""
        by_moments = dim * (self.num_queries + self.num_documents) + len(self.rows)
        return by_moments < self.num_queries * self.num_documents


def _at(dim: int, queries: Tensor, documents: Tensor, pairs: _Pairs) -> Float[Tensor, ""]:
    left = functional.normalize(queries[:, :dim], dim=1)
    right = functional.normalize(documents[:, :dim], dim=1)
    sums = _sums_by_moments if pairs.prefers_moments(dim) else _sums_by_matrix
    total, squares, together = sums(left, right, pairs)
    mean = (total - together.sum()) / pairs.num_apart
    mean_square = (squares - together.square().sum()) / pairs.num_apart
    return mean.square() + (mean_square - 1 / dim).clamp_min(0)


def _sums_by_moments(
    left: Tensor, right: Tensor, pairs: _Pairs
) -> tuple[Tensor, Tensor, Float[Tensor, " together"]]:
    """Return the sum of all cosines, that of their squares, and the cosines of the pairs."""
    total = left.sum(0) @ right.sum(0)
    squares = ((left.T @ left) * (right.T @ right)).sum()
    # Not by indexing: its gradient is summed in an order that threads decide.
    together = left.index_select(0, pairs.rows) * right.index_select(0, pairs.columns)
    return total, squares, together.sum(1)


def _sums_by_matrix(
    left: Tensor, right: Tensor, pairs: _Pairs
) -> tuple[Tensor, Tensor, Float[Tensor, " together"]]:
    """Do the same with the matrix of all cosines."""
    cosines = (left @ right.T).reshape(-1)
    together = cosines.index_select(0, pairs.rows * len(right) + pairs.columns)
    return cosines.sum(), cosines.square().sum(), together


def _check_groups(
    query_groups: Tensor | None, document_groups: Tensor | None, shape: tuple[int, int]
) -> None:
    if (query_groups is None) != (document_groups is None):
        raise DataError(
            "`query_groups` and `document_groups` must be given together, got one of them. A pair belongs "
            "together if both its rows have the same number."
        )
    if query_groups is None or document_groups is None:
        return
    given = {"query_groups": query_groups, "document_groups": document_groups}
    for (name, groups), num_rows in zip(given.items(), shape, strict=True):
        if tuple(groups.shape) != (num_rows,):
            raise DataError(
                f"`{name}` must hold one number per row, {num_rows}, got shape {list(groups.shape)}. "
                f"Give rows that are alike the same number."
            )
