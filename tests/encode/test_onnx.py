import json
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from nestling.core import normalize
from nestling.encode import embed, open_encoder
from nestling.errors import DimensionError, EncoderError, FormatError
from tests.encode.graphs import (
    IMAGE_BIAS,
    IMAGE_WEIGHTS,
    TABLE,
    TYPES,
    WIDTH,
    WORDS,
    save_bag_graph,
    save_graph,
    save_image_graph,
    save_token_graph,
    save_tokenizer,
)

GENERATOR = np.random.default_rng(3)
TEXTS = [" ".join(GENERATOR.choice(["a", "b", "c", "d", "e", "zzz"], n % 9)) for n in range(80)]


def tokens(text: str, *, special: bool = True) -> list[int]:
    inner = [WORDS.index(word) if word in WORDS else 3 for word in text.split()]
    return [1, *inner, 2] if special else inner


def settings(folder: Path, **values: object) -> None:
    (folder / "nestling.json").write_text(json.dumps(values))


@pytest.mark.parametrize("integers", [TensorProto.INT64, TensorProto.INT32])
def test_token_vectors_are_averaged_over_the_mask(integers, tmp_path):
    save_token_graph(tmp_path / "bert", integers=integers)
    encoder = open_encoder(f"onnx:{tmp_path}/bert")
    made = encoder.encode(TEXTS, role="document")
    means = np.array([(TABLE[tokens(text)] + TYPES[0]).mean(axis=0) for text in TEXTS])
    np.testing.assert_allclose(made, normalize(means), atol=1e-6)
    assert made.dtype == np.float32
    assert encoder.embed_dim == WIDTH
    assert encoder.max_tokens is None
    assert encoder.nesting_dims is None
    assert encoder.fingerprint.space.model == "bert"
    assert encoder.fingerprint.space.pooling == "mean"


def test_a_row_does_not_depend_on_its_neighbours(tmp_path):
    save_token_graph(tmp_path)
    encoder = open_encoder(f"onnx:{tmp_path}")
    alone = np.concatenate([encoder.encode([text], role="query") for text in TEXTS])
    np.testing.assert_allclose(encoder.encode(TEXTS, role="query"), alone, atol=1e-6)


def test_a_graph_without_a_mask_is_never_shown_padding(tmp_path):
    save_bag_graph(tmp_path)
    encoder = open_encoder(f"onnx:{tmp_path}")
    made = encoder.encode(TEXTS, role="document")
    for text, row in zip(TEXTS, made, strict=True):
        ids = tokens(text, special=False)
        expected = normalize(TABLE[ids].mean(axis=0)) if ids else np.zeros(WIDTH)
        np.testing.assert_allclose(row, expected, atol=1e-6)
    assert TEXTS[0] == ""
    assert encoder.encode([], role="document").shape == (0, WIDTH)


def test_the_first_token_is_taken_if_nestling_json_says_so(tmp_path):
    save_token_graph(tmp_path)
    settings(tmp_path, pooling="cls")
    encoder = open_encoder(f"onnx:{tmp_path}")
    (made,) = encoder.encode(["a b"], role="query")
    np.testing.assert_allclose(made, normalize(TABLE[1] + TYPES[0]), atol=1e-6)
    assert encoder.fingerprint.space.pooling == "cls"


