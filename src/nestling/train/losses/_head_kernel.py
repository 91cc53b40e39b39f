"""Cross-entropy of every prefix of a batch, with its gradients, in the work of one product each way.

Shape suffixes: B rows of the batch, D coordinates, C classes.

Tied heads share their columns, so the logits of a prefix are those of the prefix before it plus one
block product. Backwards, the block of columns between two widths is seen by every wider prefix:
with the gradients of the logits summed from the widest prefix down to it, two block products give
its share of both gradients. Untied heads share nothing; each has three products of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

NARROW = 16
"""MKL multiplies into fewer columns than this up to ten times slower than into as many rows."""

SMALL_BUFFER = 1 << 22
"""Numbers that may always be held at once (16 MiB in float32)."""


class Gradients(NamedTuple):
    """Of the weighted sum of the losses; None where nobody asked."""

    embeddings: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


class Wanted(NamedTuple):
    """Which gradients to take."""

    embeddings: bool
    weight: bool
    bias: bool


class Inputs(NamedTuple):
    """Embeddings [B, D], labels [B], weight [C, D] or [C, sum of widths], bias [C], [G, C] or None."""

    embeddings: Tensor
    labels: Tensor
    weight: Tensor
    bias: Tensor | None


class Slot(NamedTuple):
    """One prefix of a step.

    Attributes:
        position: Its place in the nesting dims.
        factor: Its weight in the sum.
        coordinates: The columns of the embeddings that are multiplied for it.
        columns: The columns of the weight they are multiplied with.
    """

    position: int
    factor: float
    coordinates: slice
    columns: slice


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is computed in a step.

    Attributes:
        slots: The prefixes, ascending.
        idle: Columns of heads that are not looked at; they get a gradient of zero.
        tied: Whether the heads share their columns.
        label_smoothing: Share of the target that is spread over all classes.
        dtype: Number format of the products.
    """

    slots: tuple[Slot, ...]
    idle: tuple[slice, ...]
    tied: bool
    label_smoothing: float
    dtype: torch.dtype


def make_plan(
    dims: tuple[int, ...],
    positions: tuple[int, ...],
    factors: tuple[float, ...],
    *,
    tied: bool,
    label_smoothing: float,
    dtype: torch.dtype,
) -> Plan:
    """Lay out the columns of a step."""
    heads = head_columns(dims)
    if tied:
        drawn = (dims[position] for position in positions)
        blocks = [slice(start, stop) for start, stop in pairwise((0, *drawn))]
        places = list(zip(blocks, blocks, strict=True))
    else:
        places = [(slice(0, dims[position]), heads[position]) for position in positions]
    slots = zip(positions, factors, places, strict=True)
    return Plan(
        slots=tuple(Slot(position, factor, *place) for position, factor, place in slots),
        idle=() if tied else tuple(heads[i] for i in range(len(dims)) if i not in positions),
        tied=tied,
        label_smoothing=label_smoothing,
        dtype=dtype,
    )


def head_columns(dims: tuple[int, ...]) -> list[slice]:
    """Return the columns of each untied head in the packed weight, shortest prefix first."""
    ends = [sum(dims[: count + 1]) for count in range(len(dims))]
    return [slice(end - dim, end) for end, dim in zip(ends, dims, strict=True)]


def losses_and_gradients(plan: Plan, inputs: Inputs, wanted: Wanted) -> tuple[Tensor, Gradients]:
    """Return the mean loss of every slot, and the gradients of their weighted sum.

    Both are in float32 at least; autograd hands each gradient over in its parameter's format.
    """
    exact = torch.promote_types(plan.dtype, torch.float32)
    gradients = _room_for(plan, inputs, wanted, exact)
    low = Inputs(
        inputs.embeddings.to(plan.dtype), inputs.labels, inputs.weight.to(plan.dtype), inputs.bias
    )
    losses = torch.zeros(len(plan.slots), dtype=exact, device=inputs.embeddings.device)
    run = _run_tied if plan.tied else _run_untied
    blocks = list(_row_blocks(plan, inputs, any(wanted)))
    # Room for all blocks in turn: fresh pages cost more than the softmax that is written to them.
    buffers = losses.new_empty(
        num_buffers(plan, with_gradients=any(wanted)), blocks[0].stop, len(inputs.weight)
    )
    # Autocast would cast the float32 sums to the low precision again.
    with torch.autocast(inputs.embeddings.device.type, enabled=False):
        for rows in blocks:
            room = buffers[:, : rows.stop - rows.start]
            run(plan, low, rows, room, gradients, losses)
    return losses / len(inputs.labels), gradients


def num_buffers(plan: Plan, *, with_gradients: bool) -> int:
    """Return how many arrays of the size of a row block's logits are alive at once."""
    return len(plan.slots) + 1 if plan.tied and with_gradients else 2


