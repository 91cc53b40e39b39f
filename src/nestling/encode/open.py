"""A model URI becomes an encoder."""

import importlib
from typing import Any

from nestling.core import Fingerprint
from nestling.encode.protocol import Encoder
from nestling.errors import EncoderError

ENCODERS = {
    "static": ("nestling.encode.static", "StaticEncoder"),
    "st": ("nestling.encode.st", "SentenceTransformersEncoder"),
    "openai": ("nestling.encode.openai", "OpenAIEncoder"),
    "onnx": ("nestling.encode.onnx", "OnnxEncoder"),
    "nest": ("nestling.encode.nest", "open_nest"),
    "vectors": ("nestling.encode.vectors", "VectorsEncoder"),
}
"""Scheme of a model URI -> module and what opens it there. A new encoder is one file and one line here."""


def open_encoder(
    uri: str, *, base_url: str | None = None, max_tokens: int | None = None
) -> Encoder:
    """Open the encoder that a model URI names; only its own module is imported.

    Args:
        uri: `static:wordllama`, `st:<path or hub id>`, `openai:<model>`, `onnx:<dir>`,
            `nest:<dir>`, or `vectors:<file or folder>`.
        base_url: Root of an OpenAI-compatible API, for `openai:` and for an adapter of one.
        max_tokens: Read at most this many tokens of a text, special tokens included; by default
            the model's own limit.

    Raises:
        EncoderError: If the scheme is unknown, an argument does not fit it, or the model does not
            open.
        MissingExtraError: If the encoder needs a package that is not installed.
    """
    scheme, separator, name = uri.partition(":")
    if not separator or not name or scheme not in ENCODERS:
        allowed = ", ".join(f"{known}:..." for known in ENCODERS)
        raise EncoderError(f"`model` must be one of {allowed}, got {uri!r}. E.g. static:wordllama.")
    if base_url is not None and scheme not in {"openai", "nest"}:
        raise EncoderError(
            f"`base_url` belongs to openai: models and adapters of them, got it with {uri!r}. Leave it out."
        )
    if max_tokens is not None and max_tokens < 1:
        raise EncoderError(
            f"`max_tokens` must be at least 1, got {max_tokens}. Leave it out for the model's own limit."
        )
    options: dict[str, Any] = {"max_tokens": max_tokens}
    if base_url is not None:
        options["base_url"] = base_url
    module, opener = ENCODERS[scheme]
    encoder: Encoder = getattr(importlib.import_module(module), opener)(name, **options)
    return encoder


def reopen_encoder(
    fingerprint: Fingerprint, *, base_url: str | None = None, max_tokens: int | None = None
) -> Encoder | None:
    """Open the encoder that made some vectors as it was then; None if they do not say which.

    Args:
        fingerprint: Of the vectors.
        base_url: Replaces the root of the API that they name.
        max_tokens: Replaces the token limit that they name.

    Raises:
        EncoderError: If the model does not open.
        MissingExtraError: If it needs a package that is not installed.
    """
    origin = fingerprint.origin
    if "model" not in origin:
        return None
    return open_encoder(
        origin["model"],
        base_url=base_url or origin.get("base_url"),
        max_tokens=max_tokens or token_limit_of(fingerprint),
    )


def token_limit_of(fingerprint: Fingerprint) -> int | None:
    """Return how many tokens of an input were read, or None if there was no limit."""
    limit = fingerprint.encoder.get("max_tokens", "")
    return int(limit) if limit.isdigit() else None