def test_nestling_json_names_prompts_rule_limit_dims_and_model(tmp_path):
    save_token_graph(tmp_path)
    settings(
        tmp_path,
        model="tiny",
        prompts={"query": "query ", "document": "passage "},
        normalization="layer_norm+l2",
        max_tokens=5,
        nesting_dims=[1, 2],
        training={"left": "alone"},
    )
    encoder = open_encoder(f"onnx:{tmp_path}")
    (query,) = encoder.encode(["a b c d"], role="query")
    mean = TABLE[tokens("query a b")].mean(axis=0) + TYPES[0]
    expected = normalize((mean - mean.mean()) / np.sqrt(mean.var() + 1e-5))
    np.testing.assert_allclose(query, expected, atol=1e-6)
    assert encoder.count_tokens(["a b c d", ""]) == [7, 3]
    assert (encoder.max_tokens, encoder.nesting_dims) == (5, (1, 2, 4))
    assert encoder.fingerprint.space.model == "tiny"
    assert encoder.fingerprint.encoder["query_prompt"] == "query "
    document = encoder.encode(["a b c d"], role="document")
    assert np.abs(document[0] - query).max() > 0.01
    assert open_encoder(f"onnx:{tmp_path}", max_tokens=4).max_tokens == 4


def test_the_tokenizers_own_limit_holds_and_its_padding_does_not(tmp_path):
    save_bag_graph(tmp_path)
    save_tokenizer(tmp_path, special=False, max_tokens=3)
    encoder = open_encoder(f"onnx:{tmp_path}")
    assert encoder.max_tokens == 3
    assert encoder.count_tokens(["a", "a b c d e"]) == [1, 5]
    np.testing.assert_allclose(
        encoder.encode(["a", "a b c d e"], role="query"),
        normalize(np.array([TABLE[4], TABLE[4:7].mean(axis=0)])),
        atol=1e-6,
    )


@pytest.mark.parametrize(
    "shape",
    [["rows", 3, 4], ["rows", 1, 3, 4], ["rows", 3, 3, 4], [1, 3, 4]],
)  # fmt: skip
def test_grey_images_are_scaled_to_one_and_read(shape, tmp_path):
    save_image_graph(tmp_path, shape)
    images = np.random.default_rng(4).integers(0, 256, (70, 3, 4), dtype=np.uint8)
    encoder = open_encoder(f"onnx:{tmp_path}")
    expected = normalize(
        (images / 255).astype(np.float32).reshape(70, 12) @ IMAGE_WEIGHTS + IMAGE_BIAS
    )
    np.testing.assert_allclose(encoder.encode(images, role="document"), expected, atol=1e-5)
    assert encoder.encode(images[:0], role="document").shape == (0, WIDTH)
    assert encoder.max_tokens is None
    kept = embed(encoder, images, role="query", cache=tmp_path / "cache")
    np.testing.assert_allclose(kept.vectors, expected, atol=1e-5)


def test_images_of_another_size_and_texts_are_refused_by_an_image_graph(tmp_path):
    save_image_graph(tmp_path, ["rows", 3, 4])
    encoder = open_encoder(f"onnx:{tmp_path}")
    with pytest.raises(EncoderError, match=r"must be \[3, 4\] pixels, got \[4, 4\]\. Resize"):
        encoder.encode(np.zeros((2, 4, 4), dtype=np.uint8), role="document")
    with pytest.raises(EncoderError, match="must be images, got 2 texts"):
        encoder.encode(["a", "b"], role="document")
    with pytest.raises(EncoderError, match="reads images and has no tokens to count"):
        encoder.count_tokens(["a"])
    with pytest.raises(EncoderError, match=r"`max_tokens` does not fit onnx:.*which reads images"):
        open_encoder(f"onnx:{tmp_path}", max_tokens=4)


def test_images_are_refused_by_a_text_graph(tmp_path):
    save_bag_graph(tmp_path)
    with pytest.raises(EncoderError, match="must be texts, got 2 images"):
        open_encoder(f"onnx:{tmp_path}").encode(np.zeros((2, 3, 4), np.uint8), role="query")


def test_a_graph_that_fails_is_named(tmp_path):
    save_image_graph(tmp_path, ["rows", 1, "height", "width"])
    with pytest.raises(EncoderError, match=r"^onnx:.* failed: .* Check the graph\.$"):
        open_encoder(f"onnx:{tmp_path}")


