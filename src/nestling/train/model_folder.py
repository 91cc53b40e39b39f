"""The life of a model folder: made way for, trained in, stamped when it is complete."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from nestling.core.files import naming_write_errors
from nestling.core.locks import locked
from nestling.encode.nest import open_unstamped
from nestling.encode.nest_manifest import MANIFEST_FILE, NestManifest
from nestling.errors import WriteError
from nestling.train.processes import process_state

CHECKPOINT_FOLDER = "checkpoints"
"""Below the model folder, until the model is finished."""


@contextmanager
def training_folder(out: Path, *, overwrite: bool) -> Iterator[None]:
    """Hold a model folder for one training, from the first checkpoint to the last file.

    With several processes the first one holds it for all. A finished model stays whole until the
    new one is written over it.

    Args:
        out: The folder; made if it is not there.
        overwrite: Whether a finished model there may be replaced.

    Raises:
        WriteError: If a finished model is there and `overwrite` is false, if the folder holds
            anything but a model and its checkpoints, or if another process trains there.
    """
    state = process_state()
    with ExitStack() as stack:
        if state.is_main_process:
            _check_free(out, overwrite=overwrite)
            with naming_write_errors(out):
                out.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(out.resolve()))
        state.wait_for_everyone()
        yield


def start_replacing(out: Path) -> None:
    """Take the manifest away: from here on until the next one is written, there is no model."""
    with naming_write_errors(out):
        (out / MANIFEST_FILE).unlink(missing_ok=True)


def _check_free(out: Path, *, overwrite: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise WriteError(f"`out` must be a folder, got the file {out}. Name another --out.")
    if (out / MANIFEST_FILE).exists():
        if overwrite:
            return
        raise WriteError(
            f"{out} holds a finished model and is never overwritten silently. Pass --overwrite or another --out."
        )
    others = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
    if others and CHECKPOINT_FOLDER not in others:
        raise WriteError(
            f"`out` must be a new folder or one that nestling train made, got {out}, which holds "
            f"{', '.join(others[:3])}{' and more' if len(others) > 3 else ''}. Name another --out."
        )


def stamp(out: Path, manifest: NestManifest) -> NestManifest:
    """Open what was written, and return the manifest with the fingerprint of its vectors."""
    return replace(manifest, fingerprint=open_unstamped(out, manifest).fingerprint)
