"""An encoder whose vectors are mapped by a fitted adapter."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import final

import numpy as np
from jaxtyping import Float32

from nestling.core import Fingerprint, check_same_space
from nestling.data.types import Inputs
from nestling.encode.nest_manifest import MANIFEST_FILE, NestManifest
from nestling.encode.open import reopen_encoder, token_limit_of
from nestling.encode.protocol import Encoder, Role
from nestling.encode.vector_map import VectorMap
from nestling.errors import EncoderError


def name_adapter(parent: Fingerprint, *, method: str, revision: str) -> str:
    """Return what the space of adapted vectors calls its map.

    Args:
        parent: What the map is applied to; an adapter that it has already is named first.
        method: How the map was fitted, e.g. "rotation".
        revision: Hash of the file that holds it.
    """
    name = f"{method}-{revision[:16]}"
    before = parent.space.adapter
    return name if before is None else f"{before}+{name}"


@final
class AdaptedEncoder:
    """Vectors of another encoder, its parent, mapped.

    The parent is opened when the first text or image is to be encoded: vectors that exist already
    are mapped without it. Only a `base_url` or `max_tokens` of the caller's own opens it at once,
    for they change what the fingerprint says.

    Attributes:
        map: What is done to the parent's vectors.
        parent: Fingerprint of the vectors that the map was fitted on.
        uri: `nest:` and the folder of the adapter.
    """

    def __init__(
        self,
        vector_map: VectorMap,
        *,
        uri: str,
        name: str,
        parent: Fingerprint,
        nesting_dims: tuple[int, ...],
        base_url: str | None = None,
        max_tokens: int | None = None,
    ) -> None:
        """Take the map, and what was said about it where it was fitted.

        Args:
            vector_map: As wide as the parent's vectors.
            uri: How this encoder is opened again.
            name: What the space calls the map; see `name_adapter`.
            parent: Fingerprint of the vectors that the map was fitted on.
            nesting_dims: Widths it was fitted to be cut at.
            base_url: Root of the API for a parent that is an endpoint, if it moved.
            max_tokens: The parent reads at most this many tokens of a text.

        Raises:
            EncoderError: If the parent must be opened and cannot be.
            FingerprintError: If it is another model than the map was fitted on.
        """
        self.map = vector_map
        self.parent = parent
        self.uri = uri
        self._nesting_dims = nesting_dims
        self._base_url = base_url
        self._max_tokens = max_tokens
        made_by = parent
        origin = {"model": uri}
        if base_url is not None or max_tokens is not None:
            made_by = self.parent_encoder.fingerprint
        if base_url is not None:
            origin["base_url"] = made_by.origin["base_url"]
        self._fingerprint = Fingerprint(
            space=replace(parent.space, adapter=name),
            encoder={**made_by.encoder, "adapter": name},
            origin=origin,
        )

    @property
    def fingerprint(self) -> Fingerprint:
        """The parent's, with the map named."""
        return self._fingerprint

    @property
    def embed_dim(self) -> int:
        """Full width, that of the parent."""
        return self.map.embed_dim

    @property
    def nesting_dims(self) -> tuple[int, ...]:
        """The widths the map was fitted to be cut at."""
        return self._nesting_dims

    @property
    def max_tokens(self) -> int | None:
        """That of the parent, as it was when the map was fitted unless asked for."""
        return token_limit_of(self._fingerprint)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, as the parent counts them.

        Raises:
            EncoderError: If the parent cannot be opened.
        """
        return self.parent_encoder.count_tokens(texts)

    def encode(
        self, inputs: Inputs, *, role: Role, ids: Sequence[str] | None = None
    ) -> Float32[np.ndarray, "inputs {self.embed_dim}"]:
        """Return the parent's vectors, mapped, as unit rows; zero rows stay zero.

        Raises:
            EncoderError: If the parent cannot be opened, or fails.
            FingerprintError: If it is another model by now than the map was fitted on.
        """
        return self.map(self.parent_encoder.encode(inputs, role=role, ids=ids))

    @cached_property
    def parent_encoder(self) -> Encoder:
        """What makes the vectors that are mapped, opened.

        Raises:
            EncoderError: If it cannot be opened, nobody knows how to, or adapters lead to
                each other in a ring.
            FingerprintError: If it is another model by now than the map was fitted on.
        """
        advice = (
            f"Apply it to vectors that exist: nestling encode --model {self.uri} --vectors VECTORS --out "
            f"VECTORS."
        )
        if ring := _find_ring(self.uri, self.parent):
            raise EncoderError(
                f"{self.uri} leads into a ring: {' over '.join(ring)}. One of them was written over by an "
                f"adapter of the last, so none can encode. {advice}"
            )
        opened = reopen_encoder(self.parent, base_url=self._base_url, max_tokens=self._max_tokens)
        if opened is None:
            raise EncoderError(
                f"{self.uri} was fitted on vectors of {self.parent.space.model!r} that do not say how to open "
                f"their model, so it cannot encode. {advice}"
            )
        check_same_space(
            opened.fingerprint,
            self.parent,
            left_name=opened.fingerprint.origin["model"],
            right_name=f"the model that {self.uri} was fitted on",
        )
        return opened


def _find_ring(uri: str, parent: Fingerprint) -> list[str]:
    """Return the adapters from `uri` down if one of them comes twice, else nothing.

    Their manifests say so without opening any: a ring of them would be opened without end.
    """
    passed = [uri]
    below: Fingerprint | None = parent
    while below is not None and (model := below.origin.get("model", "")).startswith("nest:"):
        passed.append(model)
        if model in passed[:-1]:
            return passed
        folder = Path(model.removeprefix("nest:"))
        below = NestManifest.load(folder).parent if (folder / MANIFEST_FILE).is_file() else None
    return []
