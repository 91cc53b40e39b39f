from pathlib import Path
from typing import Any

import pytest

from nestling.data.records import Record, build_corpus, build_texts, check_encodable
from nestling.errors import DataError

HERE = Path("docs.jsonl")


def records(*fields: dict[str, Any]) -> list[Record]:
    return [Record(f"line {number}", each) for number, each in enumerate(fields, 1)]


def test_title_goes_before_the_text_and_the_whole_is_stripped() -> None:
    corpus = build_corpus(
        records(
            {"_id": "a", "title": "Owls", "text": "hunt. "},
            {"id": 7, "title": None, "text": " sing"},
            {"id": "c", "title": "Alone", "text": ""},
        ),
        HERE,
    )
    assert corpus.doc_ids == ["a", "7", "c"]
    assert corpus.texts == ["Owls hunt.", "sing", "Alone"]
    assert corpus.source == "docs.jsonl"
    assert corpus.metadata == [{"title": "Owls"}, {}, {"title": "Alone"}]


def test_the_rest_is_metadata_and_empty_values_are_not() -> None:
    corpus = build_corpus(records({"text": "x", "year": 0, "tags": [], "lang": "en"}), HERE)
    assert corpus.metadata == [{"year": 0, "lang": "en"}]
    assert build_corpus(records({"text": "x", "tags": []}), HERE).metadata is None


def test_records_without_ids_are_numbered_from_0() -> None:
    assert build_texts(records({"text": "x"}, {"text": "y"}), HERE, kind="query").ids == ["0", "1"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([], r"docs.jsonl must hold at least one document, got none"),
        ([{"id": "a", "text": "x"}] * 2, r"ids in docs.jsonl must be unique, got 1 repeated: 'a'"),
        ([{"id": 1.5, "text": "x"}], r"`id` must be a string or a whole number, got 1.5 in line 1"),
        ([{"_id": True, "text": "x"}], r"`_id` must be a string or a whole number, got True"),
        ([{"_id": "", "text": "x"}], r"`_id` must be a string or a whole number, got ''"),
        (
            [{"id": "a", "body": "x"}],
            r"`text` is missing in line 1 of docs.jsonl, which has: 'id', 'body'",
        ),
        ([{"text": None}], r"`text` must be a string, got None in line 1"),
        ([{"text": "x", "title": 3}], r"`title` must be a string, got 3 in line 1"),
        ([{"text": "\ud800"}], r"half a surrogate pair \('\\ud800'\) in line 1 of docs.jsonl"),
    ],
)
def test_bad_records(fields: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        build_corpus(records(*fields), HERE)


def test_encodable_text_comes_back() -> None:
    assert check_encodable("naïve 🦉", "here") == "naïve 🦉"
