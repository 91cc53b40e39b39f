"""Write a file whole or not at all."""

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nestling.errors import FormatError, WriteError


@contextmanager
def naming_write_errors(path: Path) -> Iterator[None]:
    """Turn the system's refusals to write below `path` into a `WriteError` that says what to do."""
    try:
        yield
    except OSError as error:
        if isinstance(error, WriteError):
            raise
        advice = {
            errno.ENOSPC: "the disk is full. Free some space and run the same command again",
            errno.EDQUOT: "the quota is used up. Free some space and run the same command again",
            errno.EACCES: "permission denied. Name a folder you may write to",
            errno.EPERM: "permission denied. Name a folder you may write to",
            errno.EROFS: "the file system is read-only. Name a folder you may write to",
            errno.EFBIG: "the file would be larger than the limit of this process. Raise `ulimit -f`",
            errno.ENOENT: "no folder can be made there. Name another folder",
            errno.ENOTDIR: "a file is where a folder should be. Name another folder",
            errno.EEXIST: "a file is where a folder should be. Name another folder",
            errno.EISDIR: "a folder is where the file should go. Name another file",
        }.get(error.errno or 0)
        if advice is None:
            raise
        raise WriteError(f"cannot write {path}: {advice}.") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` under a temporary name, flush it to the disk, and rename it to `path`.

    A reader sees the old file or the new one, never a part. Parent folders are made.

    Raises:
        WriteError: If the folder cannot be written or the disk is full; `path` is left as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with naming_write_errors(path):
        make_folder(path.parent)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            fsync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, so that a power cut does not take them away again."""
    if path.exists():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, data: Any) -> None:
    """Write `data` as JSON, whole or not at all; NaN and infinity are refused, as JSON has neither."""
    write_atomically(path, json.dumps(data, indent=1, allow_nan=False).encode() + b"\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        FormatError: If the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise FormatError(f"no file {path}. Check the path.") from error
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror}. Check the path.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FormatError(
            f"{path} is not a JSON file: {error}. Make it again with the command that wrote it."
        ) from error


def checksum(data: bytes | memoryview) -> str:
    """Return a 128-bit hash of some bytes."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def seal(data: dict[str, Any]) -> dict[str, Any]:
    """Return `data` with a checksum of itself, so that a flipped bit in it is noticed."""
    return {**data, "checksum": checksum(json.dumps(data, sort_keys=True).encode())}


def unseal(data: Any, *, source: str, advice: str) -> dict[str, Any]:
    """Return what was sealed.

    Args:
        data: What `seal` returned, through JSON.
        source: Where it comes from, for the message.
        advice: What to do if it is damaged.

    Raises:
        FormatError: If the content does not fit its checksum.
    """
    if isinstance(data, dict):
        content = {key: value for key, value in data.items() if key != "checksum"}
        if seal(content) == data:
            return content
    raise FormatError(f"{source} is damaged: its content does not fit its checksum. {advice}")
