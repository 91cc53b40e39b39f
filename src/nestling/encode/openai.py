"""`openai:<model>`: any endpoint that speaks OpenAI's embeddings API."""

import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from nestling.core import Fingerprint, Space
from nestling.data.types import Inputs
from nestling.encode.batches import text_batches, texts_only
from nestling.encode.endpoint import EmbeddingEndpoint, RetryPolicy
from nestling.encode.normalization import apply_normalization, normalization_of
from nestling.encode.protocol import Role
from nestling.errors import EncoderError

DEFAULT_BASE_URL = "https://api.openai.com/v1"
BYTES_PER_TOKEN = 4
"""The vendor's rule of thumb for English; the model's own tokenizer is not at hand."""

# OpenAI allows 2,048 texts and 300,000 tokens in one request; smaller servers much less.
MAX_TEXTS = 128
MAX_CHARACTERS = 200_000


class OpenAIEncoder:
    """Vectors from an API, always at the full width the model has.

    The key is read from OPENAI_API_KEY and never shown. The width is found by one request on
    opening. Empty texts, which the API refuses, are not sent and give zero rows. Queries and
    documents are sent alike. Tokens are estimated as UTF-8 bytes / 4, and `max_tokens`, if given,
    cuts texts by that estimate; otherwise the server decides what is too long.
    """

    def __init__(
        self,
        name: str,
        *,
        max_tokens: int | None = None,
        base_url: str = DEFAULT_BASE_URL,
        retries: RetryPolicy | None = None,
    ) -> None:
        api_key = os.environ.get("OPENAI_API_KEY", "").strip() or None
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise EncoderError(
                "the environment variable OPENAI_API_KEY must be printable ASCII. Copy the key again."
            )
        if api_key is None and base_url == DEFAULT_BASE_URL:
            raise EncoderError(
                f"openai:{name} needs a key in the environment variable OPENAI_API_KEY, which is not set. "
                f"For a server of your own, name it with `base_url`."
            )
        self._name = name
        self._max_tokens = max_tokens
        self._endpoint = EmbeddingEndpoint(
            name, base_url=base_url, api_key=api_key, retries=retries or RetryPolicy()
        )
        self._embed_dim = self._endpoint.embed(["How wide is a vector?"]).shape[1]
        self._normalization = normalization_of(name)
        self._fingerprint = Fingerprint(
            space=Space(
                model=name,
                revision="as served",
                pooling="as served",
                normalization=self._normalization,
                embed_dim=self._embed_dim,
            ),
            encoder={
                "backend": "openai",
                "endpoint": self._endpoint.address,
                "max_tokens": str(max_tokens),
                "tokens": f"estimated as UTF-8 bytes / {BYTES_PER_TOKEN}",
            },
            origin={"model": f"openai:{name}", "base_url": self._endpoint.base_url},
        )

    @property
    def fingerprint(self) -> Fingerprint:
        """The model by name: an API does not tell its revision."""
        return self._fingerprint

    @property
    def embed_dim(self) -> int:
        """What the endpoint returned on opening."""
        return self._embed_dim

    @property
    def nesting_dims(self) -> None:
        """None: the API does not say."""
        return None

    @property
    def max_tokens(self) -> int | None:
        """None unless asked for: the API does not say."""
        return self._max_tokens

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the estimated number of tokens of each text."""
        return [-(-len(text.encode()) // BYTES_PER_TOKEN) for text in texts]

    def encode(
        self, inputs: Inputs, *, role: Role, ids: Sequence[str] | None = None
    ) -> Float32[np.ndarray, "inputs {self.embed_dim}"]:
        """Return unit rows; an empty text gives a zero row.

        Raises:
            EncoderError: If the endpoint fails for good, or answers with the wrong count or width.
        """
        texts = [self._cut(text) for text in texts_only(inputs, model=f"openai:{self._name}")]
        embeddings = np.zeros((len(texts), self._embed_dim), dtype=np.float32)
        sent = [place for place, text in enumerate(texts) if text]
        start = 0
        for batch in text_batches(
            [texts[place] for place in sent], max_texts=MAX_TEXTS, max_characters=MAX_CHARACTERS
        ):
            vectors = self._endpoint.embed(batch)
            if vectors.shape[1] != self._embed_dim:
                raise EncoderError(
                    f"{self._endpoint.address} must keep one width, got {vectors.shape[1]} after "
                    f"{self._embed_dim} on opening. Check which model it serves."
                )
            embeddings[sent[start : start + len(batch)]] = vectors
            start += len(batch)
        return apply_normalization(embeddings, self._normalization)

    def _cut(self, text: str) -> str:
        if self._max_tokens is None:
            return text
        return text.encode()[: self._max_tokens * BYTES_PER_TOKEN].decode(errors="ignore")
