from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nestling.core import Dtype, normalize, take_prefix
from nestling.errors import DataError, DimensionError, TrainingError
from nestling.train.adapter.learn import (
    RotationOptions,
    Turning,
    learn_rotation,
    learn_supervised_rotation,
    may_turn,
    nearest_rotation,
    nearest_rows,
    reach_of,
    tangent,
    turned_by,
)
from nestling.train.adapter.principal_axes import in_principal_axes
from nestling.train.losses.self_distillation import SelfDistillation

DIM = 24
DIMS = (4, 8, 16)


def make_rows(num_rows: int = 300, *, seed: int = 0) -> np.ndarray:
    """Unit rows in 12 clusters, whose directions are spread over all coordinates alike."""
    generator = np.random.default_rng(seed)
    sizes = 0.8 ** np.arange(DIM)
    centres = np.random.default_rng(99).standard_normal((12, DIM)) * sizes
    noisy = centres[generator.integers(12, size=num_rows)]
    noisy = noisy + 0.5 * generator.standard_normal((num_rows, DIM)) * sizes
    return normalize((noisy @ make_rotation(7)).astype(np.float32))


def make_rotation(seed: int, dim: int = DIM) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((dim, dim)))[0]


def cosines(rows: np.ndarray, dim: int) -> np.ndarray:
    prefixes = take_prefix(rows, dim, renormalize=True)
    return prefixes @ prefixes.T


def overlap(rows: np.ndarray, dim: int) -> float:
    near, full = (
        np.argsort(-(cosines(rows, width) - 9 * np.eye(len(rows))), axis=1)[:, :10]
        for width in (dim, DIM)
    )
    return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(near, full, strict=True)]))


def test_tangent_is_the_gradient_through_a_matrix_exponential() -> None:
    rows = torch.from_numpy(make_rows(40)).double()
    rotation = torch.from_numpy(make_rotation(1))
    loss = SelfDistillation((*DIMS, DIM))
    upper = torch.zeros(DIM, DIM, dtype=torch.float64, requires_grad=True)
    loss.value(rows @ rotation @ torch.matrix_exp(upper.triu(1) - upper.triu(1).T)).total.backward()

    turned = (rows @ rotation).requires_grad_()
    loss.value(turned).total.backward()

    assert upper.grad is not None
    torch.testing.assert_close(tangent([turned]).triu(1), upper.grad, rtol=1e-9, atol=1e-12)


def test_a_turn_is_the_matrix_exponential() -> None:
    rotation = torch.from_numpy(make_rotation(1))
    turn = torch.from_numpy(np.random.default_rng(0).standard_normal((DIM, DIM))) * 1e-3
    turn = turn - turn.T

    exact = rotation @ torch.matrix_exp(turn)
    torch.testing.assert_close(turned_by(rotation, turn, reach=DIM), exact, rtol=0, atol=1e-11)

    turn[10:, 10:] = 0
    exact = rotation @ torch.matrix_exp(turn)
    torch.testing.assert_close(turned_by(rotation, turn, reach=10), exact, rtol=0, atol=1e-11)


