"""Whose folder it is, and how a rebuilt one takes its place."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nestling.core import Space, check_same_space
from nestling.core.files import fsync_folder, naming_write_errors
from nestling.encode.vector_folder import MANIFEST_FILE, Manifest
from nestling.errors import FingerprintError, WriteError


class FolderPlaces:
    """Where a folder is, and the folders beside it while it is rebuilt.

    Whoever moves or removes any of them holds `only_writer(out)`.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.next = out.with_name(f".{out.name}.next")
        self.stale = out.with_name(f".{out.name}.stale")
        self.old = out.with_name(f".{out.name}.old")

    def recover(self) -> None:
        """Finish a swap that was cut off between its two renames."""
        if not self.out.exists() and self.old.exists() and self.next.exists():
            self.next.rename(self.out)
            fsync_folder(self.out.parent)

    def set_stale_aside(self, wanted: Manifest) -> None:
        """Keep a half-built folder for another state of the inputs as a source of vectors."""
        if not (self.next / MANIFEST_FILE).exists():
            shutil.rmtree(self.next, ignore_errors=True)
            return
        found = Manifest.load(self.next)
        if _maker(found) != _maker(wanted):
            shutil.rmtree(self.next)
        elif found.corpus_hash != wanted.corpus_hash:
            shutil.rmtree(self.stale, ignore_errors=True)
            self.next.rename(self.stale)

    def swap(self) -> None:
        """Put the rebuilt folder in the place of the old one."""
        shutil.rmtree(self.old, ignore_errors=True)
        self.out.rename(self.old)
        self.next.rename(self.out)
        fsync_folder(self.out.parent)

    def clear(self) -> None:
        """Remove what a rebuild needs no more."""
        for folder in (self.next, self.stale, self.old):
            if folder.exists():
                shutil.rmtree(folder)


@contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """Hold a folder, there or not yet, for this process; the system lets go of it after a kill.

    Raises:
        WriteError: If another process holds it, or the folder above it cannot be written.
    """
    # A file beside the folder: a lock on the folder itself would move away with it in a swap.
    lock = out.with_name(f".{out.name}.lock")
    with naming_write_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_current = os.path.samestat(os.fstat(descriptor), lock.stat())
        except (BlockingIOError, FileNotFoundError):
            is_current = False
        # The holder before us removes its file, and a lock on a removed file locks nobody out.
        if not is_current:
            raise WriteError(
                f"`out` must have one writer, but another process is encoding into {out}. "
                f"Wait until it ends, or name another --out."
            )
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def read_own_manifest(out: Path, wanted: Manifest) -> Manifest | None:
    """Return the manifest in `out` if work can go on from it, None if the folder is empty."""
    remove_parts(out)
    if (out / MANIFEST_FILE).exists():
        found = Manifest.load(out)
        check_same_space(
            found.fingerprint,
            wanted.fingerprint,
            left_name=f"the folder {out}",
            right_name="the model asked for",
        )
        _check_same_settings(out, found, wanted)
        return found
    if any(out.iterdir()):
        raise WriteError(
            f"`out` must be a new folder or a vector folder, got {out}, which holds other files. "
            f"Name another --out."
        )
    return None


def _check_same_settings(out: Path, found: Manifest, wanted: Manifest) -> None:
    before, now = _settings(found), _settings(wanted)
    differences = [
        f"{name} {before.get(name)!r} against {now.get(name)!r}"
        for name in sorted(before | now)
        if before.get(name) != now.get(name)
    ]
    if differences:
        raise FingerprintError(
            f"one vector folder must be made with one setting, but {out} and what is asked for differ in "
            f"{'; '.join(differences)}. Name another --out, or remove the folder."
        )


def remove_parts(folder: Path) -> None:
    """Remove the temporary files of a run that was killed while it wrote the manifest."""
    with naming_write_errors(folder):
        for part in folder.glob(".*.part"):
            part.unlink()


def _settings(manifest: Manifest) -> dict[str, str]:
    return {
        **manifest.fingerprint.encoder,
        "role": manifest.role,
        "dtype": str(manifest.dtype),
    }


def _maker(manifest: Manifest) -> tuple[Space, dict[str, str]]:
    return manifest.fingerprint.space, _settings(manifest)
