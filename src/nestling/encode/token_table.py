"""A table of token vectors, averaged: the whole model of a static encoder. No PyTorch."""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32
from scipy.sparse import csr_array
from tokenizers import Tokenizer

from nestling.encode.batches import text_batches
from nestling.encode.normalization import apply_normalization

# Token ids pass through Python lists; about a million tokens at a time keep them under 100 MB.
MAX_TEXTS = 8192
MAX_CHARACTERS = 4_000_000


class TokenTable:
    """Mean of the token vectors of a text, scaled to unit L2 norm; there is no context.

    No special tokens are added, and a text without tokens encodes to zero.

    Attributes:
        vectors: One row per token id.
        max_tokens: Tokens of a text that are read; None reads all.
    """

    def __init__(
        self,
        vectors: Float32[np.ndarray, "tokens embed_dim"],
        tokenizer: Tokenizer,
        *,
        max_tokens: int | None = None,
    ) -> None:
        self.vectors = vectors
        self.max_tokens = max_tokens
        self._tokenizer = tokenizer

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text."""
        return [len(ids) for batch in _bounded(texts) for ids in self._tokenize(batch)]

    def encode(self, texts: Sequence[str]) -> Float32[np.ndarray, "texts embed_dim"]:
        """Return unit rows; a text without tokens gives a zero row."""
        pooled = [self._pool(self._tokenize(batch)) for batch in _bounded(texts)]
        empty = np.empty((0, self.vectors.shape[1]), np.float32)
        return np.concatenate(pooled) if pooled else empty

    def _tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _pool(self, token_ids: list[list[int]]) -> Float32[np.ndarray, "texts embed_dim"]:
        if self.max_tokens is not None:
            token_ids = [ids[: self.max_tokens] for ids in token_ids]
        ends = np.cumsum([0, *map(len, token_ids)])
        flat = np.fromiter(itertools.chain.from_iterable(token_ids), np.int32, count=ends[-1])
        # One sparse product sums the token vectors of all texts without gathering them first. The
        # sum is the mean times the number of tokens, a factor that unit length takes out again.
        bags = csr_array(
            (np.ones(len(flat), np.float32), flat, ends), shape=(len(token_ids), len(self.vectors))
        )
        return apply_normalization(bags @ self.vectors, "l2")


def _bounded(texts: Sequence[str]) -> Sequence[Sequence[str]]:
    return list(text_batches(texts, max_texts=MAX_TEXTS, max_characters=MAX_CHARACTERS))
