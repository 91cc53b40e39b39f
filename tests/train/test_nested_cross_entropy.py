import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import finalize

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from nestling.errors import DataError, DimensionError
from nestling.train.losses import LossValue, _head_kernel
from nestling.train.losses.nested_cross_entropy import NestedCrossEntropy
from nestling.train.losses.nested_loss import NestedLoss

DIMS = (3, 8, 24)


@dataclass(frozen=True)
class Batch:
    embeddings: Tensor
    labels: Tensor
    weight: Tensor
    bias: Tensor | None

    def leaves(self) -> "Batch":
        """The same numbers, as the leaves of a new graph."""
        bias = None if self.bias is None else self.bias.clone().requires_grad_()
        embeddings, weight = self.embeddings.clone(), self.weight.clone()
        return Batch(embeddings.requires_grad_(), self.labels, weight.requires_grad_(), bias)

    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        return self.embeddings, self.labels, self.weight, self.bias

    def gradients(self) -> list[Tensor]:
        leaves = (self.embeddings, self.weight, self.bias)
        return [leaf.grad for leaf in leaves if leaf is not None and leaf.grad is not None]


def make_batch(
    dims: tuple[int, ...] = DIMS,
    *,
    tied: bool,
    bias: bool = True,
    num_rows: int = 7,
    num_classes: int = 20,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=dtype, generator=generator)

    width = dims[-1] if tied else sum(dims)
    return Batch(
        draw(num_rows, dims[-1]),
        torch.randint(num_classes, (num_rows,), generator=generator),
        draw(num_classes, width),
        draw(*((num_classes,) if tied else (len(dims), num_classes))) if bias else None,
    )


def naive(loss: NestedCrossEntropy, batch: Batch, step: int | None = None) -> LossValue:
    """Every prefix by itself, through `F.linear` and `F.cross_entropy`."""
    dims = loss.nesting.dims
    tied = batch.weight.shape[1] == dims[-1]

    def base(prefix: Tensor, *, labels: Tensor) -> Tensor:
        dim = prefix.shape[1]
        place = dims.index(dim)
        start = 0 if tied else sum(dims[:place])
        bias = batch.bias if tied or batch.bias is None else batch.bias[place]
        logits = F.linear(prefix, batch.weight[:, start : start + dim], bias)
        # Under autocast the softmax is in float32.
        return F.cross_entropy(logits, labels, label_smoothing=loss.label_smoothing)

    nested = NestedLoss(
        base,
        dims,
        loss.nesting.weights,
        renormalize=False,
        dims_per_step=loss.nesting.dims_per_step,
        seed=loss.nesting.seed,
    )
    return nested.value(batch.embeddings, labels=batch.labels, step=step)


def assert_equals_naive(
    loss: NestedCrossEntropy, batch: Batch, *, step: int | None = None, atol: float = 1e-10
) -> None:
    ours, theirs = batch.leaves(), batch.leaves()
    value, expected = loss.value(*ours.arguments(), step=step), naive(loss, theirs, step)
    tolerance: dict[str, Any] = {"rtol": 1e-7, "atol": atol}
    torch.testing.assert_close(value.total, expected.total, **tolerance)
    torch.testing.assert_close(value.by_dim, expected.by_dim, equal_nan=True, **tolerance)
    value.total.backward()
    expected.total.backward()
    for found, wanted in zip(ours.gradients(), theirs.gradients(), strict=True):
        torch.testing.assert_close(found, wanted, **tolerance)


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """Numbers only: what checks types draws random numbers, which a strategy may not."""
    dims = draw(st.lists(st.integers(1, 40), min_size=1, max_size=6, unique=True).map(sorted))
    weights = st.floats(0.0, 4.0)
    return {
        "dims": tuple(dims),
        "weights": (*(draw(weights) for _ in dims[1:]), draw(st.floats(0.1, 4.0))),
        "tied": draw(st.booleans()),
        "bias": draw(st.booleans()),
        "num_rows": draw(st.integers(1, 40)),
        "num_classes": draw(st.integers(1, 30)),
        "label_smoothing": draw(st.sampled_from([0.0, 0.1, 0.7])),
        "dims_per_step": draw(st.none() | st.integers(1, len(dims))),
        "step": draw(st.none() | st.integers(0, 1000)),
        "small_buffer": draw(st.sampled_from([1, 1000, 1 << 22])),
        "seed": draw(st.integers(0, 1000)),
    }


