import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.core.row_sums import row_sums
from nestling.errors import FormatError
from nestling.search import rowfile
from nestling.search.rowfile import (
    NOTHING,
    CheckedRows,
    FileState,
    LoadedRows,
    RowWriter,
    check_size,
    map_checked,
    map_rows,
    measure_file,
)


def write(path: Path, rows: np.ndarray, state: FileState = NOTHING) -> FileState:
    with RowWriter(path, state) as writer:
        writer.write(rows)
    return writer.state


@given(
    pieces=st.lists(st.binary(max_size=40), max_size=5), leftover=st.binary(min_size=1, max_size=20)
)
def test_appending_cuts_off_what_was_not_acknowledged(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], leftover: bytes
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.bin"
    state = NOTHING
    for piece in pieces:
        state = write(path, np.frombuffer(piece, np.uint8), state)
        path.write_bytes(path.read_bytes() + leftover)
    whole = b"".join(pieces)
    assert state == FileState(len(whole), zlib.crc32(whole))
    if pieces:
        assert path.read_bytes() == whole + leftover
        assert measure_file(path, state.num_bytes) == state
        assert measure_file(path).num_bytes == len(whole) + len(leftover)


def test_only_what_changed_is_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.bin"
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", flushed.append)
    nothing, something = np.empty(0, np.uint8), np.arange(5, dtype=np.uint8)
    assert write(path, nothing) == NOTHING
    assert len(flushed) == 1  # a new file, though empty
    state = write(path, something)
    assert len(flushed) == 2
    assert write(path, nothing, state) == state
    assert len(flushed) == 2
    path.write_bytes(path.read_bytes() + b"leftover")
    assert write(path, nothing, state) == state
    assert len(flushed) == 3
    assert path.read_bytes() == something.tobytes()


def test_rows_come_back_mapped_and_loaded(tmp_path: Path) -> None:
    rows = np.arange(24, dtype=np.float16).reshape(6, 4)
    path = tmp_path / "rows.bin"
    state = write(path, rows[:, :2])  # not contiguous
    mapped = map_rows(path, (6, 2), np.float16)
    np.testing.assert_array_equal(mapped, rows[:, :2])
    assert not mapped.flags.writeable
    loaded = LoadedRows.load(path, state, (6, 2), np.float16)
    np.testing.assert_array_equal(loaded.rows, rows[:, :2])
    assert not loaded.rows.flags.writeable
    np.testing.assert_array_equal(map_checked(path, state, np.float16), rows[:, :2].ravel())
    empty = write(tmp_path / "empty.bin", rows[:0])
    assert map_rows(tmp_path / "empty.bin", (0, 4), np.float16).shape == (0, 4)
    assert LoadedRows.load(tmp_path / "empty.bin", empty, (0, 4), np.float16).rows.shape == (0, 4)
    assert len(map_checked(tmp_path / "empty.bin", empty, np.float16)) == 0


