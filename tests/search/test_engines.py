"""Every engine in the table, judged by a full sort of the cosines of all decoded rows."""

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nestling.core import (
    Dtype,
    top_k,
)
from nestling.core.row_sums import row_sums
from nestling.errors import FormatError
from nestling.search.engines import ENGINES, full_settings
from nestling.search.engines.base import Engine
from nestling.search.rowfile import CheckedRows
from nestling.search.rowset import RowSet
from nestling.search.tier import derive_tier
from tests.search.engine_cases import (
    DIM,
    FULL,
    NUM_ROWS,
    QUERIES,
    ROWS,
    Case,
    assert_good,
    assert_true,
    cases,
    clustered_rows,
    first_case,
    load_class,
)


@pytest.fixture(params=cases(), ids=lambda pair: f"{pair[0]}-{pair[1]}")
def case(request: pytest.FixtureRequest) -> Case:
    name, dtype = request.param
    kind = load_class(name)
    assert dtype is not None
    return Case(kind, derive_tier(ROWS, dim=DIM, dtype=dtype), ROWS)


@pytest.fixture(params=sorted(ENGINES))
def kind(request: pytest.FixtureRequest) -> type[Engine]:
    return load_class(request.param)


def test_finds_what_a_full_sort_finds(case: Case) -> None:
    found = case.find(case.build(), QUERIES, 10)
    assert found.rows.shape == found.scores.shape == (len(QUERIES), 10)
    assert_true(case, QUERIES, found)
    assert_good(case, found, case.judge(QUERIES, 10))


def test_borrowed_rows_of_any_length_are_compared_by_angle(kind: type[Engine]) -> None:
    if Dtype.FLOAT32 not in kind.formats:
        pytest.skip(f"the engine {kind.name!r} searches no float rows")
    case = Case(kind, derive_tier(ROWS, dim=FULL, dtype=Dtype.FLOAT32), ROWS)
    assert case.tier.is_borrowed
    found = case.find(case.build(), QUERIES, 10)
    assert_true(case, QUERIES, found)
    assert_good(case, found, case.judge(QUERIES, 10))


@pytest.mark.parametrize("k", [1, NUM_ROWS - 1, NUM_ROWS, NUM_ROWS + 5])
def test_places_beyond_the_rows_are_empty(case: Case, k: int) -> None:
    found = case.find(case.build(), QUERIES[:3], k)
    assert found.rows.shape == (3, k)
    assert_true(case, QUERIES[:3], found)
    assert_good(case, found, case.judge(QUERIES[:3], k))


