"""What an index holds of a document beside its vector."""

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from nestling.errors import DataError

MAX_METADATA_DEPTH = 100
"""Lists and objects within each other; SQLite reads no JSON that is much deeper."""

_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
"""The escape, and not the end of an escaped backslash and the letters u0000."""


class Entry(NamedTuple):
    """What the catalogue holds of one row; `metadata` is JSON."""

    doc_id: str
    text: str | None
    metadata: str | None

    def checksum(self, *, row: int, born: int) -> int:
        """Return the CRC-32 of this entry as the content of a row since a generation."""
        # The lengths keep what moves from one field to the next from going unnoticed.
        lengths = f"{row} {born} {len(self.doc_id)} {_length(self.text)} {_length(self.metadata)} "
        return zlib.crc32(f"{lengths}{self.doc_id}{self.text}{self.metadata}".encode())


def make_entries(
    doc_ids: Sequence[str],
    texts: Sequence[str] | None,
    metadata: Sequence[Mapping[str, Any]] | None,
) -> list[Entry]:
    """Return the entries of new rows.

    Raises:
        DataError: If the lists differ in length, an id or a text is no string or not valid
            Unicode, or metadata is not JSON, or nested too deeply; the message names the document.
    """
    for name, values in (("texts", texts), ("metadata", metadata)):
        if values is not None and len(values) != len(doc_ids):
            raise DataError(
                f"`{name}` must hold one value per document: {len(doc_ids)}, got {len(values)}. "
                f"Pass as many as there are `doc_ids`, or None."
            )
    entries = []
    for place, doc_id in enumerate(doc_ids):
        text = None if texts is None else texts[place]
        try:
            plain = None if metadata is None else _to_json(metadata[place])
            "".join((doc_id, "" if text is None else text, plain or "")).encode()
        except (RecursionError, TypeError, ValueError) as error:
            raise DataError(
                f"ids and texts must be Unicode and metadata must be JSON, got {error} in document {doc_id!r}. "
                f"Mend this document."
            ) from error
        entries.append(Entry(doc_id, text, plain))
    return entries


def _to_json(metadata: Mapping[str, Any]) -> str:
    # Not escaped to ASCII: filters compare keys with the JSON as it is written.
    plain = json.dumps(dict(metadata), allow_nan=False, ensure_ascii=False)
    # What SQLite cannot read, or reads only to there, would make filters fail or lie.
    if _NUL.search(plain):
        raise ValueError("the character U+0000 in metadata")
    if (
        plain.count("[") + plain.count("{") > MAX_METADATA_DEPTH
        and _depth(metadata) > MAX_METADATA_DEPTH
    ):
        raise ValueError(f"metadata nested more than {MAX_METADATA_DEPTH} deep")
    return plain


def _depth(value: Any) -> int:
    """Return how many lists and objects lie within each other; JSON was made of it, so it ends."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, (list, tuple)):
        return 0
    return 1 + max(map(_depth, value), default=0)


def _length(text: str | None) -> int:
    return -1 if text is None else len(text)