@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=6), spare=st.integers(0, 100))
def test_loaded_rows_grow_and_the_shorter_ones_stay(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], spare: int
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.bin"
    rows = np.arange(2 * sum(sizes), dtype=np.int32).reshape(-1, 2)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rowfile, "SPARE_BYTES", spare)
        state, known, all_known = NOTHING, None, []
        for stop in np.cumsum(sizes).tolist():
            state = write(path, rows[state.num_bytes // 8 : stop], state)
            known = LoadedRows.load(path, state, (stop, 2), np.int32, known=known)
            all_known.append(known)
    for stop, known in zip(np.cumsum(sizes).tolist(), all_known, strict=True):
        np.testing.assert_array_equal(known.rows, rows[:stop])


def test_growing_copies_nothing_while_there_is_room(tmp_path: Path) -> None:
    path = tmp_path / "rows.bin"
    rows = np.arange(100, dtype=np.int32)
    state = write(path, rows[:90])
    first = LoadedRows.load(path, state, (90,), np.int32)
    second = LoadedRows.load(path, write(path, rows[90:], state), (100,), np.int32, known=first)
    assert np.shares_memory(first.rows, second.rows)


def test_damage_in_what_is_loaded_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.bin"
    rows = np.arange(50, dtype=np.uint8)
    state = write(path, rows[:40])
    known = LoadedRows.load(path, state, (40,), np.uint8)
    grown = write(path, rows[40:], state)
    content = bytearray(path.read_bytes())
    content[45] ^= 1
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"rows\.bin is damaged: its content does not fit its"):
        LoadedRows.load(path, grown, (50,), np.uint8, known=known)
    with pytest.raises(FormatError, match=r"rows\.bin is damaged"):
        map_checked(path, grown, np.uint8, known=state)
    with pytest.raises(FormatError, match=r"rows\.bin is damaged"):
        map_checked(path, grown, np.uint8)
    LoadedRows.load(path, state, (40,), np.uint8)


def make_checked(folder: Path, rows: np.ndarray) -> CheckedRows:
    write(folder / "rows.bin", rows)
    write(folder / "sums.bin", row_sums(rows))
    return CheckedRows(folder / "rows.bin", folder / "sums.bin", rows.shape, rows.dtype)


def damage(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        old = file.read(1)
        file.seek(place)
        file.write(bytes([old[0] ^ 4]))


def test_a_damaged_row_is_refused_whenever_it_is_asked_for(tmp_path: Path) -> None:
    rows = np.arange(80, dtype=np.float32).reshape(20, 4)
    checked = make_checked(tmp_path, rows)
    damage(tmp_path / "rows.bin", 7 * 16 + 3)
    checked.ensure(np.array([[0, 6, -1], [8, 19, 6]]))
    checked.ensure_span(0, 7)
    checked.ensure_span(8, 20)
    message = r"rows\.bin is damaged: row 7 differs from its sum"
    for _ in range(2):
        with pytest.raises(FormatError, match=message):
            checked.ensure(np.array([3, 7]))
        with pytest.raises(FormatError, match=message):
            checked.ensure_span(7, 8)
        with pytest.raises(FormatError, match=message):
            checked.ensure_span(0, 20)


def test_a_damaged_sum_fits_no_row(tmp_path: Path) -> None:
    checked = make_checked(tmp_path, np.ones((5, 3), np.int8))
    damage(tmp_path / "sums.bin", 2 * 8)
    checked.ensure(np.array([0, 1, 3, 4]))
    with pytest.raises(FormatError, match="row 2 differs"):
        checked.ensure(np.array([2]))


@given(
    asked=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)).map(sorted), max_size=8),
    damaged=st.integers(0, 19),
)
def test_spans_in_any_order_never_pass_a_damaged_row(
    tmp_path_factory: pytest.TempPathFactory, asked: list[list[int]], damaged: int
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    checked = make_checked(folder, np.arange(40, dtype=np.int16).reshape(20, 2))
    damage(folder / "rows.bin", 4 * damaged)
    for start, stop in asked:
        if start <= damaged < stop:
            with pytest.raises(FormatError, match=f"row {damaged} differs"):
                checked.ensure_span(start, stop)
        else:
            checked.ensure_span(start, stop)


def test_what_was_seen_is_not_read_again_when_rows_are_added(tmp_path: Path) -> None:
    rows = np.arange(60, dtype=np.float32).reshape(20, 3)
    known = make_checked(tmp_path, rows[:15])
    known.ensure_span(0, 5)
    known.ensure(np.array([9]))
    make_checked(tmp_path, rows)
    damage(tmp_path / "rows.bin", 12 * 9)
    grown = CheckedRows(
        tmp_path / "rows.bin", tmp_path / "sums.bin", rows.shape, rows.dtype, known=known
    )
    grown.ensure_span(0, 10)
    damage(tmp_path / "rows.bin", 12 * 12)
    with pytest.raises(FormatError, match="row 12 differs"):
        grown.ensure_span(0, 20)


def test_large_files_are_measured_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytes(range(256)) * 5
    (tmp_path / "rows.bin").write_bytes(content)
    monkeypatch.setattr("nestling.search.rowfile.MEASURED_AT_ONCE", 7)
    assert measure_file(tmp_path / "rows.bin") == FileState(len(content), zlib.crc32(content))


def test_a_short_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.bin"
    path.write_bytes(b"abc")
    check_size(path, FileState(3, 0))
    with pytest.raises(FormatError, match=r"rows\.bin must hold 1,000 bytes, it has 3\. Restore"):
        check_size(path, FileState(1000, 0))
    with pytest.raises(FormatError, match=r"rows-1\.bin must hold 8 bytes, it is missing"):
        check_size(tmp_path / "rows-1.bin", FileState(8, 0))
