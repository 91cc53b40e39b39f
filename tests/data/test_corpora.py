import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nestling.data.corpora import open_queries, read_corpus
from nestling.errors import DataError

Write = Callable[[str, str | bytes], Path]

JSONL = '{"id": "a", "text": "owl"}\n{"id": "b", "text": "lark"}\n'
CONTENTS = {
    "x.jsonl": JSONL.encode(),
    "x.jsonl.gz": gzip.compress(JSONL.encode()),
    "x.csv": b"id,text\na,owl\nb,lark\n",
    "x.csv.gz": gzip.compress(b"id,text\na,owl\nb,lark\n"),
    "x.tsv": b"text\tid\nowl\ta\nlark\tb\n",
    "x.tsv.gz": gzip.compress(b"text\tid\nowl\ta\nlark\tb\n"),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_every_kind_gives_the_same_corpus(write: Write, name: str) -> None:
    corpus = read_corpus(write(name, CONTENTS[name]))
    assert list(corpus.doc_ids) == ["a", "b"]
    assert list(corpus.texts) == ["owl", "lark"]
    assert open_queries(write(name, CONTENTS[name])) == ["owl", "lark"]


def test_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"], "text": ["owl"]}), tmp_path / "x.parquet")
    assert read_corpus(tmp_path / "x.parquet").texts == ["owl"]
    assert open_queries(tmp_path / "x.parquet") == ["owl"]


def test_text_files_and_folders_are_chunked(write: Write, tmp_path: Path) -> None:
    write("docs/a.md", "# One\nbody\n# Two\nbody")
    assert read_corpus(tmp_path / "docs").doc_ids == ["a.md#one:0", "a.md#two:0"]
    assert read_corpus(tmp_path / "docs" / "a.md").doc_ids == ["a.md#one:0", "a.md#two:0"]


def test_beir_folder_by_its_path(beir_folder: Path) -> None:
    assert read_corpus(beir_folder).doc_ids == ["d1", "d2", "d3"]


@pytest.mark.parametrize("name", ["x.txt", "x.txt.gz"])
def test_queries_one_per_line(write: Write, name: str) -> None:
    content = b"owl\n\n  lark \r\n"
    path = write(name, gzip.compress(content) if name.endswith("gz") else content)
    assert open_queries(path) == open_queries(str(path)) == ["owl", "lark"]


@pytest.mark.parametrize(
    ("name", "content"),
    [("x.txt", "\n \n"), ("x.jsonl", ""), ("x.csv", "text\n"), ("x.tsv", "")],
)
def test_empty_files(write: Write, name: str, content: str) -> None:
    with pytest.raises(DataError, match=rf"{name} must hold at least one query, got none"):
        open_queries(write(name, content))
    kind = (
        "`corpus` must hold text" if name == "x.txt" else f"{name} must hold at least one document"
    )
    with pytest.raises(DataError, match=kind):
        read_corpus(write(name, content))


def test_unknown_kinds(write: Write) -> None:
    path = write("owl.png", b"\x89PNG")
    with pytest.raises(
        DataError,
        match=r"a corpus must be in a file named \.jsonl, \.csv, \.tsv, \.parquet, \.md, .*got .*owl\.png\. Convert it",
    ):
        read_corpus(path)
    with pytest.raises(
        DataError,
        match=r"queries must be in a file named \.jsonl, \.csv, \.tsv, \.parquet, \.txt, got",
    ):
        open_queries(path)


def test_png_in_disguise(write: Write) -> None:
    for name in ("owl.jsonl", "owl.csv"):
        with pytest.raises(DataError, match="must be a text file, got a PNG image"):
            read_corpus(write(name, b"\x89PNG\r\n\x1a\n"))
    with pytest.raises(DataError, match="must be text, got a binary file"):
        read_corpus(write("owl.txt", b"\x89PNG\r\n\x1a\n\0"))


def test_vectors_are_no_corpus(write: Write) -> None:
    path = write("index/vectors.json", json.dumps({})).parent
    with pytest.raises(
        DataError,
        match=r"a corpus must be texts, got the vectors .*index\. Pass vectors with --vectors, or as the task self:",
    ):
        read_corpus(path)


def test_missing_path(tmp_path: Path) -> None:
    for read in (read_corpus, open_queries):
        with pytest.raises(DataError, match="`path` must exist"):
            read(tmp_path / "nothing.jsonl")