def test_nearest_rotation_is_the_polar_factor() -> None:
    noise = 1e-3 * np.random.default_rng(2).standard_normal((DIM, DIM))
    left, _, right = np.linalg.svd(make_rotation(3) + noise)

    found = nearest_rotation(torch.from_numpy(make_rotation(3) + noise)).numpy()

    np.testing.assert_allclose(found, left @ right, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtypes", [(), (Dtype.INT4, Dtype.ROTATED_BINARY)])
def test_a_learned_rotation_keeps_the_full_width_and_helps_what_it_was_not_fitted_on(
    dtypes: tuple[Dtype, ...],
) -> None:
    rows, fresh = make_rows(), make_rows(seed=1)

    learned = learn_rotation(
        rows,
        DIMS,
        start=np.eye(DIM),
        options=RotationOptions(num_steps=150, learning_rate=1e-2, dtypes=dtypes),
    )

    turned = fresh @ learned.astype(np.float32)
    assert np.abs(learned.T @ learned - np.eye(DIM)).max() < 1e-12
    np.testing.assert_allclose(cosines(turned, DIM), cosines(fresh, DIM), rtol=0, atol=1e-5)
    for dim in DIMS:
        assert overlap(turned, dim) > overlap(fresh, dim) + 0.05


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not() -> None:
    first, second, other = (
        learn_rotation(
            make_rows(), DIMS, start=np.eye(DIM), options=RotationOptions(num_steps=5, seed=seed)
        )
        for seed in (3, 3, 4)
    )

    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


def test_bands_keep_the_scores_of_their_widths() -> None:
    rows, start = make_rows(), make_rotation(5)

    learned = learn_rotation(
        rows,
        DIMS,
        start=start,
        bands=(8,),
        options=RotationOptions(num_steps=60, learning_rate=1e-2),
    )

    before, after = (rows @ matrix.astype(np.float32) for matrix in (start, learned))
    np.testing.assert_allclose(cosines(after, 8), cosines(before, 8), rtol=0, atol=1e-5)
    assert np.abs(cosines(after, 4) - cosines(before, 4)).max() > 0.05


@given(bands=st.sets(st.integers(1, DIM - 1), max_size=4), widths=st.sets(st.integers(1, DIM - 1)))
def test_what_may_turn(bands: set[int], widths: set[int]) -> None:
    ends = (*sorted(widths), DIM)

    may = may_turn(ends, sorted(bands), by_coordinate=False)
    by_coordinate = may_turn(ends, sorted(bands), by_coordinate=True)

    for row in range(DIM):
        for column in range(DIM):
            low, high = sorted((row, column))
            is_split = any(low < band <= high for band in bands)
            is_seen = any(low < width <= high for width in ends)
            assert by_coordinate[row, column] == (not is_split)
            assert may[row, column] == (not is_split and is_seen)
    assert reach_of(by_coordinate) == DIM or not by_coordinate[-1, -1]
    assert reach_of(may) <= (max(widths) if widths else 0)


def test_coordinates_between_two_widths_end_up_in_their_principal_axes() -> None:
    rows, start = make_rows(), make_rotation(5)

    turned = in_principal_axes(start, rows, DIMS)

    energies = np.square(rows @ turned.astype(np.float32)).mean(axis=0)
    for first, last in ((0, 4), (4, 8), (8, 16), (16, DIM)):
        assert (np.diff(energies[first:last]) <= 1e-7).all()
    for dim in DIMS:
        before, after = (cosines(rows @ each.astype(np.float32), dim) for each in (start, turned))
        np.testing.assert_allclose(after, before, rtol=0, atol=1e-5)


def test_a_pair_of_coordinates_that_is_not_pulled_does_not_turn() -> None:
    turning = Turning(np.eye(DIM), may_turn((*DIMS, DIM), (), by_coordinate=False))
    rows = torch.from_numpy(make_rows(40)).requires_grad_()
    SelfDistillation((4, DIM)).value(rows).total.backward()

    turning.step([rows], 1e-3)

    turned = turning.rotation - torch.eye(DIM)
    assert turned[:4, 4:].abs().min() > 1e-5
    assert turned[4:8, 8:].abs().max() < 1e-5


def test_nearest_rows_are_those_of_the_sorted_cosines() -> None:
    rows = torch.from_numpy(make_rows(50))
    seeds = torch.tensor([3, 17])

    found = nearest_rows(rows, seeds, 5)

    for seed, near in zip(seeds.tolist(), found.tolist(), strict=True):
        scores = (rows @ rows[seed]).tolist()
        others = sorted(set(range(50)) - {seed}, key=lambda row: -scores[row])
        assert near == others[:5]


def test_pairs_bring_positives_nearer_than_others_at_the_prefix() -> None:
    generator = np.random.default_rng(0)
    about = generator.integers(20, size=400)
    topics = np.random.default_rng(1).standard_normal((20, DIM))
    topics[:, :12] = 0.0  # what matters lies in the last coordinates, the first are noise
    sides = [
        normalize(
            (
                topics[about] + np.repeat([2.0, 0.3], 12) * generator.standard_normal((400, DIM))
            ).astype(np.float32)
        )
        for _ in range(2)
    ]

    learned = learn_supervised_rotation(
        sides[0][:300],
        sides[1][:300],
        (4, 8),
        groups=about[:300],
        start=np.eye(DIM),
        options=RotationOptions(num_steps=150, learning_rate=2e-2),
    )

    def hits(matrix: np.ndarray) -> float:
        left, right = (
            take_prefix(side[300:] @ matrix.astype(np.float32), 4, renormalize=True)
            for side in sides
        )
        nearest = about[300:][np.argmax(left @ right.T, axis=1)]
        return float(np.mean(nearest == about[300:]))

    assert hits(learned) > hits(np.eye(DIM)) + 0.3
    assert np.abs(learned.T @ learned - np.eye(DIM)).max() < 1e-12


@pytest.mark.parametrize("num_rows", [2, 3])
def test_two_rows_are_enough(num_rows: int) -> None:
    learned = learn_rotation(
        make_rows(num_rows), DIMS, start=np.eye(DIM), options=RotationOptions(num_steps=3)
    )

    assert np.abs(learned.T @ learned - np.eye(DIM)).max() < 1e-12


def test_one_row_cannot_be_ranked() -> None:
    with pytest.raises(DataError, match="at least two vectors to rank, got 1"):
        learn_rotation(make_rows(1), DIMS, start=np.eye(DIM))


def test_widths_lie_below_the_full_one() -> None:
    with pytest.raises(DimensionError, match=r"must lie in \[1, 23\]"):
        learn_rotation(make_rows(), (4, DIM), start=np.eye(DIM))


def test_one_pair_cannot_be_told_apart() -> None:
    with pytest.raises(DataError, match="at least two rows to tell apart, got 1"):
        learn_supervised_rotation(
            make_rows(1), make_rows(1), DIMS, groups=np.arange(1), start=np.eye(DIM)
        )


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        ({"num_steps": 0}, "`num_steps` must be at least 1, got 0"),
        ({"learning_rate": float("nan")}, "`learning_rate` must be positive, got nan"),
        ({"seeds_per_batch": 1}, "`seeds_per_batch` must be at least 2, got 1"),
        ({"neighbours_per_seed": -1}, "`neighbours_per_seed` must be at least 0, got -1"),
        ({"spread_out_weight": -1.0}, "`spread_out_weight` must be at least 0, got -1.0"),
        ({"seed": -1}, "`seed` must be at least 0, got -1"),
    ],
)
def test_bad_options_are_named(changed: dict[str, Any], rule: str) -> None:
    with pytest.raises(TrainingError, match=rule):
        RotationOptions(**changed)


def test_a_loss_that_is_not_finite_stops_the_learning() -> None:
    rows = make_rows()
    rows[5] = np.nan
    with pytest.raises(TrainingError, match="the loss of the rotation is nan at step 1"):
        learn_rotation(rows, DIMS, start=np.eye(DIM))


@pytest.mark.parametrize(("num_rows", "num_steps"), [(2, 60), (960, 60), (4000, 250), (10**6, 600)])
def test_few_rows_take_few_steps(num_rows: int, num_steps: int) -> None:
    assert RotationOptions().steps_for(num_rows) == num_steps
    assert RotationOptions(num_steps=7).steps_for(num_rows) == 7


def test_spread_out_prefixes_are_nearer_to_uncorrelated() -> None:
    rows = make_rows()
    mean_square = []
    for weight in (0.0, 20.0):
        learned = learn_rotation(
            rows,
            (4,),
            start=np.eye(DIM),
            options=RotationOptions(num_steps=100, learning_rate=1e-2, spread_out_weight=weight),
        )
        mean_square.append(np.square(cosines(rows @ learned.astype(np.float32), 4)).mean())

    assert mean_square[1] < mean_square[0]
