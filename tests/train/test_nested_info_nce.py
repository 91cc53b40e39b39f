"""The fused loss against a loop over prefixes, and against sentence-transformers."""

import re
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from nestling.errors import DataError, DimensionError, TrainingError
from nestling.train.losses import _info_nce_kernel
from nestling.train.losses.nested_info_nce import NestedInfoNCE

DIMS = (3, 4, 10, 24)
WEIGHTS = (2.0, 0.0, 0.5, 1.0)


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors gain nothing from threads, and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_batch(
    num_queries: int = 7,
    num_documents: int = 11,
    dim: int = DIMS[-1],
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Queries and documents of various lengths, each document near its query."""
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(num_queries, dim, generator=generator, dtype=torch.float64)
    documents = torch.randn(num_documents, dim, generator=generator, dtype=torch.float64)
    documents[:num_queries] += queries
    documents *= 0.1 + 3 * torch.rand(num_documents, 1, generator=generator, dtype=torch.float64)
    return queries.to(dtype).requires_grad_(), documents.to(dtype).requires_grad_()


def false_negatives(
    num_queries: int,
    num_documents: int,
    query_groups: Tensor | None,
    document_groups: Tensor | None,
) -> Tensor:
    mask = torch.zeros(num_queries, num_documents, dtype=torch.bool)
    for i in range(num_queries):
        for j in range(num_documents):
            same_query = query_groups is not None and j < num_queries
            mask[i, j] = i != j and bool(
                (same_query and query_groups[i] == query_groups[j])  # type: ignore[index]
                or (document_groups is not None and document_groups[i] == document_groups[j])
            )
    return mask


def one_prefix(
    queries: Tensor,
    documents: Tensor,
    *,
    temperature: float = 0.05,
    symmetric: bool = False,
    query_groups: Tensor | None = None,
    document_groups: Tensor | None = None,
) -> Tensor:
    """Plain InfoNCE: the slow twin at one width."""
    num_queries = len(queries)
    logits = (
        functional.normalize(queries, dim=1)
        @ functional.normalize(documents, dim=1).T
        / temperature
    )
    mask = false_negatives(num_queries, len(documents), query_groups, document_groups)
    logits = logits.masked_fill(mask, -torch.inf)
    targets = torch.arange(num_queries)
    loss = functional.cross_entropy(logits, targets)
    if symmetric:
        loss = (loss + functional.cross_entropy(logits[:, :num_queries].T, targets)) / 2
    return loss


def naive(
    queries: Tensor, documents: Tensor, dims: Any, weights: Any, **options: Any
) -> tuple[Tensor, Tensor]:
    """The slow twin: total and losses by width."""
    losses = [one_prefix(queries[:, :dim], documents[:, :dim], **options) for dim in dims]
    total = sum(weight * loss for weight, loss in zip(weights, losses, strict=True))
    return total, torch.stack(losses).detach()


def gradients(total: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(total, inputs)


def assert_like_naive(
    loss: NestedInfoNCE,
    inputs: tuple[Tensor, Tensor],
    tolerance: float,
    groups: dict[str, Tensor] | None = None,
) -> None:
    value = loss.value(*inputs, **(groups or {}))
    total, by_dim = naive(
        *inputs,
        loss.nesting.dims,
        loss.nesting.weights,
        temperature=loss.temperature,
        symmetric=loss.symmetric,
        **(groups or {}),
    )
    torch.testing.assert_close(value.total, total, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(value.by_dim, by_dim, rtol=tolerance, atol=tolerance)
    assert not value.by_dim.requires_grad
    for ours, theirs in zip(
        gradients(value.total, *inputs), gradients(total, *inputs), strict=True
    ):
        scale = float(theirs.abs().max())
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * max(scale, 1e-3))


# --- Equal to the loop -------------------------------------------------------------------------


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.05, 0.02, 0.004])
@pytest.mark.parametrize("block_rows", [None, 1, 3, 100])
def test_values_and_gradients_are_those_of_the_loop(symmetric, temperature, block_rows):
    loss = NestedInfoNCE(
        DIMS, WEIGHTS, temperature=temperature, symmetric=symmetric, block_rows=block_rows
    )
    assert_like_naive(loss, make_batch(), 1e-10)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    "named", [("query_groups",), ("document_groups",), ("query_groups", "document_groups")]
)
def test_false_negatives_are_no_candidates(symmetric, named):
    groups = {
        "query_groups": torch.tensor([5, 1, 5, 2, 3, 5, 4]),
        "document_groups": torch.tensor([0, 1, 2, 0, 4, 5, 6, 0, 2, 9, 9]),
    }
    loss = NestedInfoNCE(DIMS, WEIGHTS, symmetric=symmetric, block_rows=3)
    assert_like_naive(loss, make_batch(), 1e-10, {name: groups[name] for name in named})


def test_a_query_without_negatives_costs_nothing():
    queries, documents = make_batch(4, 6)
    groups = torch.zeros(6, dtype=torch.int64)
    loss = NestedInfoNCE(DIMS, symmetric=True)
    assert_like_naive(loss, (queries, documents), 1e-10, {"document_groups": groups})
    assert loss(queries, documents, document_groups=groups).item() == pytest.approx(0, abs=1e-12)


@given(data=st.data())
def test_any_shape_dims_and_weights(data):
    dims = sorted(data.draw(st.sets(st.integers(1, 40), min_size=1, max_size=6)))
    weight = st.floats(0, 4)
    weights = [*data.draw(st.tuples(*[weight] * (len(dims) - 1))), data.draw(st.floats(0.1, 4))]
    num_queries = data.draw(st.integers(1, 12))
    num_documents = num_queries + data.draw(st.integers(0, 9))
    group = st.integers(0, 4)
    groups = {
        name: torch.tensor(data.draw(st.lists(group, min_size=size, max_size=size)))
        for name, size in (("query_groups", num_queries), ("document_groups", num_documents))
        if data.draw(st.booleans())
    }
    loss = NestedInfoNCE(
        dims,
        weights,
        temperature=data.draw(st.sampled_from([0.003, 0.02, 0.05, 1.0])),
        symmetric=data.draw(st.booleans()),
        block_rows=data.draw(st.none() | st.integers(1, 13)),
    )
    inputs = make_batch(num_queries, num_documents, dims[-1], seed=data.draw(st.integers(0, 99)))
    assert_like_naive(loss, inputs, 1e-8, groups)


@pytest.mark.parametrize("symmetric", [False, True])
def test_gradcheck(symmetric):
    loss = NestedInfoNCE(
        (1, 2, 5), (1.0, 0.5, 2.0), temperature=0.3, symmetric=symmetric, block_rows=2
    )
    assert torch.autograd.gradcheck(loss, make_batch(3, 5, 5))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("temperature", [0.05, 0.01])
def test_float32(symmetric, temperature):
    dims = (8, 16, 64, 256)
    queries, documents = make_batch(96, 150, 256, torch.float32)
    doubles = [rows.detach().double().requires_grad_() for rows in (queries, documents)]
    loss = NestedInfoNCE(dims, temperature=temperature, symmetric=symmetric, block_rows=40)
    value = loss.value(queries, documents)
    total, by_dim = naive(
        doubles[0], doubles[1], dims, (1,) * 4, temperature=temperature, symmetric=symmetric
    )
    assert value.total.dtype == torch.float32
    torch.testing.assert_close(value.total.double(), total, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(value.by_dim.double(), by_dim, rtol=1e-5, atol=1e-5)
    ours = gradients(value.total, queries, documents)
    for one, other in zip(ours, gradients(total, *doubles), strict=True):
        assert (one.double() - other).abs().max() <= 1e-5 * other.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_also_under_autocast(dtype):
    halves = make_batch(dtype=dtype)
    floats = [rows.detach().float().requires_grad_() for rows in halves]
    loss = NestedInfoNCE(DIMS, temperature=0.02, symmetric=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss.value(*halves)
    expected = loss.value(*floats)
    assert value.total.dtype == torch.float32
    assert torch.equal(value.total, expected.total)
    for ours, other in zip(
        gradients(value.total, *halves), gradients(expected.total, *floats), strict=True
    ):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, other.to(dtype))


def test_one_width_is_the_plain_loss():
    queries, documents = make_batch()
    total = NestedInfoNCE((DIMS[-1],))(queries, documents)
    torch.testing.assert_close(total, one_prefix(queries, documents), rtol=1e-12, atol=0)


@pytest.mark.parametrize("block_rows", [5, None])
def test_same_input_same_bits(block_rows):
    queries, documents = make_batch(64, 64, dtype=torch.float32)
    loss = NestedInfoNCE(DIMS, symmetric=True, block_rows=block_rows)
    first, second = (gradients(loss(queries, documents), queries, documents) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


# --- Equal to sentence-transformers ------------------------------------------------------------


class Columns(nn.Module):
    """Stands where a SentenceTransformer stands: hands out ready embeddings, column by column."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features["embedding"]}

    def get_embedding_dimension(self) -> int:
        return DIMS[-1]


@pytest.mark.parametrize("symmetric", [False, True])
def test_equals_sentence_transformers(symmetric):
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    queries, documents = make_batch(6, 12)
    both_ways = {
        "directions": ("query_to_doc", "doc_to_query"),
        "partition_mode": "per_direction",
    }
    model = Columns()
    inner = losses.MultipleNegativesRankingLoss(
        model, scale=20.0, **(both_ways if symmetric else {})
    )
    theirs = losses.MatryoshkaLoss(model, inner, list(DIMS), list(WEIGHTS))
    columns = [{"embedding": rows} for rows in (queries, documents[:6], documents[6:])]
    expected = theirs(columns, torch.empty(0))
    ours = NestedInfoNCE(DIMS, WEIGHTS, temperature=1 / 20, symmetric=symmetric)(queries, documents)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=0)
    pairs = zip(
        gradients(ours, queries, documents), gradients(expected, queries, documents), strict=True
    )
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