@pytest.fixture
def _fresh_memory_is_nan() -> Iterator[None]:
    """What is allocated and never written shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_fresh_memory_is_nan")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cases())
def test_it_equals_the_naive_loop_in_values_and_gradients(case: dict[str, Any]) -> None:
    loss = NestedCrossEntropy(
        case["dims"],
        case["weights"],
        label_smoothing=case["label_smoothing"],
        dims_per_step=case["dims_per_step"],
        seed=case["seed"],
    )
    names = ("tied", "bias", "num_rows", "num_classes", "seed")
    batch = make_batch(case["dims"], **{name: case[name] for name in names})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_head_kernel, "SMALL_BUFFER", case["small_buffer"])
        assert_equals_naive(loss, batch, step=case["step"])


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("tied", [True, False])
def test_it_equals_the_naive_loop_over_several_blocks_of_rows(
    tied: bool, label_smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_head_kernel, "SMALL_BUFFER", 1)
    batch = make_batch((8, 16, 64), tied=tied, num_rows=90, num_classes=50)
    assert_equals_naive(NestedCrossEntropy((8, 16, 64), label_smoothing=label_smoothing), batch)


@pytest.mark.parametrize("tied", [True, False])
def test_gradcheck(tied: bool) -> None:
    batch = make_batch((2, 3, 5), tied=tied, num_rows=3, num_classes=4).leaves()
    loss = NestedCrossEntropy((2, 3, 5), (1.0, 0.5, 2.0), label_smoothing=0.2)
    assert batch.bias is not None

    def total(embeddings: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return loss(embeddings, batch.labels, weight, bias)

    assert torch.autograd.gradcheck(total, (batch.embeddings, batch.weight, batch.bias))


@pytest.mark.parametrize("tied", [True, False])
def test_float32_is_close_to_the_naive_loop_in_float32(tied: bool) -> None:
    batch = make_batch((8, 32, 128), tied=tied, num_rows=64, num_classes=300, dtype=torch.float32)
    assert_equals_naive(NestedCrossEntropy((8, 32, 128)), batch, atol=2e-4)


def test_huge_logits_do_not_overflow() -> None:
    batch = make_batch(tied=True, dtype=torch.float32)
    far = Batch(1e4 * batch.embeddings, batch.labels, batch.weight, batch.bias)
    value = NestedCrossEntropy(DIMS).value(*far.leaves().arguments())
    assert value.total.isfinite()
    torch.testing.assert_close(value.total, naive(NestedCrossEntropy(DIMS), far).total)


@pytest.mark.parametrize("tied", [True, False])
def test_one_dim_is_plain_cross_entropy(tied: bool) -> None:
    batch = make_batch((6,), tied=tied, bias=False)
    expected = F.cross_entropy(F.linear(batch.embeddings, batch.weight), batch.labels)
    loss = NestedCrossEntropy((6,))
    torch.testing.assert_close(loss(*batch.arguments()), expected)
    assert_equals_naive(loss, batch)


@pytest.mark.parametrize("factor", [0.25, -3.0, 0.0])
def test_an_upstream_gradient_scales_all(factor: float) -> None:
    loss = NestedCrossEntropy(DIMS)
    batch = make_batch(tied=True)
    once, scaled = batch.leaves(), batch.leaves()
    loss(*once.arguments()).backward()
    (factor * loss(*scaled.arguments())).backward()
    for one, other in zip(once.gradients(), scaled.gradients(), strict=True):
        torch.testing.assert_close(factor * one, other)


def test_a_graph_that_is_kept_gives_the_same_gradients_again() -> None:
    batch = make_batch(tied=False).leaves()
    total = NestedCrossEntropy(DIMS)(*batch.arguments())
    (2 * total).backward(retain_graph=True)
    first = [gradient.clone() for gradient in batch.gradients()]
    total.backward()
    for one, both in zip(first, batch.gradients(), strict=True):
        torch.testing.assert_close(1.5 * one, both)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[_head_kernel.Gradients]:
    """The gradients that were computed."""
    seen: list[_head_kernel.Gradients] = []

    def watched(*arguments: Any) -> tuple[Tensor, _head_kernel.Gradients]:
        losses, gradients = _head_kernel.losses_and_gradients(*arguments)
        seen.append(gradients)
        return losses, gradients

    monkeypatch.setattr("nestling.train.losses.nested_cross_entropy.losses_and_gradients", watched)
    return seen


def test_a_parameter_takes_the_gradient_without_a_copy(made: list[_head_kernel.Gradients]) -> None:
    batch = make_batch(tied=True).leaves()
    total = NestedCrossEntropy(DIMS)(*batch.arguments())
    weight = made.pop().weight
    assert weight is not None
    address = weight.data_ptr()
    del weight
    total.backward()
    assert batch.weight.grad is not None
    assert batch.weight.grad.data_ptr() == address


@pytest.mark.parametrize("trained", ["embeddings", "weight", "bias"])
@pytest.mark.parametrize("tied", [True, False])
def test_only_what_is_trained_gets_a_gradient(
    tied: bool, trained: str, made: list[_head_kernel.Gradients]
) -> None:
    batch, whole = make_batch(tied=tied), make_batch(tied=tied).leaves()
    loss = NestedCrossEntropy(DIMS)
    getattr(batch, trained).requires_grad_()
    loss(*batch.arguments()).backward()
    loss(*whole.arguments()).backward()
    for name in ("embeddings", "weight", "bias"):
        expected = getattr(whole, name).grad if name == trained else None
        torch.testing.assert_close(getattr(batch, name).grad, expected)
        assert (getattr(made[0], name) is not None) == (name == trained)


@pytest.mark.parametrize("tied", [True, False])
def test_without_gradients_the_value_is_the_same_and_none_are_made(
    tied: bool, made: list[_head_kernel.Gradients]
) -> None:
    batch = make_batch(tied=tied).leaves()
    loss = NestedCrossEntropy(DIMS, label_smoothing=0.1)
    with torch.no_grad():
        value = loss.value(*batch.arguments())
    assert not value.total.requires_grad
    assert made == [(None, None, None)]
    expected = loss.value(*batch.arguments())
    torch.testing.assert_close(value.total, expected.total.detach())
    torch.testing.assert_close(value.by_dim, expected.by_dim)


def test_the_same_batch_gives_the_same_bits() -> None:
    batch, loss = make_batch(tied=True, dtype=torch.float32), NestedCrossEntropy(DIMS)
    runs = [batch.leaves() for _ in range(2)]
    totals = [loss(*run.arguments()) for run in runs]
    for total in totals:
        total.backward()
    assert torch.equal(*totals)
    for one, other in zip(runs[0].gradients(), runs[1].gradients(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.usefixtures("_fresh_memory_is_nan")
def test_heads_that_are_not_drawn_have_a_gradient_of_zero() -> None:
    batch = make_batch(tied=False).leaves()
    value = NestedCrossEntropy(DIMS, dims_per_step=1).value(*batch.arguments(), step=0)
    value.total.backward()
    assert batch.weight.grad is not None
    assert not batch.weight.grad[:, : DIMS[0] + DIMS[1]].any()
    assert batch.weight.grad[:, DIMS[0] + DIMS[1] :].all()
    assert [math.isnan(one) for one in value.by_dim] == [True, True, False]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tied", [True, False])
def test_autocast_multiplies_in_low_precision_and_takes_the_softmax_in_float32(
    tied: bool, dtype: torch.dtype
) -> None:
    dims = (8, 32, 64)
    exact = make_batch(dims, tied=tied, num_rows=40, num_classes=100, dtype=torch.float32)
    ours, theirs = exact.leaves(), exact.leaves()
    loss = NestedCrossEntropy(dims)
    with torch.autocast("cpu", dtype=dtype):
        value = loss.value(*ours.arguments())
    expected = naive(loss, theirs)
    value.total.backward()
    expected.total.backward()
    assert value.total.dtype == value.by_dim.dtype == torch.float32
    torch.testing.assert_close(value.total, expected.total, rtol=1e-2, atol=0)
    assert not torch.equal(value.total, expected.total)
    for found, wanted in zip(ours.gradients(), theirs.gradients(), strict=True):
        assert found.dtype == torch.float32
        assert (found - wanted).norm() / wanted.norm() < 2e-2


def test_bfloat16_parameters_get_bfloat16_gradients() -> None:
    batch = make_batch(tied=True, dtype=torch.bfloat16).leaves()
    value = NestedCrossEntropy(DIMS).value(*batch.arguments())
    value.total.backward()
    assert value.total.dtype == torch.float32
    assert {gradient.dtype for gradient in batch.gradients()} == {torch.bfloat16}


def test_labels_may_be_small_integers_and_embeddings_strided() -> None:
    batch = make_batch(tied=True)
    strided = batch.embeddings.t().contiguous().t()
    loss = NestedCrossEntropy(DIMS)
    torch.testing.assert_close(
        loss(strided, batch.labels.to(torch.uint8), batch.weight, batch.bias),
        loss(*batch.arguments()),
    )


class Allocations(TorchDispatchMode):
    """Counts the bytes of tensors alive, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.known: set[int] = set()
        self.alive = self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.count(tensor.untyped_storage())
        return result

    def count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        finalize(storage, self.forget, key, size)

    def forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.alive -= size


