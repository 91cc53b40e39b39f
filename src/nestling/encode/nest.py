"""`nest:<dir>`: a model that was trained here."""

from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from nestling.core import Fingerprint, Space
from nestling.encode.batches import hash_files, origin_of, reason_of
from nestling.encode.nest_manifest import MANIFEST_FILE, NestManifest
from nestling.encode.onnx import OnnxEncoder
from nestling.encode.protocol import Encoder
from nestling.encode.st import SentenceTransformersEncoder
from nestling.encode.table_encoder import TableEncoder
from nestling.encode.token_table import TokenTable
from nestling.errors import EncoderError, FormatError

WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
WEIGHTS_KEY = "embedding.weight"


def open_nest(name: str, *, max_tokens: int | None = None) -> Encoder:
    """Open a model folder that `nestling train` wrote.

    Args:
        name: The folder.
        max_tokens: Read at most this many tokens of a text.

    Raises:
        EncoderError: If there is no such folder, or it is not a trained model.
        FormatError: If it is damaged, or its weights are not those that were trained.
        MissingExtraError: If its kind of model needs a package that is not installed.
    """
    folder = Path(name).expanduser()
    if not (folder / MANIFEST_FILE).is_file():
        raise EncoderError(
            f"nest:{name} must be a folder with the file {MANIFEST_FILE}, as nestling train writes it, which is "
            f"not there. Check the path, or let the training finish."
        )
    manifest = NestManifest.load(folder)
    encoder = open_unstamped(folder, manifest, max_tokens=max_tokens)
    stamped = manifest.fingerprint
    if stamped is None or stamped.space.revision != encoder.fingerprint.space.revision:
        state = (
            "unfinished"
            if stamped is None
            else "damaged: its weights are not those it was saved with"
        )
        raise FormatError(f"nest:{name} is {state}. Train the model again, or copy it again.")
    return encoder


def open_unstamped(
    folder: Path, manifest: NestManifest, *, max_tokens: int | None = None
) -> Encoder:
    """Open a model folder without comparing it with its own fingerprint.

    Training uses it to find out the fingerprint that it then stamps on the folder.
    """
    if manifest.kind == "static":
        return _open_static(folder, manifest, max_tokens=max_tokens)
    if manifest.kind == "images":
        return OnnxEncoder(str(folder), max_tokens=max_tokens)
    return SentenceTransformersEncoder(str(folder), max_tokens=max_tokens)


def _open_static(folder: Path, manifest: NestManifest, *, max_tokens: int | None) -> TableEncoder:
    name = f"nest:{folder}"
    weights, tokenizer = folder / WEIGHTS_FILE, folder / TOKENIZER_FILE
    table = _open_table(weights, tokenizer, uri=name, max_tokens=max_tokens)
    embed_dim = table.vectors.shape[1]
    if embed_dim != manifest.embed_dim:
        raise FormatError(
            f"{weights} must be {manifest.embed_dim} wide as {folder / MANIFEST_FILE} says, got "
            f"{embed_dim}. Train the model again, or copy it again."
        )
    fingerprint = Fingerprint(
        space=Space(
            model=manifest.model,
            revision=hash_files([weights, tokenizer]),
            pooling="mean",
            normalization=manifest.normalization,
            embed_dim=embed_dim,
        ),
        encoder={"backend": "static", "max_tokens": str(max_tokens)},
        origin=origin_of("nest", str(folder)),
    )
    return TableEncoder(
        table, fingerprint=fingerprint, nesting_dims=manifest.nesting_dims, name=name
    )


def _open_table(weights: Path, tokenizer: Path, *, uri: str, max_tokens: int | None) -> TokenTable:
    for path in (weights, tokenizer):
        if not path.is_file():
            raise FormatError(f"{uri} needs {path}, which is not there. Copy the folder again.")
    try:
        table = load_file(weights)[WEIGHTS_KEY].astype(np.float32, copy=False)
        opened = Tokenizer.from_file(str(tokenizer))
    except (SafetensorError, KeyError, ValueError) as error:
        raise FormatError(
            f"{uri} is damaged: {reason_of(error)}. Train the model again, or copy it again."
        ) from error
    except Exception as error:  # tokenizers raises bare Exception
        raise FormatError(
            f"{tokenizer} is not a tokenizer: {reason_of(error)}. Copy the folder again."
        ) from error
    opened.no_truncation()
    opened.no_padding()
    return TokenTable(table, opened, max_tokens=max_tokens)
