from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from nestling.core import Dtype
from nestling.search import Index
from tests.search.support import build_index, contents, plan_of, random_rows, scratch_folder, tree
from tests.search.workload import CODES, FLAT, GRAPH, SIGNS, WIDTH, add_step, delete_step, start

QUERIES = random_rows(4, WIDTH, seed=3)
PLANS = {
    "flat": FLAT,
    "codes": CODES,
    "signs": SIGNS,
    "graph": GRAPH,
    "exact": plan_of(WIDTH, (WIDTH, Dtype.FLOAT32, None)),
}


@pytest.fixture(params=PLANS)
def index(request: pytest.FixtureRequest) -> Iterator[Index]:
    """An index with dead rows and a tail."""
    with scratch_folder() as folder:
        model = start(folder / "index", 30, PLANS[request.param])
        with Index.open(folder / "index") as index:
            step = add_step(model, ["d1", "new"], 9)
            step.apply(index)
            delete_step(step.model, ["d2", "d20"]).apply(index)
            yield index


def test_compacting_drops_dead_rows_and_changes_no_score(index: Index) -> None:
    before, hits = contents(index), index.search(QUERIES, top_k=15)
    assert (len(index), index.num_rows) == (29, 32)
    with Index.open(index.path) as reader:
        assert index.compact()
        assert reader.search(QUERIES, top_k=15) == hits  # from files that are gone by now
        assert reader.refresh()
        assert reader.search(QUERIES, top_k=15) == hits
    assert (len(index), index.num_rows, index.snapshot.engine.num_rows) == (29, 29, 29)
    assert contents(index) == before
    assert index.search(QUERIES, top_k=15) == hits
    assert index.full_bytes == 29 * WIDTH * 4
    index.verify()


def test_rows_keep_their_order(index: Index) -> None:
    before = index.doc_ids(np.flatnonzero(index.snapshot.allowed_live.mask))  # type: ignore[union-attr]
    index.compact()
    assert index.doc_ids(np.arange(29)) == before


def test_what_is_compact_is_left_alone(index: Index) -> None:
    index.compact()
    before = tree(index.path)
    generation = index.generation
    assert not index.compact()
    assert index.generation == generation
    assert tree(index.path) == before


def test_the_engine_takes_in_what_was_added(tmp_path: Path) -> None:
    model = start(tmp_path / "index", 30, GRAPH)
    with Index.open(tmp_path / "index") as index:
        add_step(model, ["new"], 1).apply(index)
        assert index.snapshot.engine.num_rows == 30
        rows = index.snapshot.manifest.rows
        assert index.compact()
        assert index.snapshot.engine.num_rows == 31
        assert index.snapshot.manifest.rows == rows  # nothing else was written again
        index.verify()


def test_a_long_tail_is_taken_in_by_an_addition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nestling.search.writer.LONGEST_TAIL", 3)
    model = start(tmp_path / "index", 30, GRAPH)
    covered = []
    with Index.open(tmp_path / "index") as index:
        for number in range(8):
            step = add_step(model, [f"new{number}"], number)
            step.apply(index)
            model = step.model
            covered.append(index.snapshot.engine.num_rows)
            assert contents(index) == model
        assert covered == [30, 30, 30, 34, 34, 34, 34, 38]
        index.verify()
    names = {entry.name for entry in (tmp_path / "index").iterdir()}
    assert [name for name in names if name.startswith("engine")] == ["engine-9-hnsw"]


def test_an_engine_without_files_has_no_tail(tmp_path: Path) -> None:
    with build_index(tmp_path / "index", random_rows(30, WIDTH), plan=FLAT) as index:
        add_step({}, ["new"], 1).apply(index)
        assert index.snapshot.engine.num_rows == 31
        assert not index.compact()
