import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from nestling.core import normalize
from nestling.encode.vector_map import (
    MAP_FILE,
    ORTHOGONALITY,
    PIECE_ROWS,
    OrthogonalMap,
    ResidualMap,
    VectorMap,
    deviation_from_orthogonal,
    load_map,
    save_map,
)
from nestling.errors import FormatError, VectorError, WriteError
from tests.encode.adapters import residual, rotation

BOTH = pytest.mark.parametrize("make", [rotation, residual])


def unit_rows(num_rows: int, dim: int, *, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return normalize(generator.standard_normal((num_rows, dim))).astype(np.float32)


def adapt_one(row: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    """The slow truth about a residual map, a coordinate at a time."""
    hidden = [
        max(0.0, sum(float(x) * float(w) for x, w in zip(row, column, strict=True)) + float(bias))
        for column, bias in zip(weights["inner"].T, weights["inner_bias"], strict=True)
    ]
    moved = [
        float(x) + sum(h * float(w) for h, w in zip(hidden, column, strict=True)) + float(bias)
        for x, column, bias in zip(row, weights["outer"].T, weights["outer_bias"], strict=True)
    ]
    return np.array(moved) / np.sqrt(sum(x * x for x in moved))


@given(st.integers(1, 40), st.integers(0, 30), st.integers(0, 3))
def test_a_rotation_is_a_product_that_keeps_every_cosine(dim, num_rows, seed):
    turn, rows = rotation(dim, seed=seed), unit_rows(num_rows, dim)
    turned = turn(rows)
    assert turned.dtype == np.float32
    np.testing.assert_allclose(turned, rows.astype(float) @ turn.matrix.astype(float), atol=1e-6)
    np.testing.assert_allclose(turned @ turned.T, rows @ rows.T, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(turned, axis=1), 1.0, atol=1e-6)
    assert turn.is_lossless
    assert turn.embed_dim == dim


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 5))
def test_a_residual_map_equals_the_slow_truth(dim, hidden, num_rows):
    adapt, rows = residual(dim, hidden=hidden), unit_rows(num_rows, dim)
    adapted = adapt(rows)
    assert adapted.dtype == np.float32
    for row, made in zip(rows, adapted, strict=True):
        np.testing.assert_allclose(made, adapt_one(row, adapt.weights), atol=1e-5)
    assert not adapt.is_lossless
    assert adapt.embed_dim == dim


@BOTH
@settings(max_examples=10)
@given(st.lists(st.integers(0, 2 * PIECE_ROWS), max_size=4), st.integers(1, 3 * PIECE_ROWS))
def test_no_bit_of_a_row_depends_on_the_rows_beside_it(make, cuts, num_rows):
    vector_map, rows = make(19), unit_rows(num_rows, 19)
    whole = vector_map(rows)
    cut = np.concatenate([vector_map(piece) for piece in np.split(rows, sorted(cuts))])
    np.testing.assert_array_equal(cut, whole)
    np.testing.assert_array_equal(vector_map(rows[::-1])[::-1], whole)


@BOTH
def test_rows_that_cannot_be_compared_are_still_found_by_a_check_afterwards(make):
    rows = unit_rows(6, 8)
    rows[1] = 0.0
    rows[3, 2], rows[4, 7] = np.nan, np.inf
    mapped = make(8)(rows)
    assert not mapped[1].any()
    assert not np.isfinite(mapped[3]).all()
    assert not np.isfinite(mapped[4]).all()
    assert np.isfinite(mapped[[0, 2, 5]]).all()
    np.testing.assert_array_equal(make(8)(rows[[0, 2, 5]]), mapped[[0, 2, 5]])


@BOTH
def test_what_is_loaded_is_what_was_saved(make, tmp_path):
    vector_map, rows = make(12), unit_rows(5, 12)
    save_map(tmp_path, vector_map)
    loaded = load_map(tmp_path)
    assert isinstance(loaded, VectorMap)
    assert type(loaded) is type(vector_map)
    np.testing.assert_array_equal(loaded(rows), vector_map(rows))
    assert [path.name for path in tmp_path.iterdir()] == [MAP_FILE]


