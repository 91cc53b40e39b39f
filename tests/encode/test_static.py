import logging
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from nestling.encode import open_encoder, static, token_table
from nestling.encode.static import TOKENIZER_FILE, WEIGHTS_FILE
from nestling.errors import EncoderError
from tests.encode.fakes import make_texts

FOLDER = Path(str(distribution("wordllama").locate_file("wordllama")))
TEXTS = [*make_texts(200), "a", " ", "two\nlines\tand  spaces", "x " * 3000, "\x00\u200b"]


@pytest.fixture(scope="module")
def encoder():
    return open_encoder("static:wordllama")


@pytest.fixture(scope="module")
def wordllama_inference():
    """Wordllama's own inference on the same two files; its loader does not find them offline."""
    root_level, handlers = logging.root.level, list(logging.root.handlers)
    from wordllama.inference import WordLlamaInference

    logging.root.setLevel(root_level)
    logging.root.handlers = handlers
    return WordLlamaInference(
        load_file(FOLDER / WEIGHTS_FILE)["embedding.weight"],
        Tokenizer.from_file(str(FOLDER / TOKENIZER_FILE)),
    )


def test_vectors_equal_those_of_wordllama(encoder, wordllama_inference):
    ours = encoder.encode(TEXTS, role="document")
    theirs = wordllama_inference.embed(TEXTS, norm=True)
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_vectors_equal_a_plain_loop_over_tokens(encoder):
    table = load_file(FOLDER / WEIGHTS_FILE)["embedding.weight"].astype(np.float64)
    tokenizer = Tokenizer.from_file(str(FOLDER / TOKENIZER_FILE))
    for text in TEXTS[:20]:
        mean = np.mean(
            [table[token] for token in tokenizer.encode(text, add_special_tokens=False).ids], axis=0
        )
        (ours,) = encoder.encode([text], role="query")
        np.testing.assert_allclose(ours, mean / np.linalg.norm(mean), atol=1e-6)


def test_rows_are_unit_and_float32_and_do_not_depend_on_their_neighbours(encoder):
    together = encoder.encode(TEXTS, role="document")
    assert together.dtype == np.float32
    assert together.shape == (len(TEXTS), encoder.embed_dim) == (len(TEXTS), 256)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-6)
    alone = np.concatenate([encoder.encode([text], role="query") for text in TEXTS])
    np.testing.assert_array_equal(together, alone)


def test_an_empty_text_is_a_zero_row_and_no_texts_are_no_rows(encoder):
    assert not encoder.encode([""], role="document").any()
    assert encoder.encode([], role="document").shape == (0, 256)
    assert encoder.count_tokens([]) == []


def test_memory_stays_bounded_by_batches_that_do_not_change_the_result(encoder, monkeypatch):
    whole = encoder.encode(TEXTS, role="document")
    monkeypatch.setattr(token_table, "MAX_CHARACTERS", 50)
    np.testing.assert_array_equal(encoder.encode(TEXTS, role="document"), whole)
    assert encoder.count_tokens(["a b", ""]) == [2, 0]


def test_max_tokens_cuts_after_that_many_tokens_and_counting_ignores_it(encoder):
    short = open_encoder("static:wordllama", max_tokens=3)
    long_text = "nested vectors are short and long"
    assert encoder.max_tokens is None
    assert short.max_tokens == 3
    assert short.count_tokens([long_text]) == encoder.count_tokens([long_text])
    assert short.count_tokens([long_text])[0] > 3
    tokenizer = Tokenizer.from_file(str(FOLDER / TOKENIZER_FILE))
    kept = tokenizer.encode(long_text, add_special_tokens=False).ids[:3]
    mean = load_file(FOLDER / WEIGHTS_FILE)["embedding.weight"][kept].astype(np.float32).sum(axis=0)
    np.testing.assert_allclose(
        short.encode([long_text], role="query")[0], mean / np.linalg.norm(mean), atol=1e-6
    )
    assert short.fingerprint.space == encoder.fingerprint.space
    assert short.fingerprint != encoder.fingerprint


def test_nesting_dims_are_the_trained_widths_that_the_table_holds(encoder):
    from wordllama.config import WordLlamaModels

    trained = WordLlamaModels.l2_supercat.available_dims
    assert encoder.nesting_dims == tuple(dim for dim in trained if dim <= 256) == (64, 128, 256)


def test_another_name_is_refused():
    with pytest.raises(EncoderError, match="must be static:wordllama, got 'static:glove'"):
        open_encoder("static:glove")


def test_a_missing_file_is_named(monkeypatch):
    monkeypatch.setattr(static, "WEIGHTS_FILE", "weights/gone.safetensors")
    with pytest.raises(
        EncoderError, match=r"needs .*weights/gone\.safetensors, which is not there"
    ):
        open_encoder("static:wordllama")


def test_images_are_refused(encoder):
    with pytest.raises(EncoderError, match="must be texts, got 2 images"):
        encoder.encode(np.zeros((2, 4, 4), dtype=np.uint8), role="document")
