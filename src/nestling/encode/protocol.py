"""The seam between texts or images and vectors."""

from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from nestling.core import Fingerprint
from nestling.data.types import Inputs

Role = Literal["query", "document"]
"""Many models put another prompt before a query than before a document."""


@runtime_checkable
class Encoder(Protocol):
    """Anything that turns inputs into full-width embeddings; no inheritance needed.

    The rule per model family that must act on the full width before any cut (e.g. a layer norm)
    is already applied to what `encode` returns, so that a caller may cut and renormalise.
    """

    @property
    def fingerprint(self) -> Fingerprint:
        """What made the vectors, and what they may be compared with."""

    @property
    def embed_dim(self) -> int:
        """Full width."""

    @property
    def nesting_dims(self) -> tuple[int, ...] | None:
        """The widths the model was trained to be cut at, or None if it does not say."""

    @property
    def max_tokens(self) -> int | None:
        """Tokens of an input that are read, special tokens included; None if there is no limit."""

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the length of each text in the encoder's tokens, before any truncation.

        An encoder without a tokenizer of its own estimates and says so in its fingerprint.
        """

    def encode(
        self, inputs: Inputs, *, role: Role, ids: Sequence[str] | None = None
    ) -> Float32[np.ndarray, "inputs embed_dim"]:
        """Return one full-width embedding per input, in order.

        The result for an input does not depend on which inputs stand beside it beyond float
        rounding; the same list gives the same bits.

        Args:
            inputs: Texts or images.
            role: Which prompt to use.
            ids: One id per input, for encoders that look vectors up rather than make them.

        Raises:
            EncoderError: If the model or endpoint fails.
        """
