"""`st:<path or hub id>`: any sentence-transformers model. The one place outside training with PyTorch."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from nestling.core import Fingerprint, Space, check_nesting_dims
from nestling.data.types import Inputs
from nestling.encode.batches import origin_of, reason_of, texts_only
from nestling.encode.normalization import apply_normalization, normalization_of
from nestling.encode.protocol import Role
from nestling.errors import EncoderError, MissingExtraError

UNLIMITED_TOKENS = 1_000_000_000
"""Tokenizers write absurdly large numbers where they mean "no limit"."""


class SentenceTransformersEncoder:
    """A sentence-transformers model, from a folder or from the Hugging Face hub.

    Prompts come from the model's own `prompts`. The full width is always encoded, even if the model
    was saved with a `truncate_dim`. The hub's environment variables (HF_HUB_OFFLINE, HF_TOKEN,
    HF_HOME) mean what they mean there.
    """

    def __init__(self, name: str, *, max_tokens: int | None = None) -> None:
        self._uri = f"st:{name}"
        self._model = _load(name, uri=self._uri)
        self._model.truncate_dim = None
        if max_tokens is not None:
            self._set_max_tokens(max_tokens)
        self._embed_dim = int(self._run([""], role="document").shape[1])
        config = getattr(self._model.transformers_model, "config", None)
        lineage = _lineage(name, config)
        self._normalization = normalization_of(lineage)
        self._nesting_dims = _nesting_dims(config, self._embed_dim)
        self._fingerprint = Fingerprint(
            space=Space(
                model=lineage,
                revision=getattr(config, "_commit_hash", None) or _hash_weights(self._model),
                pooling=_pooling(self._model),
                normalization=self._normalization,
                embed_dim=self._embed_dim,
            ),
            encoder={
                "backend": "sentence-transformers",
                "prompts": json.dumps(self._model.prompts, sort_keys=True),
                "max_tokens": str(self.max_tokens),
            },
            origin=origin_of("st", name),
        )

    @property
    def fingerprint(self) -> Fingerprint:
        """The model by name, and by hub commit or, for a folder, by the hash of its weights."""
        return self._fingerprint

    @property
    def embed_dim(self) -> int:
        """Full width."""
        return self._embed_dim

    @property
    def nesting_dims(self) -> tuple[int, ...] | None:
        """`matryoshka_dimensions` of the model's config.json, or None if it has none."""
        return self._nesting_dims

    @property
    def max_tokens(self) -> int | None:
        """The model's `max_seq_length`, unless another limit was asked for."""
        limit = self._model.max_seq_length
        return None if limit is None or limit > UNLIMITED_TOKENS else int(limit)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, the document prompt and special tokens included."""
        prompts = self._model.prompts
        prompt = next((prompts[key] for key in _DOCUMENT_PROMPTS if key in prompts), "")
        tokenizer = self._model.tokenizer
        prompted = [prompt + text for text in texts]
        if hasattr(tokenizer, "encode_batch_fast"):
            encodings = tokenizer.encode_batch_fast(prompted, add_special_tokens=False)
            return [len(encoding.ids) for encoding in encodings]
        if not prompted:
            return []
        # verbose=False: a text above the limit is what we are here to count, not to warn about.
        encoded = tokenizer(prompted, truncation=False, padding=False, verbose=False)
        return [len(token_ids) for token_ids in encoded["input_ids"]]

    def encode(
        self, inputs: Inputs, *, role: Role, ids: Sequence[str] | None = None
    ) -> Float32[np.ndarray, "inputs {self.embed_dim}"]:
        """Return unit rows, with the model family's rule applied to the full width.

        Raises:
            EncoderError: If the model fails, e.g. for lack of memory.
        """
        texts = texts_only(inputs, model=self._uri)
        if not texts:
            return np.empty((0, self._embed_dim), np.float32)
        return apply_normalization(self._run(texts, role=role), self._normalization)

    def _run(self, texts: list[str], *, role: Role) -> Float32[np.ndarray, "texts width"]:
        encode = self._model.encode_query if role == "query" else self._model.encode_document
        try:
            made = encode(texts, show_progress_bar=False, convert_to_numpy=True)
        except (RuntimeError, IndexError) as error:
            raise EncoderError(
                f"{self._uri} failed on {len(texts)} texts: {reason_of(error)}. "
                f"If memory is short or texts are too long, lower `max_tokens`."
            ) from error
        return np.asarray(made, dtype=np.float32)

    def _set_max_tokens(self, max_tokens: int) -> None:
        own_limit = self.max_tokens
        if own_limit is None:
            raise EncoderError(
                f"`max_tokens` does not fit {self._uri}, which reads texts of any length. Leave it out."
            )
        self._model.max_seq_length = max_tokens
        if max_tokens > own_limit:
            # Only the model knows how many positions it has beyond its default limit.
            try:
                self._run(["a " * max_tokens], role="document")
            except EncoderError as error:
                raise EncoderError(
                    f"`max_tokens` must be within what {self._uri} can read, got {max_tokens}, "
                    f"its own limit being {own_limit}. Lower it."
                ) from error


_DOCUMENT_PROMPTS = ("document", "passage", "corpus")


def _load(name: str, *, uri: str) -> Any:
    try:
        import sentence_transformers
        import transformers
    except ImportError as error:
        raise MissingExtraError("sentence-transformers", "st") from error
    try:
        with _without_progress_bar(transformers.utils.logging):
            return sentence_transformers.SentenceTransformer(name)
    except Exception as error:  # the hub and the model's own code raise whatever they like
        raise EncoderError(
            f"{uri} cannot be opened: {reason_of(error)}. Name a folder or a hub id; without a network, a "
            f"hub model must have been downloaded before (HF_HUB_OFFLINE=1 then spares the wait)."
        ) from error


@contextmanager
def _without_progress_bar(logging: Any) -> Iterator[None]:
    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


def _lineage(name: str, config: Any) -> str:
    """Return the hub id, or the folder's own name for a model on disk."""
    if Path(name).is_dir():
        return Path(name).resolve().name
    return getattr(config, "name_or_path", "") or name


def _nesting_dims(config: Any, embed_dim: int) -> tuple[int, ...] | None:
    """Read the keys that vLLM reads, too."""
    dims = getattr(config, "matryoshka_dimensions", None)
    if not dims or not getattr(config, "is_matryoshka", True):
        return None
    return check_nesting_dims(sorted(set(dims)), embed_dim)


def _pooling(model: Any) -> str:
    modes = [module.pooling_mode for module in model if hasattr(module, "pooling_mode")]
    return str(modes[-1]) if modes else type(model[0]).__name__


def _hash_weights(model: Any) -> str:
    import torch

    digest = hashlib.blake2b(digest_size=16)
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(f"{key}{tuple(tensor.shape)}{tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()
