"""`nest:<dir>`: a model that was trained here, or an adapter that was fitted here."""

from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from nestling.core import Fingerprint, Space
from nestling.encode.adapted import AdaptedEncoder, name_adapter
from nestling.encode.batches import hash_files, origin_of, reason_of
from nestling.encode.nest_manifest import MANIFEST_FILE, NestManifest, make_again
from nestling.encode.onnx import OnnxEncoder
from nestling.encode.protocol import Encoder
from nestling.encode.st import SentenceTransformersEncoder
from nestling.encode.table_encoder import TableEncoder
from nestling.encode.token_table import TokenTable
from nestling.encode.vector_map import MAP_FILE, load_map
from nestling.errors import EncoderError, FormatError

WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
WEIGHTS_KEY = "embedding.weight"


def open_nest(name: str, *, base_url: str | None = None, max_tokens: int | None = None) -> Encoder:
    """Open a model folder that `nestling train` wrote.

    Args:
        name: The folder.
        base_url: Root of the API, for an adapter of an endpoint only.
        max_tokens: Read at most this many tokens of a text.

    Raises:
        EncoderError: If there is no such folder, or it is not a trained model.
        FingerprintError: If it is an adapter, its parent has to be opened at once, and is another
            model than the one it was fitted on.
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
    if base_url is not None and manifest.kind != "adapter":
        raise EncoderError(
            f"`base_url` belongs to openai: models and adapters of them, got it with nest:{name}, which is a "
            f"model of its own. Leave it out."
        )
    encoder = open_unstamped(folder, manifest, base_url=base_url, max_tokens=max_tokens)
    stamped = manifest.fingerprint
    if stamped is None or _weights(stamped) != _weights(encoder.fingerprint):
        state = (
            "unfinished"
            if stamped is None
            else "damaged: its weights are not those it was saved with"
        )
        raise FormatError(f"nest:{name} is {state}. {make_again(manifest.kind)}")
    return encoder


def _weights(fingerprint: Fingerprint) -> tuple[str, str | None]:
    return fingerprint.space.revision, fingerprint.space.adapter


def open_unstamped(
    folder: Path,
    manifest: NestManifest,
    *,
    base_url: str | None = None,
    max_tokens: int | None = None,
) -> Encoder:
    """Open a model folder without comparing it with its own fingerprint.

    Training uses it to find out the fingerprint that it then stamps on the folder.
    """
    if manifest.kind == "adapter":
        return _open_adapter(folder, manifest, base_url=base_url, max_tokens=max_tokens)
    if manifest.kind == "static":
        return _open_static(folder, manifest, max_tokens=max_tokens)
    if manifest.kind == "images":
        return OnnxEncoder(str(folder), max_tokens=max_tokens)
    return SentenceTransformersEncoder(str(folder), max_tokens=max_tokens)


def _open_adapter(
    folder: Path, manifest: NestManifest, *, base_url: str | None, max_tokens: int | None
) -> AdaptedEncoder:
    parent, method = manifest.parent, manifest.training.get("method")
    if parent is None or not isinstance(method, str):
        raise FormatError(
            f"{folder / MANIFEST_FILE} must name the parent of an adapter and the method of its training, got "
            f"{'no parent' if parent is None else f'the method {method!r}'}. Fit the adapter again."
        )
    vector_map = load_map(folder)
    widths = (vector_map.embed_dim, parent.space.embed_dim, manifest.embed_dim)
    if len(set(widths)) > 1:
        raise FormatError(
            f"an adapter must be as wide as its parent, but {folder / MAP_FILE} is {widths[0]} wide, the parent "
            f"{parent.space.model!r} {widths[1]}, and {folder / MANIFEST_FILE} says {widths[2]}. Copy the folder "
            f"again, or fit the adapter again."
        )
    return AdaptedEncoder(
        vector_map,
        uri=origin_of("nest", str(folder))["model"],
        name=name_adapter(parent, method=method, revision=hash_files([folder / MAP_FILE])),
        parent=parent,
        nesting_dims=manifest.nesting_dims,
        base_url=base_url,
        max_tokens=max_tokens,
    )


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
