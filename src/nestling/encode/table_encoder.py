"""A token table as an `Encoder`, whether it lies in a folder or is still being trained."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from nestling.core import Fingerprint
from nestling.data.types import Inputs
from nestling.encode.batches import texts_only
from nestling.encode.protocol import Role
from nestling.encode.token_table import TokenTable


class TableEncoder:
    """Means of token vectors; queries and documents are encoded alike."""

    def __init__(
        self,
        table: TokenTable,
        *,
        fingerprint: Fingerprint,
        nesting_dims: tuple[int, ...],
        name: str,
    ) -> None:
        """Take the table, what it says about itself, and what to call it in messages."""
        self._table = table
        self._fingerprint = fingerprint
        self._nesting_dims = nesting_dims
        self._name = name

    @property
    def fingerprint(self) -> Fingerprint:
        """As given."""
        return self._fingerprint

    @property
    def embed_dim(self) -> int:
        """Full width."""
        return self._table.vectors.shape[1]

    @property
    def nesting_dims(self) -> tuple[int, ...]:
        """The widths it was trained at."""
        return self._nesting_dims

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
        return self._table.encode(texts_only(inputs, model=self._name))
