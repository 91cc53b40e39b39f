"""Bytes and lines out of files, plain or gz, with errors that name the file and the line."""

import codecs
import difflib
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path

from nestling.errors import DataError

SIGNATURES = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "gzip data; end its name in .gz",
    b"%PDF": "a PDF",
    b"PAR1": "a Parquet file; end its name in .parquet",
    b"\x93NUMPY": "a NumPy array; end its name in .npy",
    codecs.BOM_UTF16_LE: "UTF-16 text; save it as UTF-8",
    codecs.BOM_UTF16_BE: "UTF-16 text; save it as UTF-8",
}
"""How files that are often taken for text begin."""


def kind_of(path: Path) -> str:
    """Return the suffix that says what a file holds: ".jsonl" for `a.jsonl` and `a.JSONL.gz`."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def check_exists(path: Path) -> None:
    """Refuse a path that names nothing.

    Raises:
        DataError: If there is no such file or folder; the message offers the closest name.
    """
    if path.exists():
        return
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    closest = difflib.get_close_matches(path.name, siblings, n=1)
    advice = (
        f"Did you mean {path.parent / closest[0]}?"
        if closest
        else "Check the path; a relative one starts at the current folder."
    )
    raise DataError(f"`path` must exist, got {path}. {advice}")


@contextmanager
def open_bytes(path: Path) -> Iterator[BufferedIOBase]:
    """Open a file for reading; a name that ends in .gz is unpacked on the way.

    Raises:
        DataError: If the file is missing, a folder, unreadable, or not the gzip data it claims to be.
    """
    check_exists(path)
    if path.is_dir():
        raise DataError(f"`path` must be a file, got the folder {path}. Name a file in it.")
    try:
        file = gzip.GzipFile(path) if path.suffix.lower() == ".gz" else path.open("rb")
        with file:
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} ends in .gz but cannot be unpacked: {error}. If it was never compressed, take .gz "
            f"off its name; if it was cut off on the way, copy it again."
        ) from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}. Check its permissions.") from error


def read_bytes(path: Path) -> bytes:
    """Return everything in a file, unpacked.

    Raises:
        DataError: As `open_bytes`.
    """
    with open_bytes(path) as file:
        return file.read()


def read_lines(path: Path) -> Iterator[str]:
    r"""Yield the lines of a UTF-8 text file, line ends kept, a byte order mark dropped.

    Only `\n` ends a line: a text may hold other Unicode line separators.

    Raises:
        DataError: As `open_bytes`, or if the file is binary or not UTF-8.
    """
    with open_bytes(path) as file:
        for number, raw in enumerate(file, 1):
            if number == 1:
                _refuse_signature(path, raw)
            yield decode(raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw, path, number)


def decode(raw: bytes, path: Path, number: int) -> str:
    """Return one line, or a whole text that starts at line `number`, as a string.

    Raises:
        DataError: If it is binary or not UTF-8; the message names the line.
    """
    if b"\0" in raw:
        line = number + raw.count(b"\n", 0, raw.index(b"\0"))
        raise DataError(
            f"{path} must be text, got a binary file (line {line} holds a zero byte). "
            f"Name a text file in UTF-8."
        )
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line = number + raw.count(b"\n", 0, error.start)
        raise DataError(
            f"{path} must be UTF-8, got the byte 0x{raw[error.start]:02x} in line {line}. "
            f"Convert it, e.g. with: iconv -f latin1 -t utf-8"
        ) from error


def _refuse_signature(path: Path, start: bytes) -> None:
    for signature, kind in SIGNATURES.items():
        if start.startswith(signature):
            raise DataError(f"{path} must be a text file, got {kind}.")
