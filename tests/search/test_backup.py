import itertools
import os
import signal
from pathlib import Path

import pytest

from nestling.errors import FormatError, WriteError
from nestling.search import Index
from tests.search.support import contents, random_rows, scratch_folder, tree
from tests.search.workload import CODES, GRAPH, WIDTH, add_step, delete_step, start, steps

QUERIES = random_rows(3, WIDTH)


def test_a_backup_is_the_generation_and_lives_on_by_itself(tmp_path: Path) -> None:
    model = start(tmp_path / "index", 30, GRAPH)
    with Index.open(tmp_path / "index") as index:
        step = add_step(model, ["d1", "new"], 1)
        step.apply(index)
        index.backup(tmp_path / "deep/copy")
        delete_step(step.model, ["d3"]).apply(index)
        hits = index.search(QUERIES)
    assert [entry.name for entry in (tmp_path / "deep").iterdir()] == ["copy"]
    with Index.open(tmp_path / "deep/copy") as copy:
        copy.verify()
        assert contents(copy) == step.model
        assert copy.generation == 2
        delete_step(step.model, ["d3"]).apply(copy)
        assert copy.search(QUERIES) == hits
        copy.verify()


def test_what_a_dead_writer_left_is_not_copied(tmp_path: Path) -> None:
    model = start(tmp_path / "index", 30, CODES)
    manifest = (tmp_path / "index/index.json").read_bytes()
    with Index.open(tmp_path / "index") as index:
        clean = tree(tmp_path / "index")
        step = add_step(model, ["d1", "new"], 1)
        step.apply(index)
    (tmp_path / "index/index.json").write_bytes(manifest)  # as if killed just before the switch
    with Index.open(tmp_path / "index") as index:
        index.backup(tmp_path / "copy")
    copied = tree(tmp_path / "copy")
    for name in clean.keys() - {"rows-1/catalogue.sqlite"}:
        assert copied[name] == clean[name]
    with Index.open(tmp_path / "copy") as copy:
        assert contents(copy) == model
        copy.verify()


def test_a_backup_never_replaces_anything(tmp_path: Path) -> None:
    start(tmp_path / "index", 30, CODES)
    start(tmp_path / "other", 5, CODES)
    with Index.open(tmp_path / "index") as index:
        with pytest.raises(WriteError, match="is an index already"):
            index.backup(tmp_path / "other")
        with pytest.raises(WriteError, match="is an index already"):
            index.backup(tmp_path / "index")


@pytest.mark.parametrize("name", ["vectors.bin", "ids.bin", "catalogue.sqlite"])
def test_damage_is_not_copied(tmp_path: Path, name: str) -> None:
    start(tmp_path / "index", 30, CODES)
    with Index.open(tmp_path / "index") as index:
        path = tmp_path / "index/rows-1" / name
        content = path.read_bytes()
        place = content.rfind(b"document 7") if name.endswith("sqlite") else 40
        path.write_bytes(content[:place] + b"\x07" + content[place + 1 :])
        with pytest.raises(FormatError, match=rf"{name} is damaged"):
            index.backup(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_backup_during_writes_is_one_generation() -> None:
    with scratch_folder() as folder:
        model = start(folder / "index", 30, CODES)
        writer = os.fork()
        if writer == 0:
            with Index.open(folder / "index") as index:
                for step in steps(model):
                    step.apply(index)
        try:
            changes = steps(model)
            with Index.open(folder / "index") as index:
                for number in range(12):
                    index.backup(folder / f"copy-{number}")
                    with Index.open(folder / f"copy-{number}") as copy:
                        copy.verify()
                        held = contents(copy)
                    for step in itertools.islice(changes, 2000 if held != model else 0):
                        model = step.model
                        if model == held:
                            break
                    assert held == model
        finally:
            os.kill(writer, signal.SIGKILL)
            os.waitpid(writer, 0)
