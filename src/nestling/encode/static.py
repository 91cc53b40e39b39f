"""`static:wordllama`: a table of token vectors, averaged. No network, no PyTorch."""

import itertools
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from safetensors.numpy import load_file
from scipy.sparse import csr_array
from tokenizers import Tokenizer

from nestling.core import Fingerprint, Space
from nestling.data.types import Inputs
from nestling.encode.batches import hash_files, text_batches, texts_only
from nestling.encode.normalization import apply_normalization
from nestling.encode.protocol import Role
from nestling.errors import EncoderError

WEIGHTS_FILE = "weights/l2_supercat_256.safetensors"
TOKENIZER_FILE = "tokenizers/l2_supercat_tokenizer_config.json"
NESTING_DIMS = (64, 128, 256)
"""WordLlama's l2_supercat is trained at 64, 128, 256, 512 and 1,024; the wheel carries 256."""

# Token ids pass through Python lists; about a million tokens at a time keep them under 100 MB.
MAX_TEXTS = 8192
MAX_CHARACTERS = 4_000_000


class StaticEncoder:
    """Mean of the token vectors of a text, scaled to unit L2 norm; there is no context.

    The weights and the tokenizer are read from the folder of the installed `wordllama` package,
    whose own code is not run: importing it configures the root logger, and its loader looks for
    the files where the wheel does not put them. No special tokens are added, and a text without
    tokens encodes to zero. Queries and documents are encoded alike.
    """

    def __init__(self, name: str, *, max_tokens: int | None = None) -> None:
        if name != "wordllama":
            raise EncoderError(
                f"`model` static:... must be static:wordllama, got 'static:{name}'. "
                f"For other models, name st:<path or hub id>."
            )
        spec = find_spec("wordllama")
        if spec is None or spec.origin is None:
            raise EncoderError(
                "static:wordllama reads the files of the package `wordllama`, which is not installed. "
                "Install it with: pip install wordllama"
            )
        folder = Path(spec.origin).parent
        weights, tokenizer = folder / WEIGHTS_FILE, folder / TOKENIZER_FILE
        for path in (weights, tokenizer):
            if not path.is_file():
                raise EncoderError(
                    f"static:wordllama needs {path}, which is not there. "
                    f"Install the package again with: pip install --force-reinstall wordllama"
                )
        self._table = load_file(weights)["embedding.weight"].astype(np.float32)
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._max_tokens = max_tokens
        self._fingerprint = Fingerprint(
            space=Space(
                model="wordllama-l2-supercat-256",
                revision=hash_files([weights, tokenizer]),
                pooling="mean",
                normalization="l2",
                embed_dim=self._table.shape[1],
            ),
            encoder={"backend": "static", "max_tokens": str(max_tokens)},
            origin={"model": "static:wordllama"},
        )

    @property
    def fingerprint(self) -> Fingerprint:
        """The table, by the hash of its file."""
        return self._fingerprint

    @property
    def embed_dim(self) -> int:
        """256."""
        return self._table.shape[1]

    @property
    def nesting_dims(self) -> tuple[int, ...]:
        """Those of the widths WordLlama was trained at that the table holds."""
        return NESTING_DIMS

    @property
    def max_tokens(self) -> int | None:
        """None unless asked for: a mean reads texts of any length."""
        return self._max_tokens

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text."""
        return [len(ids) for batch in _bounded(texts) for ids in self._tokenize(batch)]

    def encode(
        self, inputs: Inputs, *, role: Role, ids: Sequence[str] | None = None
    ) -> Float32[np.ndarray, "inputs {self.embed_dim}"]:
        """Return unit rows; a text without tokens gives a zero row."""
        texts = texts_only(inputs, model="static:wordllama")
        pooled = [self._pool(self._tokenize(batch)) for batch in _bounded(texts)]
        return np.concatenate(pooled) if pooled else np.empty((0, self.embed_dim), np.float32)

    def _tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _pool(self, token_ids: list[list[int]]) -> Float32[np.ndarray, "texts embed_dim"]:
        if self._max_tokens is not None:
            token_ids = [ids[: self._max_tokens] for ids in token_ids]
        ends = np.cumsum([0, *map(len, token_ids)])
        flat = np.fromiter(itertools.chain.from_iterable(token_ids), np.int32, count=ends[-1])
        # One sparse product sums the token vectors of all texts without gathering them first. The
        # sum is the mean times the number of tokens, a factor that unit length takes out again.
        bags = csr_array(
            (np.ones(len(flat), np.float32), flat, ends), shape=(len(token_ids), len(self._table))
        )
        return apply_normalization(bags @ self._table, "l2")


def _bounded(texts: Sequence[str]) -> Sequence[Sequence[str]]:
    return list(text_batches(texts, max_texts=MAX_TEXTS, max_characters=MAX_CHARACTERS))
