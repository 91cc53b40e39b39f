"""Inputs in pieces of bounded size, and the few checks every encoder makes on them."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from nestling.data.types import Inputs
from nestling.errors import EncoderError


def text_batches(
    texts: Sequence[str], *, max_texts: int, max_characters: int
) -> Iterator[Sequence[str]]:
    """Cut a list of texts, in order, into runs that keep both bounds.

    A text that is longer than `max_characters` by itself makes a run of its own.
    """
    start = 0
    num_characters = 0
    for stop, text in enumerate(texts):
        is_full = stop - start == max_texts or num_characters + len(text) > max_characters
        if is_full and stop > start:
            yield texts[start:stop]
            start, num_characters = stop, 0
        num_characters += len(text)
    if start < len(texts):
        yield texts[start:]


def take_inputs(
    inputs: Inputs, rows: Sequence[int]
) -> Sequence[str] | UInt8[np.ndarray, "taken height width"]:
    """Return some of the inputs, in the order of `rows`."""
    if isinstance(inputs, np.ndarray):
        return inputs[np.asarray(rows, dtype=np.int64)]
    return [inputs[row] for row in rows]


def texts_only(inputs: Inputs, *, model: str) -> list[str]:
    """Return the inputs as a list of texts.

    Raises:
        EncoderError: If they are images.
    """
    if isinstance(inputs, np.ndarray):
        raise EncoderError(
            f"`inputs` of {model} must be texts, got {len(inputs)} images. "
            f"For images, name an image model: onnx:<dir>."
        )
    return list(inputs)


def reason_of(error: BaseException) -> str:
    """Return a foreign error's message on one line, without a full stop, to stand in a sentence."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def hash_files(paths: Iterable[Path]) -> str:
    """Return one hash over the names and contents of some files: the revision of local weights."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(paths):
        digest.update(f"{path.name}:{path.stat().st_size}:".encode())
        with path.open("rb") as file:
            while piece := file.read(1 << 22):
                digest.update(piece)
    return digest.hexdigest()


def origin_of(scheme: str, name: str) -> dict[str, str]:
    """Return how to open a local or hub model again, from whatever folder."""
    path = Path(name)
    return {"model": f"{scheme}:{path.resolve() if path.exists() else name}"}
