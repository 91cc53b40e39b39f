import shutil
import threading
from pathlib import Path

import pytest

from nestling.errors import WriteError
from nestling.search.folder import locked, new_folder, read_steadily, restore


def make_index(path: Path, content: str) -> None:
    with new_folder(path, overwrite=True) as folder:
        (folder / "index.json").write_text(content)


def test_a_folder_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "deep/down/index"
    make_index(path, "one")
    with new_folder(path, overwrite=True) as folder:
        (folder / "index.json").write_text("two")
        assert (path / "index.json").read_text() == "one"
    assert (path / "index.json").read_text() == "two"
    assert [entry.name for entry in path.parent.iterdir()] == ["index"]


def test_an_empty_folder_is_free_to_take(tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    with new_folder(tmp_path / "index", overwrite=False) as folder:
        (folder / "index.json").write_text("one")
    assert (tmp_path / "index/index.json").read_text() == "one"


def test_a_failure_leaves_the_old_one(tmp_path: Path) -> None:
    def interrupted() -> None:
        with new_folder(tmp_path / "index", overwrite=True) as folder:
            (folder / "index.json").write_text("two")
            raise KeyboardInterrupt

    make_index(tmp_path / "index", "one")
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "index/index.json").read_text() == "one"
    assert [entry.name for entry in tmp_path.iterdir()] == ["index"]


def test_leftovers_are_cleared_by_the_next_build(tmp_path: Path) -> None:
    (tmp_path / ".index.building/full").mkdir(parents=True)
    (tmp_path / ".index.building/full/vectors.bin").write_text("half")
    (tmp_path / ".index.building/stray").write_text("half")
    make_index(tmp_path / "index", "one")
    assert [entry.name for entry in (tmp_path / "index").iterdir()] == ["index.json"]
    (tmp_path / ".index.replaced").mkdir()
    make_index(tmp_path / "index", "two")
    assert [entry.name for entry in tmp_path.iterdir()] == ["index"]


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    make_index(tmp_path / "index", "one")
    with (
        locked(tmp_path / "index"),
        pytest.raises(WriteError, match=r"is being written by another process\. Wait"),
        locked(tmp_path / "index"),
    ):
        pass
    with locked(tmp_path / "index"):
        pass


def test_a_lock_on_a_folder_that_was_replaced_is_refused(tmp_path: Path) -> None:
    make_index(tmp_path / "index", "one")
    refusals: list[str] = []

    def write() -> None:
        try:
            with locked(tmp_path / "index", wait=True):
                refusals.append("none")
        except WriteError as error:
            refusals.append(str(error))

    writer = threading.Thread(target=write)
    with locked(tmp_path / "index"):
        writer.start()
        writer.join(timeout=0.2)
        (tmp_path / "index").rename(tmp_path / "old")
        make_index(tmp_path / "index", "two")
    writer.join()
    assert refusals == [f"{tmp_path / 'index'} was replaced by another process. Try again."]


def test_one_builder_at_a_time(tmp_path: Path) -> None:
    with new_folder(tmp_path / "index", overwrite=True) as folder:
        (folder / "index.json").write_text("one")
        with (
            pytest.raises(WriteError, match="is being written by another process"),
            new_folder(tmp_path / "index", overwrite=True),
        ):
            pass
    assert (tmp_path / "index/index.json").read_text() == "one"


def test_a_replacement_waits_for_the_writer(tmp_path: Path) -> None:
    make_index(tmp_path / "index", "one")
    builder = threading.Thread(target=make_index, args=(tmp_path / "index", "two"))
    with locked(tmp_path / "index"):
        builder.start()
        builder.join(timeout=0.2)
        assert builder.is_alive()
        assert (tmp_path / "index/index.json").read_text() == "one"
    builder.join()
    assert (tmp_path / "index/index.json").read_text() == "two"


def test_a_moved_index_is_put_back(tmp_path: Path) -> None:
    make_index(tmp_path / ".index.replaced", "one")
    restore(tmp_path / "index")
    assert (tmp_path / "index/index.json").read_text() == "one"
    assert [entry.name for entry in tmp_path.iterdir()] == ["index"]


def test_half_of_a_removed_index_is_not_put_back(tmp_path: Path) -> None:
    (tmp_path / ".index.replaced").mkdir()
    restore(tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_an_old_index_is_not_put_back_once_its_removal_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_index(tmp_path / "index", "one")

    def interrupted(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_index(tmp_path / "index", "two")
    assert (tmp_path / "index/index.json").read_text() == "two"
    shutil.rmtree(tmp_path / "index")
    restore(tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_an_index_that_appears_during_a_build_is_kept(tmp_path: Path) -> None:
    def late() -> None:
        with new_folder(tmp_path / "index", overwrite=False) as folder:
            (folder / "index.json").write_text("late")
            (tmp_path / "index").mkdir()
            (tmp_path / "index/index.json").write_text("early")

    with pytest.raises(WriteError, match="is an index already"):
        late()
    assert (tmp_path / "index/index.json").read_text() == "early"
    assert [entry.name for entry in tmp_path.iterdir()] == ["index"]


def test_what_is_read_while_replaced_is_read_again(tmp_path: Path) -> None:
    make_index(tmp_path / "index", "0")
    seen: list[str] = []

    def read() -> None:
        seen.append((tmp_path / "index/index.json").read_text())
        if len(seen) < 4:
            make_index(tmp_path / "index", str(len(seen)))
        if len(seen) == 2:
            raise ValueError("half of each")

    read_steadily(tmp_path / "index", read)
    assert seen == ["0", "1", "2", "3"]


def test_an_error_in_a_steady_folder_is_an_error(tmp_path: Path) -> None:
    def read() -> None:
        raise ValueError("damaged")

    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="damaged"):
            read_steadily(path, read)
