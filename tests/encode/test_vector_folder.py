import json
from pathlib import Path

import numpy as np
import pytest

from nestling.core import Dtype
from nestling.encode import VectorFolder, encode_corpus
from nestling.encode.vector_folder import FORMAT_VERSION, MANIFEST_FILE
from nestling.errors import FormatError
from tests.encode.fakes import FakeEncoder, make_corpus, make_texts

TEXTS = make_texts(25)
FILES = ("vectors.json", "vectors.bin", "rows.jsonl", "blocks.jsonl")


@pytest.fixture
def folder(tmp_path):
    encoded = encode_corpus(FakeEncoder(), make_corpus(TEXTS), tmp_path / "v", block_rows=10)
    return encoded.folder


def test_a_folder_gives_back_what_was_encoded(folder):
    corpus = make_corpus(TEXTS)
    opened = VectorFolder.open(folder.path)
    expected = FakeEncoder().encode(TEXTS, role="document", ids=corpus.doc_ids)
    np.testing.assert_array_equal(opened.vectors, expected)
    assert opened.vectors.dtype == np.float32
    assert isinstance(opened.vectors, np.memmap)
    assert not opened.vectors.flags.writeable
    assert opened.doc_ids == corpus.doc_ids
    assert len(opened) == len(set(opened.content_hashes)) == 25
    assert opened.fingerprint == FakeEncoder().fingerprint
    assert opened.corpus_hash == corpus.corpus_hash
    assert opened.embed_dim == 8
    assert sorted(path.name for path in folder.path.iterdir()) == sorted(FILES)
    opened.verify()


def test_float16_halves_the_bytes(tmp_path):
    encode_corpus(FakeEncoder(), make_corpus(TEXTS), tmp_path / "v", dtype=Dtype.FLOAT16)
    opened = VectorFolder.open(tmp_path / "v")
    assert opened.vectors.dtype == np.float16
    assert (tmp_path / "v" / "vectors.bin").stat().st_size == 25 * 8 * 2
    expected = FakeEncoder().encode(TEXTS, role="document", ids=TEXTS).astype(np.float16)
    np.testing.assert_array_equal(opened.vectors, expected)


def test_the_manifest_says_what_is_inside(folder):
    manifest = json.loads((folder.path / MANIFEST_FILE).read_text())
    checksum = manifest.pop("checksum")
    assert len(checksum) == 32
    assert manifest == {
        "format_version": 1,
        "fingerprint": FakeEncoder().fingerprint.to_json(),
        "corpus_hash": make_corpus(TEXTS).corpus_hash,
        "role": "document",
        "dtype": "float32",
        "embed_dim": 8,
        "num_inputs": 25,
        "block_rows": 10,
        "num_rows": 25,
        "complete": True,
    }


def flip_byte(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(("row", "block"), [(0, "0 to 9"), (13, "10 to 19"), (24, "20 to 24")])
def test_a_flipped_byte_in_the_vectors_names_the_block(folder, row, block):
    flip_byte(folder.path / "vectors.bin", row * 32 + 5)
    opened = VectorFolder.open(folder.path)
    with pytest.raises(FormatError, match=rf"rows {block} in .*vectors\.bin differ") as caught:
        opened.verify()
    assert "keeps the intact blocks and encodes the rest" in str(caught.value)


def test_a_flipped_byte_in_the_rows_names_the_block(folder):
    content = (folder.path / "rows.jsonl").read_bytes()
    flip_byte(folder.path / "rows.jsonl", content.index(b"doc 12") + 4)
    with pytest.raises(FormatError, match=r"rows 10 to 19 in .*rows\.jsonl differ"):
        VectorFolder.open(folder.path).verify()


def test_every_flipped_byte_of_the_block_log_is_noticed_and_named(folder):
    path = folder.path / "blocks.jsonl"
    content = path.read_bytes()
    for offset in range(0, len(content), 7):
        flip_byte(path, offset)
        with pytest.raises(FormatError, match=r"blocks\.jsonl"):
            VectorFolder.open(folder.path)
        path.write_bytes(content)


def test_every_flipped_byte_of_the_manifest_is_noticed_and_named(folder):
    path = folder.path / MANIFEST_FILE
    content = path.read_bytes()
    for offset in range(0, len(content), 5):
        if content[offset : offset + 1].isspace():
            continue
        flip_byte(path, offset)
        with pytest.raises(FormatError, match=r"vectors\.json"):
            VectorFolder.open(folder.path)
        path.write_bytes(content)


def test_many_damaged_blocks_are_counted(tmp_path):
    encode_corpus(FakeEncoder(), make_corpus(TEXTS), tmp_path / "v", block_rows=5)
    for row in range(0, 25, 5):
        flip_byte(tmp_path / "v" / "vectors.bin", row * 32)
    with pytest.raises(FormatError, match="and 2 more blocks differ"):
        VectorFolder.open(tmp_path / "v").verify()


@pytest.mark.parametrize("name", ["vectors.bin", "rows.jsonl"])
def test_a_truncated_file_is_named_on_opening(folder, name):
    path = folder.path / name
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        FormatError, match=rf"{name} is truncated: it has {size - 1} bytes of {size}"
    ):
        VectorFolder.open(folder.path)
    path.unlink()
    with pytest.raises(FormatError, match=rf"{name} is truncated: it has 0 bytes"):
        VectorFolder.open(folder.path)


@pytest.mark.parametrize("name", ["vectors.bin", "rows.jsonl"])
def test_a_file_that_grew_is_named_on_opening(folder, name):
    path = folder.path / name
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(FormatError, match=rf"{name} is too long"):
        VectorFolder.open(folder.path)


def test_a_truncated_block_log_is_named_on_opening(folder):
    path = folder.path / "blocks.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    with pytest.raises(FormatError, match=r"blocks\.jsonl is truncated: it ends at row 20 of 25"):
        VectorFolder.open(folder.path)
    path.write_bytes(b"".join([lines[0], lines[2]]))
    with pytest.raises(FormatError, match=r"line 2 of .*starts at row 20, not at 10"):
        VectorFolder.open(folder.path)


def test_a_newer_format_is_refused(folder):
    path = folder.path / MANIFEST_FILE
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "format_version": FORMAT_VERSION + 1}))
    with pytest.raises(FormatError, match=r"`format_version` 2 of .*vectors\.json is newer than 1"):
        VectorFolder.open(folder.path)


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(FormatError, match=r"is not a vector folder: it has no vectors\.json"):
        VectorFolder.open(tmp_path)
