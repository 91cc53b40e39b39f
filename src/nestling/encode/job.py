"""Pieces of work that fill a vector folder: the inputs, the encoder, what makes two inputs the same."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from nestling.core import BadRowPolicy, Dtype, check_unique_ids
from nestling.core.progress import Progress
from nestling.data.types import Corpus, Inputs, content_hash
from nestling.encode.batches import take_inputs, text_batches
from nestling.encode.protocol import Encoder, Role
from nestling.encode.vector_folder import STORED_DTYPES, Manifest
from nestling.encode.vectors import VectorsEncoder
from nestling.errors import DataError, DimensionError, EncoderError, VectorError

BLOCK_CHARACTERS = 250_000
"""Most characters per block: a minute's work at most for a transformer on two cores."""


@runtime_checkable
class FolderJob(Protocol):
    """What `fill_folder` must know of the work it does; no inheritance needed."""

    @property
    def ids(self) -> Sequence[str]:
        """One unique id per input."""

    @property
    def contents(self) -> Sequence[str]:
        """A hash per input: inputs with equal hashes get equal vectors."""

    @property
    def manifest(self) -> Manifest:
        """The manifest of a folder for this work, as it stands until the work is done."""

    @property
    def bad_rows(self) -> BadRowPolicy:
        """What to do with rows that cannot be compared."""

    @property
    def overwrite(self) -> bool:
        """Whether vectors of inputs that share nothing with these may be replaced."""

    @property
    def label(self) -> str:
        """What to call the work when telling how far it is."""

    @property
    def progress(self) -> Progress:
        """Told after every block."""

    def block_from(self, start: int, *, most_rows: int) -> range:
        """Return the places of the block that starts at `start`, by rule and never by the clock."""

    def encode(self, places: Sequence[int]) -> Float32[np.ndarray, "rows embed_dim"]:
        """Return the vectors of the inputs at some ascending places of one block."""


@dataclass(frozen=True, kw_only=True)
class EncodeJob:
    """What to encode, and how to keep it.

    Attributes:
        encoder: Makes the vectors.
        inputs: Texts or images.
        ids: One unique id per input.
        role: Queries or documents.
        dtype: Number format on disk, float32 or float16.
        block_rows: Most inputs per block; long texts make shorter blocks.
        bad_rows: What to do with rows that cannot be compared.
        overwrite: Whether vectors of inputs that share nothing with these may be replaced.
        label: What to call the work when telling how far it is.
        progress: Told after every block.
    """

    encoder: Encoder
    inputs: Inputs
    ids: Sequence[str]
    role: Role
    dtype: Dtype
    block_rows: int
    bad_rows: BadRowPolicy
    overwrite: bool
    label: str
    progress: Progress

    def __post_init__(self) -> None:
        if len(self.ids) == 0:
            raise DataError(f"{self.label}: there must be at least one input, got none.")
        if len(self.ids) != len(self.inputs):
            raise DataError(
                f"`ids` must name each input once, got {len(self.ids)} ids for {len(self.inputs)} inputs."
            )
        check_unique_ids(self.ids, source=self.label)
        check_folder_format(self.dtype, self.block_rows)

    @property
    def is_lookup(self) -> bool:
        """Whether the vectors exist already and belong to ids and places, not to contents."""
        return isinstance(self.encoder, VectorsEncoder)

    @cached_property
    def corpus_hash(self) -> str:
        """A hash of every id and input, in order; for texts, that of a corpus of them."""
        texts = self.contents if isinstance(self.inputs, np.ndarray) else self.inputs
        return Corpus(doc_ids=self.ids, texts=texts, source="").corpus_hash

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest of a folder for this work, as it stands until the work is done."""
        return Manifest(
            fingerprint=self.encoder.fingerprint,
            corpus_hash=self.corpus_hash,
            role=self.role,
            dtype=self.dtype,
            num_inputs=len(self.ids),
            block_rows=self.block_rows,
        )

    @cached_property
    def contents(self) -> list[str]:
        """A hash per input: inputs with equal hashes get equal vectors."""
        if self.is_lookup:
            return [content_hash(f"{place}:{name}") for place, name in enumerate(self.ids)]
        return content_hashes(self.inputs)

    def block_from(self, start: int, *, most_rows: int) -> range:
        """Return the places of the block that starts at `start`, by rule and never by the clock."""
        stop = min(start + most_rows, len(self.ids))
        if isinstance(self.inputs, np.ndarray):
            return range(start, stop)
        texts = text_batches(
            self.inputs[start:stop], max_texts=most_rows, max_characters=BLOCK_CHARACTERS
        )
        return range(start, start + len(next(texts)))

    def encode(self, places: Sequence[int]) -> Float32[np.ndarray, "rows embed_dim"]:
        """Return the vectors of the inputs at some places.

        Raises:
            EncoderError: If the encoder returns another shape than it promised.
        """
        if self.is_lookup:
            return self._looked_up[list(places)]
        made = self.encoder.encode(
            take_inputs(self.inputs, places),
            role=self.role,
            ids=[self.ids[place] for place in places],
        )
        promised = (len(places), self.manifest.embed_dim)
        if made.shape != promised:
            raise EncoderError(
                f"an encoder must return vectors of shape {promised}, got {made.shape} from "
                f"{self.encoder.fingerprint.space.model}. Check the model."
            )
        return made

    @cached_property
    def _looked_up(self) -> Float32[np.ndarray, "rows embed_dim"]:
        # A file without ids is matched by place, so it must see the whole list at once.
        return self.encoder.encode(self.inputs, role=self.role, ids=self.ids)


def check_folder_format(dtype: Dtype, block_rows: int) -> None:
    """Refuse a vector folder that cannot be written.

    Raises:
        VectorError: If rows of this dtype are not kept in vector folders.
        DimensionError: If `block_rows` is below 1.
    """
    if dtype not in STORED_DTYPES:
        allowed = " or ".join(STORED_DTYPES)
        raise VectorError(
            f"`dtype` of a vector folder must be {allowed}, got {dtype}. "
            f"Smaller formats are cut from it when an index is built."
        )
    if block_rows < 1:
        raise DimensionError(
            f"`block_rows` must be at least 1, got {block_rows}. Leave it out for the usual number."
        )


def content_hashes(inputs: Inputs) -> list[str]:
    """Return a hash per text or image."""
    if isinstance(inputs, np.ndarray):
        size = str(inputs.shape[1:]).encode()
        return [
            hashlib.blake2b(size + image.tobytes(), digest_size=16).hexdigest() for image in inputs
        ]
    return [content_hash(text) for text in inputs]
