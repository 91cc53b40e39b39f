"""Every prefix learns to rank the batch as the full width does."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nestling.errors import DataError, DimensionError
from nestling.train.losses._info_nce_kernel import (
    LN_2,
    Block,
    FusedContrast,
    Prefixes,
    Walk,
    check_block_rows,
    check_temperature,
    check_widths,
    exponentials,
    in_full_precision,
    inverse_norms,
)
from nestling.train.losses.nesting import LossValue, Nesting


class SelfDistillation(nn.Module):
    """Listwise KL divergence from the cosines of the full width, detached, to those of each prefix.

    With p_m(j | i) the softmax over the documents j of cos_m(q_i, d_j) / T, prefixes normalised by
    themselves, and D the full width,

        L_m = 1/b sum_i KL( p_D(. | i) || p_m(. | i) ),   L = sum over m < D of c_m L_m.

    It needs no labels. The full width is the teacher: it gets no gradient, its own loss is 0, and
    its weight does not count, so that this loss is added to one that trains the full width.
    Listwise distillation of rankings goes back to Cao et al. 2007 (ListNet).

    The price is about that of the full-width product and of three products of the widest prefix
    below it; memory is as for `NestedInfoNCE`.

    Args:
        nesting_dims: Ascending widths, the last the full one; at least one below it.
        dim_weights: c_m; 1 by default.
        temperature: T, of teacher and prefixes alike.
        dims_per_step: See `Nesting`; the full width counts, so at least 2.
        seed: See `Nesting`.
        block_rows: See `NestedInfoNCE`.

    Raises:
        DimensionError: If the widths or weights break a rule of `Nesting`, or no prefix is left
            to teach.
        TrainingError: If `temperature` is not a positive finite number, or `block_rows` is
            below 1.
    """

    def __init__(
        self,
        nesting_dims: Sequence[int],
        dim_weights: Sequence[float] | None = None,
        *,
        temperature: float = 0.05,
        dims_per_step: int | None = None,
        seed: int = 0,
        block_rows: int | None = None,
    ) -> None:
        super().__init__()
        self.nesting = Nesting.of(nesting_dims, dim_weights, dims_per_step=dims_per_step, seed=seed)
        if len(self.nesting.dims) < 2 or dims_per_step == 1:
            raise DimensionError(
                f"`nesting_dims` must hold, and `dims_per_step` draw, a width below the full one, "
                f"which teaches it; got the dims {','.join(map(str, self.nesting.dims))} and "
                f"dims_per_step={dims_per_step}."
            )
        self.temperature = check_temperature(temperature)
        self.block_rows = check_block_rows(block_rows)

    def value(
        self,
        queries: Float[Tensor, "queries dim"],
        documents: Float[Tensor, "documents dim"] | None = None,
        *,
        step: int | None = None,
    ) -> LossValue:
        """Return the loss of a batch.

        Args:
            queries: One row per query; any length, they are normalised here.
            documents: The candidates that are ranked for each query. None ranks the queries for
                each other, each without itself.
            step: Number of the training step, for `dims_per_step`.

        Raises:
            DimensionError: If a width is not the last nesting dim.
            DataError: If there are no rows, or no candidates.
        """
        candidates = queries if documents is None else documents
        check_widths(self.nesting.dims[-1], queries=queries, documents=candidates)
        if not len(queries) or len(candidates) <= (documents is None):
            raise DataError(
                f"`documents` must hold a candidate for every query, got {len(queries)} queries and "
                f"{len(candidates)} documents{' (the queries themselves)' * (documents is None)}. "
                f"Give larger batches."
            )
        positions, weights = self.nesting.at_step(step)
        prefixes = Prefixes(
            dims=tuple(self.nesting.dims[position] for position in positions[:-1]),
            weights=weights[:-1],
            temperature=self.temperature,
            block_rows=self.block_rows,
        )
        total, losses = distil(
            queries,
            candidates,
            prefixes,
            teacher=(queries, candidates),
            without_itself=documents is None,
        )
        by_dim = losses.new_full((len(self.nesting.dims),), torch.nan)
        by_dim[list(positions[:-1])] = losses
        by_dim[-1] = 0
        return LossValue(total, by_dim)

    def forward(
        self,
        queries: Float[Tensor, "queries dim"],
        documents: Float[Tensor, "documents dim"] | None = None,
        *,
        step: int | None = None,
    ) -> Float[Tensor, ""]:
        """Return the total of `value`."""
        return self.value(queries, documents, step=step).total


def distil(
    queries: Float[Tensor, "queries dim"],
    documents: Float[Tensor, "documents dim"],
    prefixes: Prefixes,
    *,
    teacher: tuple[Float[Tensor, "queries full"], Float[Tensor, "documents full"]],
    without_itself: bool,
) -> tuple[Float[Tensor, ""], Float[Tensor, " prefixes"]]:
    """Return the weighted total over the prefixes, and the loss of each.

    Args:
        queries: The rows whose prefixes learn.
        documents: The candidates whose prefixes learn, e.g. as their codes decode.
        prefixes: Which prefixes.
        teacher: Queries and candidates that teach, row by row the same, at their full width; no
            gradient goes there.
        without_itself: Whether row i of the candidates is query i, and no candidate for it.
    """
    wide = in_full_precision(queries, documents, *teacher)
    total, losses = FusedContrast.apply(
        *wide[:2],
        prefixes,
        _FullWidth(wide[2].detach(), wide[3].detach(), without_itself=without_itself),
        torch.is_grad_enabled(),
    )
    return total, losses


class _FullWidth:
    """The target of a query is the softmax over all candidates at full width; see `Objective`."""

    _query_scales: Tensor
    _document_scales: Tensor
    _targets: Tensor
    _target_logs: Tensor

    def __init__(self, queries: Tensor, documents: Tensor, *, without_itself: bool) -> None:
        self._queries = queries
        self._documents = documents
        self._without_itself = without_itself
        self._peaked = True

    def prepare(self, walk: Walk) -> None:
        """Take the norms at full width."""
        self._peaked = walk.prefixes.peaked
        everything = [slice(0, self._queries.shape[1])]
        scale = 1 / (walk.prefixes.temperature * LN_2)
        self._query_scales = inverse_norms(self._queries, everything)[0] * scale
        self._document_scales = inverse_norms(self._documents, everything)[0]

    def open_block(self, walk: Walk, rows: slice) -> None:
        """Compute the targets of these rows, and their mean logarithm."""
        logits = self._queries[rows] @ self._documents.T
        logits.mul_(self._document_scales).mul_(self._query_scales[rows, None])
        self._mask(logits, rows)
        self._targets = torch.empty_like(logits)
        totals = self._softmax(logits, self._targets)
        self._target_logs = logits.mul_(self._targets).sum(1) - totals

    def settle(
        self, block: Block, shares: Float[Tensor, "rows documents"]
    ) -> Float[Tensor, " rows"]:
        """Softmax of the prefix minus softmax of the full width; see `Objective`."""
        self._mask(block.logits, block.rows)
        totals = self._softmax(block.logits, shares)
        shares.sub_(self._targets)
        return self._target_logs - block.logits.mul_(self._targets).sum(1) + totals

    def _softmax(self, logits: Tensor, out: Tensor) -> Tensor:
        sums, totals = exponentials(logits, 1, peaked=self._peaked, out=out)
        out.mul_(sums.reciprocal()[:, None])
        return totals

    def _mask(self, logits: Tensor, rows: slice) -> None:
        if self._without_itself:
            # Not -inf: multiplied by a target of zero it must be zero.
            logits[:, rows].diagonal().fill_(torch.finfo(logits.dtype).min)
