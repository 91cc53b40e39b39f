"""The life of a model folder: made way for, trained in, stamped when it is complete."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nestling.core.files import naming_write_errors
from nestling.encode.nest import open_unstamped
from nestling.encode.nest_manifest import MANIFEST_FILE, NestManifest
from nestling.errors import WriteError

CHECKPOINT_FOLDER = "checkpoints"
"""Below the model folder, until the model is finished."""


def make_way(out: Path, *, files: Sequence[str], overwrite: bool) -> None:
    """Refuse a folder that holds a finished model, or remove the model; never anything else in it.

    Args:
        out: The folder; it need not exist.
        files: Names of the files a model of this kind consists of.
        overwrite: Whether to remove a finished model and any checkpoints.

    Raises:
        WriteError: If a finished model is there and `overwrite` is false.
    """
    if overwrite:
        with naming_write_errors(out):
            # The manifest first: without it, what is left is no model.
            for name in (MANIFEST_FILE, *files):
                (out / name).unlink(missing_ok=True)
            shutil.rmtree(out / CHECKPOINT_FOLDER, ignore_errors=True)
    elif (out / MANIFEST_FILE).exists():
        raise WriteError(
            f"{out} holds a finished model and is never overwritten silently. Pass --overwrite or another --out."
        )


def stamp(out: Path, manifest: NestManifest) -> NestManifest:
    """Open what was written, and return the manifest with the fingerprint of its vectors."""
    return replace(manifest, fingerprint=open_unstamped(out, manifest).fingerprint)
