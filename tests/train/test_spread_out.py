"""The regularisation of unrelated pairs, against a loop over all of them."""

import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from nestling.errors import DataError, DimensionError
from nestling.train.losses import SpreadOut

DIMS = (2, 3, 8)
WEIGHTS = (2.0, 0.0, 0.5)


def make_rows(num_rows: int, seed: int = 0, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(num_rows, DIMS[-1], generator=generator, dtype=torch.float64)
    return (rows + shift).requires_grad_()


def naive(
    queries: Tensor, documents: Tensor, left: list[int], right: list[int]
) -> tuple[Tensor, Tensor]:
    """The slow twin: total and losses by width, pair by pair."""
    losses = []
    for dim in DIMS:
        cosines = [
            functional.cosine_similarity(query[:dim], document[:dim], dim=0)
            for query, of_query in zip(queries, left, strict=True)
            for document, of_document in zip(documents, right, strict=True)
            if of_query != of_document
        ]
        if not cosines:
            losses.append((queries.sum() + documents.sum()) * 0)
            continue
        apart = torch.stack(cosines)
        spread = apart.square().mean() - 1 / dim
        losses.append(apart.mean().square() + (spread if spread > 0 else 0 * spread))
    total = torch.stack([weight * one for weight, one in zip(WEIGHTS, losses, strict=True)]).sum()
    return total, torch.stack(losses).detach()


def assert_like_naive(
    queries: Tensor, documents: Tensor | None, groups: tuple[list[int], list[int]] | None
) -> None:
    others = queries if documents is None else documents
    left, right = groups or (list(range(len(queries))), list(range(len(others))))
    keywords = {}
    if groups is not None:
        keywords["query_groups"] = torch.tensor(left)
        if documents is not None:
            keywords["document_groups"] = torch.tensor(right)
    value = SpreadOut(DIMS, WEIGHTS).value(queries, documents, **keywords)
    total, by_dim = naive(queries, others, left, right)
    torch.testing.assert_close(value.total, total, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(value.by_dim, by_dim, rtol=1e-10, atol=1e-12)
    assert not value.by_dim.requires_grad
    inputs = (queries,) if documents is None else (queries, documents)
    ours = torch.autograd.grad(value.total, inputs)
    for one, other in zip(ours, torch.autograd.grad(total, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-11)


@pytest.fixture(params=["moments", "matrix"])
def one_way(request, monkeypatch):
    """Take the means in one of the two ways, whichever is cheaper."""
    prefers = request.param == "moments"
    monkeypatch.setattr(spread_out_module()._Pairs, "prefers_moments", lambda *_: prefers)


def spread_out_module() -> Any:
    return sys.modules[SpreadOut.__module__]


@pytest.mark.parametrize("num_documents", [None, 4, 7, 12])
@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_values_and_gradients_are_those_of_the_loop(num_documents, shift, one_way):
    documents = None if num_documents is None else make_rows(num_documents, 1, shift)
    assert_like_naive(make_rows(7, shift=shift), documents, None)


@pytest.mark.parametrize("alone", [True, False])
def test_pairs_of_a_group_do_not_count(alone, one_way):
    left, right = [4, -1, 4, 2, 9], [4, 4, 2, 7, -1, -1, 3]
    queries, documents = make_rows(5, shift=1), make_rows(7, 1, 1)
    if alone:
        assert_like_naive(queries, None, (left, left))
    else:
        assert_like_naive(queries, documents, (left, right))


@given(data=st.data())
def test_any_groups(data):
    left = data.draw(st.lists(st.integers(-2, 3), min_size=2, max_size=8))
    right = data.draw(st.lists(st.integers(-2, 3), min_size=2, max_size=8))
    shift = data.draw(st.sampled_from([0.0, 1.0]))
    queries = make_rows(len(left), data.draw(st.integers(0, 99)), shift)
    assert_like_naive(queries, make_rows(len(right), 100, shift), (left, right))


def test_the_cheaper_way_is_taken():
    pairs = spread_out_module()._Pairs
    rows = torch.arange(100)
    large = pairs(rows, rows, 100, 100)
    assert large.prefers_moments(8)
    assert not large.prefers_moments(50)
    many = torch.zeros(9_000, dtype=torch.int64)
    assert not pairs(many, many, 100, 100).prefers_moments(8)


def test_no_matrix_of_all_pairs_is_made_for_large_batches():
    num_rows = 20_000  # all cosines would take 1.6 GB in float32
    rows = torch.randn(num_rows, 8, generator=torch.Generator().manual_seed(0))
    sizes = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            sizes.append(made.numel() if isinstance(made, Tensor) else 0)
            return made

    groups = torch.arange(num_rows) // 2
    with Sizes():
        SpreadOut([4, 8])(rows, rows.flip(0), query_groups=groups, document_groups=groups)
    assert max(sizes) <= 2 * num_rows * 8


def test_evenly_spread_rows_cost_nothing_and_bunched_ones_all():
    even = torch.cat([torch.eye(4, dtype=torch.float64), -torch.eye(4, dtype=torch.float64)])
    loss = SpreadOut([4])
    # Each row is apart from six at right angles, and from its opposite.
    assert loss(even).item() == pytest.approx((1 / 7) ** 2)
    bunched = torch.ones(5, 4, dtype=torch.float64)
    assert loss(bunched).item() == pytest.approx(1 + 1 - 1 / 4)


def test_nothing_is_asked_where_all_rows_belong_together():
    queries, documents = make_rows(3), make_rows(3, 1)
    groups = torch.zeros(3, dtype=torch.int64)
    total = SpreadOut(DIMS)(queries, documents, query_groups=groups, document_groups=groups)
    assert total.item() == pytest.approx(0, abs=1e-12)
    assert SpreadOut(DIMS)(make_rows(1)).item() == pytest.approx(0, abs=1e-12)


def test_zero_rows_give_finite_numbers(one_way):
    queries = make_rows(6, shift=1)
    with torch.no_grad():
        queries[2] = 0
    total = SpreadOut(DIMS)(queries)
    assert torch.isfinite(total)
    assert torch.isfinite(torch.autograd.grad(total, queries)[0]).all()


def test_half_precision_and_autocast():
    halves = make_rows(7, shift=1).detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = SpreadOut(DIMS)(halves)
    assert torch.equal(total, SpreadOut(DIMS)(halves.detach().float()))
    assert torch.autograd.grad(total, halves)[0].dtype == torch.bfloat16


def test_sampled_dims():
    queries = make_rows(7, shift=1)
    loss = SpreadOut(DIMS, WEIGHTS, dims_per_step=2, seed=3)
    whole = SpreadOut(DIMS).value(queries).by_dim
    for step in range(4):
        positions, weights = loss.nesting.at_step(step)
        value = loss.value(queries, step=step)
        expected = sum(weight * whole[row] for row, weight in zip(positions, weights, strict=True))
        torch.testing.assert_close(value.total, expected)
        assert int(torch.isnan(value.by_dim).sum()) == 1


def test_bad_arguments_are_refused_by_name():
    groups = torch.arange(4)
    with pytest.raises(DataError, match="`query_groups` and `document_groups` must be given toge"):
        SpreadOut(DIMS)(make_rows(4), make_rows(4), query_groups=groups)
    with pytest.raises(DataError, match="`query_groups` and `document_groups` must be given toge"):
        SpreadOut(DIMS)(make_rows(4), make_rows(4), document_groups=groups)
    with pytest.raises(DataError, match="`document_groups` must hold one number per row, 5, got"):
        spread_out_module()._check_groups(groups, groups, (4, 5))
    with pytest.raises(DimensionError, match="`queries` must be as wide as the last nesting"):
        SpreadOut(DIMS)(make_rows(4)[:, :3])
