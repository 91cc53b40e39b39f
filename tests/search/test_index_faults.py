"""Disks that fill up, folders that may not be written, files that were damaged."""

import errno
import itertools
import json
import os
import re
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from nestling.core import Dtype
from nestling.errors import FormatError, WriteError
from nestling.search import Index
from tests.search.support import (
    contents,
    corpus_of,
    make_folder,
    plan_of,
    random_rows,
    scratch_folder,
    tree,
)
from tests.search.workload import CODES, GRAPH, SIGNS, WIDTH, add_step, delete_step, start

ROWS = random_rows(30, WIDTH)
QUERIES = random_rows(3, WIDTH, seed=1)
ROTATED = plan_of(
    WIDTH, (16, Dtype.ROTATED_BINARY, 500), (16, Dtype.INT4, 500), (WIDTH, Dtype.FLOAT32, None)
)
CHANGES: dict[str, Callable[[Index], object]] = {
    "add": lambda index: add_step({}, ["new", "newer"], 1).apply(index),
    "upsert": lambda index: add_step({"d3": None}, ["d3", "newer"], 1).apply(index),  # type: ignore[dict-item]
    "delete": lambda index: delete_step({}, ["d3", "d4"]).apply(index),
    "compact": lambda index: index.compact(),
    "resize": lambda index: index.resize(CODES),
}


@pytest.fixture(scope="module")
def pristine() -> Iterator[Path]:
    """An index that has an engine with files, a tail, and dead rows."""
    with scratch_folder() as folder:
        model = start(folder / "index", len(ROWS), GRAPH)
        with Index.open(folder / "index") as index:
            step = add_step(model, ["d1", "tail"], 9)
            step.apply(index)
            delete_step(step.model, ["d2"]).apply(index)
        yield folder / "index"


@pytest.fixture
def path(pristine: Path) -> Iterator[Path]:
    with scratch_folder() as folder:
        shutil.copytree(pristine, folder / "index")
        yield folder / "index"


