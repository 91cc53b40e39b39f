"""`nestling doctor --adapter --vectors`: an adapter beside new vectors, in a table and in a sentence."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import save_file

from nestling.cli import main
from nestling.core import Dtype, Fingerprint, Space, normalize
from nestling.data.types import Corpus
from nestling.encode import AdaptedEncoder, adapt_vectors, encode_corpus, open_encoder
from nestling.encode.nest import WEIGHTS_FILE, WEIGHTS_KEY
from nestling.encode.nest_manifest import NestManifest
from nestling.encode.vector_map import OrthogonalMap
from nestling.encode.vectors import VectorsEncoder
from nestling.measure.drift import DriftReference
from tests.encode.adapters import save_adapter
from tests.encode.graphs import TABLE, save_tokenizer
from tests.encode.test_nest import stamp

EMBED_DIM = 24
DIMS = (4, 8)
PARENT = Fingerprint(
    space=Space(
        model="parent", revision="1", pooling="mean", normalization="l2", embed_dim=EMBED_DIM
    ),
    encoder={"backend": "handmade"},
)
BASIS = np.linalg.qr(np.random.default_rng(0).standard_normal((EMBED_DIM, EMBED_DIM)))[0]
SHAPE = 1 / np.arange(1, EMBED_DIM + 1)


def draw(num_rows: int, *, seed: int, basis: np.ndarray = BASIS) -> np.ndarray:
    """Vectors as the parent makes them: in its own basis, and of any length."""
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((num_rows, EMBED_DIM)) * SHAPE
    return np.asarray(rows @ basis.T, dtype=np.float32)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return save_fitted(tmp_path / "adapter")


def save_fitted(folder: Path, parent: Fingerprint = PARENT) -> Path:
    """An adapter that turns the parent's vectors back, and what its fit has seen."""
    turn_back = OrthogonalMap(BASIS)
    save_adapter(folder, parent, turn_back)
    seen = turn_back(normalize(draw(600, seed=0)))
    reference = DriftReference.of(seen, DIMS, seed=0).to_json()
    manifest = NestManifest.load(folder)
    training = {**manifest.training, "reference": reference}
    replace(manifest, training=training).save(folder)
    return folder


def save_folder(
    path: Path, rows: np.ndarray, made_by: Fingerprint = PARENT, **changes: Any
) -> Path:
    """A vector folder of these rows."""
    ids = [f"d{row}" for row in range(len(rows))]
    source = path.with_suffix(".npz")
    np.savez(source, vectors=rows, ids=ids)
    corpus = Corpus(doc_ids=ids, texts=ids, source="handmade")
    encode_corpus(VectorsEncoder(str(source), made_by=made_by), corpus, path, **changes)
    return path


def run_doctor(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["doctor", *map(str, arguments)])


def check(adapter: Path, vectors: Path) -> tuple[int, dict[str, Any]]:
    result = run_doctor("--adapter", adapter, "--vectors", vectors, "--json")
    return result.exit_code, json.loads(result.stdout)


def test_fresh_vectors_of_the_same_kind_fit(adapter: Path, tmp_path: Path) -> None:
    fresh = save_folder(tmp_path / "fresh", draw(700, seed=1))
    result = run_doctor("--adapter", adapter, "--vectors", fresh)
    assert result.exit_code == 0, result.output
    assert "700 vectors beside 600 at the fit; neighbours among 500 of each" in result.stdout
    assert result.stdout.endswith(
        "The adapter fits these vectors: no prefix has drifted in energy, neighbours or int8 ranges beyond the bounds.\n"
    )
    assert result.stderr == ""
    exit_code, found = check(adapter, fresh)
    assert exit_code == 0
    assert (found["verdict"], found["reasons"]) == ("fits", {})
    assert (found["num_vectors"], found["is_adapted"]) == (700, False)
    assert [width["dim"] for width in found["widths"]] == [4, 8, 24]


def test_vectors_of_another_kind_call_for_a_refit(adapter: Path, tmp_path: Path) -> None:
    other = save_folder(tmp_path / "other", draw(700, seed=1, basis=np.eye(EMBED_DIM)))
    result = run_doctor("--adapter", adapter, "--vectors", other)
    assert result.exit_code == 1
    assert "energy, neighbours" in result.stdout
    assert "Refit the adapter on vectors like these: the energy of the prefix fell" in result.stdout
    exit_code, found = check(adapter, other)
    assert exit_code == 1
    assert found["verdict"] == "refit"
    assert set(found["reasons"]) >= {"energy", "overlap"}


def test_vectors_that_it_mapped_are_taken_as_they_are(adapter: Path, tmp_path: Path) -> None:
    originals = save_folder(tmp_path / "originals", normalize(draw(700, seed=1)))
    encoder = open_encoder(f"nest:{adapter}")
    assert isinstance(encoder, AdaptedEncoder)
    adapted = adapt_vectors(encoder, originals, tmp_path / "adapted").folder
    _, before = check(adapter, originals)
    exit_code, after = check(adapter, adapted.path)
    assert exit_code == 0
    assert after["is_adapted"] is True
    for old, new in zip(before["widths"], after["widths"], strict=True):
        assert new == pytest.approx(old, abs=1e-6)


def test_a_plain_file_is_taken_at_its_word(adapter: Path, tmp_path: Path) -> None:
    path = tmp_path / "fresh.npy"
    np.save(path, draw(700, seed=1))
    result = run_doctor("--adapter", adapter, "--vectors", path)
    assert result.exit_code == 0
    assert result.stderr == (
        f"{path} does not say which model made it: taken as vectors of 'parent', not mapped yet\n"
    )


