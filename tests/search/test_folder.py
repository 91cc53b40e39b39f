from pathlib import Path

import pytest

from nestling.errors import WriteError
from nestling.search.folder import find_parts, is_index, new_folder, sweep


def make_index(path: Path, content: str) -> None:
    with new_folder(path) as folder:
        (folder / "index.json").write_text(content)


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep/down/index"
    with new_folder(path) as folder:
        (folder / "index.json").write_text("one")
        assert not path.exists()
    assert is_index(path)
    assert [entry.name for entry in path.parent.iterdir()] == ["index"]


def test_an_empty_folder_is_free_to_take(tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    make_index(tmp_path / "index", "one")
    assert (tmp_path / "index/index.json").read_text() == "one"


def test_what_is_there_is_never_replaced(tmp_path: Path) -> None:
    make_index(tmp_path / "index", "one")
    with pytest.raises(WriteError, match=r"is an index already.*--overwrite"):
        make_index(tmp_path / "index", "two")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.txt").write_text("years of work")
    with pytest.raises(WriteError, match="is not an index, so that it is never replaced"):
        make_index(tmp_path / "other", "two")
    (tmp_path / "file").write_text("a file")
    with pytest.raises(WriteError, match="is not an index"):
        make_index(tmp_path / "file", "two")
    assert (tmp_path / "index/index.json").read_text() == "one"


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with new_folder(tmp_path / "index") as folder:
            (folder / "index.json").write_text("one")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_leftovers_are_cleared_by_the_next_build(tmp_path: Path) -> None:
    (tmp_path / ".index.building/rows-1").mkdir(parents=True)
    (tmp_path / ".index.building/rows-1/vectors.bin").write_text("half")
    (tmp_path / ".index.building/stray").write_text("half")
    make_index(tmp_path / "index", "one")
    assert [entry.name for entry in (tmp_path / "index").iterdir()] == ["index.json"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["index"]


def test_one_builder_at_a_time(tmp_path: Path) -> None:
    with new_folder(tmp_path / "index") as folder:
        (folder / "index.json").write_text("one")
        with (
            pytest.raises(WriteError, match="is being written by another process"),
            new_folder(tmp_path / "index"),
        ):
            pass
    assert (tmp_path / "index/index.json").read_text() == "one"


def test_an_index_that_appears_during_a_build_is_kept(tmp_path: Path) -> None:
    def late() -> None:
        with new_folder(tmp_path / "index") as folder:
            (folder / "index.json").write_text("late")
            (tmp_path / "index").mkdir()
            (tmp_path / "index/index.json").write_text("early")

    with pytest.raises(WriteError, match="is an index already"):
        late()
    assert (tmp_path / "index/index.json").read_text() == "early"
    assert [entry.name for entry in tmp_path.iterdir()] == ["index"]


def test_only_parts_of_an_index_are_swept(tmp_path: Path) -> None:
    parts = ["rows-1", "rows-2", "tier-1-64-int8", "tier-2-8-rotated-binary", "engine-12-graph"]
    strangers = ["rows", "rows-x", "notes", "tier-1.txt", "my-rows-1", ".hidden"]
    for name in (*parts, *strangers, "full", "head-1"):
        (tmp_path / name / "below").mkdir(parents=True)
    for name in (".index.json.123.part", "catalogue.sqlite", "index.json", "thesis.txt"):
        (tmp_path / name).write_text(name)
    assert {path.name for path in find_parts(tmp_path)} == {
        *parts, "full", "head-1", "catalogue.sqlite", ".index.json.123.part",
    }  # fmt: skip
    sweep(tmp_path, {"rows-2", "tier-1-64-int8"}, is_flushed=False)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {*strangers, "rows-2", "tier-1-64-int8", "index.json", "thesis.txt"}
