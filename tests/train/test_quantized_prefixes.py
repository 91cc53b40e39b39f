"""The loss of codes beside that of floats, against a loop over prefixes and formats."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from nestling.core import Dtype
from nestling.errors import DataError, TrainingError
from nestling.train.losses import (
    NestedInfoNCE,
    NestedLoss,
    QuantizedPrefixes,
    SelfDistillation,
    straight_through,
)

DIMS = (3, 4, 10, 24)
WEIGHTS = (2.0, 0.0, 0.5, 1.5)
CODES = (Dtype.INT8, Dtype.INT4, Dtype.BINARY, Dtype.ROTATED_BINARY)


def make_rows(num_rows: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(num_rows, DIMS[-1], generator=generator, dtype=torch.float64)
    rows *= 0.1 + 3 * torch.rand(num_rows, 1, generator=generator, dtype=torch.float64)
    return rows.to(dtype).requires_grad_()


def code(rows: Tensor, dtype: Dtype, dim: int) -> Tensor:
    """The code of one prefix, taken on its own."""
    return straight_through(functional.normalize(rows, dim=1), dtype, dim=dim)


def cosines(queries: Tensor, documents: Tensor) -> Tensor:
    return functional.normalize(queries, dim=1) @ functional.normalize(documents, dim=1).T


class Ranking(nn.Module):
    """Cross-entropy of each query's own document."""

    def forward(self, queries: Tensor, documents: Tensor) -> Tensor:
        logits = cosines(queries, documents) / 0.05
        return functional.cross_entropy(logits, torch.arange(len(queries)))


class Triplet(nn.Module):
    """A margin between a positive and a negative of each query."""

    def forward(self, queries: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        wrong = (queries * negatives).sum(1) - (queries * positives).sum(1)
        return (wrong + 0.5).clamp_min(0).mean()


def assert_same(
    value: Callable[[], Tensor], expected: Callable[[], Tensor], inputs: tuple[Tensor, ...]
) -> None:
    ours, theirs = value(), expected()
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    pairs = zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True)
    for one, other in pairs:
        assert float(other.abs().max()) > 1e-6
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("dtypes", [(dtype,) for dtype in CODES] + [CODES])
@pytest.mark.parametrize("fused", [True, False])
def test_contrast_equals_the_loop_over_prefixes_and_formats(dtypes, fused):
    queries, documents = make_rows(6), make_rows(9, 1)
    base = (
        NestedInfoNCE(DIMS, WEIGHTS)
        if fused
        else NestedLoss(Ranking(), DIMS, WEIGHTS, renormalize=True)
    )
    loss = QuantizedPrefixes(base, dtypes, weight=0.7)

    def expected() -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for dim, weight in zip(DIMS, WEIGHTS, strict=True):
            total = total + weight * Ranking()(queries[:, :dim], documents[:, :dim])
            for dtype in dtypes:
                coded = Ranking()(queries[:, :dim], code(documents, dtype, dim))
                total = total + 0.7 * weight * coded
        return total

    assert_same(lambda: loss(queries, documents), expected, (queries, documents))
    value = loss.value(queries, documents)
    assert torch.equal(value.by_dim, base.value(queries, documents).by_dim)


@pytest.mark.parametrize("dtype", CODES)
def test_gradients_of_the_coded_part_reach_the_documents(dtype):
    queries, documents = make_rows(6), make_rows(9, 1)
    base = NestedInfoNCE(DIMS)
    loss = QuantizedPrefixes(base, [dtype])
    coded = loss(queries, documents) - base(queries, documents)
    gradient = torch.autograd.grad(coded, documents)[0]
    assert float((gradient != 0).double().mean()) > 0.5


def distil_naively(queries: Tensor, documents: Tensor | None, dtypes: Any, weight: float) -> Tensor:
    """Float teacher at full width; floats below it, and codes at every width, are taught."""
    others = queries if documents is None else documents

    def shares(left: Tensor, right: Tensor) -> Tensor:
        logits = cosines(left, right) / 0.05
        if documents is None:
            own = torch.eye(len(left), dtype=torch.bool)
            logits = logits[~own].reshape(len(left), -1)
        return functional.log_softmax(logits, dim=1)

    def divergence(pupil: Tensor) -> Tensor:
        target = shares(queries, others).detach()
        return functional.kl_div(pupil, target, reduction="batchmean", log_target=True)

    total = torch.zeros((), dtype=torch.float64)
    for dim, share in zip(DIMS, WEIGHTS, strict=True):
        if dim < DIMS[-1]:
            total = total + share * divergence(shares(queries[:, :dim], others[:, :dim]))
        for dtype in dtypes:
            pupil = shares(queries[:, :dim], code(others, dtype, dim))
            total = total + weight * share * divergence(pupil)
    return total