def test_the_same_map_is_saved_as_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        save_map(tmp_path / name, rotation(9))
    assert (tmp_path / "one" / MAP_FILE).read_bytes() == (tmp_path / "two" / MAP_FILE).read_bytes()


@pytest.mark.parametrize("embed_dim", [2, 256, 1024])
def test_float32_leaves_a_rotation_well_within_the_tolerance(embed_dim):
    assert deviation_from_orthogonal(rotation(embed_dim).matrix) < ORTHOGONALITY / 5


def skewed(embed_dim: int = 4) -> np.ndarray:
    matrix = rotation(embed_dim).matrix.copy()
    matrix[0, 0] += 1e-4
    return matrix


@pytest.mark.parametrize(
    ("matrix", "deviation"),
    [
        (skewed(), r"got [0-9.e-]+\. Fit"),
        (2 * np.eye(3, dtype=np.float32), "got 3"),
        (np.eye(3, 4, dtype=np.float32), "got inf"),
        (np.full((2, 2), np.nan, np.float32), "got inf"),
        (np.empty((0, 0), np.float32), "got inf"),
    ],
)
def test_what_is_not_a_rotation_is_refused(matrix, deviation, tmp_path):
    with pytest.raises(VectorError, match=rf"`matrix` must be orthogonal: .* {deviation}"):
        OrthogonalMap(matrix)
    save_file({"rotation": matrix}, tmp_path / MAP_FILE)
    with pytest.raises(FormatError, match=rf"{MAP_FILE} is not a map that .* must be orthogonal"):
        load_map(tmp_path)


@pytest.mark.parametrize(
    ("name", "shape"), [("inner_bias", (4,)), ("outer", (4, 6)), ("outer_bias", (5,))]
)
def test_layers_that_do_not_fit_together_are_refused(name, shape, tmp_path):
    weights = {**residual(6).weights, name: np.zeros(shape, np.float32)}
    with pytest.raises(VectorError, match=r"must fit together, got the shapes \(6, 5\), "):
        ResidualMap(**weights)
    save_file(weights, tmp_path / MAP_FILE)
    with pytest.raises(FormatError, match="is not a map that can be applied: both layers"):
        load_map(tmp_path)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    weights = dict(residual(6).weights)
    weights["outer"] = np.full_like(weights["outer"], np.nan)
    save_file(weights, tmp_path / MAP_FILE)
    with pytest.raises(FormatError, match="weights of a residual map must be finite"):
        load_map(tmp_path)


@pytest.mark.parametrize(
    ("weights", "got"),
    [
        ({"matrix": np.eye(3, dtype=np.float32)}, r"matrix float32\(3, 3\)"),
        ({"rotation": np.eye(3)}, r"rotation float64\(3, 3\)"),
        ({"rotation": np.ones(3, np.float32)}, r"rotation float32\(3,\)"),
        ({}, "nothing"),
    ],
)
def test_a_file_of_anything_else_is_refused_with_what_is_in_it(weights, got, tmp_path):
    save_file(weights, tmp_path / MAP_FILE)
    with pytest.raises(FormatError, match=rf"must hold a rotation or a residual map .* got {got}"):
        load_map(tmp_path)


def cut_short(content: bytes) -> bytes:
    return content[:-7]


def renamed_type(content: bytes) -> bytes:
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header["rotation"]["dtype"] = "F99"
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


@pytest.mark.parametrize("break_it", [cut_short, renamed_type, lambda content: b""])
def test_a_broken_file_is_named(break_it, tmp_path):
    save_map(tmp_path, rotation(4))
    path = tmp_path / MAP_FILE
    path.write_bytes(break_it(path.read_bytes()))
    with pytest.raises(FormatError, match=rf"{MAP_FILE} is damaged: .* Copy it again"):
        load_map(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FormatError, match=rf"no file .*{MAP_FILE}\. Copy the folder again"):
        load_map(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="a file is where a folder should be"):
        save_map(tmp_path / "file", rotation(3))
