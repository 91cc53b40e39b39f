"""Read an index of format version 1, to write it again in the present one."""

import json
import sqlite3
import zlib
from pathlib import Path
from typing import Any

from nestling.core import Dtype, Fingerprint
from nestling.core.files import naming_write_errors
from nestling.core.locks import locked
from nestling.core.progress import silent
from nestling.errors import FormatError, WriteError
from nestling.search.build import Content, write_generation
from nestling.search.derive import Work, threads_to_use
from nestling.search.entries import Entry
from nestling.search.folder import PARTS_OF_VERSION_1, sweep
from nestling.search.manifest import load_content, version_of
from nestling.search.plan import Plan
from nestling.search.rowfile import RESTORE, FileState, map_rows, measure_file
from nestling.search.tier import STORED_AS
from nestling.search.writer import switch

_VECTORS = "full/vectors.bin"
_CATALOGUE = "catalogue.sqlite"


def migrate(path: Path) -> None:
    """Write an index of version 1 again in the present format, in its place; others are left alone.

    Killed at any point, the index is what it was, and the next call begins again.

    Raises:
        FormatError: If a file that is still needed is damaged.
        WriteError: If the folder cannot be written, or another process is writing.
    """
    if version_of(path) != 1:
        return
    try:
        with naming_write_errors(path), locked(path, wait=True):
            if version_of(path) == 1:
                _rewrite(path)
    except WriteError as error:
        raise WriteError(
            f"{path} is an index of version 1, which is written anew when it is opened: {error} "
            f"Or build the index again."
        ) from error


def _rewrite(path: Path) -> None:
    # What a writer that died on the same way has left.
    sweep(path, PARTS_OF_VERSION_1, is_flushed=True)
    manifest = load_content(path)
    fingerprint = Fingerprint.from_json(manifest["fingerprint"])
    state = FileState(*manifest["files"][_VECTORS])
    if measure_file(path / _VECTORS, state.num_bytes) != state:
        raise FormatError(f"{path / _VECTORS} is damaged: it differs from its checksum. {RESTORE}")
    shape = (manifest["num_rows"], fingerprint.space.embed_dim)
    content = Content(
        vectors=map_rows(path / _VECTORS, shape, STORED_AS[Dtype(manifest["vector_dtype"])]),
        entries=_read_entries(path / _CATALOGUE, manifest),
        fingerprint=fingerprint,
    )
    work = Work(
        path=path,
        generation=manifest["generation"] + 1,
        num_threads=threads_to_use(None),
        progress=silent,
    )
    switch(path, write_generation(work, content, Plan.from_json(manifest["plan"])))


def _read_entries(path: Path, manifest: dict[str, Any]) -> list[Entry]:
    """Read ids, texts and metadata of all rows, and compare them with their checksum."""
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", uri=True)
        try:
            found = connection.execute(
                "SELECT doc_id, text, metadata FROM documents WHERE row < ? ORDER BY row",
                (manifest["num_rows"],),
            ).fetchall()
        finally:
            connection.close()
    except sqlite3.DatabaseError as error:
        raise FormatError(f"cannot read {path}: {error}. {RESTORE}") from error
    entries = [Entry(*fields) for fields in found]
    checksum = 0
    for entry in entries:
        checksum = zlib.crc32(json.dumps(entry).encode(), checksum)
    if (len(entries), checksum) != (manifest["num_rows"], manifest["catalogue_checksum"]):
        raise FormatError(f"{path} is damaged: it differs from its checksum. {RESTORE}")
    return entries