@pytest.mark.parametrize("dtypes", [(dtype,) for dtype in CODES] + [CODES])
@pytest.mark.parametrize("alone", [True, False])
def test_the_teacher_of_codes_is_the_full_width_in_float(dtypes, alone):
    queries = make_rows(6)
    others = [] if alone else [make_rows(9, 1)]
    loss = QuantizedPrefixes(SelfDistillation(DIMS, WEIGHTS), dtypes, weight=0.3)
    assert_same(
        lambda: loss(queries, *others),
        lambda: distil_naively(queries, None if alone else others[0], dtypes, 0.3),
        (queries, *others),
    )


def test_all_documents_of_a_batch_share_one_scale():
    rows = [make_rows(7, seed) for seed in range(3)]
    base = NestedLoss(Triplet(), DIMS, renormalize=True)
    loss = QuantizedPrefixes(base, [Dtype.INT4])
    unit = functional.normalize(torch.cat(rows[1:]), dim=1)
    coded = straight_through(unit, Dtype.INT4).split(7)
    torch.testing.assert_close(loss(*rows), base(*rows) + base(rows[0], *coded))


def test_groups_reach_the_codes_too():
    queries, documents = make_rows(5), make_rows(5, 1)
    groups = torch.tensor([0, 0, 1, 2, 3])
    base = NestedInfoNCE(DIMS)
    loss = QuantizedPrefixes(base, [Dtype.INT8])
    keywords = {"query_groups": groups, "document_groups": groups}
    coded = straight_through(functional.normalize(documents, dim=1), Dtype.INT8)
    torch.testing.assert_close(
        loss(queries, documents, **keywords),
        base(queries, documents, **keywords) + base(queries, coded, **keywords),
    )


@pytest.mark.parametrize("dtype", [Dtype.INT8, Dtype.ROTATED_BINARY])
@pytest.mark.parametrize("distils", [True, False])
def test_codes_are_looked_at_where_floats_are(dtype, distils):
    queries, documents = make_rows(5), make_rows(6, 1)
    make: Any = SelfDistillation if distils else NestedInfoNCE
    base = make(DIMS, WEIGHTS, dims_per_step=2, seed=3)
    loss = QuantizedPrefixes(base, [dtype])
    for step in range(3):
        drawn = loss.nesting.at_step(step)
        widths = [DIMS[position] for position in drawn.positions]
        plain = make(widths, drawn.weights)
        expected = QuantizedPrefixes(plain, [dtype])(queries, documents)
        torch.testing.assert_close(loss(queries, documents, step=step), expected)
    assert base.nesting.dims == DIMS


def test_zero_rows_give_finite_numbers():
    queries, documents = make_rows(5), make_rows(6, 1)
    with torch.no_grad():
        documents[1, :4] = 0
        documents[2] = 0
    for base in (NestedInfoNCE(DIMS), SelfDistillation(DIMS)):
        total = QuantizedPrefixes(base, CODES)(queries, documents)
        assert torch.isfinite(total)
        for gradient in torch.autograd.grad(total, (queries, documents)):
            assert torch.isfinite(gradient).all()


def test_half_precision_and_autocast_are_computed_in_float32():
    queries, documents = make_rows(5, 0, torch.bfloat16), make_rows(6, 1, torch.bfloat16)
    loss = QuantizedPrefixes(NestedInfoNCE(DIMS), CODES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = loss(queries, documents)
    expected = loss(queries.detach().float(), documents.detach().float())
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=1e-6)


def test_bad_arguments_are_refused_by_name():
    base = NestedInfoNCE(DIMS)
    with pytest.raises(TrainingError, match=r"`dtypes` must be among int8, .* got float32"):
        QuantizedPrefixes(base, [Dtype.FLOAT32])
    with pytest.raises(TrainingError, match="each once, got int8,int8"):
        QuantizedPrefixes(base, [Dtype.INT8, Dtype.INT8])
    with pytest.raises(TrainingError, match="`dtypes` must name a format, got none"):
        QuantizedPrefixes(base, [])
    for weight in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(TrainingError, match="`weight` must be positive and finite"):
            QuantizedPrefixes(base, [Dtype.INT8], weight=weight)
    with pytest.raises(TrainingError, match="`base` must compare cosines"):
        QuantizedPrefixes(NestedLoss(Ranking(), DIMS, renormalize=False), [Dtype.INT8])
    loss = QuantizedPrefixes(base, [Dtype.INT8])
    message = re.escape("`documents` must be given by position")
    with pytest.raises(DataError, match=message):
        loss(make_rows(4), documents=make_rows(4))
    with pytest.raises(DataError, match=message):
        loss(make_rows(4))
