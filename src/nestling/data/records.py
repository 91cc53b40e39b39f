"""Records (one mapping per document or query) turned into a corpus."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nestling.core import check_unique_ids
from nestling.data.types import Corpus
from nestling.errors import DataError

ID_FIELDS = ("_id", "id")


class Record(NamedTuple):
    """One document or query as a file holds it.

    Attributes:
        place: Where it stands, for messages, e.g. "line 3".
        fields: Its values by name.
    """

    place: str
    fields: Mapping[str, Any]


class Texts(NamedTuple):
    """Ids and texts side by side."""

    ids: list[str]
    texts: list[str]


def build_texts(records: Iterable[Record], path: Path, *, kind: str) -> Texts:
    """Return the id and the text of each record, the title put before the text.

    Args:
        records: In the order of the file. A record without `_id` or `id` gets its number, from 0.
        path: The file they come from.
        kind: What they are, for messages: "document" or "query".

    Raises:
        DataError: If there is no record, an id is repeated, or a field is missing or of the wrong
            type.
    """
    ids, texts = [], []
    for number, record in enumerate(records):
        ids.append(_id_of(record, path, number))
        texts.append(_text_of(record, path))
    if not ids:
        raise DataError(
            f"{path} must hold at least one {kind}, got none. Name a file with texts in it."
        )
    check_unique_ids(ids, source=str(path))
    return Texts(ids, texts)


def build_corpus(records: Iterable[Record], path: Path) -> Corpus:
    """Return the records as documents; what is neither id nor text becomes metadata.

    Raises:
        DataError: As `build_texts`.
    """
    kept = list(records)
    ids, texts = build_texts(kept, path, kind="document")
    metadata = [_metadata_of(record) for record in kept]
    return Corpus(
        doc_ids=ids,
        texts=texts,
        source=str(path),
        metadata=metadata if any(metadata) else None,
    )


def check_encodable(text: str, where: str) -> str:
    """Return `text` if it can be written as UTF-8.

    JSON escapes and Python sources can spell half a surrogate pair, which no tokenizer takes.

    Raises:
        DataError: If it cannot.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"text must be valid Unicode, got half a surrogate pair ({text[error.start]!r}) in {where}. "
            f"Mend or remove this text."
        ) from error
    return text


def _id_of(record: Record, path: Path, number: int) -> str:
    for name in ID_FIELDS:
        if name not in record.fields:
            continue
        value = record.fields[name]
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise DataError(
                f"`{name}` must be a string or a whole number, got {value!r} in {record.place} of {path}. "
                f"Give every record an id, or leave the field out of all of them."
            )
        return check_encodable(str(value), f"{record.place} of {path}")
    return str(number)


def _text_of(record: Record, path: Path) -> str:
    if "text" not in record.fields:
        raise DataError(
            f"`text` is missing in {record.place} of {path}, which has: "
            f"{', '.join(map(repr, record.fields)) or 'nothing'}. Name the field with the text `text`."
        )
    text, title = record.fields["text"], record.fields.get("title") or ""
    for name, value in (("text", text), ("title", title)):
        if not isinstance(value, str):
            raise DataError(
                f"`{name}` must be a string, got {value!r} in {record.place} of {path}. "
                f"Mend or remove this record."
            )
    return check_encodable(f"{title} {text}".strip(), f"{record.place} of {path}")


def _metadata_of(record: Record) -> dict[str, Any]:
    return {
        name: value
        for name, value in record.fields.items()
        if name not in (*ID_FIELDS, "text") and value not in (None, "", [], {})
    }
