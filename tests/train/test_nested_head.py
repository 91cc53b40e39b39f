import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nestling.errors import DataError, DimensionError
from nestling.train.losses.nested_cross_entropy import NestedCrossEntropy
from nestling.train.models.nested_head import NestedHead

DIMS = (3, 8, 24)


def make_head(*, tied: bool, bias: bool = True, dims: tuple[int, ...] = DIMS) -> NestedHead:
    torch.manual_seed(0)
    return NestedHead(dims, 11, tied=tied, bias=bias).double()


def embeddings(width: int = 24, num_rows: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(num_rows, width, dtype=torch.float64, generator=generator)


def test_heads_hold_the_columns_of_the_paper() -> None:
    dims = tuple(8 << place for place in range(9))
    tied = NestedHead(dims, 2, tied=True)
    untied = NestedHead(dims, 2, tied=False)
    assert (tied.weight.shape[1], untied.weight.shape[1]) == (2048, 4088)
    assert [tuple(one.shape) for one in tied.parameters()] == [(2, 2048), (2,)]
    assert [tuple(one.shape) for one in untied.parameters()] == [(2, 4088), (9, 2)]


def test_a_tied_head_holds_half_of_an_untied_one_to_the_shortest_width() -> None:
    dims = tuple(8 << place for place in range(9))
    counts = {
        tied: NestedHead(dims, 10, tied=tied, bias=False).weight.numel() for tied in (True, False)
    }
    assert 2 * counts[True] - counts[False] == 10 * 8


@pytest.mark.parametrize("bias", [True, False])
def test_an_untied_head_reads_its_own_columns(bias: bool) -> None:
    head = make_head(tied=False, bias=bias)
    for place, dim in enumerate(DIMS):
        start = sum(DIMS[:place])
        expected = embeddings()[:, :dim] @ head.weight[:, start : start + dim].t()
        if head.bias is not None:
            expected = expected + head.bias[place]
        torch.testing.assert_close(head.logits(embeddings(), dim), expected)


@pytest.mark.parametrize("dim", [1, 3, 5, 24])
def test_a_tied_head_serves_any_width(dim: int) -> None:
    head = make_head(tied=True)
    expected = F.linear(embeddings()[:, :dim], head.weight[:, :dim], head.bias)
    torch.testing.assert_close(head.logits(embeddings(), dim), expected)
    torch.testing.assert_close(head.logits(embeddings()[:, :dim], dim), expected)
    assert torch.equal(head.predict(embeddings(), dim), expected.argmax(-1))


def test_an_untied_head_names_the_widths_it_has() -> None:
    with pytest.raises(
        DimensionError, match=r"`dim` must be one of 3,8,24, .* got 5. A tied head .* every width"
    ):
        make_head(tied=False).predict(embeddings(), 5)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("dim", "message"), [(0, "at least 1, got 0"), (25, r"\[1, 24\] .* 25")])
def test_a_width_outside_the_embedding_is_refused(tied: bool, dim: int, message: str) -> None:
    with pytest.raises(DimensionError, match=message):
        make_head(tied=tied).logits(embeddings(), dim)


def test_embeddings_that_are_too_narrow_are_refused() -> None:
    head = make_head(tied=True)
    with pytest.raises(DimensionError, match=r"embeddings of width 3, got 8"):
        head.logits(embeddings()[:, :3], 8)
    with pytest.raises(DimensionError, match=r"last nesting dim, 24, got 8. For a prefix alone"):
        head.all_logits(embeddings()[:, :8])


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=6, unique=True).map(sorted),
    st.booleans(),
    st.booleans(),
)
def test_all_logits_are_those_of_each_width(dims: list[int], tied: bool, bias: bool) -> None:
    head = make_head(tied=tied, bias=bias, dims=tuple(dims))
    rows = embeddings(dims[-1])
    logits = head(rows)
    assert list(logits) == dims
    for dim, found in logits.items():
        torch.testing.assert_close(found, head.logits(rows, dim))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_the_loss_reads_the_head_as_it_is_packed(tied: bool, bias: bool) -> None:
    head = make_head(tied=tied, bias=bias)
    labels = torch.tensor([0, 10, 3, 3, 7])
    value = NestedCrossEntropy(DIMS).value(embeddings(), labels, head.weight, head.bias)
    expected = [F.cross_entropy(logits, labels) for logits in head(embeddings()).values()]
    torch.testing.assert_close(value.by_dim, torch.stack(expected).detach())


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_start_as_those_of_a_linear_layer(tied: bool) -> None:
    torch.manual_seed(0)
    head = NestedHead((4, 100), 500, tied=tied)
    narrow = head.logits(torch.eye(4), 4) - head.logits(torch.zeros(1, 4), 4)
    bound = 0.1 if tied else 0.5
    assert 0.99 * bound < narrow.abs().max() <= bound * (1 + 1e-5)
    assert head.bias is not None
    biases = head.bias.reshape(-1, 500)
    bounds = torch.tensor([0.1] if tied else [0.5, 0.1])
    assert ((biases.abs().amax(1) > 0.95 * bounds) & (biases.abs().amax(1) <= bounds)).all()
    torch.manual_seed(0)
    assert torch.equal(head.weight, NestedHead((4, 100), 500, tied=tied).weight)


def test_a_head_is_saved_and_loaded_by_the_names_of_its_tensors() -> None:
    head = make_head(tied=False)
    assert list(head.state_dict()) == ["weight", "bias"]
    assert list(make_head(tied=False, bias=False).state_dict()) == ["weight"]


def test_it_prints_what_it_is() -> None:
    text = "NestedHead(nesting_dims=(3, 8, 24), num_classes=11, tied=True)"
    assert repr(make_head(tied=True)) == text


def test_one_class_is_refused() -> None:
    with pytest.raises(DataError, match="`num_classes` must be at least 2, got 1"):
        NestedHead(DIMS, 1, tied=True)


def test_unsorted_dims_are_refused() -> None:
    with pytest.raises(DimensionError, match="must ascend"):
        NestedHead((8, 3), 4, tied=True)
