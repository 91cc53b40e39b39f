"""Indexes of format version 1 are written anew; the files of one are made here by hand."""

import json
import shutil
import sqlite3
import zlib
from pathlib import Path

import numpy as np
import pytest

from nestling.core import Dtype, Fingerprint
from nestling.core.files import seal
from nestling.errors import FormatError, WriteError
from nestling.search import Index, Plan
from nestling.search.entries import make_entries
from tests.search.support import (
    build_index,
    contents,
    corpus_of,
    fingerprint_of,
    found,
    plan_of,
    random_rows,
    tree,
)

WIDTH = 32
ROWS = random_rows(40, WIDTH)
QUERIES = random_rows(3, WIDTH, seed=1)
PLAN = plan_of(WIDTH, (8, Dtype.INT8, 30), (WIDTH, Dtype.FLOAT32, None))


def write_version_1(path: Path, rows: np.ndarray, plan: Plan, fingerprint: Fingerprint) -> None:
    """Write what this version reads of version 1; as then, leftovers may lie behind what counts."""
    corpus = corpus_of(len(rows))
    (path / "full").mkdir(parents=True)
    (path / "head-1").mkdir()
    (path / "head-1/codes.bin").write_bytes(b"derived again")
    (path / "full/vectors.bin").write_bytes(rows.tobytes() + b"leftover")
    connection = sqlite3.connect(path / "catalogue.sqlite")
    connection.execute(
        "CREATE TABLE documents "
        "(row INTEGER PRIMARY KEY, doc_id TEXT NOT NULL UNIQUE, text TEXT, metadata TEXT)"
    )
    checksum = 0
    for row, entry in enumerate(make_entries(corpus.doc_ids, corpus.texts, corpus.metadata)):
        checksum = zlib.crc32(json.dumps(entry).encode(), checksum)
        connection.execute("INSERT INTO documents VALUES (?, ?, ?, ?)", (row, *entry))
    connection.execute("INSERT INTO documents VALUES (?, 'leftover', NULL, NULL)", (len(rows),))
    connection.commit()
    connection.close()
    plain = plan.to_json()
    plain["plan_version"] = 1
    del plain["engine"]
    content = {
        "index_version": 1,
        "generation": 3,
        "num_rows": len(rows),
        "vector_dtype": rows.dtype.name,
        "fingerprint": fingerprint.to_json(),
        "plan": plain,
        "engine": "flat",
        "head": "head-1",
        "files": {
            "full/vectors.bin": [rows.nbytes, zlib.crc32(rows.tobytes())],
            "head-1/codes.bin": [13, zlib.crc32(b"derived again")],
        },
        "catalogue_checksum": checksum,
    }
    (path / "index.json").write_text(json.dumps(seal(json.loads(json.dumps(content)))))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_version_1(tmp_path / "index", ROWS, PLAN, fingerprint_of(WIDTH))
    return tmp_path / "index"


def test_an_old_index_is_written_anew_when_it_is_opened(path: Path, tmp_path: Path) -> None:
    with (
        Index.open(path) as index,
        build_index(tmp_path / "new", ROWS, plan=PLAN) as new,
    ):
        assert contents(index) == contents(new)
        assert found(index, QUERIES, 9) == found(new, QUERIES, 9)
        assert (index.generation, index.plan, index.fingerprint) == (4, PLAN, new.fingerprint)
        index.verify()
        renumbered = {name.replace("-4", "-1", 1) for name in tree(path)}
        assert renumbered == set(tree(new.path))
    before = tree(path)
    Index.open(path).close()
    assert tree(path) == before


def test_an_old_index_of_float16_vectors(tmp_path: Path) -> None:
    rows = ROWS.astype(np.float16)
    plan = plan_of(WIDTH, (WIDTH, Dtype.FLOAT16, None))
    write_version_1(tmp_path / "index", rows, plan, fingerprint_of(WIDTH))
    with Index.open(tmp_path / "index") as index:
        np.testing.assert_array_equal(index.snapshot.vectors.rows, rows)


def test_an_old_index_that_is_damaged_is_left_as_it_is(path: Path) -> None:
    for name, place in (("full/vectors.bin", 77), ("catalogue.sqlite", -1)):
        content = (path / name).read_bytes()
        if place < 0:
            place = content.rfind(b"text of document 7")
        (path / name).write_bytes(content[:place] + b"\x07" + content[place + 1 :])
        before = tree(path)
        with pytest.raises(FormatError, match=rf"{name} is damaged.*build the index again"):
            Index.open(path)
        assert tree(path) == before
        (path / name).write_bytes(content)
    Index.open(path).close()


def test_an_old_index_may_be_overwritten(path: Path) -> None:
    (path / "full/vectors.bin").unlink()
    with build_index(path, ROWS[:7], plan=PLAN, overwrite=True) as index:
        assert len(index) == 7
        index.verify()
        named = {*index.snapshot.manifest.folders, "index.json"}
        assert {entry.name for entry in path.iterdir()} <= named


def test_an_old_index_that_cannot_be_written_says_what_to_do(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    before = tree(path)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "mkdir", refuse)
        with pytest.raises(WriteError, match=r"of version 1, which is written anew.*permission"):
            Index.open(path)
    assert tree(path) == before
    shutil.rmtree(path)
