import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from nestling.encode import token_table
from nestling.encode.token_table import TokenTable
from tests.encode.graphs import TABLE, WIDTH, WORDS, save_tokenizer

KNOWN = [word for word in WORDS if not word.startswith("[")]
UNKNOWN = WORDS.index("[UNK]")
texts_of_words = st.lists(
    st.lists(st.sampled_from([*KNOWN, "zzz"]), max_size=7).map(" ".join), max_size=9
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder, special=True)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def ids_of(text: str) -> list[int]:
    return [WORDS.index(word) if word in WORDS else UNKNOWN for word in text.split()]


def plain_loop(texts: list[str], max_tokens: int | None) -> np.ndarray:
    """Average token by token in float64, then scale to unit length."""
    rows = np.zeros((len(texts), WIDTH))
    for row, text in zip(rows, texts, strict=True):
        ids = ids_of(text)[:max_tokens]
        for token in ids:
            row += TABLE[token].astype(np.float64) / len(ids)
        if ids:
            row /= np.sqrt((row**2).sum())
    return rows


@given(texts_of_words, st.none() | st.integers(1, 4))
def test_vectors_equal_a_plain_loop_over_tokens(tokenizer, texts, max_tokens):
    table = TokenTable(TABLE, tokenizer, max_tokens=max_tokens)
    vectors = table.encode(texts)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(texts), WIDTH)
    np.testing.assert_allclose(vectors, plain_loop(texts, max_tokens), atol=2e-6)


@given(texts_of_words, st.integers(1, 3), st.integers(1, 20))
def test_batches_of_any_size_give_the_same_bits(tokenizer, texts, max_texts, max_characters):
    table = TokenTable(TABLE, tokenizer)
    whole, counts = table.encode(texts), table.count_tokens(texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_table, "MAX_TEXTS", max_texts)
        patch.setattr(token_table, "MAX_CHARACTERS", max_characters)
        np.testing.assert_array_equal(table.encode(texts), whole)
        assert table.count_tokens(texts) == counts


@given(texts_of_words)
def test_tokens_are_counted_without_special_ones_and_without_the_limit(tokenizer, texts):
    table = TokenTable(TABLE, tokenizer, max_tokens=1)
    assert table.count_tokens(texts) == [len(ids_of(text)) for text in texts]


def test_a_text_without_tokens_is_a_zero_row_between_its_neighbours(tokenizer):
    vectors = TokenTable(TABLE, tokenizer).encode(["a", "", " ", "b"])
    assert not vectors[1:3].any()
    np.testing.assert_allclose(np.linalg.norm(vectors[[0, 3]], axis=1), 1, atol=1e-6)
