"""Which widths the model of some vectors was trained to be cut at, found out without running it."""

from pathlib import Path

from nestling.core import Fingerprint
from nestling.encode.nest_manifest import NestManifest
from nestling.encode.open import reopen_encoder
from nestling.encode.protocol import Encoder
from nestling.errors import EncoderError, FormatError


def find_nesting_dims(fingerprint: Fingerprint) -> tuple[int, ...] | None:
    """Return the widths that the model of some vectors was trained to be cut at; None if nothing tells.

    Vectors name their model, but not its widths. What was trained or fitted here keeps them in a file
    beside its weights, and a static table is open in no time. Other models are not opened for them,
    for that may take long, or cost money.

    Args:
        fingerprint: Of the vectors.
    """
    made_by = _find_model(fingerprint.origin.get("model", ""), fingerprint)
    if made_by is None or made_by.fingerprint is None:
        return None
    # A folder may hold another model by now. One that was moved has another name, but no other weights.
    here, there = fingerprint.space, made_by.fingerprint.space
    is_same = (here.revision, here.adapter) == (there.revision, there.adapter)
    return made_by.nesting_dims if is_same else None


def _find_model(uri: str, fingerprint: Fingerprint) -> NestManifest | Encoder | None:
    scheme, _, name = uri.partition(":")
    try:
        if scheme == "nest":
            return NestManifest.load(Path(name))
        return reopen_encoder(fingerprint) if scheme == "static" else None
    except (EncoderError, FormatError):
        return None  # it is not there any more: vectors outlive their model