@pytest.mark.parametrize("num_queries", [1, 5])
def test_equal_rows_score_the_same_and_the_lower_comes_first(case: Case, num_queries: int) -> None:
    rows = np.repeat(ROWS[:7], 30, axis=0)
    repeated = Case(case.kind, derive_tier(rows, dim=DIM, dtype=case.tier.dtype), rows)
    found = repeated.find(repeated.build(), QUERIES[:num_queries], 45)
    assert_true(repeated, QUERIES[:num_queries], found)
    for scores, row_numbers in zip(found.scores, found.rows, strict=True):
        for original in range(7):
            same = scores[(row_numbers >= 0) & (row_numbers // 30 == original)]
            assert len(set(same.tolist())) <= 1
    if case.kind.is_exact:
        # A matrix product gives equal columns scores that differ in the last bit: score each row once.
        once = Case(case.kind, derive_tier(rows[::30], dim=DIM, dtype=case.tier.dtype), rows[::30])
        expected = top_k(np.repeat(once.scores(QUERIES[:num_queries]), 30, axis=1), 45)
        np.testing.assert_array_equal(found.rows, expected.rows)


def test_of_many_equal_rows_the_lowest_are_found_in_a_batch(case: Case) -> None:
    if not case.kind.is_exact:
        pytest.skip(f"the engine {case.kind.name!r} need not find each of them")
    # More equal rows than any spare places: a matrix product tells them apart by its rounding.
    rows = np.repeat(ROWS[:7], 150, axis=0)
    repeated = Case(case.kind, derive_tier(rows, dim=DIM, dtype=case.tier.dtype), rows)
    once = Case(case.kind, derive_tier(rows[::150], dim=DIM, dtype=case.tier.dtype), rows[::150])
    found = repeated.find(repeated.build(), QUERIES, 10)
    best = once.scores(QUERIES).argmax(axis=1)
    np.testing.assert_array_equal(found.rows, 150 * best[:, None] + np.arange(10))


def test_one_query_finds_what_it_finds_in_a_batch(case: Case) -> None:
    queries = clustered_rows(300, seed=2)
    engine = case.build()
    batch = case.find(engine, queries, 10)
    for number in (0, 1, 255, 256, 299):
        alone = case.find(engine, queries[number : number + 1], 10)
        np.testing.assert_array_equal(alone.rows[0], batch.rows[number])
        if case.tier.rotation is None:
            np.testing.assert_array_equal(alone.scores[0], batch.scores[number])
        else:  # the rotation of a query is a matrix product
            np.testing.assert_allclose(alone.scores[0], batch.scores[number], atol=2e-6)


def test_the_number_of_threads_changes_no_result(case: Case) -> None:
    queries = clustered_rows(300, seed=2)
    engine = case.build()
    for few in (queries, queries[:1]):
        one, two = (case.find(engine, few, 10, num_threads=number) for number in (1, 2))
        np.testing.assert_array_equal(one.rows, two.rows)
        np.testing.assert_array_equal(one.scores, two.scores)


def test_no_queries_find_nothing(case: Case) -> None:
    found = case.find(case.build(), np.empty((0, FULL), np.float32), 10)
    assert found.rows.shape == found.scores.shape == (0, 10)


def test_a_prefix_of_any_length_is_query_enough(case: Case) -> None:
    engine = case.build()
    wide = case.find(engine, QUERIES, 10)
    narrow = case.find(engine, 8.0 * QUERIES[:, :DIM].copy(), 10)
    np.testing.assert_array_equal(wide.rows, narrow.rows)
    np.testing.assert_allclose(wide.scores, narrow.scores, atol=1e-6)


def test_queries_are_not_written_to(case: Case) -> None:
    queries = QUERIES.copy()
    queries.flags.writeable = False
    case.find(case.build(), queries, 10)
    case.find(case.build(), queries[:, :DIM], 10)
    np.testing.assert_array_equal(queries, QUERIES)


@pytest.mark.parametrize("share", [0.9, 0.3, 0.05])
def test_only_allowed_rows_are_found(case: Case, share: float) -> None:
    mask = np.random.default_rng(3).random(NUM_ROWS) < share
    engine = case.build()
    for queries in (QUERIES, QUERIES[:1]):
        found = case.find(engine, queries, 10, allowed=RowSet.of_mask(mask))
        assert_true(case, queries, found)
        assert mask[found.rows[found.rows >= 0]].all()
        if case.kind.is_exact or not engine.prefers_scan(int(mask.sum())):
            assert_good(case, found, case.judge(queries, 10, mask))


@pytest.mark.parametrize("members", [[], [0], [NUM_ROWS - 1], [3, 5]])
def test_a_handful_of_allowed_rows(case: Case, members: list[int]) -> None:
    allowed = RowSet.of_rows(np.array(members, dtype=np.int64), NUM_ROWS)
    engine = case.build()
    for queries in (QUERIES, QUERIES[:1]):
        found = case.find(engine, queries, 10, allowed=allowed)
        assert_true(case, queries, found)
        assert set(found.rows[found.rows >= 0]) <= set(members)
        if case.kind.is_exact:
            assert_good(case, found, case.judge(queries, 10, allowed.mask))
        else:
            assert engine.prefers_scan(len(members))


def test_rows_that_came_later_are_no_concern_of_it(case: Case, tmp_path: Path) -> None:
    first = case.cut(400)
    first.build().save(tmp_path)
    engine = case.load(tmp_path, 400)
    assert engine.num_rows == 400
    everything = RowSet.of_mask(np.ones(NUM_ROWS, dtype=bool))
    for queries in (QUERIES, QUERIES[:1]):
        for allowed in (None, everything):
            found = case.find(engine, queries, 10, allowed=allowed)
            assert found.rows.max() < 400
            assert_good(case, found, first.judge(queries, 10))


def test_a_tier_without_rows(case: Case, tmp_path: Path) -> None:
    empty = case.cut(0)
    built = empty.build()
    built.save(tmp_path)
    for engine in (built, empty.load(tmp_path, 0)):
        assert engine.num_rows == engine.num_bytes == 0 or case.kind.build_settings
        for num_queries in (0, 1, 12):
            for allowed in (None, RowSet.of_mask(np.empty(0, dtype=bool))):
                found = empty.find(engine, QUERIES[:num_queries], 10, allowed=allowed)
                assert found.rows.shape == (num_queries, 10)
                assert (found.rows == -1).all()
                assert np.isneginf(found.scores).all()
    grown = built.extended(case.tier, case.rows, settings=case.build_settings)
    assert_good(case, case.find(grown, QUERIES, 10), case.judge(QUERIES, 10))


@pytest.mark.parametrize("num_rows", [1, 2, 9])
def test_a_few_rows(case: Case, num_rows: int, tmp_path: Path) -> None:
    few = case.cut(num_rows)
    built = few.build()
    built.save(tmp_path)
    for engine in (built, few.load(tmp_path, num_rows)):
        found = few.find(engine, QUERIES, 10)
        assert_true(few, QUERIES, found)
        assert_good(few, found, few.judge(QUERIES, 10))


def test_saved_and_loaded_finds_the_same(case: Case, tmp_path: Path) -> None:
    built = case.build()
    names = built.save(tmp_path)
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    assert set(names) == {name for name in written if (tmp_path / name).is_file()}
    loaded = case.load(tmp_path, NUM_ROWS)
    assert loaded.num_rows == built.num_rows == NUM_ROWS
    assert loaded.num_bytes == built.num_bytes
    for queries in (QUERIES, QUERIES[:1]):
        one, other = case.find(built, queries, 10), case.find(loaded, queries, 10)
        np.testing.assert_array_equal(one.rows, other.rows)
        np.testing.assert_array_equal(one.scores, other.scores)


def test_memory_is_counted_near_what_is_saved(case: Case, tmp_path: Path) -> None:
    engine = case.build()
    saved = sum((tmp_path / name).stat().st_size for name in engine.save(tmp_path))
    if saved:
        assert 0.5 * saved <= engine.num_bytes
    else:
        assert case.kind.name in {"flat", "signs"}
        # Rows of signs that are no whole number of words are copied to be.
        assert engine.num_bytes == (8 * NUM_ROWS if case.kind.name == "signs" else 0)


def test_the_same_input_makes_the_same_engine(case: Case) -> None:
    first, second = case.build(), case.build()
    for one, other in zip(
        case.find(first, QUERIES, 100), case.find(second, QUERIES, 100), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_building_with_two_threads_makes_the_same_engine(case: Case) -> None:
    if case.kind.name == "hnsw":
        pytest.skip(f"the engine {case.kind.name!r} states that threads change a few of its links")
    one, other = (case.find(case.build(number), QUERIES, 100) for number in (1, 2))
    np.testing.assert_array_equal(one.rows, other.rows)


@pytest.mark.parametrize("num_first", [1, 250, 500, NUM_ROWS])
def test_an_extended_engine_finds_new_rows_and_leaves_the_old_one_usable(
    case: Case, num_first: int
) -> None:
    first = case.cut(num_first)
    engine = first.build()
    before = first.find(engine, QUERIES, 10)
    grown = engine.extended(case.tier, case.rows, settings=case.build_settings)
    after = first.find(engine, QUERIES, 10)
    np.testing.assert_array_equal(before.rows, after.rows)
    assert engine.num_rows == num_first
    assert grown.num_rows == NUM_ROWS
    found = case.find(grown, QUERIES, 10)
    assert_true(case, QUERIES, found)
    assert_good(case, found, case.judge(QUERIES, 10))


def test_an_extended_engine_is_saved_and_loaded(case: Case, tmp_path: Path) -> None:
    engine = case.cut(500).build()
    grown = engine.extended(case.tier, case.rows, settings=case.build_settings)
    grown.save(tmp_path)
    loaded = case.load(tmp_path, NUM_ROWS)
    one, other = case.find(grown, QUERIES, 10), case.find(loaded, QUERIES, 10)
    np.testing.assert_array_equal(one.rows, other.rows)


def test_threads_may_search_at_once(case: Case) -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # as many changes of threads as can be had
    try:
        search_from_threads(case)
    finally:
        sys.setswitchinterval(interval)


def search_from_threads(case: Case) -> None:
    engine = case.build()
    efforts = (1, 100)
    jobs = [(effort, place) for effort in efforts for place in range(len(QUERIES))] * 2
    allowed = RowSet.of_mask(np.arange(NUM_ROWS) % 2 == 0)

    def search(job: tuple[int, int]) -> np.ndarray:
        effort, place = job
        given = {} if case.kind.effort is None else {case.kind.effort: effort}
        settings = full_settings(case.kind.name, given, case.kind.search_settings)
        chosen = allowed if place % 2 else None
        query = QUERIES[place : place + 1]
        return engine.search(query, 1, settings=settings, allowed=chosen).best.rows

    expected = [search(job) for job in jobs]
    with ThreadPoolExecutor(4) as executor:
        for one, other in zip(expected, executor.map(search, jobs), strict=True):
            np.testing.assert_array_equal(one, other)


def test_what_it_says_of_itself(kind: type[Engine]) -> None:
    case = first_case(kind)
    engine = case.build()
    assert kind.name in ENGINES
    assert kind.formats
    if kind.is_exact:
        assert kind.effort is None
        assert engine.page_size(case.search_settings) is None
    else:
        assert kind.effort in kind.search_settings
        page_size = engine.page_size(case.search_settings)
        assert page_size is not None
        assert page_size >= 1
    preferred = [engine.prefers_scan(number) for number in range(NUM_ROWS + 1)]
    assert preferred == sorted(preferred, reverse=True)
    for setting in (*kind.build_settings.values(), *kind.search_settings.values()):
        assert setting.low <= setting.default <= setting.high


def test_a_page_is_the_same_whatever_is_asked_for_within_it(case: Case) -> None:
    engine = case.build()
    size = engine.page_size(case.search_settings)
    if size is None:
        pytest.skip(f"the engine {case.kind.name!r} is exact")
    whole = case.find(engine, QUERIES, size)
    again = case.find(engine, QUERIES, size)
    np.testing.assert_array_equal(whole.rows, again.rows)
    assert_good(case, whole, case.judge(QUERIES, size))


def test_a_damaged_row_that_is_mapped_is_never_read_unchecked(
    kind: type[Engine], tmp_path: Path
) -> None:
    if not kind.checks_rows:
        pytest.skip(f"the engine {kind.name!r} leaves it to its caller to check all rows before")
    if Dtype.FLOAT32 not in kind.formats:
        pytest.skip(f"the engine {kind.name!r} searches no float rows, so that its tier is in RAM")
    content = ROWS.copy()
    (tmp_path / "sums").write_bytes(row_sums(content).tobytes())
    content.view(np.uint8)[137, 9] ^= 4
    (tmp_path / "rows").write_bytes(content.tobytes())
    checked = CheckedRows(tmp_path / "rows", tmp_path / "sums", ROWS.shape, np.float32)
    sound = derive_tier(ROWS, dim=FULL, dtype=Dtype.FLOAT32)
    mapped = Case(kind, replace(sound, codes=checked.rows, checked=checked), checked.rows)
    with pytest.raises(FormatError, match="rows"):
        mapped.find(mapped.build(), ROWS[137:138], 10)