@contextmanager
def allocations() -> Iterator[Allocations]:
    with Allocations() as counted:
        yield counted


def test_memory_does_not_grow_with_the_number_of_prefixes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_head_kernel, "SMALL_BUFFER", 1)
    peaks = []
    for dims in ((512,), (256, 512), (8, 16, 32, 64, 128, 256, 512)):
        batch = make_batch(dims, tied=True, num_rows=512, num_classes=400).leaves()
        with allocations() as counted:
            NestedCrossEntropy(dims)(*batch.arguments())
        peaks.append(counted.peak)
    weight_bytes, embeddings_bytes = 400 * 512 * 8, 512 * 512 * 8
    # The inputs, their gradients, and buffers of the size of the weight.
    assert max(peaks) < 1.05 * (3 * weight_bytes + 2 * embeddings_bytes)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (20, r"`labels` must lie in \[0, 20\) for a head with 20 classes, got 20 in row 3. Number"),
        (-100, "got -100 in row 3"),
    ],
)
def test_a_label_out_of_range_is_named_with_its_row(label: int, message: str) -> None:
    batch = make_batch(tied=True)
    batch.labels[3] = label
    batch.labels[5] = label
    with pytest.raises(DataError, match=message):
        NestedCrossEntropy(DIMS)(*batch.arguments())


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            torch.zeros(6, dtype=torch.long),
            r"one whole number per row of 7 embeddings, got .*\[6\]",
        ),
        (torch.zeros(7), "got torch.float32 of shape"),
    ],
)
def test_labels_that_are_not_one_class_per_row_are_refused(labels: Tensor, message: str) -> None:
    batch = make_batch(tied=True)
    with pytest.raises(DataError, match=message):
        NestedCrossEntropy(DIMS)(batch.embeddings, labels, batch.weight, batch.bias)


