import gzip
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.data.chunking import Chunking
from nestling.data.folder import read_text_file, read_text_folder
from nestling.errors import DataError

GUIDE = """# Guide

Welcome.

## Install

Run pip. Then wait a little while for it to end.

## Use

Call it.

## Install

Again.
"""


def count_words(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def chunking(max_tokens: int = 9) -> Chunking:
    return Chunking(count_tokens=count_words, max_tokens=max_tokens, overlap_tokens=0)


def make_folder(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def test_ids_metadata_and_order(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, {"docs/guide.md": GUIDE, "a.txt": "# plain text"})
    steps: list[tuple[int, int]] = []
    corpus = read_text_folder(
        folder, chunking=chunking(), progress=lambda _, done, total: steps.append((done, total))
    )
    assert corpus.doc_ids == [
        "a.txt#:0",
        "docs/guide.md#guide:0",
        "docs/guide.md#install:0",
        "docs/guide.md#install:1",
        "docs/guide.md#use:0",
        "docs/guide.md#install:2",
    ]
    assert corpus.texts[2] == "## Install\n\nRun pip."
    assert corpus.metadata is not None
    assert corpus.metadata[2] == {
        "path": "docs/guide.md",
        "heading": "Guide > Install",
        "snippet": "Run pip.",
    }
    assert corpus.metadata[0]["heading"] == ""
    assert corpus.source == str(folder)
    assert corpus.notes == ("6 chunks of 2 files",)
    assert steps == [(1, 2), (2, 2)]


def test_order_does_not_depend_on_the_file_system(tmp_path: Path) -> None:
    names = ["b.md", "a/z.md", "a.md", "B.md", "a-1.md"]
    first = make_folder(tmp_path / "one", {name: name for name in names})
    second = make_folder(tmp_path / "two", {name: name for name in reversed(names)})
    one, two = (read_text_folder(folder, chunking=None) for folder in (first, second))
    assert one.doc_ids == two.doc_ids
    assert one.corpus_hash == two.corpus_hash


def test_hidden_binary_and_foreign_files_are_passed_over(tmp_path: Path) -> None:
    folder = make_folder(
        tmp_path,
        {
            "a.md": "text",
            ".hidden.md": "no",
            ".git/b.md": "no",
            "c.txt": b"binary \0 data",
            "d.png": b"\x89PNG",
            "e.PNG": b"\x89PNG",
            "f.png": b"\x89PNG",
        },
    )
    corpus = read_text_folder(folder, chunking=None)
    assert corpus.texts == ["text"]
    assert corpus.notes == (
        "1 chunks of 1 files",
        "1 binary files were passed over (c.txt)",
        "3 files of other kinds were passed over (.png, .PNG)",
    )


def test_truncated_texts_are_counted(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, {"a.md": "short words " + "x" * 40})
    limit = Chunking(
        count_tokens=lambda texts: [len(text) for text in texts], max_tokens=12, overlap_tokens=0
    )
    corpus = read_text_folder(folder, chunking=limit)
    assert corpus.texts == ["short words", "x" * 40]
    assert "1 texts are truncated: a single word is longer than 12 tokens" in corpus.notes


def test_packed_files_are_unpacked(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, {"a.md.gz": gzip.compress(b"# Title\nbody")})
    assert read_text_folder(folder, chunking=None).doc_ids == ["a.md.gz#title:0"]
    assert read_text_file(folder / "a.md.gz", chunking=None).texts == ["# Title\nbody"]


def test_long_snippet_ends_in_an_ellipsis(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, {"a.md": "# Title\n" + "word " * 100, "b.md": "# Only a title"})
    metadata = read_text_folder(folder, chunking=None).metadata
    assert metadata is not None
    assert metadata[0]["snippet"].startswith("word word")
    assert metadata[0]["snippet"].endswith("…")
    assert len(metadata[0]["snippet"]) <= 160
    assert metadata[1]["snippet"] == "# Only a title"


def test_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, {"a.md": "\ufeff# Title\nbody"})
    assert read_text_folder(folder, chunking=None).doc_ids == ["a.md#title:0"]


@pytest.mark.parametrize("files", [{}, {"a.png": "x"}, {"a.md": " \n\n"}, {".a.md": "x"}])
def test_nothing_to_read(tmp_path: Path, files: dict[str, str | bytes]) -> None:
    folder = make_folder(tmp_path, files)
    with pytest.raises(
        DataError,
        match=r"`corpus` must hold text in files named \.md, .*got .* with \d such files and no text in them",
    ):
        read_text_folder(folder, chunking=None)


def test_not_utf8_is_named(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, {"a.md": "one\ntwo caf\xe9".encode("latin1")})
    with pytest.raises(DataError, match=r"a\.md must be UTF-8, got the byte 0xe9 in line 2"):
        read_text_folder(folder, chunking=None)


def test_file_name_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / b"caf\xe9.md".decode("utf-8", "surrogateescape")).write_text("text")
    corpus = read_text_folder(tmp_path, chunking=None)
    assert corpus.doc_ids == ["caf\ufffd.md#:0"]
    assert corpus.corpus_hash


def test_single_file_says_how_it_was_read(tmp_path: Path) -> None:
    make_folder(tmp_path, {"a.txt": "one\ntwo\n"})
    corpus = read_text_file(tmp_path / "a.txt", chunking=None)
    assert corpus.doc_ids == ["a.txt#:0"]
    assert corpus.notes == (
        "1 chunks of 1 files",
        "a.txt was read as one text; for one document per line, name it .tsv",
    )


NAMES = st.sampled_from(["a.md", "b.md", "sub/c.md", "d.txt"])
PARAGRAPHS = st.lists(st.sampled_from(["owl.", "lark", "swift!", "# x"]), min_size=1, max_size=9)
BODIES = st.lists(PARAGRAPHS.map(" ".join), min_size=1, max_size=4).map("\n\n".join)


@given(st.dictionaries(NAMES, BODIES, min_size=2), BODIES, st.data())
def test_changing_one_file_leaves_the_chunks_of_others(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, str], body: str, data: st.DataObject
) -> None:
    folder = make_folder(tmp_path_factory.mktemp("folder"), dict(files))
    before = read_text_folder(folder, chunking=chunking(4))
    changed = data.draw(st.sampled_from(sorted(files)))
    (folder / changed).write_text(body)
    after = read_text_folder(folder, chunking=chunking(4))
    for corpus in (before, after):
        assert len(set(corpus.doc_ids)) == len(corpus.doc_ids)
    others = [
        [
            pair
            for pair in zip(corpus.doc_ids, corpus.texts, strict=True)
            if not pair[0].startswith(changed)
        ]
        for corpus in (before, after)
    ]
    assert others[0] == others[1]
    assert after.corpus_hash == read_text_folder(folder, chunking=chunking(4)).corpus_hash


def test_changing_one_paragraph_leaves_other_sections(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, {"guide.md": GUIDE})
    before = read_text_folder(folder, chunking=chunking())
    make_folder(tmp_path, {"guide.md": GUIDE.replace("Call it.", "Call it twice a day.")})
    after = read_text_folder(folder, chunking=chunking())
    assert set(before.texts) - set(after.texts) == {"## Use\n\nCall it."}


def test_a_folder_that_cannot_be_read_is_an_error_and_not_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read the folder .*gone: No such file"):
        read_text_folder(tmp_path / "gone", chunking=None)