def block_rows(plan: Plan, num_classes: int, width: int, *, with_gradients: bool) -> int:
    """Return the rows of a block: as many as can be held in the size of the weight.

    More prefixes make smaller blocks, not more memory. The gradient of the weight is as large, and
    far smaller blocks would read and write it once per block.
    """
    held = num_buffers(plan, with_gradients=with_gradients)
    return max(width // held, SMALL_BUFFER // (held * num_classes), NARROW)


def _row_blocks(plan: Plan, inputs: Inputs, with_gradients: bool) -> Iterator[slice]:
    num_rows, width = inputs.embeddings.shape
    most = block_rows(plan, len(inputs.weight), width, with_gradients=with_gradients)
    num_blocks = -(-num_rows // most)
    size = -(-num_rows // num_blocks)
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))


def _room_for(plan: Plan, inputs: Inputs, wanted: Wanted, exact: torch.dtype) -> Gradients:
    """Allocate gradients, unwritten: the first block of rows writes every column it will have."""
    embeddings = torch.empty_like(inputs.embeddings, dtype=exact) if wanted.embeddings else None
    weight = torch.empty_like(inputs.weight, dtype=exact) if wanted.weight else None
    bias = None
    if wanted.bias and inputs.bias is not None:
        bias = torch.zeros_like(inputs.bias, dtype=exact)
    if weight is not None:
        for columns in plan.idle:
            weight[:, columns].zero_()
    return Gradients(embeddings, weight, bias)


def _run_tied(
    plan: Plan,
    inputs: Inputs,
    rows: slice,
    buffers: Tensor,
    gradients: Gradients,
    losses: Tensor,
) -> None:
    embeddings, labels = inputs.embeddings[rows], inputs.labels[rows]
    backwards = any(gradient is not None for gradient in gradients)
    logits, *kept = buffers
    _start_logits(logits, inputs.bias)
    for count, slot in enumerate(plan.slots):
        block = inputs.weight[:, slot.columns]
        _put_product(logits, embeddings[:, slot.coordinates], block.t(), accumulate=True)
        losses[count] += _softmax(
            logits, labels, plan.label_smoothing, out=kept[count if backwards else 0]
        )
    if not backwards:
        return
    total = logits.zero_()
    for slot, softmax in zip(reversed(plan.slots), reversed(kept), strict=True):
        total = torch.add(total, softmax, alpha=slot.factor, out=softmax)
        _subtract_target(total, labels, slot.factor, plan.label_smoothing)
        _put_gradients(plan, inputs, slot, rows, total, gradients, accumulate=False)
    if gradients.bias is not None:
        gradients.bias.add_(total.sum(0), alpha=1 / len(inputs.labels))


def _run_untied(
    plan: Plan,
    inputs: Inputs,
    rows: slice,
    buffers: Tensor,
    gradients: Gradients,
    losses: Tensor,
) -> None:
    embeddings, labels = inputs.embeddings[rows], inputs.labels[rows]
    backwards = any(gradient is not None for gradient in gradients)
    logits, softmax = buffers
    # The widest first: it writes every coordinate of the embeddings' gradient, the others add.
    for count in reversed(range(len(plan.slots))):
        slot = plan.slots[count]
        bias = None if inputs.bias is None else inputs.bias[slot.position]
        _start_logits(logits, bias)
        head = inputs.weight[:, slot.columns]
        _put_product(logits, embeddings[:, slot.coordinates], head.t(), accumulate=True)
        losses[count] += _softmax(logits, labels, plan.label_smoothing, out=softmax)
        if not backwards:
            continue
        total = softmax.mul_(slot.factor) if slot.factor != 1 else softmax
        _subtract_target(total, labels, slot.factor, plan.label_smoothing)
        is_widest = count == len(plan.slots) - 1
        _put_gradients(plan, inputs, slot, rows, total, gradients, accumulate=not is_widest)
        if gradients.bias is not None:
            gradients.bias[slot.position].add_(total.sum(0), alpha=1 / len(inputs.labels))


def _start_logits(logits: Tensor, bias: Tensor | None) -> None:
    if bias is None:
        logits.zero_()
    else:
        logits.copy_(bias.expand_as(logits))


def _softmax(logits: Tensor, labels: Tensor, label_smoothing: float, *, out: Tensor) -> Tensor:
    """Write the softmax of each row to `out`; return the summed cross-entropy.

    The largest probability is 1 / sum(exp(logits - largest)), so the logarithm of the sum needs no
    second look at the exponentials, and no probability near 0.
    """
    largest = logits.amax(-1)
    torch.softmax(logits, -1, out=out)
    log_sums = largest - out.amax(-1).log()
    target = logits.gather(1, labels[:, None])[:, 0]
    if label_smoothing:
        target = (1 - label_smoothing) * target + label_smoothing * logits.mean(-1)
    return (log_sums - target).sum()


def _subtract_target(total: Tensor, labels: Tensor, factor: float, label_smoothing: float) -> None:
    hit = torch.full_like(labels, -factor * (1 - label_smoothing), dtype=total.dtype)
    total.scatter_add_(1, labels[:, None], hit[:, None])
    if label_smoothing:
        total.sub_(factor * label_smoothing / total.shape[1])


def _put_gradients(
    plan: Plan,
    inputs: Inputs,
    slot: Slot,
    rows: slice,
    total: Tensor,
    gradients: Gradients,
    *,
    accumulate: bool,
) -> None:
    """Multiply the gradient of the logits out. 1/B comes last: float16 would lose it before."""
    scale = 1 / len(inputs.labels)
    low = total.to(plan.dtype)
    if gradients.embeddings is not None:
        out = gradients.embeddings[rows, slot.coordinates]
        _put_product(out, low, inputs.weight[:, slot.columns], scale=scale, accumulate=accumulate)
    if gradients.weight is not None:
        out = gradients.weight[:, slot.columns]
        seen = inputs.embeddings[rows, slot.coordinates]
        _put_product(out, low.t(), seen, scale=scale, accumulate=rows.start > 0)


def _put_product(
    out: Tensor, left: Tensor, right: Tensor, *, accumulate: bool, scale: float = 1
) -> None:
    """Write scale * left @ right to `out`, or add it; `out` may be columns of a wider array."""
    if out.dtype == left.dtype and out.shape[1] >= NARROW:
        out.addmm_(left, right, beta=int(accumulate), alpha=scale)
        return
    product = right.t().contiguous().mm(left.t()).t() if out.shape[1] < NARROW else left.mm(right)
    if accumulate:
        out.add_(product, alpha=scale)
    else:
        torch.mul(product, scale, out=out)
