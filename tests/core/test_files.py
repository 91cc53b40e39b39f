import errno
import os
from pathlib import Path

import pytest

from nestling.core.files import (
    make_folder,
    naming_write_errors,
    read_json,
    write_atomically,
    write_json,
)
from nestling.errors import FormatError, WriteError


def test_a_file_is_written_with_its_folders_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "file"
    write_atomically(path, b"first")
    write_atomically(path, b"second")
    assert path.read_bytes() == b"second"
    assert [child.name for child in path.parent.iterdir()] == ["file"]


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        WriteError, match=r"cannot write .*file: the disk is full\. Free some space"
    ):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [child.name for child in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_named() -> None:
    with (
        pytest.raises(WriteError, match="the disk is full"),
        naming_write_errors(Path("vectors")),
        Path("/dev/full").open("wb", buffering=0) as file,
    ):
        file.write(b"x")


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file" / "child", tmp_path / "file" / "child" / "grandchild"):
        with pytest.raises(WriteError, match="a file is where a folder should be"):
            write_atomically(path, b"x")


def test_a_folder_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(WriteError, match="a folder is where the file should go"):
        write_atomically(tmp_path / "folder", b"x")
    assert [child.name for child in tmp_path.iterdir()] == ["folder"]


def test_other_errors_keep_their_own_words() -> None:
    with pytest.raises(ConnectionResetError), naming_write_errors(Path("file")):
        raise ConnectionResetError(errno.ECONNRESET, "reset")
    refused = WriteError("already said")
    with pytest.raises(WriteError) as caught, naming_write_errors(Path("file")):
        raise refused
    assert caught.value is refused


def test_json_survives_and_has_no_nan(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    write_json(path, {"a": [1, 2.5, "ü"]})
    assert read_json(path) == {"a": [1, 2.5, "ü"]}
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(path, {"a": float("nan")})
    assert read_json(path) == {"a": [1, 2.5, "ü"]}


def test_what_cannot_be_read_as_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"no file .*missing\.json\. Check the path"):
        read_json(tmp_path / "missing.json")
    with pytest.raises(FormatError, match=r"cannot read .*: Is a directory\. Check the path"):
        read_json(tmp_path)
    for content in (b"{", b"\xff\xfe"):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(FormatError, match=r"bad\.json is not a JSON file: .*Make it again"):
            read_json(tmp_path / "bad.json")


def test_every_folder_above_a_new_one_is_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    flush = os.fsync

    def noted(descriptor: int) -> None:
        flushed.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    make_folder(tmp_path / "a/b/c")
    assert flushed == [str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a/b")]
