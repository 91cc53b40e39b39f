"""One writer per folder, by a lock that dies with its holder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nestling.errors import WriteError


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the writer's lock of a folder; the system frees it when its holder dies.

    Readers need no lock, so that a folder that may not be written can be read.

    Raises:
        WriteError: If another writer holds it (and `wait` is False), or the folder was replaced
            while it was being locked.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise WriteError(
                f"{folder} is being written by another process. Wait until it is done."
            ) from error
        if not _is_at(folder, descriptor):
            raise WriteError(f"{folder} was replaced by another process. Try again.")
        yield
    finally:
        os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    # One look: a writer may move the folder away between two.
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
