"""One writer per index folder, and folders that appear whole or not at all."""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nestling.core.files import fsync_folder, naming_write_errors
from nestling.errors import WriteError
from nestling.search.manifest import MANIFEST


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the writer's lock of a folder; the system frees it when its holder dies.

    Raises:
        WriteError: If another writer holds it (and `wait` is False), or the folder was replaced
            while it was being locked.
    """
    with _flocked(folder, wait=wait) as descriptor:
        if not _is_at(folder, descriptor):
            raise WriteError(f"{folder} was replaced by another process. Try again.")
        yield


@contextmanager
def new_folder(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield an empty folder beside `path`, which takes the place of `path` at the end of the block.

    Killed before the end, `path` is what it was, and the next call clears what is left over.

    Args:
        path: Where the new index will be.
        overwrite: Whether an index that is there already may be replaced. Nothing but an index is
            ever replaced.

    Raises:
        WriteError: If `path` exists (and must not be replaced), is being written, or cannot be.
    """
    path = path.resolve()
    restore(path)
    _check_replaceable(path, overwrite=overwrite)
    building = _sibling(path, "building")
    with naming_write_errors(path):
        building.mkdir(parents=True, exist_ok=True)
        with locked(building):
            _empty(building)
            try:
                yield building
                fsync_folder(building)
                _check_replaceable(path, overwrite=overwrite)
            except BaseException:
                shutil.rmtree(building)
                raise
            _put_in_place(building, path)


def restore(path: Path) -> None:
    """Put back the index that a writer had moved aside when it was killed.

    A rename cannot replace a folder that is not empty, so that the old one is moved aside first;
    between the two renames there is nothing at `path`.
    """
    path = path.resolve()
    replaced = _sibling(path, "replaced")
    while not path.exists() and (replaced / MANIFEST).exists():
        # A live writer holds this lock until the new folder is in place.
        with suppress(FileNotFoundError), _flocked(replaced, wait=True), naming_write_errors(path):
            if not path.exists():
                replaced.rename(path)
                fsync_folder(path.parent)


def read_steadily(path: Path, read: Callable[[], None]) -> None:
    """Run `read`, and run it again if the folder was replaced meanwhile: it may have seen half of each."""
    was_missing = False
    while True:
        restore(path)
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            # Missing twice in a row, it is not just between the two renames of a writer.
            if was_missing:
                return read()
            was_missing = True
            continue
        try:
            read()
        except (OSError, ValueError):
            if _is_at(path, descriptor):
                raise
        else:
            if _is_at(path, descriptor):
                return None
        finally:
            # Kept open until here, so that no other folder can get the same inode number.
            os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    # One look: a writer may move the folder away between two.
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _check_replaceable(path: Path, *, overwrite: bool) -> None:
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not (path / MANIFEST).exists():
        raise WriteError(
            f"{path} exists and is not an index, so that it is never replaced. Name another folder."
        )
    if not overwrite:
        raise WriteError(
            f"{path} is an index already, and is never overwritten silently. "
            f"Pass overwrite=True (--overwrite), or name another folder."
        )


def _put_in_place(building: Path, path: Path) -> None:
    if not (path / MANIFEST).exists():
        building.rename(path)
        fsync_folder(path.parent)
        return
    replaced = _sibling(path, "replaced")
    if replaced.exists():
        shutil.rmtree(replaced)
    with locked(path, wait=True):
        path.rename(replaced)
        building.rename(path)
        fsync_folder(path.parent)
        # Without its manifest, what a kill leaves of the old index is never put back.
        (replaced / MANIFEST).unlink()
        shutil.rmtree(replaced)


@contextmanager
def _flocked(folder: Path, *, wait: bool) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise WriteError(
                f"{folder} is being written by another process. Wait until it is done."
            ) from error
        yield descriptor
    finally:
        os.close(descriptor)


def _sibling(path: Path, role: str) -> Path:
    return path.with_name(f".{path.name}.{role}")


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