def test_float16_folders_are_read_too(adapter: Path, tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "half", draw(700, seed=1), dtype=Dtype.FLOAT16)
    assert check(adapter, folder)[0] == 0


def test_bad_and_repeated_rows_are_left_out_and_said(adapter: Path, tmp_path: Path) -> None:
    rows = np.concatenate([draw(300, seed=1), np.repeat(draw(1, seed=2), 500, axis=0)])
    rows[0], rows[1, 3] = 0.0, np.nan
    path = tmp_path / "rows.npy"
    np.save(path, rows)
    exit_code, found = check(adapter, path)
    assert exit_code == 0
    assert found["num_rows"] == 299
    assert found["notes"][1:] == [
        "left out 2 zero, NaN or infinite rows of 800",
        "left out 499 repeated rows of 800",
    ]


def test_a_row_at_another_length_is_the_same_row(adapter: Path, tmp_path: Path) -> None:
    rows = draw(300, seed=1)
    path = tmp_path / "rows.npy"
    np.save(path, np.concatenate([rows, 2 * rows[:100], rows[:50] / 4]))
    _, found = check(adapter, path)
    assert found["num_rows"] == 300
    assert found["notes"][1:] == ["left out 150 repeated rows of 450"]


def test_few_vectors_are_compared_without_neighbours(adapter: Path, tmp_path: Path) -> None:
    few = save_folder(tmp_path / "few", draw(100, seed=1))
    exit_code, found = check(adapter, few)
    assert exit_code == 0
    assert found["num_overlap_rows"] is None
    assert (
        "Neighbours were not compared" in run_doctor("--adapter", adapter, "--vectors", few).stdout
    )


def test_vectors_of_another_model_are_refused_and_both_are_named(
    adapter: Path, tmp_path: Path
) -> None:
    stranger = replace(PARENT, space=replace(PARENT.space, model="stranger"))
    folder = save_folder(tmp_path / "strange", draw(300, seed=1), stranger)
    result = run_doctor("--adapter", adapter, "--vectors", folder)
    assert result.exit_code == 1
    assert (
        f"the folder {folder} is 'stranger' and what the adapter {adapter} was fitted on is 'parent'"
        in result.stderr
    )


def test_vectors_of_another_adapter_are_refused(adapter: Path, tmp_path: Path) -> None:
    other = replace(PARENT, space=replace(PARENT.space, adapter="pca-0123456789abcdef"))
    folder = save_folder(tmp_path / "mapped", draw(300, seed=1), other)
    result = run_doctor("--adapter", adapter, "--vectors", folder)
    assert result.exit_code == 1
    assert "differ in adapter 'pca-0123456789abcdef' against None" in result.stderr


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.ones((5, 3), np.float32), "as wide as those that {adapter} was fitted on, 24, got 3"),
        (np.ones((5, EMBED_DIM), np.float32), "at least two different rows that are finite"),
        (np.zeros((5, EMBED_DIM), np.float32), "at least two different rows that are finite"),
    ],
)
def test_vectors_that_cannot_be_compared_are_refused(
    rows: np.ndarray, message: str, adapter: Path, tmp_path: Path
) -> None:
    path = tmp_path / "rows.npy"
    np.save(path, rows)
    result = run_doctor("--adapter", adapter, "--vectors", path)
    assert result.exit_code == 1
    assert message.format(adapter=adapter) in result.stderr


def test_an_adapter_that_does_not_know_its_fit_is_refused(tmp_path: Path) -> None:
    save_adapter(tmp_path / "old", PARENT)
    np.save(tmp_path / "rows.npy", draw(300, seed=1))
    result = run_doctor("--adapter", tmp_path / "old", "--vectors", tmp_path / "rows.npy")
    assert result.exit_code == 1
    assert "its training has no `reference`. Fit the adapter again." in result.stderr


def test_a_folder_that_is_no_adapter_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", draw(300, seed=1))
    result = run_doctor("--adapter", tmp_path, "--vectors", tmp_path / "rows.npy")
    assert result.exit_code == 1
    assert "must be a folder with the file nestling.json" in result.stderr


def test_a_model_that_is_no_adapter_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "static"
    save_tokenizer(folder)
    save_file({WEIGHTS_KEY: TABLE}, folder / WEIGHTS_FILE)
    stamp(folder, "static")
    np.save(tmp_path / "rows.npy", draw(300, seed=1))
    result = run_doctor("--adapter", folder, "--vectors", tmp_path / "rows.npy")
    assert result.exit_code == 1
    assert (
        f"`adapter` must be a folder that nestling train adapter wrote, got {folder}, which holds a model of "
        f"another kind. Name an adapter."
    ) in result.stderr


def test_damaged_vectors_are_refused(adapter: Path, tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "fresh", draw(300, seed=1))
    content = bytearray((folder / "vectors.bin").read_bytes())
    content[100] ^= 1
    (folder / "vectors.bin").write_bytes(content)
    result = run_doctor("--adapter", adapter, "--vectors", folder)
    assert result.exit_code == 1
    assert "differ from their checksum" in result.stderr


@pytest.mark.parametrize("option", ["--adapter", "--vectors"])
def test_one_option_without_the_other_is_a_usage_error(option: str) -> None:
    result = run_doctor(option, "somewhere")
    assert result.exit_code == 2
    assert "--adapter and --vectors belong together" in result.stderr
