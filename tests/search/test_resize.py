from pathlib import Path

import pytest

from nestling.core import Dtype, Space
from nestling.errors import DimensionError, FingerprintError, FormatError, MissingExtraError
from nestling.search import ENGINES, EngineChoice, Index, Plan, Stage, engine_class
from tests.search.support import (
    build_index,
    contents,
    fingerprint_of,
    found,
    plan_of,
    random_rows,
    tree,
)
from tests.search.workload import CODES, FLAT, GRAPH, PLANS, SIGNS, WIDTH, add_step, start

ROWS = random_rows(60, WIDTH)
QUERIES = random_rows(4, WIDTH, seed=3)


@pytest.mark.parametrize("old", PLANS)
@pytest.mark.parametrize("new", PLANS)
def test_a_resized_index_is_one_that_was_built_for_the_plan(
    tmp_path: Path, old: Plan, new: Plan
) -> None:
    with (
        build_index(tmp_path / "index", ROWS, plan=old) as index,
        build_index(tmp_path / "other", ROWS, plan=new) as other,
    ):
        index.resize(new)
        assert index.plan == new
        assert found(index, QUERIES, 12) == found(other, QUERIES, 12)
        assert (index.head_bytes, index.engine_bytes) == (other.head_bytes, other.engine_bytes)
        assert set(other.nesting_dims) <= set(index.nesting_dims)
        index.verify()
        renumbered = {name.replace("-2-", "-1-") for name in tree(index.path)}
        assert renumbered == set(tree(other.path))


def test_readers_go_on_and_follow(tmp_path: Path) -> None:
    with (
        build_index(tmp_path / "index", ROWS, plan=GRAPH) as index,
        Index.open(index.path) as reader,
    ):
        before = found(reader, QUERIES, 12)
        index.resize(SIGNS)
        assert reader.plan == GRAPH
        assert found(reader, QUERIES, 12) == before
        assert reader.refresh()
        assert reader.plan == SIGNS
        assert not reader.refresh()


def test_what_another_plan_needs_too_is_kept(tmp_path: Path) -> None:
    model = start(tmp_path / "index", 30, CODES)
    with Index.open(tmp_path / "index") as index:
        add_step(model, ["new"], 1).apply(index)
        before = tree(index.path)
        generation = index.generation
        cut = plan_of(WIDTH, (8, Dtype.INT8, 20), (WIDTH, Dtype.FLOAT32, None))
        index.resize(cut)
        left = {name for name in before if not name.startswith("tier-1-16")}
        assert set(tree(index.path)) == left
        assert index.generation == generation + 1
        after = tree(index.path)
        assert all(after[name] == before[name] for name in left if name.endswith(".bin"))
        index.verify()


def test_an_engine_is_kept_while_only_its_search_changes(tmp_path: Path) -> None:
    with build_index(tmp_path / "index", ROWS, plan=GRAPH) as index:
        entry = index.snapshot.manifest.engine
        engine = EngineChoice(name="hnsw", search={"window": 50})
        plan = Plan(stages=GRAPH.stages, embed_dim=WIDTH, space=None, evidence={}, engine=engine)
        index.resize(plan)
        assert index.snapshot.manifest.engine == entry
        assert index.snapshot.search_settings == {"window": 50}
        index.resize(FLAT)
        assert index.snapshot.manifest.engine.name == "flat"
        index.verify()


def test_a_resized_index_goes_on_living(tmp_path: Path) -> None:
    model = start(tmp_path / "index", 30, FLAT)
    with Index.open(tmp_path / "index") as index:
        for number, plan in enumerate((CODES, SIGNS, GRAPH, FLAT)):
            index.resize(plan)
            step = add_step(model, [f"new{number}", "d3"], number)
            step.apply(index)
            model = step.model
            assert contents(index) == model
        index.verify()


def test_a_plan_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    space = Space(
        model="other", revision="1", pooling="none", normalization="none", embed_dim=WIDTH
    )
    stages = (Stage(dim=WIDTH, dtype=Dtype.INT8),)
    elsewhere = Plan(stages=stages, embed_dim=WIDTH, space=space, evidence={})
    unknown = Plan(
        stages=stages,
        embed_dim=WIDTH,
        space=fingerprint_of(WIDTH).space,
        evidence={},
        engine=EngineChoice(name="warp"),
    )
    mistyped = Plan(
        stages=stages,
        embed_dim=WIDTH,
        space=None,
        evidence={},
        engine=EngineChoice(name="hnsw", search={"windoww": 3}),
    )
    with build_index(tmp_path / "index", ROWS, plan=CODES) as index:
        before = tree(index.path)
        with pytest.raises(DimensionError, match="for vectors of width 32, got one for 16"):
            index.resize(plan_of(16, (8, Dtype.INT8, None)))
        with pytest.raises(FingerprintError, match="the plan is 'other'"):
            index.resize(elsewhere)
        with pytest.raises(FormatError, match="`engine` must be one of"):
            index.resize(unknown)
        with pytest.raises(FormatError, match="`windoww` is no setting of the engine 'hnsw'"):
            index.resize(mistyped)
        assert tree(index.path) == before


@pytest.mark.parametrize("dtype", Dtype)
@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_is_only_given_the_formats_it_takes(
    tmp_path: Path, engine: str, dtype: Dtype
) -> None:
    try:
        is_taken = dtype in engine_class(engine).formats
    except MissingExtraError as error:
        pytest.skip(str(error))
    plan = plan_of(WIDTH, (WIDTH, dtype, 60), (WIDTH, Dtype.FLOAT32, None), engine=engine)
    with build_index(tmp_path / "index", ROWS, plan=FLAT) as index:
        if is_taken:
            index.resize(plan)
            hits = index.search(ROWS[:5], top_k=1)
            assert [best[0].doc_id for best in hits] == [f"d{row}" for row in range(5)]
            index.verify()
            index.backup(tmp_path / "copy")
            with Index.open(tmp_path / "copy") as copy:
                assert found(copy, QUERIES, 5) == found(index, QUERIES, 5)
            return
        before = tree(index.path)
        message = (
            rf"`engine` '{engine}' searches heads of the formats .*got '32-d {dtype}, keep 60'"
        )
        with pytest.raises(FormatError, match=message):
            index.resize(plan)
        with pytest.raises(FormatError, match=message):
            build_index(tmp_path / "other", ROWS, plan=plan)
        assert tree(index.path) == before
