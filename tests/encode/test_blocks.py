import os
from pathlib import Path

import numpy as np
import pytest

from nestling.core.files import seal, unseal
from nestling.encode.blocks import BlockWriter, Row, parse_rows, read_blocks
from nestling.errors import FormatError

VECTORS = np.arange(12, dtype=np.float32).reshape(3, 4)
ROWS = [Row(id=name, content="0" * 32) for name in ("a", 'quote " and \\', "日本\n🪆")]


def write(folder: Path, num_blocks: int) -> None:
    with BlockWriter(folder, row_bytes=16) as writer:
        for _ in range(num_blocks):
            writer.append(VECTORS, ROWS, num_inputs=4)


def test_blocks_follow_each_other(tmp_path):
    write(tmp_path, 2)
    first, second = read_blocks(tmp_path, may_be_torn=False)
    assert (first.first_row, first.end_row, first.num_inputs) == (0, 3, 4)
    assert (second.first_row, second.end_row, second.num_inputs) == (3, 6, 8)
    assert second.rows_start == first.rows_end
    assert (tmp_path / "vectors.bin").read_bytes() == VECTORS.tobytes() * 2
    rows = parse_rows((tmp_path / "rows.jsonl").read_bytes(), source=tmp_path / "rows.jsonl")
    assert rows == ROWS * 2


def test_a_writer_goes_on_where_the_last_one_ended(tmp_path):
    for _ in range(3):
        write(tmp_path, 1)
    (tmp_path / "at once").mkdir()
    write(tmp_path / "at once", 3)
    for name in ("vectors.bin", "rows.jsonl", "blocks.jsonl"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "at once" / name).read_bytes()


def test_data_then_rows_then_the_log_each_waited_for(tmp_path, monkeypatch):
    calls = []
    really_write, really_sync = os.write, os.fsync

    def name_of(descriptor: int) -> str:
        inode = os.fstat(descriptor).st_ino
        return next(path.name for path in tmp_path.iterdir() if path.stat().st_ino == inode)

    def write_half(descriptor, data):
        calls.append(("write", name_of(descriptor)))
        return really_write(descriptor, data[: max(1, len(data) // 2)])

    def sync(descriptor):
        calls.append(("fsync", name_of(descriptor)))
        really_sync(descriptor)

    with BlockWriter(tmp_path, row_bytes=16) as writer:
        monkeypatch.setattr(os, "write", write_half)
        monkeypatch.setattr(os, "fsync", sync)
        writer.append(VECTORS, ROWS, num_inputs=3)
        monkeypatch.undo()
    assert list(dict.fromkeys(calls)) == [
        ("write", "vectors.bin"),
        ("fsync", "vectors.bin"),
        ("write", "rows.jsonl"),
        ("fsync", "rows.jsonl"),
        ("write", "blocks.jsonl"),
        ("fsync", "blocks.jsonl"),
    ]
    assert [name for kind, name in calls if kind == "fsync"] == [
        "vectors.bin",
        "rows.jsonl",
        "blocks.jsonl",
    ]
    assert (tmp_path / "vectors.bin").read_bytes() == VECTORS.tobytes()
    assert len(read_blocks(tmp_path, may_be_torn=False)) == 1


def test_a_block_without_rows_counts_its_inputs(tmp_path):
    with BlockWriter(tmp_path, row_bytes=16) as writer:
        writer.append(VECTORS[:0], [], num_inputs=5)
        assert (writer.num_inputs, writer.num_rows) == (5, 0)
        writer.append(VECTORS, ROWS, num_inputs=3)
    assert [block.num_inputs for block in read_blocks(tmp_path, may_be_torn=False)] == [5, 8]


def test_only_the_last_line_may_be_torn(tmp_path):
    write(tmp_path, 3)
    path = tmp_path / "blocks.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for torn in (lines[2][:-1], lines[2][:30], b"\0\0\n"):
        path.write_bytes(lines[0] + lines[1] + torn)
        assert len(read_blocks(tmp_path, may_be_torn=True)) == 2
        with pytest.raises(FormatError, match=r"line 3 of .*blocks\.jsonl is damaged"):
            read_blocks(tmp_path, may_be_torn=False)
    path.write_bytes(lines[0] + lines[1][:-5] + b"\n" + lines[2])
    with pytest.raises(FormatError, match=r"line 2 of .*blocks\.jsonl is damaged"):
        read_blocks(tmp_path, may_be_torn=True)


def test_a_seal_breaks_with_any_change():
    sealed = seal({"a": 1, "b": [None, "x"]})
    assert unseal(sealed, source="here", advice="") == {"a": 1, "b": [None, "x"]}
    broken: object
    for broken in ({**sealed, "a": 2}, {**sealed, "c": 1}, {"a": 1}, [], None):
        with pytest.raises(FormatError, match="here is damaged: its content does not fit"):
            unseal(broken, source="here", advice="")


def test_lines_that_are_no_rows_are_named(tmp_path):
    for data in (b"{", b'{"id": "a"}\n', b"[1]\n"):
        with pytest.raises(FormatError, match=r"rows\.jsonl is damaged: .* Remove the folder"):
            parse_rows(data, source=tmp_path / "rows.jsonl")
