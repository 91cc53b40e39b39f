"""Checkpoints of the sentence-transformers Trainer, sealed: a half-written one is never resumed."""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nestling.core.files import read_json, seal, unseal, write_json
from nestling.errors import FormatError
from nestling.train.settings import check_same_settings

SEAL_FILE = "nestling_checkpoint.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedCheckpoint:
    """A checkpoint whose files are whole.

    Attributes:
        path: Its folder.
        progress: What the run had come to, as it was given to `seal_checkpoint`.
    """

    path: Path
    progress: Mapping[str, Any]


def seal_checkpoint(
    folder: Path, settings: Mapping[str, dict[str, Any]], progress: Mapping[str, Any]
) -> None:
    """Write down what a finished checkpoint holds, and what it may be continued with.

    The Trainer writes its files one by one into the final folder, so that only this file, written
    last, tells a whole checkpoint from a part of one.

    Args:
        folder: The checkpoint.
        settings: As `continuation_settings` returns; equal ones are needed to continue it.
        progress: JSON for whoever continues it.

    Raises:
        WriteError: If the folder cannot be written.
    """
    files = {str(path.relative_to(folder)): _checksum(path) for path in _files(folder)}
    content = {"files": files, "settings": dict(settings), "progress": dict(progress)}
    write_json(folder / SEAL_FILE, seal(content))


def find_checkpoint(
    folder: Path,
    settings: Mapping[str, dict[str, Any]],
    warn: Callable[[str], object],
    *,
    restart: bool = False,
) -> SealedCheckpoint | None:
    """Return the newest whole checkpoint, or None if there is none.

    Args:
        folder: Where the Trainer keeps them, as `checkpoint-<step>`.
        settings: What the run is to be, as given to `seal_checkpoint`.
        warn: Told of parts of checkpoints, which are passed over and removed.
        restart: Remove all checkpoints where the newest is of another run, instead of refusing it.

    Raises:
        TrainingError: If the checkpoint is of another run; the message names what differs.
    """
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=_step_of, reverse=True):
        sealed = _read_seal(checkpoint)
        if sealed is not None and restart and sealed["settings"] != settings:
            for other in folder.glob("checkpoint-*"):
                shutil.rmtree(other)
            return None
        if sealed is not None:
            check_same_settings(sealed["settings"], settings, checkpoint)
            return SealedCheckpoint(path=checkpoint, progress=sealed["progress"])
        warn(
            f"passed over the half-written or damaged checkpoint {checkpoint}, and removed it; "
            f"the training goes on from the one before it, or from the beginning"
        )
        # The Trainer would count it when it decides which ones to keep.
        shutil.rmtree(checkpoint)
    return None


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != SEAL_FILE)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _read_seal(checkpoint: Path) -> dict[str, Any] | None:
    """Return what a checkpoint was sealed with; None unless every file is there, bit for bit."""
    path = checkpoint / SEAL_FILE
    try:
        sealed = unseal(read_json(path), source=str(path), advice="Go back to an older one.")
    except FormatError:
        return None
    for name, expected in sealed["files"].items():
        file = checkpoint / name
        if not file.is_file() or _checksum(file) != expected:
            return None
    return sealed
