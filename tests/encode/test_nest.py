import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from nestling.core.files import seal
from nestling.encode import open_encoder
from nestling.encode.nest import (
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    WEIGHTS_KEY,
    open_unstamped,
)
from nestling.encode.nest_manifest import MANIFEST_FILE, NestKind, NestManifest
from nestling.encode.onnx import OnnxEncoder
from nestling.encode.table_encoder import TableEncoder
from nestling.errors import EncoderError, FormatError, MissingExtraError
from tests.encode.graphs import TABLE, WIDTH, save_image_graph, save_tokenizer

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 3, 4)).astype(np.uint8)


def stamp(folder: Path, kind: NestKind, *, embed_dim: int = WIDTH) -> None:
    """Write the manifest last, with the fingerprint of what is there, as training does."""
    manifest = NestManifest(
        kind=kind, model="handmade", embed_dim=embed_dim, nesting_dims=(2, embed_dim)
    )
    manifest.save(folder)
    opened = open_unstamped(folder, manifest)
    replace(manifest, fingerprint=opened.fingerprint).save(folder)


@pytest.fixture
def static(tmp_path):
    folder = tmp_path / "static"
    save_tokenizer(folder, max_tokens=3)
    save_file({WEIGHTS_KEY: TABLE.astype(np.float16)}, folder / WEIGHTS_FILE)
    stamp(folder, "static")
    return folder


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    save_image_graph(folder, ["rows", 3, 4])
    stamp(folder, "images")
    return folder


def reseal(folder: Path, **changes: object) -> None:
    path = folder / MANIFEST_FILE
    data = json.loads(path.read_text())
    data.pop("checksum")
    path.write_text(json.dumps(seal({**data, **changes})))


def test_a_static_model_opens_and_reads_texts_of_any_length(static):
    encoder = open_encoder(f"nest:{static}")
    assert isinstance(encoder, TableEncoder)
    assert (encoder.embed_dim, encoder.nesting_dims, encoder.max_tokens) == (
        WIDTH,
        (2, WIDTH),
        None,
    )
    # The tokenizer's file cuts and pads to 3 tokens; a mean does neither.
    assert encoder.count_tokens(["a b c d e", "a", ""]) == [5, 1, 0]
    mean = TABLE[4:9].astype(np.float16).astype(np.float64).mean(axis=0)
    (vector, empty) = encoder.encode(["a b c d e", ""], role="query")
    assert vector.dtype == np.float32
    np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-6)
    assert not empty.any()


def test_max_tokens_is_kept_and_leaves_the_space_as_it_is(static):
    whole = open_encoder(f"nest:{static}")
    short = open_encoder(f"nest:{static}", max_tokens=2)
    assert short.max_tokens == 2
    np.testing.assert_array_equal(
        short.encode(["a b c d"], role="query"), whole.encode(["a b"], role="query")
    )
    assert short.count_tokens(["a b c d"]) == [4]
    assert short.fingerprint.space == whole.fingerprint.space
    assert short.fingerprint != whole.fingerprint


def test_a_copy_elsewhere_is_the_same_space(static, tmp_path, monkeypatch):
    shutil.copytree(static, tmp_path / "home" / "copy")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    one, other = open_encoder(f"nest:{static}"), open_encoder("nest:~/copy")
    assert one.fingerprint.space == other.fingerprint.space
    assert one.fingerprint.origin["model"] == f"nest:{static}"


def test_images_are_refused_by_a_model_of_texts(static):
    with pytest.raises(EncoderError, match="must be texts, got 5 images"):
        open_encoder(f"nest:{static}").encode(IMAGES, role="document")


def test_an_image_model_opens_as_the_graph_beside_it(images):
    encoder = open_encoder(f"nest:{images}")
    assert isinstance(encoder, OnnxEncoder)
    assert (encoder.embed_dim, encoder.nesting_dims) == (WIDTH, (2, WIDTH))
    graph = open_encoder(f"onnx:{images}")
    assert encoder.fingerprint.space == graph.fingerprint.space
    np.testing.assert_array_equal(
        encoder.encode(IMAGES, role="document"), graph.encode(IMAGES, role="document")
    )


