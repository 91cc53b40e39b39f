"""The pass that all nested contrastive losses share: every prefix for about one full-width product.

Legend: b queries, n documents, d coordinates, G prefixes; a block is some rows of the b x n matrix.

Forward, a block walks from the shortest prefix to the widest. With bands (d_0, d_1], ... between
neighbouring prefixes, dot products are running sums, S_m = S_(m-1) + Q_band D_band^T, and squared
norms too; the logits are L_m = S_m r_m(query) r_m(document) / T with r = 1 / norm. Logits and their
logarithms are in base 2 (divided by ln 2): torch.exp2 is four times as fast as torch.exp on a CPU.
Backward, it walks from the widest to the shortest: a band is part of every prefix from its own
up, so its gradient needs dS_k + ... + dS_G, again a running sum, and one product with the band.
The norms add a multiple of the row itself to its gradient; those factors are summed alike.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from nestling.errors import DimensionError, TrainingError

# A prefix shorter than this has no direction: its cosines and their gradients are zero. The
# number is the epsilon of torch.nn.functional.normalize.
SMALLEST_NORM = 1e-12
LN_2 = math.log(2.0)
# |cosine| / T stays below this in float32 without its exponential, or a sum of a million of
# them, overflowing or losing digits; beyond, the largest logit is taken off first.
LARGEST_BARE_LOGIT = 50.0
# On a CPU a block's shares should stay in the last cache; elsewhere a block pays for many launches.
BLOCK_BYTES = {"cpu": 16 << 20}
BLOCK_BYTES_ELSEWHERE = 512 << 20
# BLAS is up to ten times slower on a result of eight columns than on one of eight rows.
NARROW = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefixes:
    """The widths one call looks at.

    Attributes:
        dims: Ascending widths.
        weights: Weight of each in the total.
        temperature: Cosines are divided by it.
        block_rows: Queries per block; None derives it from a byte budget.
    """

    dims: tuple[int, ...]
    weights: tuple[float, ...]
    temperature: float
    block_rows: int | None

    @property
    def peaked(self) -> bool:
        """Whether exponentials of logits could leave the range of float32."""
        return self.temperature * LARGEST_BARE_LOGIT < 1

    @property
    def bands(self) -> list[slice]:
        """The coordinates that each width adds to the one before it."""
        starts = (0, *self.dims[:-1])
        return [slice(start, stop) for start, stop in zip(starts, self.dims, strict=True)]

    def rows_per_block(self, queries: Tensor, documents: Tensor) -> int:
        """Rows so that all buffers of a block fit a budget that does not depend on the prefixes.

        The budget is the size of the documents where that is larger: their gradient takes as much,
        and it is read and written once per block.
        """
        num_queries, num_documents = len(queries), len(documents)
        if self.block_rows is not None:
            return min(self.block_rows, num_queries)
        budget = BLOCK_BYTES.get(queries.device.type, BLOCK_BYTES_ELSEWHERE)
        budget = max(budget, documents.numel() * documents.element_size())
        row_bytes = (len(self.dims) + 2) * num_documents * queries.element_size()
        fitting = budget // row_bytes
        aligned = fitting // 16 * 16 or fitting
        return max(1, min(aligned, num_queries))


class Block(NamedTuple):
    """Rows of the b x n matrix, at one prefix.

    Attributes:
        rows: Which queries.
        position: Which prefix.
        dots: S_m, kept for the next prefix.
        logits: L_m / ln 2; the holder may overwrite it.
    """

    rows: slice
    position: int
    dots: Float[Tensor, "rows documents"]
    logits: Float[Tensor, "rows documents"]


class Walk:
    """Walks blocks of rows from the shortest prefix to the widest, in two buffers."""

    def __init__(
        self,
        queries: Float[Tensor, "queries dim"],
        documents: Float[Tensor, "documents dim"],
        prefixes: Prefixes,
    ) -> None:
        self.queries = queries
        self.documents = documents
        self.prefixes = prefixes
        self.query_scales = inverse_norms(queries, prefixes.bands)
        self.document_scales = inverse_norms(documents, prefixes.bands)
        rows = prefixes.rows_per_block(queries, documents)
        self.blocks = [
            slice(start, min(start + rows, len(queries))) for start in range(0, len(queries), rows)
        ]
        self._dots = queries.new_empty(rows, len(documents))
        self._logits = queries.new_empty(rows, len(documents))

    def ascend(self, rows: slice) -> Iterator[Block]:
        """Yield the block of these rows at every prefix; each overwrites the one before."""
        num_rows = rows.stop - rows.start
        dots, logits = self._dots[:num_rows], self._logits[:num_rows]
        queries = self.queries[rows]
        scales = self.query_scales[:, rows, None] / (self.prefixes.temperature * LN_2)
        for position, band in enumerate(self.prefixes.bands):
            # With beta = 0 what the buffer held before, NaN included, does not count.
            dots.addmm_(queries[:, band], self.documents[:, band].T, beta=float(position > 0))
            torch.mul(dots, self.document_scales[position], out=logits)
            logits.mul_(scales[position])
            yield Block(rows, position, dots, logits)


@runtime_checkable
class Objective(Protocol):
    """What tells one contrastive loss from another: its candidates and its target distribution."""

    def prepare(self, walk: Walk) -> None:
        """Gather what takes all rows, before the first block."""

    def open_block(self, walk: Walk, rows: slice) -> None:
        """Gather what all prefixes of a block share."""

    def settle(
        self, block: Block, shares: Float[Tensor, "rows documents"]
    ) -> Float[Tensor, " rows"]:
        """Fill `shares` with probabilities minus targets; return the rows' losses, in base 2."""


