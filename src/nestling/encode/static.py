"""`static:wordllama`: a table of token vectors, averaged. No network, no PyTorch."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from nestling.core import Fingerprint, Space
from nestling.data.types import Inputs
from nestling.encode.batches import hash_files, texts_only
from nestling.encode.protocol import Role
from nestling.encode.token_table import TokenTable
from nestling.errors import EncoderError

WEIGHTS_FILE = "weights/l2_supercat_256.safetensors"
TOKENIZER_FILE = "tokenizers/l2_supercat_tokenizer_config.json"
NESTING_DIMS = (64, 128, 256)
"""WordLlama's l2_supercat is trained at 64, 128, 256, 512 and 1,024; the wheel carries 256."""


class StaticEncoder:
    """The token table of WordLlama; see `TokenTable`.

    The weights and the tokenizer are read from the folder of the installed `wordllama` package,
    whose own code is not run: importing it configures the root logger, and its loader looks for
    the files where the wheel does not put them. Queries and documents are encoded alike.
    """

    def __init__(self, name: str, *, max_tokens: int | None = None) -> None:
        if name != "wordllama":
            raise EncoderError(
                f"`model` static:... must be static:wordllama, got 'static:{name}'. "
                f"For other models, name st:<path or hub id>."
            )
        weights, tokenizer = wordllama_files()
        self._table = TokenTable(
            load_file(weights)["embedding.weight"].astype(np.float32),
            Tokenizer.from_file(str(tokenizer)),
            max_tokens=max_tokens,
        )
        self._fingerprint = Fingerprint(
            space=Space(
                model="wordllama-l2-supercat-256",
                revision=hash_files([weights, tokenizer]),
                pooling="mean",
                normalization="l2",
                embed_dim=self._table.vectors.shape[1],
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
        return self._table.vectors.shape[1]

    @property
    def nesting_dims(self) -> tuple[int, ...]:
        """Those of the widths WordLlama was trained at that the table holds."""
        return NESTING_DIMS

    @property
    def max_tokens(self) -> int | None:
        """None unless asked for: a mean reads texts of any length."""
        return self._table.max_tokens

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text."""
        return self._table.count_tokens(texts)

    def encode(
        self, inputs: Inputs, *, role: Role, ids: Sequence[str] | None = None
    ) -> Float32[np.ndarray, "inputs {self.embed_dim}"]:
        """Return unit rows; a text without tokens gives a zero row."""
        return self._table.encode(texts_only(inputs, model="static:wordllama"))


def wordllama_files() -> tuple[Path, Path]:
    """Return the weights and the tokenizer of the installed `wordllama` package.

    Raises:
        EncoderError: If it is not installed, or a file is missing.
    """
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
    return weights, tokenizer
