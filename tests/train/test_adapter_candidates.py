import numpy as np
import pytest

from nestling.core import Dtype, take_prefix
from nestling.encode.vector_map import deviation_from_orthogonal
from nestling.train.adapter.candidates import (
    METHODS,
    band_boundaries,
    fit_candidates,
)
from nestling.train.adapter.learn import RotationOptions
from nestling.train.adapter.principal_axes import pca_basis

DIMS = (4, 8, 32)


@pytest.fixture(scope="module")
def rows():
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((300, 32)) * np.linspace(0.2, 1, 32)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def candidates(rows):
    told = []
    patch = pytest.MonkeyPatch()
    patch.setattr("nestling.train.adapter.residual.NUM_STEPS", 10)
    options = RotationOptions(num_steps=5, seeds_per_batch=16)
    fitted = fit_candidates(
        rows,
        DIMS,
        methods=METHODS,
        options=options,
        progress=lambda label, done, total: told.append(label),
    )
    by_name = {candidate.name: candidate for candidate in fitted}
    patch.undo()
    return by_name, set(told)


def test_every_kind_is_fitted_in_order_and_named(candidates):
    by_name, told = candidates
    assert list(by_name) == [
        "identity",
        "pca",
        "rotation",
        "rotation within 8",
        "banded 4",
        "banded 8",
        "variance",
        "random",
        "residual",
        "residual (published losses)",
    ]
    assert {"fit rotation", "fit banded 4", "fit residual"} <= told


def test_all_but_the_residual_map_are_orthogonal_and_keep_full_width_scores(candidates, rows):
    scores = rows @ rows.T
    for candidate in candidates[0].values():
        adapted = candidate.map(rows)
        assert candidate.map.is_lossless == (candidate.method != "residual")
        if candidate.map.is_lossless:
            assert deviation_from_orthogonal(candidate.map.weights["rotation"]) < 1e-6
            np.testing.assert_allclose(adapted @ adapted.T, scores, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "like", "dim"),
    [
        ("banded 4", "identity", 4),
        ("banded 8", "identity", 8),
        ("rotation within 8", "pca", 8),
    ],
)
def test_a_prefix_at_a_boundary_keeps_its_scores(candidates, rows, name, like, dim):
    kept, turned = (
        take_prefix(candidates[0][which].map(rows), dim, renormalize=True) for which in (like, name)
    )
    np.testing.assert_allclose(turned @ turned.T, kept @ kept.T, atol=1e-5)


def test_other_prefixes_do_change(candidates, rows):
    before = take_prefix(rows, 4, renormalize=True)
    after = take_prefix(candidates[0]["banded 8"].map(rows), 4, renormalize=True)
    assert np.abs(after @ after.T - before @ before.T).max() > 0.1


def test_pca_moves_most_energy_to_the_front_and_centres_nothing():
    generator = np.random.default_rng(0)
    rows = (generator.standard_normal((500, 6)) * 0.1 + np.array([0, 0, 0, 0, 0, 3])).astype(
        np.float32
    )
    basis = pca_basis(rows)
    energy = np.square(rows @ basis).mean(axis=0)
    assert (np.diff(energy) <= 1e-9).all()
    # The mean is the largest part, and the first coordinate holds it.
    assert abs(basis[5, 0]) > 0.99


def test_pca_completes_the_basis_where_there_are_fewer_rows_than_dims():
    rows = np.random.default_rng(0).standard_normal((5, 40)).astype(np.float32)
    basis = pca_basis(rows)
    assert deviation_from_orthogonal(basis) < 1e-12
    np.testing.assert_allclose(
        np.linalg.norm(rows @ basis[:, :5], axis=1), np.linalg.norm(rows, axis=1), rtol=1e-6
    )


def test_pca_of_many_rows_is_that_of_all_at_once(monkeypatch):
    rows = np.random.default_rng(0).standard_normal((1000, 6)).astype(np.float32)
    rows *= np.linspace(1, 2, 6, dtype=np.float32)
    whole = pca_basis(rows)
    monkeypatch.setattr("nestling.train.adapter.principal_axes.GRAM_ROWS", 300)
    parts = pca_basis(rows)
    np.testing.assert_allclose(np.abs(np.sum(whole * parts, axis=0)), 1, atol=1e-9)


def test_variance_sort_only_changes_the_order(candidates, rows):
    adapted = candidates[0]["variance"].map(rows)
    np.testing.assert_array_equal(np.sort(adapted, axis=1), np.sort(rows, axis=1))
    assert (np.diff(adapted.var(axis=0)) <= 1e-9).all()


def test_the_number_of_banded_fits_is_bounded():
    coded = {"by_coordinate": True}
    assert band_boundaries([8, 32], **coded) == [(8,)]
    assert band_boundaries([4, 8, 32], **coded) == [(4, 8), (4,), (8,)]
    many = band_boundaries([1, 2, 4, 8, 16, 32, 64], **coded)
    assert many == [(1, 2, 4, 8, 16, 32), (1,), (8,), (32,)]


def test_bands_within_which_no_width_sees_a_turn_are_left_out(rows):
    assert band_boundaries([8, 32], by_coordinate=False) == []
    assert band_boundaries([4, 8, 32], by_coordinate=False) == [(4,), (8,)]
    many = band_boundaries([1, 2, 4, 8, 16, 32, 64], by_coordinate=False)
    assert many == [(1,), (8,), (32,)]
    for dtypes, names in (
        ((), ["rotation"]),
        ((Dtype.BINARY,), ["rotation", "rotation within 8", "banded 8"]),
    ):
        options = RotationOptions(num_steps=1, dtypes=dtypes)
        fitted = fit_candidates(rows, (8, 32), methods=["rotation", "banded"], options=options)
        assert [candidate.name for candidate in fitted] == names


def test_kinds_that_are_not_asked_for_are_not_fitted(rows):
    fitted = fit_candidates(
        rows, DIMS, methods=["variance", "pca"], options=RotationOptions(num_steps=1)
    )
    assert [candidate.name for candidate in fitted] == ["pca", "variance"]