# --- Edges -------------------------------------------------------------------------------------


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("temperature", [0.05, 0.01])
def test_a_zero_prefix_has_cosine_zero_and_no_gradient(symmetric, temperature):
    queries, documents = make_batch()
    with torch.no_grad():
        queries[2, :4] = 0
        documents[5, :3] = 0
        documents[6] = 0
    loss = NestedInfoNCE(DIMS, symmetric=symmetric, temperature=temperature)
    value = loss.value(queries, documents)
    total, by_dim = naive(
        queries.detach(),
        documents.detach(),
        DIMS,
        (1,) * 4,
        temperature=temperature,
        symmetric=symmetric,
    )
    torch.testing.assert_close(value.total.detach(), total, rtol=1e-10, atol=0)
    torch.testing.assert_close(value.by_dim, by_dim, rtol=1e-10, atol=1e-12)
    at_queries, at_documents = gradients(value.total, queries, documents)
    assert torch.isfinite(at_queries).all()
    assert torch.isfinite(at_documents).all()
    assert not at_documents[6].any()
    narrow = NestedInfoNCE((3,), symmetric=symmetric)
    at_query = gradients(narrow(queries[:, :3], documents[:, :3]), queries)[0][2]
    assert not at_query.any()


def test_the_gradient_does_not_depend_on_the_length_of_a_row_but_by_scale():
    queries, documents = make_batch()
    loss = NestedInfoNCE(DIMS)
    longer = (queries.detach() * 1e4).requires_grad_()
    torch.testing.assert_close(loss(queries, documents), loss(longer, documents))
    at_queries = gradients(loss(queries, documents), queries)[0]
    at_longer = gradients(loss(longer, documents), longer)[0]
    torch.testing.assert_close(at_queries, at_longer * 1e4)
    torch.testing.assert_close((at_longer * longer).sum(1), torch.zeros(7, dtype=torch.float64))


