"""InfoNCE at every prefix, for about the price of the full width alone."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from nestling.errors import DataError
from nestling.train.losses._info_nce_kernel import (
    Block,
    FusedContrast,
    Prefixes,
    Walk,
    check_block_rows,
    check_temperature,
    check_widths,
    exponentials,
    in_full_precision,
)
from nestling.train.losses.nesting import LossValue, Nesting


class NestedInfoNCE(nn.Module):
    """Nested InfoNCE with in-batch and hard negatives (van den Oord et al. 2018, arXiv:1807.03748).

    At each prefix m of weight c_m, with cosines of prefixes that are L2-normalised by themselves,

        L_m = 1/b sum_i ( logsumexp_j cos_m(q_i, d_j) / T - cos_m(q_i, d_i) / T ),
        L   = sum_m c_m L_m,

    over all documents j that are no false negatives. The symmetric form is the mean of this and of
    the same loss from documents to queries, over the b positives and the b queries.
    It equals the loop over prefixes, and sentence-transformers' `MatryoshkaLoss` around
    `MultipleNegativesRankingLoss(scale=1 / temperature)`; the symmetric form equals the one with
    `directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction"`.

    Memory does not depend on the number of prefixes, and no b x n matrix is held. Gradients of
    gradients are not defined. Inputs of half precision, and autocast, are computed in float32. A
    zero prefix has cosine 0 with everything, and gets no gradient at that width.

    Args:
        nesting_dims: Ascending widths, the last the full one.
        dim_weights: c_m; 1 by default.
        temperature: T; 0.05 is a scale of 20 in sentence-transformers.
        symmetric: Also ask each positive for its query.
        dims_per_step: See `Nesting`.
        seed: See `Nesting`.
        block_rows: Queries whose logits are held at a time; the result is the same but for
            rounding. None fits a block into cache (on a CPU), or into 512 MiB.

    Raises:
        DimensionError: If the widths or weights break a rule of `Nesting`.
        TrainingError: If `temperature` is not a positive finite number, or `block_rows` is
            below 1.
    """

    def __init__(
        self,
        nesting_dims: Sequence[int],
        dim_weights: Sequence[float] | None = None,
        *,
        temperature: float = 0.05,
        symmetric: bool = False,
        dims_per_step: int | None = None,
        seed: int = 0,
        block_rows: int | None = None,
    ) -> None:
        super().__init__()
        self.nesting = Nesting.of(nesting_dims, dim_weights, dims_per_step=dims_per_step, seed=seed)
        self.temperature = check_temperature(temperature)
        self.symmetric = symmetric
        self.block_rows = check_block_rows(block_rows)

    def value(
        self,
        queries: Float[Tensor, "queries dim"],
        documents: Float[Tensor, "documents dim"],
        *,
        query_groups: Shaped[Tensor, " queries"] | None = None,
        document_groups: Shaped[Tensor, " documents"] | None = None,
        step: int | None = None,
    ) -> LossValue:
        """Return the loss of a batch.

        Args:
            queries: One row per query; any length, they are normalised here.
            documents: Row i is the positive of query i; the rows beyond are negatives of all.
            query_groups: What each query is about. The positive of another query of the same
                group is no candidate.
            document_groups: What each document is about. A document of the same group as the
                query's own positive is no candidate, unless it is that positive.
            step: Number of the training step, for `dims_per_step`.

        Raises:
            DimensionError: If a width is not the last nesting dim.
            DataError: If there are fewer documents than queries, no queries, or not one group per
                row.
        """
        check_widths(self.nesting.dims[-1], queries=queries, documents=documents)
        if not 0 < len(queries) <= len(documents):
            raise DataError(
                f"`documents` must hold the positive of every query first, so at least one row per "
                f"query and one query, got {len(documents)} documents for {len(queries)} queries."
            )
        _check_groups("query_groups", query_groups, len(queries))
        _check_groups("document_groups", document_groups, len(documents))
        objective = _OwnDocument(
            query_groups=query_groups, document_groups=document_groups, symmetric=self.symmetric
        )
        positions, weights = self.nesting.at_step(step)
        prefixes = Prefixes(
            dims=tuple(self.nesting.dims[position] for position in positions),
            weights=weights,
            temperature=self.temperature,
            block_rows=self.block_rows,
        )
        total, losses = FusedContrast.apply(
            *in_full_precision(queries, documents), prefixes, objective, torch.is_grad_enabled()
        )
        by_dim = losses.new_full((len(self.nesting.dims),), torch.nan)
        by_dim[list(positions)] = losses
        return LossValue(total, by_dim)

    def forward(
        self,
        queries: Float[Tensor, "queries dim"],
        documents: Float[Tensor, "documents dim"],
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


class _OwnDocument:
    """The target of query i is document i; see `Objective`."""

    def __init__(
        self, *, query_groups: Tensor | None, document_groups: Tensor | None, symmetric: bool
    ) -> None:
        self._query_groups = query_groups
        self._document_groups = document_groups
        self._symmetric = symmetric
        self._false_negatives: Tensor | None = None
        self._column_totals: Tensor | None = None
        self._peaked = True

    def prepare(self, walk: Walk) -> None:
        """Sum the columns over all rows: what a document's softmax over the queries divides by."""
        self._peaked = walk.prefixes.peaked
        if not self._symmetric:
            return
        num_queries = len(walk.queries)
        totals = walk.queries.new_full((len(walk.prefixes.dims), num_queries), -torch.inf)
        for rows in walk.blocks:
            self.open_block(walk, rows)
            for block in walk.ascend(rows):
                self._mask(block.logits)
                logits = block.logits[:, :num_queries]
                _, of_block = exponentials(logits, 0, peaked=self._peaked, out=logits)
                total = totals[block.position]
                torch.logaddexp2(total, of_block, out=total)
        self._column_totals = totals

    def open_block(self, walk: Walk, rows: slice) -> None:
        """Find the false negatives among the candidates of these rows."""
        found = None
        if self._document_groups is not None:
            own = self._document_groups[rows]
            found = own[:, None] == self._document_groups
        if self._query_groups is not None:
            of_query = self._query_groups[rows, None] == self._query_groups
            of_query = nn.functional.pad(of_query, (0, len(walk.documents) - len(walk.queries)))
            found = of_query if found is None else found | of_query
        if found is not None:
            found[:, rows].fill_diagonal_(False)
        self._false_negatives = found

    def settle(
        self, block: Block, shares: Float[Tensor, "rows documents"]
    ) -> Float[Tensor, " rows"]:
        """Softmax minus one-hot; see `Objective`."""
        logits = block.logits
        own = logits[:, block.rows].diagonal().clone()
        self._mask(logits)
        sums, row_totals = exponentials(logits, 1, peaked=self._peaked, out=shares)
        losses = row_totals - own
        if self._column_totals is None:
            shares.mul_(sums.reciprocal()[:, None])
        else:
            column_totals = self._column_totals[block.position]
            shares.mul_((0.5 / sums)[:, None])
            of_columns = logits[:, : len(column_totals)].sub_(column_totals).exp2_()
            shares[:, : len(column_totals)].add_(of_columns, alpha=0.5)
            losses = 0.5 * (losses + column_totals[block.rows] - own)
        shares[:, block.rows].diagonal().sub_(1)
        return losses

    def _mask(self, logits: Tensor) -> None:
        if self._false_negatives is not None:
            logits.masked_fill_(self._false_negatives, -torch.inf)


def _check_groups(name: str, groups: Tensor | None, num_rows: int) -> None:
    if groups is not None and tuple(groups.shape) != (num_rows,):
        raise DataError(
            f"`{name}` must hold one number per row, {num_rows}, got shape {list(groups.shape)}. "
            f"Give rows that are alike the same number."
        )
