import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from nestling.core import take_prefix
from nestling.errors import DataError, DimensionError
from nestling.train.losses import boosted_weights
from nestling.train.losses.nested_loss import NestedLoss

DIMS = (2, 4, 8)


def rows(seed: int, count: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 8, dtype=torch.float64, generator=generator)


def cut(embeddings: Tensor, dim: int, *, renormalize: bool) -> Tensor:
    return torch.from_numpy(take_prefix(embeddings.numpy(), dim, renormalize=renormalize))


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize(
    ("base", "num_embeddings", "keywords"),
    [
        (nn.MSELoss(), 2, {}),
        (nn.TripletMarginLoss(margin=0.3), 3, {}),
        (nn.CosineEmbeddingLoss(), 2, {"target": torch.tensor([1, -1, 1, 1, -1, 1])}),
        (F.cross_entropy, 1, {"target": torch.tensor([0, 1, 0, 1, 1, 0])}),
    ],
)
def test_it_is_the_weighted_sum_of_the_base_over_the_prefixes(
    base: Callable[..., Tensor], num_embeddings: int, keywords: dict[str, Tensor], renormalize: bool
) -> None:
    embeddings = [rows(seed) for seed in range(num_embeddings)]
    weights = boosted_weights(DIMS, boost=3.0)
    value = NestedLoss(base, DIMS, weights, renormalize=renormalize).value(*embeddings, **keywords)
    by_dim = [
        base(*(cut(one, dim, renormalize=renormalize) for one in embeddings), **keywords)
        for dim in DIMS
    ]
    torch.testing.assert_close(value.by_dim, torch.stack(by_dim))
    total = sum(weight * loss for weight, loss in zip(weights, by_dim, strict=True))
    torch.testing.assert_close(value.total, torch.as_tensor(total))


def test_forward_is_the_total() -> None:
    loss = NestedLoss(nn.MSELoss(), DIMS, renormalize=True)
    assert loss(rows(0), rows(1)) == loss.value(rows(0), rows(1)).total


def test_one_dim_is_the_base_loss() -> None:
    value = NestedLoss(nn.MSELoss(), (8,), renormalize=False).value(rows(0), rows(1))
    torch.testing.assert_close(value.total, F.mse_loss(rows(0), rows(1)))


def test_gradients_pass_through_the_rescaling() -> None:
    loss = NestedLoss(nn.MSELoss(), DIMS, (1.0, 2.0, 0.5), renormalize=True)
    assert torch.autograd.gradcheck(loss, (rows(0).requires_grad_(), rows(1).requires_grad_()))


def test_parameters_of_the_base_are_trained_with_it() -> None:
    base = nn.CosineEmbeddingLoss()
    base.register_parameter("scale", nn.Parameter(torch.ones(())))
    assert [name for name, _ in NestedLoss(base, DIMS, renormalize=True).named_parameters()] == [
        "base.scale"
    ]


def test_a_perfect_student_has_no_loss_when_its_targets_are_cut_and_rescaled_too() -> None:
    student = F.normalize(rows(0))

    def distance(student: Tensor, *, target: Tensor) -> Tensor:
        return F.mse_loss(student, target[:, : student.shape[1]])

    both = NestedLoss(distance, DIMS, renormalize=True, cut_keywords=["target"])
    assert both(student, target=student.clone()) < 1e-15
    # What is wrong with cutting targets alone: they keep the short norm of their prefix.
    assert NestedLoss(distance, DIMS, renormalize=True)(student, target=student.clone()) > 1e-2


def test_zero_rows_stay_zero_with_a_finite_gradient() -> None:
    embeddings = rows(0)
    embeddings[0] = 0
    embeddings.requires_grad_()
    seen = []

    def total(prefix: Tensor) -> Tensor:
        seen.append(prefix.detach())
        return prefix.sum()

    NestedLoss(total, DIMS, renormalize=True)(embeddings).backward()
    assert all(not prefix[0].any() for prefix in seen)
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()


def test_float16_prefixes_whose_norms_overflow_are_rescaled() -> None:
    embeddings = torch.full((1, 8), 3e4, dtype=torch.float16)
    loss = NestedLoss(lambda prefix: prefix.float().square().sum(), DIMS, renormalize=True)
    torch.testing.assert_close(loss(embeddings), torch.tensor(3.0), rtol=1e-2, atol=0)


def test_sampled_steps_leave_other_dims_out() -> None:
    loss = NestedLoss(nn.MSELoss(), DIMS, renormalize=False, dims_per_step=2, seed=1)
    value = loss.value(rows(0), rows(1), step=4)
    positions, weights = loss.nesting.at_step(4)
    expected = sum(
        weight * F.mse_loss(rows(0)[:, : DIMS[place]], rows(1)[:, : DIMS[place]])
        for place, weight in zip(positions, weights, strict=True)
    )
    torch.testing.assert_close(value.total, torch.as_tensor(expected))
    assert [math.isnan(one) for one in value.by_dim] == [
        place not in positions for place in range(3)
    ]


def test_by_dim_carries_no_gradient() -> None:
    value = NestedLoss(nn.MSELoss(), DIMS, renormalize=True).value(
        rows(0).requires_grad_(), rows(1)
    )
    assert value.total.requires_grad
    assert not value.by_dim.requires_grad


def test_embeddings_of_another_width_are_refused() -> None:
    loss = NestedLoss(nn.MSELoss(), DIMS, renormalize=True, cut_keywords=["target"])
    with pytest.raises(
        DimensionError, match=r"positional argument 0 must be embeddings as wide as .* 8, got"
    ):
        loss(rows(0)[:, :6], target=rows(1))
    with pytest.raises(
        DimensionError, match=r"`target` must be .* got shape \[6, 6\]. Pass labels"
    ):
        loss(rows(0), target=rows(1)[:, :6])


def test_a_keyword_to_cut_that_is_missing_is_named() -> None:
    loss = NestedLoss(nn.MSELoss(), DIMS, renormalize=True, cut_keywords=["target"])
    with pytest.raises(DataError, match=r"`target` is one of `cut_keywords` .* got no keywords"):
        loss(rows(0))


def test_a_base_that_does_not_average_is_refused() -> None:
    loss = NestedLoss(nn.MSELoss(reduction="none"), DIMS, renormalize=True)
    with pytest.raises(DataError, match=r"`base` must return one number, got .* \[6, 2\]"):
        loss(rows(0), rows(1))


def test_unsorted_dims_are_refused() -> None:
    with pytest.raises(DimensionError, match="must ascend"):
        NestedLoss(nn.MSELoss(), (8, 4), renormalize=True)
