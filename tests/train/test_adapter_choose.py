import numpy as np
import pytest

from nestling.core import Dtype, cosine_scores
from nestling.encode.vector_map import OrthogonalMap
from nestling.errors import TrainingError
from nestling.train.adapter.candidates import Candidate
from nestling.train.adapter.choose import TIE, choose
from nestling.train.adapter.neighbours import nearest_others
from nestling.train.adapter.principal_axes import pca_basis

DIMS = (2, 4, 16)


def candidate(name, matrix, method=None):
    return Candidate(name=name, method=method or name, map=OrthogonalMap(matrix), seconds=0.0)


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def rows():
    """Unit rows whose signal is in the last coordinates."""
    generator = np.random.default_rng(0)
    return unit(generator.standard_normal((400, 16)) * np.geomspace(0.05, 1, 16))


def judge(rows, candidates, **options):
    defaults = {
        "dims": DIMS,
        "dtypes": (Dtype.FLOAT32,),
        "allowed": ("identity", "pca", "rotation", "banded"),
        "pairs": None,
        "seed": 0,
    }
    return choose(candidates, fit_rows=rows[:300], held_out=rows[300:], **{**defaults, **options})


def slow_overlap(adapted, original, dim, *, first, last=None):
    """Count, row by row from the first, how many of the ten nearest others stay."""
    shares = []
    for row in range(first, last or len(original)):
        found, wanted = (
            [
                other
                for other in np.argsort(
                    -cosine_scores(side[row : row + 1], side, width)[0], kind="stable"
                )
                if other != row
            ][:10]
            for side, width in ((adapted, dim), (original, original.shape[1]))
        )
        shares.append(len(set(found) & set(wanted)) / 10)
    return np.mean(shares)


def test_values_are_those_of_the_slow_way(rows):
    choice = judge(
        rows, [candidate("identity", np.eye(16)), candidate("pca", pca_basis(rows[:300]))]
    )
    for line, matrix in zip(choice.table, (np.eye(16), pca_basis(rows[:300])), strict=True):
        for dim in DIMS:
            value = slow_overlap((rows @ matrix).astype("f4"), rows, dim, first=300)
            assert line.values[Dtype.FLOAT32][dim] == pytest.approx(value, abs=2e-3)
        assert line.values[Dtype.FLOAT32][16] == pytest.approx(1, abs=2e-3)
    assert choice.winner.name == "pca"
    assert choice.below == ()


def test_the_smallest_of_the_largest_shortfalls_wins_not_the_best_mean(rows):
    reverse = np.eye(16)[:, ::-1]
    # Best at 4 dims, useless at 2: the first two coordinates are the worst two.
    order = [0, 1, 15, 14, *range(2, 14)]
    uneven = np.eye(16)[:, order]
    choice = judge(
        rows,
        [
            candidate("identity", np.eye(16)),
            candidate("pca", reverse),
            candidate("rotation", uneven),
        ],
    )
    best = {dim: max(line.values[Dtype.FLOAT32][dim] for line in choice.table) for dim in DIMS}
    for line in choice.table:
        worst = max(best[dim] - line.values[Dtype.FLOAT32][dim] for dim in DIMS)
        assert line.shortfall == pytest.approx(worst)
    assert choice.winner.name == "pca"


def test_of_equals_the_simpler_one_wins(rows):
    twice = [candidate("identity", np.eye(16)), candidate("pca", np.eye(16)[:, ::-1])]
    choice = judge(rows, [*twice, candidate("rotation", np.eye(16)[:, ::-1])])
    assert choice.winner.name == "pca"