def test_an_empty_batch_is_refused() -> None:
    batch = make_batch(tied=True, num_rows=0)
    with pytest.raises(DataError, match="`embeddings` must hold at least one row, got none"):
        NestedCrossEntropy(DIMS)(*batch.arguments())


def test_shapes_that_do_not_fit_the_nesting_dims_are_refused() -> None:
    tied, untied = make_batch(tied=True), make_batch(tied=False)
    loss = NestedCrossEntropy(DIMS)
    with pytest.raises(DimensionError, match=r"last nesting dim, 24, got 20. Pass full-width"):
        loss(tied.embeddings[:, :20], *tied.arguments()[1:])
    with pytest.raises(DimensionError, match=r"24 columns for tied heads or 35 for .* got 30"):
        loss(tied.embeddings, tied.labels, untied.weight[:, :30], tied.bias)
    with pytest.raises(DimensionError, match=r"shape \[20\] for tied heads, got \[3, 20\]"):
        loss(tied.embeddings, tied.labels, tied.weight, untied.bias)
    with pytest.raises(DimensionError, match=r"shape \[3, 20\] for untied heads, got \[20\]"):
        loss(tied.embeddings, tied.labels, untied.weight, tied.bias)


@pytest.mark.parametrize("label_smoothing", [-0.1, 1.0])
def test_smoothing_out_of_range_is_refused(label_smoothing: float) -> None:
    with pytest.raises(DataError, match=r"`label_smoothing` must lie in \[0, 1\), got"):
        NestedCrossEntropy(DIMS, label_smoothing=label_smoothing)


RANK = """
import sys, torch
from torch import distributed, nn
from nestling.train.losses.nested_cross_entropy import NestedCrossEntropy

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Linear(5, 24)
        self.weight = nn.Parameter(torch.randn(20, 24))
        self.loss = NestedCrossEntropy((3, 8, 24), dims_per_step=2)
    def forward(self, inputs, labels, step):
        return self.loss(self.encoder(inputs), labels, self.weight, step=step)

def gradients(model, parameters, inputs, labels):
    for step in range(2):
        model(inputs, labels, step).backward()
    return [parameter.grad for parameter in parameters]

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(1)
inputs, labels = torch.randn(8, 5, generator=generator), torch.arange(8)
distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
alone, shared = Model(), Model()
ranked = nn.parallel.DistributedDataParallel(shared)
whole = gradients(alone, alone.parameters(), inputs, labels)
part = gradients(ranked, shared.parameters(), inputs[rank::2], labels[rank::2])
torch.save((whole, part), f"{folder}/{rank}.pt")
distributed.destroy_process_group()
"""


def test_two_ranks_get_the_gradients_of_the_whole_batch(tmp_path: Path) -> None:
    children = [
        subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(tmp_path)]) for rank in (0, 1)
    ]
    assert [child.wait(timeout=120) for child in children] == [0, 0]
    (whole, first), (_, second) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for expected, one, other in zip(whole, first, second, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, expected)


@pytest.mark.parametrize("tied", [True, False])
def test_it_equals_the_naive_loop_on_a_gpu(tied: bool) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU: nested cross-entropy is not tested on one")
    batch = make_batch(tied=tied, num_rows=50)
    moved = [None if one is None else one.cuda() for one in batch.arguments()]
    assert_equals_naive(NestedCrossEntropy(DIMS, label_smoothing=0.1), Batch(*moved))


def test_the_loss_has_no_parameters() -> None:
    assert not list(nn.ModuleList([NestedCrossEntropy(DIMS)]).parameters())
