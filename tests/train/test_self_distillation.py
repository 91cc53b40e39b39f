"""The fused distillation against a loop over prefixes."""

import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from nestling.errors import DataError, DimensionError, TrainingError
from nestling.train.losses.self_distillation import SelfDistillation

DIMS = (3, 4, 10, 24)
WEIGHTS = (2.0, 0.0, 0.5, 1.0)


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors gain nothing from threads, and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_rows(
    num_rows: int, dim: int = DIMS[-1], dtype: torch.dtype = torch.float64, seed: int = 0
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(num_rows, dim, generator=generator, dtype=torch.float64)
    rows *= 0.1 + 3 * torch.rand(num_rows, 1, generator=generator, dtype=torch.float64)
    return rows.to(dtype).requires_grad_()


def log_shares(queries: Tensor, documents: Tensor | None, temperature: float) -> Tensor:
    unit = functional.normalize(queries, dim=1)
    others = unit if documents is None else functional.normalize(documents, dim=1)
    logits = unit @ others.T / temperature
    if documents is None:
        own = torch.eye(len(queries), dtype=torch.bool)
        logits = logits[~own].reshape(len(queries), -1)
    return functional.log_softmax(logits, dim=1)


def naive(
    queries: Tensor, documents: Tensor | None, dims: Any, weights: Any, temperature: float
) -> tuple[Tensor, Tensor]:
    """The slow twin: total and losses by width."""
    target = log_shares(queries, documents, temperature).detach()
    losses = []
    for dim in dims[:-1]:
        cut = None if documents is None else documents[:, :dim]
        shares = log_shares(queries[:, :dim], cut, temperature)
        losses.append(functional.kl_div(shares, target, reduction="batchmean", log_target=True))
    total = sum(weight * loss for weight, loss in zip(weights, losses, strict=False))
    return total, torch.stack([*losses, torch.zeros_like(losses[0])]).detach()


def assert_like_naive(
    loss: SelfDistillation, queries: Tensor, documents: Tensor | None, tolerance: float
) -> None:
    value = loss.value(queries, documents)
    total, by_dim = naive(
        queries, documents, loss.nesting.dims, loss.nesting.weights, loss.temperature
    )
    torch.testing.assert_close(value.total, total, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(value.by_dim, by_dim, rtol=tolerance, atol=tolerance)
    assert not value.by_dim.requires_grad
    inputs = (queries,) if documents is None else (queries, documents)
    ours = torch.autograd.grad(value.total, inputs)
    for one, other in zip(ours, torch.autograd.grad(total, inputs), strict=True):
        torch.testing.assert_close(
            one, other, rtol=tolerance, atol=tolerance * max(1e-3, float(other.abs().max()))
        )


@pytest.mark.parametrize("num_documents", [None, 11, 4])
@pytest.mark.parametrize("temperature", [1.0, 0.05, 0.02, 0.004])
@pytest.mark.parametrize("block_rows", [None, 1, 3])
def test_values_and_gradients_are_those_of_the_loop(num_documents, temperature, block_rows):
    documents = None if num_documents is None else make_rows(num_documents, seed=1)
    loss = SelfDistillation(DIMS, WEIGHTS, temperature=temperature, block_rows=block_rows)
    assert_like_naive(loss, make_rows(7), documents, 1e-9)


@given(data=st.data())
def test_any_shape_dims_and_weights(data):
    dims = sorted(data.draw(st.sets(st.integers(1, 40), min_size=2, max_size=6)))
    weights = [*data.draw(st.tuples(*[st.floats(0, 4)] * (len(dims) - 1))), 1.0]
    loss = SelfDistillation(
        dims,
        weights,
        temperature=data.draw(st.sampled_from([0.003, 0.02, 0.05, 1.0])),
        block_rows=data.draw(st.none() | st.integers(1, 13)),
    )
    queries = make_rows(data.draw(st.integers(2, 12)), dims[-1], seed=data.draw(st.integers(0, 99)))
    documents = data.draw(
        st.none() | st.integers(1, 12).map(lambda n: make_rows(n, dims[-1], seed=100))
    )
    assert_like_naive(loss, queries, documents, 1e-8)


@pytest.mark.parametrize("alone", [False, True])
def test_gradcheck_with_the_teacher_held_fixed(alone):
    # The full width is detached, so the check may only move what the prefixes alone ...
    queries, documents = make_rows(4, 5), None if alone else make_rows(6, 5, seed=1)
    loss = SelfDistillation((1, 2, 5), temperature=0.3, block_rows=2)
    total, _ = naive(queries, documents, (1, 2, 5), (1, 1), 0.3)
    inputs = [rows for rows in (queries, documents) if rows is not None]
    ours = torch.autograd.grad(loss(queries, documents), inputs)
    for one, other in zip(ours, torch.autograd.grad(total, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
        assert not one[:, 2:].any(), "... touch: the full width alone holds the last coordinates"


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("temperature", [0.05, 0.01])
def test_float32(alone, temperature):
    dims = (8, 16, 64, 256)
    queries = make_rows(96, 256, torch.float32)
    documents = None if alone else make_rows(150, 256, torch.float32, seed=1)
    inputs = [rows for rows in (queries, documents) if rows is not None]
    doubles = [rows.detach().double().requires_grad_() for rows in inputs]
    value = SelfDistillation(dims, temperature=temperature, block_rows=40).value(queries, documents)
    total, by_dim = naive(doubles[0], None if alone else doubles[1], dims, (1,) * 4, temperature)
    torch.testing.assert_close(value.by_dim.double(), by_dim, rtol=1e-5, atol=2e-5)
    ours = torch.autograd.grad(value.total, inputs)
    for one, other in zip(ours, torch.autograd.grad(total, doubles), strict=True):
        assert (one.double() - other).abs().max() <= 1e-5 * other.abs().max()


@pytest.mark.parametrize("alone", [False, True])
def test_nothing_to_learn_where_the_rest_is_zero(alone):
    queries, documents = make_rows(5), make_rows(6, seed=1)
    with torch.no_grad():
        queries[:, 10:] = 0
        documents[:, 10:] = 0
    value = SelfDistillation(DIMS).value(queries, None if alone else documents)
    assert value.by_dim[2].item() == pytest.approx(0, abs=1e-12)
    assert value.by_dim[3].item() == 0
    assert value.by_dim[0] > 0.01


@pytest.mark.parametrize("alone", [False, True])
def test_zero_rows_give_finite_numbers(alone):
    queries, documents = make_rows(5), make_rows(6, seed=1)
    with torch.no_grad():
        queries[2, :4] = 0
        queries[3] = 0
        documents[4] = 0
    value = SelfDistillation(DIMS, temperature=0.01).value(queries, None if alone else documents)
    assert torch.isfinite(value.by_dim).all()
    gradient = torch.autograd.grad(value.total, queries)[0]
    assert torch.isfinite(gradient).all()
    assert not gradient[3].any()


def test_half_precision_and_autocast():
    halves = make_rows(7, dtype=torch.bfloat16)
    loss = SelfDistillation(DIMS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = loss(halves)
    assert torch.equal(total, loss(halves.detach().float()))
    assert torch.autograd.grad(total, halves)[0].dtype == torch.bfloat16


def test_sampled_dims():
    queries = make_rows(7)
    loss = SelfDistillation(DIMS, WEIGHTS, dims_per_step=2, seed=3)
    for step in range(4):
        positions, weights = loss.nesting.at_step(step)
        value = loss.value(queries, step=step)
        total, by_dim = naive(
            queries, None, [DIMS[position] for position in positions], weights, 0.05
        )
        torch.testing.assert_close(value.total, total, rtol=1e-10, atol=0)
        torch.testing.assert_close(value.by_dim[list(positions)], by_dim, rtol=1e-10, atol=0)
        assert int(torch.isnan(value.by_dim).sum()) == 2


def test_errors_say_what_to_do():
    with pytest.raises(DimensionError, match=re.escape("got the dims 24 and dims_per_step=None.")):
        SelfDistillation((24,))
    with pytest.raises(DimensionError, match="a width below the full one, which teaches it"):
        SelfDistillation(DIMS, dims_per_step=1)
    with pytest.raises(TrainingError, match="`temperature` must be positive and finite, got 0"):
        SelfDistillation(DIMS, temperature=0.0)
    loss = SelfDistillation(DIMS)
    with pytest.raises(DimensionError, match="`queries` must be as wide as the last nesting dim"):
        loss(make_rows(3, 10))
    with pytest.raises(
        DataError, match=re.escape("got 1 queries and 1 documents (the queries themselves).")
    ):
        loss(make_rows(1))
    with pytest.raises(DataError, match="got 3 queries and 0 documents"):
        loss(make_rows(3), make_rows(0))
