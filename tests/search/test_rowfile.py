import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.errors import FormatError
from nestling.search.rowfile import (
    NOTHING,
    FileState,
    RowWriter,
    check_size,
    map_rows,
    measure_file,
    read_rows,
)


@given(
    pieces=st.lists(st.binary(max_size=40), max_size=5), leftover=st.binary(min_size=1, max_size=20)
)
def test_appending_cuts_off_what_was_not_acknowledged(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], leftover: bytes
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.bin"
    state = NOTHING
    for piece in pieces:
        with RowWriter(path, state) as writer:
            writer.write(np.frombuffer(piece, np.uint8))
        state = writer.state
        path.write_bytes(path.read_bytes() + leftover)
    whole = b"".join(pieces)
    assert state == FileState(len(whole), zlib.crc32(whole))
    if pieces:
        assert path.read_bytes() == whole + leftover
        assert measure_file(path, state.num_bytes) == state
        assert measure_file(path).num_bytes == len(whole) + len(leftover)


def test_rows_come_back_by_map_and_by_read(tmp_path: Path) -> None:
    rows = np.arange(24, dtype=np.float16).reshape(6, 4)
    with RowWriter(tmp_path / "rows.bin") as writer:
        writer.write(rows[:, :2])  # not contiguous
        writer.write(rows)
    np.testing.assert_array_equal(map_rows(tmp_path / "rows.bin", (6, 2), np.float16), rows[:, :2])
    np.testing.assert_array_equal(read_rows(tmp_path / "rows.bin", (6, 2), np.float16), rows[:, :2])
    assert not map_rows(tmp_path / "rows.bin", (6, 2), np.float16).flags.writeable


def test_large_files_are_measured_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytes(range(256)) * 5
    (tmp_path / "rows.bin").write_bytes(content)
    monkeypatch.setattr("nestling.search.rowfile.CHUNK_VALUES", 7)
    assert measure_file(tmp_path / "rows.bin") == FileState(len(content), zlib.crc32(content))


def test_a_short_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.bin"
    path.write_bytes(b"abc")
    check_size(path, FileState(3, 0))
    with pytest.raises(FormatError, match=r"rows\.bin must hold 1,000 bytes, it has 3\. Build"):
        check_size(path, FileState(1000, 0))