def identity_graph(folder: Path, name: str, kind: int, shape: list[str | int]) -> None:
    node = helper.make_node("Identity", [name], ["out"])
    save_graph(folder, [node], [(name, kind, shape)], [("out", kind, shape)], {})


@pytest.mark.parametrize(
    ("name", "kind", "shape", "message"),
    [
        (
            "sound",
            TensorProto.FLOAT,
            ["rows", 100],
            "must read token ids .* or one float image of 3",
        ),
        ("image", TensorProto.UINT8, ["rows", 3, 4], "must read token ids"),
        ("image", TensorProto.FLOAT, ["rows", 2, 3, 4], r"1 or 3 channels first, got .*2, 3, 4"),
        ("input_ids", TensorProto.FLOAT, ["rows", "tokens"], "must be integer input_ids"),
    ],
)
def test_a_graph_of_another_kind_is_refused(name, kind, shape, message, tmp_path):
    identity_graph(tmp_path, name, kind, shape)
    with pytest.raises(EncoderError, match=message):
        open_encoder(f"onnx:{tmp_path}")


def test_an_output_of_other_axes_is_refused(tmp_path):
    identity_graph(tmp_path, "image", TensorProto.FLOAT, ["rows", 1, 3, 4])
    with pytest.raises(EncoderError, match=r"`out` of onnx:.* must have 2 axes .* got 4"):
        open_encoder(f"onnx:{tmp_path}")


def test_a_text_graph_without_its_tokenizer_is_refused(tmp_path):
    save_bag_graph(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(EncoderError, match=r"needs .*tokenizer\.json, which is not there"):
        open_encoder(f"onnx:{tmp_path}")


def test_a_tokenizer_that_is_none_is_refused(tmp_path):
    save_token_graph(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(
        EncoderError, match=r"tokenizer\.json is not the file of a tokenizer: Model"
    ):
        open_encoder(f"onnx:{tmp_path}")


def test_a_folder_without_a_graph_and_a_file_that_is_none_are_refused(tmp_path, capfd):
    with pytest.raises(EncoderError, match=r"a folder with the file model\.onnx, which is not"):
        open_encoder(f"onnx:{tmp_path}")
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(EncoderError, match=r"cannot be opened: .* Export the graph again"):
        open_encoder(f"onnx:{tmp_path}")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"pooling": "max"}, FormatError, "`pooling` in .* must be one of mean, cls, got 'max'"),
        ({"normalization": "z"}, FormatError, "`normalization` in .*nestling.json must be one of"),
        ({"nesting_dims": [2, 8]}, DimensionError, r"must lie in \[1, 4\]"),
        ({"nesting_dims": 4}, FormatError, "must be a list of whole numbers, got 4"),
        ({"nesting_dims": ["4"]}, FormatError, "must be a list of whole numbers"),
        ({"prompts": "query: "}, FormatError, "`prompts` in .* must be an object of texts"),
        ({"prompts": {"query": 1}}, FormatError, "must be an object of texts, got {'query': 1}"),
        ({"max_tokens": 0}, FormatError, "`max_tokens` in .* must be a whole number from 1 up"),
        ({"max_tokens": "8"}, FormatError, "must be a whole number from 1 up, got '8'"),
        ([1], FormatError, "must hold a JSON object, got list"),
    ],
)
def test_settings_that_are_not_allowed_are_named(values, error, message, tmp_path):
    save_bag_graph(tmp_path)
    (tmp_path / "nestling.json").write_text(json.dumps(values))
    with pytest.raises(error, match=message):
        open_encoder(f"onnx:{tmp_path}")


def test_the_revision_follows_the_files_and_not_the_folder(tmp_path):
    for name in ("one", "two"):
        save_bag_graph(tmp_path / name)
    save_bag_graph(tmp_path / "three", special=True)
    one, two, three = (
        open_encoder(f"onnx:{tmp_path}/{name}").fingerprint.space.revision
        for name in ("one", "two", "three")
    )
    assert one == two != three