@pytest.mark.parametrize("symmetric", [False, True])
def test_opposed_and_equal_vectors_at_a_low_temperature(symmetric):
    rows = torch.eye(4, dtype=torch.float32).requires_grad_()
    loss = NestedInfoNCE((2, 4), temperature=0.001, symmetric=symmetric)
    for documents in (rows.detach(), -rows.detach(), rows.detach().flip(0)):
        value = loss.value(rows, documents)
        total, _ = naive(
            rows.detach().double(),
            documents.double(),
            (2, 4),
            (1, 1),
            temperature=0.001,
            symmetric=symmetric,
        )
        torch.testing.assert_close(value.total.double(), total, rtol=1e-5, atol=1e-5)
        assert torch.isfinite(gradients(value.total, rows)[0]).all()


def test_nan_comes_out_as_nan():
    queries, documents = make_batch()
    with torch.no_grad():
        documents[3, 8] = torch.nan
    by_dim = NestedInfoNCE(DIMS).value(queries, documents).by_dim
    assert torch.isnan(by_dim).tolist() == [False, False, True, True]


def test_without_gradients_only_the_value():
    queries, documents = make_batch()
    loss = NestedInfoNCE(DIMS, symmetric=True)
    with torch.no_grad(), PeakBytes() as alone:
        value = loss.value(queries, documents)
    with PeakBytes() as with_gradients:
        loss.value(queries, documents)
    assert 1.5 * alone.peak < with_gradients.peak
    assert not value.total.requires_grad
    torch.testing.assert_close(value.total, loss(queries, documents).detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("side", [0, 1])
def test_one_side_alone(side):
    inputs = list(make_batch())
    expected = gradients(naive(inputs[0], inputs[1], DIMS, WEIGHTS)[0], inputs[side])[0]
    inputs[1 - side] = inputs[1 - side].detach()
    ours = gradients(NestedInfoNCE(DIMS, WEIGHTS)(*inputs), inputs[side])[0]
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


def test_scaled_and_twice():
    queries, documents = make_batch()
    total = NestedInfoNCE(DIMS)(queries, documents)
    once = torch.autograd.grad(total, queries, retain_graph=True)[0]
    scaled = torch.autograd.grad(total * 3, queries, retain_graph=True)[0]
    torch.testing.assert_close(scaled, once * 3)
    slope = torch.autograd.grad(total**2, queries, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):  # rather than a wrong number
        slope.sum().backward()


def test_sampled_dims():
    queries, documents = make_batch()
    loss = NestedInfoNCE(DIMS, WEIGHTS, dims_per_step=2, seed=3)
    for step in range(4):
        positions, weights = loss.nesting.at_step(step)
        value = loss.value(queries, documents, step=step)
        total, by_dim = naive(
            queries, documents, [DIMS[position] for position in positions], weights
        )
        torch.testing.assert_close(value.total, total, rtol=1e-10, atol=0)
        torch.testing.assert_close(value.by_dim[list(positions)], by_dim, rtol=1e-10, atol=0)
        assert int(torch.isnan(value.by_dim).sum()) == 2


def test_errors_say_what_to_do():
    queries, documents = make_batch()
    loss = NestedInfoNCE(DIMS)
    with pytest.raises(
        DimensionError,
        match=re.escape(
            "`queries` must be as wide as the last nesting dim, 24, got width 10. Give `nesting_dims` that end in 10."
        ),
    ):
        loss(queries[:, :10], documents[:, :10])
    with pytest.raises(DataError, match=re.escape("got 3 documents for 7 queries.")):
        loss(queries, documents[:3])
    with pytest.raises(DataError, match="got 3 documents for 0 queries"):
        loss(queries[:0], documents[:3])
    for temperature in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(TrainingError, match="`temperature` must be positive and finite, got"):
            NestedInfoNCE(DIMS, temperature=temperature)
    with pytest.raises(TrainingError, match="`block_rows` must be at least 1, got 0"):
        NestedInfoNCE(DIMS, block_rows=0)


# --- Memory ------------------------------------------------------------------------------------


class PeakBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make, while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self._watch(tensor.untyped_storage())
        return result

    def _watch(self, storage: Any) -> None:
        key = storage.data_ptr()
        if key in self._known or not storage.nbytes():
            return
        self._known.add(key)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, num_bytes: int) -> None:
        self._known.discard(key)
        self.live -= num_bytes


def peak_bytes(loss: Any, queries: Tensor, documents: Tensor) -> int:
    with PeakBytes() as counted:
        gradients(loss(queries, documents), queries, documents)
    return counted.peak


@pytest.mark.parametrize("symmetric", [False, True])
def test_memory_does_not_grow_with_the_number_of_prefixes(symmetric, monkeypatch):
    monkeypatch.setattr(_info_nce_kernel, "BLOCK_BYTES", {"cpu": 1 << 19})
    queries, documents = make_batch(256, 512, 2048, torch.float32)
    few, many = (tuple(range(2048 // count, 2049, 2048 // count)) for count in (8, 32))
    losses = [NestedInfoNCE(dims, symmetric=symmetric) for dims in (few, many)]
    of_few, of_many = (peak_bytes(loss, queries, documents) for loss in losses)
    assert of_many < 1.1 * of_few
    in_one_block = NestedInfoNCE(many, symmetric=symmetric, block_rows=256)
    assert peak_bytes(in_one_block, queries, documents) > 1.5 * of_many, "the measure is blind"
