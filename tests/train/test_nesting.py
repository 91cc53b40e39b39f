from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.errors import DimensionError
from nestling.train.losses import Nesting, boosted_weights

DIMS = (8, 16, 32, 64)


@st.composite
def samplings(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of `Nesting.of`, which is not called here: beartype draws random numbers."""
    dims = draw(st.lists(st.integers(1, 64), min_size=1, max_size=9, unique=True).map(sorted))
    return {
        "nesting_dims": dims,
        "dim_weights": draw(st.lists(st.floats(0.1, 8), min_size=len(dims), max_size=len(dims))),
        "dims_per_step": draw(st.integers(1, len(dims))),
        "seed": draw(st.integers(0, 2**32)),
    }


@given(samplings(), st.integers(0, 10**6))
def test_a_step_draws_so_many_dims_in_order_and_always_the_full_width(
    sampling: dict[str, Any], step: int
) -> None:
    nesting = Nesting.of(**sampling)
    positions, weights = nesting.at_step(step)
    assert len(positions) == len(weights) == nesting.dims_per_step
    assert list(positions) == sorted(set(positions))
    assert positions[-1] == len(nesting.dims) - 1
    assert weights[-1] == nesting.weights[-1]


@given(samplings(), st.integers(0, 10**6))
def test_a_draw_depends_on_seed_and_step_alone(sampling: dict[str, Any], step: int) -> None:
    used, fresh = Nesting.of(**sampling), Nesting.of(**sampling)
    used.at_step(step + 1)
    assert used.at_step(step) == fresh.at_step(step)


def test_draws_differ_between_steps_and_between_seeds() -> None:
    def draws(seed: int) -> list[tuple[int, ...]]:
        nesting = Nesting.of(DIMS, dims_per_step=2, seed=seed)
        return [nesting.at_step(step).positions for step in range(20)]

    assert len(set(draws(0))) > 1
    assert draws(0) != draws(1)


@pytest.mark.parametrize("dims_per_step", [2, 3, 4])
def test_the_weights_of_drawn_dims_add_up_to_the_weights_without_sampling(
    dims_per_step: int,
) -> None:
    nesting = Nesting.of(DIMS, (2.0, 1.0, 0.5, 3.0), dims_per_step=dims_per_step, seed=3)
    num_steps = 3000
    sums = np.zeros(len(DIMS))
    for step in range(num_steps):
        positions, weights = nesting.at_step(step)
        sums[list(positions)] += weights
    np.testing.assert_allclose(sums / num_steps, nesting.weights, rtol=0.08)


def test_without_step_or_sampling_all_dims_are_looked_at() -> None:
    weights = (1.0, 2.0, 3.0, 4.0)
    for nesting, step in (
        (Nesting.of(DIMS, weights, dims_per_step=2), None),
        (Nesting.of(DIMS, weights), 7),
        (Nesting.of(DIMS, weights, dims_per_step=4), 7),
    ):
        assert nesting.at_step(step) == ((0, 1, 2, 3), weights)


def test_one_dim_per_step_is_the_full_width() -> None:
    assert Nesting.of(DIMS, dims_per_step=1).at_step(5) == ((3,), (1.0,))


def test_weights_default_to_one() -> None:
    assert Nesting.of(DIMS).weights == (1.0, 1.0, 1.0, 1.0)


def test_boosted_weights_favour_the_shortest() -> None:
    assert boosted_weights(DIMS) == (2.0, 1.0, 1.0, 1.0)
    assert boosted_weights(DIMS, boost=4.0, num_boosted=2) == (4.0, 4.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("dims", "weights", "dims_per_step", "message"),
    [
        ((), None, None, "`dims` must name at least one width, got none"),
        ((16, 8), None, None, "`dims` must ascend without repeats, got 16,8"),
        ((8, 8), None, None, "`dims` must ascend without repeats, got 8,8"),
        ((0, 8), None, None, "`dim` must be at least 1, got 0"),
        (
            DIMS,
            (1.0, 2.0),
            None,
            "`dim_weights` must be one per nesting dim, got 2 weights for the 4",
        ),
        (DIMS, (1.0, -1.0, 1.0, 1.0), None, "positive for the full width, got 1,-1,1,1"),
        (DIMS, (1.0, 1.0, 1.0, 0.0), None, "positive for the full width, got 1,1,1,0"),
        (DIMS, (1.0, float("nan"), 1.0, 1.0), None, "must be finite"),
        (DIMS, None, 0, r"`dims_per_step` must lie in \[1, 4\] for 4 nesting dims, got 0"),
        (DIMS, None, 5, r"`dims_per_step` must lie in \[1, 4\] for 4 nesting dims, got 5"),
    ],
)
def test_a_nesting_that_makes_no_sense_is_refused(
    dims: tuple[int, ...],
    weights: tuple[float, ...] | None,
    dims_per_step: int | None,
    message: str,
) -> None:
    with pytest.raises(DimensionError, match=message):
        Nesting.of(dims, weights, dims_per_step=dims_per_step)