@pytest.mark.parametrize(("angle", "winner"), [(0.1, "pca"), (0.3, "rotation")])
def test_a_simpler_map_is_preferred_within_one_standard_error_alone(rows, angle, winner):
    best = np.eye(16)[:, ::-1]
    worse = best.copy()
    # A little of the prefix of 4 dims is turned out of it.
    worse[:, 3] = np.cos(angle) * best[:, 3] + np.sin(angle) * best[:, 8]
    worse[:, 8] = np.cos(angle) * best[:, 8] - np.sin(angle) * best[:, 3]
    few = rows[:330]
    lost = overlaps_of(few, best, dim=4) - overlaps_of(few, worse, dim=4)
    error = lost.std() / np.sqrt(len(lost))
    maps = [candidate("identity", np.eye(16)), candidate("pca", worse)]
    choice = judge(few, [*maps, candidate("rotation", best)], dims=(4, 16))
    assert lost.mean() > TIE
    assert (lost.mean() <= error) == (winner == "pca")
    assert choice.winner.name == winner


def overlaps_of(rows, matrix, *, dim):
    adapted = (rows @ matrix).astype("f4")
    return np.array(
        [slow_overlap(adapted, rows, dim, first=row, last=row + 1) for row in range(300, len(rows))]
    )


def test_only_methods_that_are_allowed_win_and_others_are_in_the_table(rows):
    both = [candidate("identity", np.eye(16)), candidate("pca", np.eye(16))]
    better = candidate("variance", np.eye(16)[:, ::-1])
    choice = judge(rows, [*both, better])
    assert choice.winner.name == "identity"
    assert [line.name for line in choice.table] == ["identity", "pca", "variance"]
    assert judge(rows, [*both, better], allowed=("variance",)).winner is better
    with pytest.raises(
        TrainingError,
        match=r"`allowed` must name the method of a candidate.*\. Fit one of them, or allow another",
    ):
        judge(rows, both, allowed=("rotation",))


def test_widths_where_the_winner_is_worse_than_a_baseline_are_named_with_an_interval(rows):
    choice = judge(
        rows,
        [
            candidate("identity", np.eye(16)),
            candidate("pca", np.eye(16)[:, ::-1]),
            candidate("rotation", np.eye(16)),
        ],
        allowed=("rotation",),
    )
    assert [(cut.dim, cut.baseline) for cut in choice.below] == [(2, "pca"), (4, "pca")]
    for cut in choice.below:
        assert 0 < cut.low < cut.difference < cut.high
    values = {line.name: line.values[Dtype.FLOAT32] for line in choice.table}
    assert choice.below[0].difference == pytest.approx(values["pca"][2] - values["rotation"][2])


@pytest.mark.parametrize(
    "dtype", [Dtype.FLOAT16, Dtype.INT8, Dtype.INT4, Dtype.BINARY, Dtype.ROTATED_BINARY]
)
def test_codes_cost_more_the_fewer_bits_they_have(rows, dtype):
    maps = [candidate("identity", np.eye(16)), candidate("pca", np.eye(16)[:, ::-1])]
    values = judge(rows, maps, dtypes=(dtype,)).table[1].values
    assert set(values) == {Dtype.FLOAT32, dtype}
    lost = values[Dtype.FLOAT32][16] - values[dtype][16]
    low, high = {
        Dtype.FLOAT16: (-0.01, 0.02),
        Dtype.INT8: (-0.01, 0.05),
        Dtype.INT4: (0.01, 0.4),
        Dtype.BINARY: (0.2, 0.9),
        Dtype.ROTATED_BINARY: (0.2, 0.9),
    }[dtype]
    assert low <= lost <= high


def test_a_row_never_finds_itself_and_few_rows_leave_places_empty():
    rows = unit(np.random.default_rng(0).standard_normal((5, 4)))
    found = nearest_others(rows, rows, [2, 4], own=np.arange(5))
    for places in found.values():
        assert places.shape == (5, 10)
        assert not (places == np.arange(5)[:, None]).any()
        assert ((places >= 0).sum(axis=1) == 4).all()
    alone = nearest_others(rows[:2], rows, [4], own=np.array([-2, 1]))[4]
    assert [(places >= 0).sum() for places in alone] == [5, 4]