class Gradients(NamedTuple):
    """The gradients of the weighted total; None for the side that needs none."""

    queries: Float[Tensor, "queries dim"] | None
    documents: Float[Tensor, "documents dim"] | None


def run(walk: Walk, objective: Objective, wanted: tuple[bool, bool]) -> tuple[Tensor, Gradients]:
    """Return the mean loss of every prefix, and the gradients of their weighted sum.

    Args:
        walk: Inputs and prefixes.
        objective: Which loss.
        wanted: Whether the queries, and whether the documents, need a gradient.
    """
    objective.prepare(walk)
    num_prefixes = len(walk.prefixes.dims)
    losses = walk.queries.new_zeros(num_prefixes)
    descent = _Descent(walk, wanted) if any(wanted) else None
    block_shape = (walk.blocks[0].stop, len(walk.documents))
    shares = walk.queries.new_empty(num_prefixes if descent else 1, *block_shape)
    for rows in walk.blocks:
        objective.open_block(walk, rows)
        held = shares[:, : rows.stop - rows.start]
        for block in walk.ascend(rows):
            share = held[block.position if descent else 0]
            losses[block.position] += objective.settle(block, share).sum()
            if descent:
                descent.note(block, share)
        if descent:
            descent.descend(rows, held)
    losses *= LN_2 / len(walk.queries)
    return losses, descent.finish() if descent else Gradients(None, None)


class _Descent:
    """The backward half: sums the gradients of the dot products from the widest prefix down."""

    def __init__(self, walk: Walk, wanted: tuple[bool, bool]) -> None:
        self.walk = walk
        prefixes = walk.prefixes
        weights = torch.tensor(
            prefixes.weights, dtype=walk.queries.dtype, device=walk.queries.device
        )
        # dS = slope * (probability - target) * r(document)
        self.slopes = walk.query_scales * (
            weights[:, None] / (len(walk.queries) * prefixes.temperature)
        )
        self.queries = torch.zeros_like(walk.queries) if wanted[0] else None
        self.documents = torch.zeros_like(walk.documents) if wanted[1] else None
        self.query_terms = torch.zeros_like(walk.query_scales)
        self.document_terms = torch.zeros_like(walk.document_scales)

    def note(self, block: Block, share: Tensor) -> None:
        """Take the norm terms of a prefix, and leave r(document) multiplied into its share."""
        share.mul_(self.walk.document_scales[block.position])
        weighted = torch.mul(share, block.dots, out=block.logits)
        slope = self.slopes[block.position, block.rows]
        torch.sum(weighted, 1, out=self.query_terms[block.position, block.rows])
        self.document_terms[block.position].addmv_(weighted.T, slope)

    def descend(self, rows: slice, shares: Tensor) -> None:
        """Add the block's part to the gradients, widest band first; overwrites `shares[-1]`."""
        slopes = self.slopes[:, rows, None]
        total = shares[-1].mul_(slopes[-1])
        queries = self.walk.queries[rows]
        for position, band in reversed(list(enumerate(self.walk.prefixes.bands))):
            if self.queries is not None:
                _add_product(self.queries[rows, band], total, self.walk.documents[:, band])
            if self.documents is not None:
                _add_product(self.documents[:, band], total.T, queries[:, band])
            if position:
                total.addcmul_(shares[position - 1], slopes[position - 1])

    def finish(self) -> Gradients:
        """Add the norm terms: the gradient at each prefix is orthogonal to the prefix."""
        walk, bands = self.walk, self.walk.prefixes.bands
        if self.queries is not None:
            terms = self.query_terms * self.slopes * walk.query_scales.square()
            _subtract_rows(self.queries, walk.queries, _from_widest(terms), bands)
        if self.documents is not None:
            terms = self.document_terms * walk.document_scales.square()
            _subtract_rows(self.documents, walk.documents, _from_widest(terms), bands)
        return Gradients(self.queries, self.documents)


