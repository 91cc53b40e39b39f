import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from nestling.data.lines import kind_of, open_bytes, read_bytes, read_lines
from nestling.errors import DataError

Write = Callable[[str, str | bytes], Path]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jsonl", ".jsonl"),
        ("a.JSONL.GZ", ".jsonl"),
        ("a.b.tsv.gz", ".tsv"),
        ("a.gz", ""),
        ("a", ""),
    ],
)
def test_kind_of(name: str, kind: str) -> None:
    assert kind_of(Path(name)) == kind


def test_plain_and_gz_give_the_same_lines(write: Write) -> None:
    content = "\ufeffone\r\ntwo\u2028still two\x0cand still\n\nlast".encode()
    expected = ["one\r\n", "two\u2028still two\x0cand still\n", "\n", "last"]
    assert list(read_lines(write("a.txt", content))) == expected
    assert list(read_lines(write("a.txt.gz", gzip.compress(content)))) == expected


def test_missing_file_offers_the_closest_name(write: Write) -> None:
    write("queries.jsonl", "")
    missing = write("x", "").with_name("querys.jsonl")
    with pytest.raises(
        DataError, match=r"`path` must exist, got .*querys\.jsonl\. Did you mean .*queries\.jsonl\?"
    ):
        list(read_lines(missing))
    with pytest.raises(
        DataError, match="Check the path; a relative one starts at the current folder"
    ):
        read_bytes(Path("/nowhere/at/all"))


def test_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must be a file, got the folder"), open_bytes(tmp_path):
        pass


def test_gz_in_name_only(write: Write) -> None:
    with pytest.raises(
        DataError,
        match=r"ends in \.gz but cannot be unpacked: Not a gzipped file.*take \.gz off its name",
    ):
        list(read_lines(write("a.txt.gz", "plain")))


def test_truncated_gz(write: Write) -> None:
    packed = gzip.compress(b"some text\n" * 1000)
    with pytest.raises(DataError, match=r"cannot be unpacked: .*end-of-stream.*copy it again"):
        list(read_lines(write("a.txt.gz", packed[:-20])))


@pytest.mark.parametrize(
    ("place", "reason"), [(10, "while decompressing data"), (-8, "CRC check failed")]
)
def test_damaged_gz(write: Write, place: int, reason: str) -> None:
    packed = bytearray(gzip.compress(bytes(range(256)) * 10))
    packed[place] ^= 0xFF
    with pytest.raises(DataError, match=rf"cannot be unpacked: .*{reason}"):
        read_bytes(write("a.bin.gz", bytes(packed)))


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n", "a PNG image"),
        (gzip.compress(b"text"), "gzip data; end its name in .gz"),
        (b"PAR1....", "a Parquet file"),
        ("text".encode("utf-16"), "UTF-16 text; save it as UTF-8"),
    ],
)
def test_known_binary_kinds_are_named(write: Write, content: bytes, kind: str) -> None:
    with pytest.raises(DataError, match=f"must be a text file, got {kind}"):
        list(read_lines(write("a.txt", content)))


def test_not_utf8_names_line_and_byte(write: Write) -> None:
    with pytest.raises(DataError, match=r"must be UTF-8, got the byte 0xe9 in line 2\. .*iconv"):
        list(read_lines(write("a.txt", "fine\ncaf\xe9\n".encode("latin1"))))


def test_zero_byte_is_binary(write: Write) -> None:
    with pytest.raises(
        DataError, match=r"must be text, got a binary file \(line 2 holds a zero byte\)"
    ):
        list(read_lines(write("a.txt", b"fine\nno\0t\n")))


def test_unreadable_file(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("a.txt", "x")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(
        DataError, match=r"cannot read .*a\.txt: Permission denied\. Check its permissions"
    ):
        read_bytes(path)