def full_disk_after(num_flushes: int) -> Callable[[int], None]:
    left = num_flushes

    def flush(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    return flush


@pytest.mark.parametrize("name", CHANGES)
def test_a_disk_that_fills_up_at_any_flush_is_named(
    pristine: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Index.open(pristine) as index:
        before = contents(index)
    num_refused = 0
    for num_flushes in itertools.count():
        with scratch_folder() as folder:
            path = folder / "index"
            shutil.copytree(pristine, path)
            with Index.open(path) as index:
                with monkeypatch.context() as patched:
                    patched.setattr(os, "fsync", full_disk_after(num_flushes))
                    try:
                        CHANGES[name](index)
                        break
                    except WriteError as error:
                        assert "the disk is full. Free some space" in str(error)  # noqa: PT017
                num_refused += 1
                # But for the flush behind the switch, nothing has changed, and nothing is left over.
                is_switched = index.refresh()
                assert is_switched or contents(index) == before
                assert is_switched or is_tidy(index)
                index.verify()
                add_step({}, ["afterwards"], 5).apply(index)
                index.verify()
    assert num_refused >= 3


def is_tidy(index: Index) -> bool:
    named = {*index.snapshot.manifest.folders, "index.json"}
    return {entry.name for entry in index.path.iterdir()} <= named


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_full_disk_during_a_build_leaves_what_there_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    vectors = make_folder(tmp_path / "vectors", ROWS)
    path = tmp_path / "index"
    if overwrite:
        Index.build(path, vectors).close()
    before = tree(path)
    for num_flushes in itertools.count():
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full_disk_after(num_flushes))
            try:
                Index.build(path, vectors, corpus_of(30), plan=CODES, overwrite=overwrite).close()
                break
            except WriteError as error:
                assert re.search(r"cannot write .*index.*: the disk is full", str(error))  # noqa: PT017
        if tree(path) != before:
            with Index.open(path) as index:  # only the flush behind the switch failed
                index.verify()
                assert index.plan == CODES
            shutil.rmtree(path)
            if overwrite:
                Index.build(path, vectors).close()
        assert {entry.name for entry in tmp_path.iterdir()} <= {"vectors", "index"}
    assert num_flushes > 10


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("limit", [0, 100, 3000, 9000, 20_000])
def test_a_file_that_cannot_grow_leaves_the_last_generation(
    path: Path, name: str, limit: int
) -> None:
    with Index.open(path) as index:
        before = contents(index)
    process = os.fork()
    if process == 0:
        os._exit(_write_with_limit(path, name, limit))
    _, status = os.waitpid(process, 0)
    assert os.WIFEXITED(status)
    assert os.WEXITSTATUS(status) in (0, 7)
    with Index.open(path) as index:
        index.verify()
        assert os.WEXITSTATUS(status) == 0 or contents(index) == before
        index.compact()
        index.verify()


def _write_with_limit(path: Path, name: str, limit: int) -> int:
    """Return 0 if the change got through, 7 if it was refused as it should be."""
    try:
        index = Index.open(path)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        CHANGES[name](index)
    except WriteError as error:
        return 7 if re.search(r"cannot write .*(Raise `ulimit|Free some space)", str(error)) else 8
    except BaseException:
        return 9
    return 0


@pytest.fixture
def unprivileged() -> Callable[[Callable[[], None]], None]:
    """Runs a function in a process that is not root: root may write anywhere."""

    def run(job: Callable[[], None]) -> None:
        process = os.fork()
        if process == 0:
            status = 1
            try:
                if os.geteuid() == 0:
                    os.setgid(65534)
                    os.setuid(65534)
                job()
                status = 0
            finally:
                os._exit(status)
        _, status = os.waitpid(process, 0)
        assert os.waitstatus_to_exitcode(status) == 0

    return run


def test_a_folder_that_may_not_be_written_can_be_read(
    path: Path, unprivileged: Callable[[Callable[[], None]], None]
) -> None:
    for entry in [path.parent, path, *path.rglob("*")]:
        entry.chmod(0o555 if entry.is_dir() else 0o444)

    def job() -> None:
        with Index.open(path) as index:
            index.verify()
            assert len(contents(index)) == len(index)
            assert not index.refresh()
            for apply in CHANGES.values():
                with pytest.raises(WriteError, match="permission denied"):
                    apply(index)

    unprivileged(job)


# Damage: named when it is read, or when all is verified; never served.


def test_a_folder_without_a_manifest_is_not_an_index(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"is not an index: it has no index\.json"):
        Index.open(tmp_path)
    with pytest.raises(FormatError, match="is not an index"):
        Index.open(tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module", params=["codes", "graph", "rotated", "exact"])
def whole(request: pytest.FixtureRequest) -> Iterator[Path]:
    """Indexes that have every kind of file, with dead rows and a tail."""
    plans = {
        "codes": CODES,
        "graph": GRAPH,
        "rotated": ROTATED,
        "exact": plan_of(WIDTH, (WIDTH, Dtype.FLOAT32, None)),
    }
    with scratch_folder() as folder:
        model = start(folder / "index", len(ROWS), plans[request.param])
        with Index.open(folder / "index") as index:
            step = add_step(model, ["d1", "tail"], 9)
            step.apply(index)
            index.verify()
        yield folder / "index"


def files_of(path: Path) -> list[Path]:
    return sorted(entry for entry in path.rglob("*") if entry.is_file())


def test_a_truncated_or_missing_file_is_named(whole: Path) -> None:
    for path in files_of(whole):
        content = path.read_bytes()
        if path.suffix != ".bin" or not content:
            continue
        os.truncate(path, len(content) - 1)
        with pytest.raises(FormatError, match=rf"{path.name} must hold [\d,]+ bytes, it has"):
            Index.open(whole)
        path.unlink()
        with pytest.raises(
            FormatError, match=rf"{path.name} must hold [\d,]+ bytes, it is missing"
        ):
            Index.open(whole)
        path.write_bytes(content)
    Index.open(whole).close()


def test_a_flipped_bit_in_any_file_is_named_and_never_served(whole: Path) -> None:
    generator = np.random.default_rng(0)
    with Index.open(whole) as index:
        expected = [index.search(QUERIES, top_k=30), index.search(QUERIES, where="number < 9")]
    for path in files_of(whole):
        content = path.read_bytes()
        for place in generator.integers(0, max(1, len(content)), 12 if len(content) else 0):
            flipped = bytearray(content)
            flipped[place] ^= 1 << int(generator.integers(0, 8))
            path.write_bytes(flipped)
            try:
                is_named = names_damage(whole, path.name)
                served = serve(whole)
            finally:
                path.write_bytes(content)
            assert served in (None, expected), f"{path.name} at {place}"
            # What carries nothing (free space in a page of SQLite) may differ without being noticed.
            assert is_named or path.suffix == ".sqlite", f"{path.name} at {place}"
    with Index.open(whole) as index:
        index.verify()


def names_damage(whole: Path, name: str) -> bool:
    try:
        Index.verify_folder(whole)
    except FormatError as error:
        return name in str(error)
    return False


def serve(whole: Path) -> object:
    """Return what searches find; None if they are refused."""
    try:
        with Index.open(whole) as index:
            return [index.search(QUERIES, top_k=30), index.search(QUERIES, where="number < 9")]
    except FormatError:
        return None


def test_damage_is_named_in_all_files_at_once(whole: Path) -> None:
    with Index.open(whole) as index:
        originals = {}
        for name, state in index.snapshot.manifest.files.items():
            if state.num_bytes:
                path = whole / name
                originals[path] = path.read_bytes()
                path.write_bytes(bytes([originals[path][0] ^ 1]) + originals[path][1:])
        with pytest.raises(FormatError, match="differ from their checksum") as caught:
            index.verify()
        assert all(path.name in str(caught.value) for path in originals)
        with pytest.raises(FormatError):  # the first that is read whole
            Index.open(whole)
        with pytest.raises(FormatError) as named_unopened:
            Index.verify_folder(whole)
        assert str(named_unopened.value) == str(caught.value)
        for path, content in originals.items():
            path.write_bytes(content)
        index.verify()


def test_damage_that_is_found_while_searching_names_the_file(path: Path) -> None:
    vectors = next(path.glob("rows-*/vectors.bin"))
    content = bytearray(vectors.read_bytes())
    content[5 * WIDTH * 4 + 3] ^= 64
    vectors.write_bytes(content)
    with (
        Index.open(path) as index,
        pytest.raises(FormatError, match=r"vectors\.bin is damaged: row 5 differs from its sum"),
    ):
        index.search(QUERIES, top_k=30)


def test_a_destroyed_catalogue_is_named(path: Path) -> None:
    catalogue = next(path.glob("rows-*/catalogue.sqlite"))
    catalogue.write_bytes(b"\0" * catalogue.stat().st_size)
    with pytest.raises(FormatError, match=r"catalogue\.sqlite"), Index.open(path) as index:
        index.search(QUERIES)
    catalogue.unlink()
    with pytest.raises(FormatError, match=r"catalogue\.sqlite"):
        Index.open(path)
    assert not catalogue.exists()


def rewrite_manifest(folder: Path, **changes: object) -> None:
    path = folder / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_newer_format_is_refused_and_not_even_overwritten(path: Path, tmp_path: Path) -> None:
    rewrite_manifest(path, index_version=3)
    before = tree(path)
    message = r"`index_version` 3 .* newer than 2.*Upgrade nestling"
    with pytest.raises(FormatError, match=message):
        Index.open(path)
    vectors = make_folder(tmp_path / "vectors", ROWS)
    with pytest.raises(FormatError, match=message):
        Index.build(path, vectors, overwrite=True)
    assert tree(path) == before


@pytest.mark.parametrize("changes", [{"num_rows": 7}, {"engine": "warp"}, {"rows": "rows-2"}])
def test_an_edited_manifest_is_refused(path: Path, changes: dict[str, object]) -> None:
    rewrite_manifest(path, **changes)
    with pytest.raises(FormatError, match=r"index\.json is damaged"):
        Index.open(path)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"index_version": "new"}', "null"])
def test_a_file_that_is_no_manifest_is_refused_and_may_be_overwritten(
    path: Path, tmp_path: Path, content: str
) -> None:
    (path / "index.json").write_text(content)
    with pytest.raises(FormatError, match=r"index\.json is not"):
        Index.open(path)
    vectors = make_folder(tmp_path / "vectors", ROWS)
    with Index.build(path, vectors, corpus_of(30), plan=SIGNS, overwrite=True) as index:
        index.verify()
        assert index.snapshot.manifest.rows == "rows-2"
        assert is_tidy(index)


def test_damaged_vectors_are_not_compacted_or_resized(path: Path) -> None:
    vectors = next(path.glob("rows-*/vectors.bin"))
    content = bytearray(vectors.read_bytes())
    content[9] ^= 1
    vectors.write_bytes(content)
    before = tree(path)
    for apply in (CHANGES["compact"], CHANGES["resize"], lambda index: index.backup(path / "b")):
        with (
            Index.open(path) as index,
            pytest.raises(FormatError, match=r"vectors\.bin is damaged"),
        ):
            apply(index)
    assert tree(path) == before
