"""The folder of an index: how it appears, what belongs to it, and what a dead writer left in it."""

import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from nestling.core.files import fsync_folder, make_folder, naming_write_errors
from nestling.core.locks import locked
from nestling.errors import WriteError
from nestling.search.manifest import MANIFEST

_PART = re.compile(rf"(rows|tier|engine)-\d+(-[\w-]+)?|\.{re.escape(MANIFEST)}\.\d+\.part")
PARTS_OF_VERSION_1 = frozenset(("full", "head-1", "catalogue.sqlite"))


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`, which is renamed to `path` at the end of the block.

    The block flushes what it writes, the entries of the folder itself included. Killed before the end, there is nothing at `path`, and the next call clears what is left over.

    Args:
        path: Where the new index will be: nothing, or an empty folder.

    Raises:
        WriteError: If `path` is taken, is being written, or cannot be.
    """
    path = path.resolve()
    check_free(path)
    building = path.with_name(f".{path.name}.building")
    with naming_write_errors(path):
        make_folder(path.parent)
        building.mkdir(exist_ok=True)
        with locked(building):
            empty_folder(building)
            try:
                yield building
                check_free(path)
                building.rename(path)
            except BaseException:
                shutil.rmtree(building)
                raise
            fsync_folder(path.parent)


def is_index(path: Path) -> bool:
    """Return whether there is an index at `path`, of whatever version."""
    return (path / MANIFEST).exists()


def check_free(path: Path) -> None:
    """Refuse a path at which there is anything but an empty folder.

    Raises:
        WriteError: Saying what is there.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not is_index(path):
        raise WriteError(
            f"{path} exists and is not an index, so that it is never replaced. Name another folder."
        )
    raise WriteError(
        f"{path} is an index already, and is never overwritten silently. "
        f"Pass overwrite=True (--overwrite), or name another folder."
    )


def sweep(folder: Path, kept: Collection[str], *, is_flushed: bool) -> None:
    """Remove every part of an index that is not to be kept; other files are not touched.

    Args:
        folder: Of the index.
        kept: Names of folders that stay.
        is_flushed: Whether no manifest on the disk names what is removed: not if a writer may have
            died before it flushed the folder after a switch.
    """
    parts = [path for path in find_parts(folder) if path.name not in kept]
    if parts and not is_flushed:
        fsync_folder(folder)
    for part in parts:
        _remove(part)


def find_parts(folder: Path) -> list[Path]:
    """Return what in the folder of an index is a part of some generation, but for its manifest."""
    return [
        path
        for path in folder.iterdir()
        if _PART.fullmatch(path.name) or path.name in PARTS_OF_VERSION_1
    ]


def empty_folder(folder: Path) -> None:
    """Remove everything in a folder."""
    for entry in folder.iterdir():
        _remove(entry)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