def test_max_tokens_does_not_fit_an_image_model(images):
    with pytest.raises(EncoderError, match="`max_tokens` does not fit"):
        open_encoder(f"nest:{images}", max_tokens=3)


def test_a_missing_folder_and_a_folder_without_manifest_are_refused(tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(EncoderError, match=r"must be a folder with the file nestling\.json"):
            open_encoder(f"nest:{folder}")


def test_an_unfinished_model_is_refused(static):
    reseal(static, fingerprint=None)
    with pytest.raises(FormatError, match=r"is unfinished\. Train the model again"):
        open_encoder(f"nest:{static}")


def test_a_damaged_manifest_is_refused(static):
    path = static / MANIFEST_FILE
    path.write_text(path.read_text().replace("handmade", "Handmade", 1))
    with pytest.raises(FormatError, match="is damaged: its content does not fit its checksum"):
        open_encoder(f"nest:{static}")
    path.write_text("{")
    with pytest.raises(FormatError, match="is not a JSON file"):
        open_encoder(f"nest:{static}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nest_version": 2}, "newer than 1.* Upgrade nestling"),
        ({"kind": "audio"}, "`kind` in .* got 'audio'"),
        (
            {"embed_dim": 8, "nesting_dims": [2, 8]},
            rf"{WEIGHTS_FILE} must be 8 wide as .*{MANIFEST_FILE} says, got 4",
        ),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(static, changes, message):
    reseal(static, **changes)
    with pytest.raises(FormatError, match=message):
        open_encoder(f"nest:{static}")


@pytest.mark.parametrize("name", [WEIGHTS_FILE, TOKENIZER_FILE])
def test_a_missing_file_is_named(static, name):
    (static / name).unlink()
    with pytest.raises(FormatError, match=rf"needs .*{name}, which is not there. Copy the folder"):
        open_encoder(f"nest:{static}")


@pytest.mark.parametrize("keep", [0, 4, 60])
def test_cut_weights_are_refused(static, keep):
    path = static / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FormatError, match=r"is damaged: .* Train the model again, or copy"):
        open_encoder(f"nest:{static}")


def test_weights_by_another_name_are_refused(static):
    save_file({"weight": TABLE}, static / WEIGHTS_FILE)
    with pytest.raises(FormatError, match=rf"is damaged: .*{WEIGHTS_KEY}"):
        open_encoder(f"nest:{static}")


@pytest.mark.parametrize("content", ["", "{}", "not json", '{"model": 3}'])
def test_a_broken_tokenizer_is_named(static, content):
    (static / TOKENIZER_FILE).write_text(content)
    with pytest.raises(FormatError, match=rf"{TOKENIZER_FILE} is not a tokenizer: "):
        open_encoder(f"nest:{static}")


def test_other_weights_than_those_stamped_are_noticed(static, images):
    save_file({WEIGHTS_KEY: TABLE[::-1].copy()}, static / WEIGHTS_FILE)
    save_image_graph(images, [1, 3, 4])
    for folder in (static, images):
        with pytest.raises(FormatError, match="its weights are not those it was saved with"):
            open_encoder(f"nest:{folder}")


def test_a_lost_graph_is_named(images):
    (images / "model.onnx").unlink()
    with pytest.raises(EncoderError, match=r"with the file model\.onnx, which is not there"):
        open_encoder(f"nest:{images}")


def test_a_transformer_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    NestManifest(kind="sentence-transformers", model="m", embed_dim=8, nesting_dims=(8,)).save(
        tmp_path
    )
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtraError, match=r"nestling\[st\]"):
        open_encoder(f"nest:{tmp_path}")