def exponentials(
    logits: Float[Tensor, "rows documents"],
    dim: int,
    *,
    peaked: bool,
    out: Float[Tensor, "rows documents"],
) -> tuple[Float[Tensor, " kept"], Float[Tensor, " kept"]]:
    """Write powers of two of the logits into `out`, which may be the logits themselves.

    Args:
        logits: In base 2.
        dim: Along which to sum.
        peaked: Take the largest logit along `dim` off first.
        out: The result.

    Returns:
        The sums of what was written, and the base 2 logarithm of the sums of all powers.
    """
    if not peaked:
        sums = torch.exp2(logits, out=out).sum(dim)
        return sums, sums.log2()
    # Where all are masked the peak is -inf, and -inf - -inf is no number.
    peaks = logits.amax(dim, keepdim=True).clamp_min_(torch.finfo(logits.dtype).min)
    sums = torch.sub(logits, peaks, out=out).exp2_().sum(dim)
    return sums, sums.log2() + peaks.squeeze(dim)


def inverse_norms(
    rows: Float[Tensor, "rows dim"], bands: Sequence[slice]
) -> Float[Tensor, "prefixes rows"]:
    """Return 1 / norm of every prefix of every row; 0 where the norm is below `SMALLEST_NORM`."""
    of_bands = [torch.linalg.vector_norm(rows[:, band], dim=1) for band in bands]
    norms = torch.stack(of_bands).square_().cumsum(0).sqrt_()
    return torch.where(norms > SMALLEST_NORM, norms.reciprocal(), 0.0)


def _add_product(into: Tensor, left: Tensor, right: Tensor) -> None:
    if right.shape[1] < NARROW:
        into.add_((right.T @ left.T).T)
    else:
        into.addmm_(left, right)


def _from_widest(terms: Tensor) -> Tensor:
    return terms.flip(0).cumsum(0).flip(0)


def _subtract_rows(gradient: Tensor, rows: Tensor, factors: Tensor, bands: Sequence[slice]) -> None:
    for factor, band in zip(factors, bands, strict=True):
        gradient[:, band].addcmul_(rows[:, band], factor[:, None], value=-1)


class FusedContrast(torch.autograd.Function):
    """Values and gradients in the forward pass; the backward pass scales the gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        documents: Tensor,
        prefixes: Prefixes,
        objective: Objective,
        grad_enabled: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return the weighted total and the loss of every prefix."""
        ctx.wanted = (
            grad_enabled and ctx.needs_input_grad[0],
            grad_enabled and ctx.needs_input_grad[1],
        )
        ctx.save_for_backward(queries, documents)
        ctx.prefixes, ctx.objective = prefixes, objective
        losses, ctx.gradients = _losses_and_gradients(ctx, queries, documents)
        ctx.mark_non_differentiable(losses)
        # No dot product: autocast would take it in low precision.
        return (losses * losses.new_tensor(prefixes.weights)).sum(), losses

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(
        ctx: Any, upstream: Tensor, _: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        """Scale the gradients by the upstream one, and give them away.

        Autograd takes an unshared gradient without a copy. A second pass through the same graph
        makes them again.
        """
        gradients: Gradients | None = ctx.gradients
        ctx.gradients = None
        if gradients is None:
            _, gradients = _losses_and_gradients(ctx, *ctx.saved_tensors)
        if upstream.device.type != "cpu" or upstream.item() != 1:
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(upstream)
        return *gradients, None, None, None


def _losses_and_gradients(ctx: Any, queries: Tensor, documents: Tensor) -> tuple[Tensor, Gradients]:
    # Under autocast the products would run in half precision, and cosines / T need more.
    with torch.autocast(queries.device.type, enabled=False):
        return run(Walk(queries, documents, ctx.prefixes), ctx.objective, ctx.wanted)


def in_full_precision(*embeddings: Tensor) -> tuple[Tensor, ...]:
    """Return the embeddings in float64 if that is what they all have, else in float32."""
    all_double = all(rows.dtype == torch.float64 for rows in embeddings)
    dtype = torch.float64 if all_double else torch.float32
    return tuple(rows.to(dtype) for rows in embeddings)


def check_widths(embed_dim: int, **embeddings: Tensor) -> None:
    """Raise a `DimensionError` unless all embeddings are as wide as the last nesting dim."""
    for name, rows in embeddings.items():
        if rows.shape[1] != embed_dim:
            raise DimensionError(
                f"`{name}` must be as wide as the last nesting dim, {embed_dim}, got width "
                f"{rows.shape[1]}. Give `nesting_dims` that end in {rows.shape[1]}."
            )


def check_temperature(temperature: float) -> float:
    """Return the temperature, or raise a `TrainingError` unless it is positive and finite."""
    if not 0 < temperature < float("inf"):
        raise TrainingError(
            f"`temperature` must be positive and finite, got {temperature:g}. The usual range is "
            f"0.01 to 0.1."
        )
    return temperature


def check_block_rows(block_rows: int | None) -> int | None:
    """Return the rows, or raise a `TrainingError` if they are below 1."""
    if block_rows is not None and block_rows < 1:
        raise TrainingError(
            f"`block_rows` must be at least 1, got {block_rows}. Leave it out for a good size."
        )
    return block_rows
