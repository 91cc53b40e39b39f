"""The graph engine: its compiled loops against plain Python, equal rows, reach and recall."""

import bisect
import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from nestling.core import Dtype, normalize
from nestling.core.progress import silent
from nestling.search._row_kernels import lay_out
from nestling.search.engines.base import EngineFound
from nestling.search.engines.graph import GraphEngine
from nestling.search.engines.own_scores import unit_rows
from nestling.search.graph import _link_kernels, _walk_kernels, _window_kernels
from nestling.search.graph.build import (
    BATCH_SHARE,
    NUM_ENTRIES,
    SEED,
    SMALLEST_BATCH,
    find_twins,
    link_rows,
)
from nestling.search.graph.parts import GraphParts, number_nodes
from nestling.search.rescore import RowScorer
from nestling.search.rowset import RowSet
from nestling.search.tier import Tier, derive_tier
from tests.search.support import DTYPES, tied_rows

BUILD: Mapping[str, int] = {"degree": 8, "build_window": 24}
FULL = 64
NO_VECTORS = np.empty((0, FULL), np.float32)


def clustered_rows(num_rows: int, seed: int = 0, num_clusters: int = 40) -> np.ndarray:
    centres = np.random.default_rng(5).standard_normal((num_clusters, FULL))
    generator = np.random.default_rng(seed)
    rows = centres[generator.integers(0, num_clusters, num_rows)]
    rows = normalize(rows + 0.8 * generator.standard_normal((num_rows, FULL)))
    return (rows * generator.uniform(0.5, 2.0, (num_rows, 1))).astype(np.float32)


def repeated_rows(num_rows: int, seed: int = 0) -> np.ndarray:
    """Rows of which a fifth stand twice, and one very often."""
    rows = clustered_rows(num_rows, seed)
    generator = np.random.default_rng(seed)
    places = generator.permutation(num_rows)
    num_twins = num_rows // 5
    rows[places[:num_twins]] = rows[places[num_twins : 2 * num_twins]]
    rows[places[-num_rows // 10 :]] = rows[places[0]]
    return rows


def build(
    tier: Tier, settings: Mapping[str, int] = BUILD, *, num_threads: int = 1
) -> tuple[GraphEngine, GraphParts]:
    engine = GraphEngine.build(tier, NO_VECTORS, settings=settings, num_threads=num_threads)
    parts = engine._parts
    assert parts is not None
    return engine, parts


def find(
    engine: GraphEngine, queries: np.ndarray, k: int, window: int, allowed: RowSet | None = None
) -> EngineFound:
    return engine.search(queries, k, settings={"window": window}, allowed=allowed)


def lists_of(parts: GraphParts) -> dict[int, list[int]]:
    """The graph, in plain words."""
    num_rows = len(parts.twins) or len(parts.neighbours)
    nodes = sorted(set(range(num_rows)) - set(parts.twins.tolist()))
    return {
        row: [near for near in listed.tolist() if near != row]
        for row, listed in zip(nodes, parts.neighbours, strict=True)
    }


def walk_slowly(
    lists: Mapping[int, list[int]], entries: list[int], scores: np.ndarray, window: int
) -> tuple[list[int], int]:
    """The slow twin of `walk`: three visits are under way, a list is read before it is scored."""
    best: list[tuple[float, int]] = []
    open_rows: set[int] = set()
    seen = set(entries)
    num_scored = 0

    def offer(rows: list[int]) -> None:
        nonlocal num_scored
        for row in rows:
            num_scored += 1
            bisect.insort(best, (-float(scores[row]), row))
            open_rows.add(row)
        del best[window:]

    offer(entries)
    listed: list[int] = []
    visited = None
    while True:
        following = next((row for _, row in best if row in open_rows), None)
        open_rows.discard(-1 if following is None else following)
        to_score, listed = listed, []
        if visited is not None:
            listed = [row for row in lists[visited] if row not in seen]
            seen |= set(listed)
        offer(to_score)
        if not to_score and visited is None and following is None:
            return [row for _, row in best], num_scored
        visited = following


def search_slowly(
    parts: GraphParts, scores: np.ndarray, k: int, window: int, allowed: set[int]
) -> tuple[list[int], int]:
    """The slow twin of `search_rows`, for one query."""
    met, num_scored = walk_slowly(lists_of(parts), parts.entries.tolist(), scores, window)
    found = []
    for node in met:
        row = node
        while row >= 0:
            found.append(row)
            row = int(parts.twins[row]) if len(parts.twins) else -1
    found = sorted((row for row in found if row in allowed), key=lambda row: (-scores[row], row))
    return (found + [-1] * k)[:k], num_scored


def link_slowly(
    cosines: np.ndarray, twins: np.ndarray, degree: int, window: int
) -> dict[int, list[int]]:
    """The slow twin of `link_rows`, for rows whose cosines are exact."""
    num_rows = len(cosines)
    nodes = sorted(set(range(num_rows)) - set(twins.tolist()))
    order = np.random.default_rng(SEED).permutation(np.array(nodes, np.int32)).tolist()
    lists: dict[int, list[int]] = {row: [] for row in nodes}

    def chosen(row: int, others: list[int]) -> list[int]:
        kept: list[int] = []
        for other in sorted(others, key=lambda other: (-cosines[row, other], other)):
            if len(kept) < degree and all(
                cosines[other, one] <= cosines[row, other] for one in kept
            ):
                kept.append(other)
        return kept

    done = 1
    while done < len(order):
        size = min(done, max(SMALLEST_BATCH, int(BATCH_SHARE * len(order))))
        entries = order[: min(done, NUM_ENTRIES)]
        batch = order[done : done + size]
        found = {
            row: chosen(row, walk_slowly(lists, entries, cosines[row], window)[0]) for row in batch
        }
        lists |= found
        links = sorted((near, row) for row, each in found.items() for near in each)
        for near, group in itertools.groupby(links, key=lambda link: link[0]):
            longer = lists[near] + [row for _, row in group]
            lists[near] = longer if len(longer) <= degree else chosen(near, longer)
        done += size
    return lists


def reached(lists: Mapping[int, list[int]], entries: list[int]) -> set[int]:
    seen, open_rows = set(entries), list(entries)
    while open_rows:
        for near in lists[open_rows.pop()]:
            if near not in seen:
                seen.add(near)
                open_rows.append(near)
    return seen


@njit  # type: ignore[untyped-decorator]
def _insert_all(keys: np.ndarray, added: np.ndarray, window: int) -> list[int]:
    places = []
    size = 0
    for key in added:
        if key > keys[8 + window - 1]:
            at = np.uint64(keys.ctypes.data) + np.uint64(64)
            places.append(_window_kernels.insert(at, min(size, window - 1), key))
            size = min(size + 1, window)
    return places


@given(
    added=st.lists(st.integers(1, 2**64 - 2), min_size=1, max_size=60, unique=True),
    window=st.integers(1, 30),
)
def test_a_window_stays_sorted(added: list[int], window: int) -> None:
    room = np.full(window + 16, 2**64 - 1, np.uint64)
    room[8 : 8 + -(-window // 8) * 8] = 0
    places = _insert_all(room, np.array(added, np.uint64), window)
    expected: list[int] = []
    expected_places = []
    for key in added:
        if len(expected) < window or key > expected[-1]:
            expected = sorted([*expected, key], reverse=True)[:window]
            expected_places.append(expected.index(key))
    assert room[8 : 8 + len(expected)].tolist() == expected
    assert places == expected_places


@given(st.floats(-1e3, 1e3, width=32), st.floats(-1e3, 1e3, width=32), st.integers(0, 2**31 - 2))
def test_keys_sort_as_scores_do(one: float, other: float, row: int) -> None:
    one_key, other_key = (
        int(_window_kernels.make_key(np.float32(score), row)) for score in (one, other)
    )
    assert (one_key > other_key) == (one > other)
    assert int(_window_kernels.make_key(np.float32(one), row + 1)) < one_key
    assert _window_kernels.row_of(np.uint64(one_key)) == row
    assert _window_kernels.score_of(np.uint64(one_key)) == one


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [64, 37])
def test_a_walk_is_the_slow_walk(dtype: Dtype, dim: int) -> None:
    rows, queries = repeated_rows(500), clustered_rows(6, seed=1)
    tier = derive_tier(rows, dim=dim, dtype=dtype)
    engine, parts = build(tier)
    assert len(parts.twins)
    parts = replace(parts, entries=parts.entries[:2])
    engine = GraphEngine(tier, parts, len(tier))
    scores = RowScorer(tier).score(tier.fold(queries), np.tile(np.arange(500), (6, 1)))
    allowed = RowSet.of_mask(np.random.default_rng(2).random(500) < 0.9)
    for window, k in ((1, 1), (7, 3), (8, 8), (21, 21), (100, 30)):
        found = find(engine, queries, k, window)
        expected = [search_slowly(parts, each, k, window, set(range(500))) for each in scores]
        assert found.best.rows.tolist() == [rows for rows, _ in expected]
        assert found.num_scored == sum(number for _, number in expected)
        is_found = found.best.rows >= 0
        at = np.take_along_axis(scores, np.maximum(found.best.rows, 0), axis=1)
        np.testing.assert_array_equal(found.best.scores[is_found], at[is_found])
        wider = min(-(-window * 500 // len(allowed)), 500)
        found = find(engine, queries, k, window, allowed)
        expected = [
            search_slowly(parts, each, k, wider, set(allowed.rows.tolist())) for each in scores
        ]
        assert found.best.rows.tolist() == [rows for rows, _ in expected]


@pytest.mark.parametrize("dtype", [Dtype.FLOAT32, Dtype.BINARY])
def test_ties_go_to_the_lower_row(dtype: Dtype) -> None:
    # 16 signs: few scores, and equal rows whose higher twins tie with the rows of other codes.
    rows = tied_rows(300, 16)
    rows[150:] = rows[:150]
    queries = tied_rows(8, 16, seed=1)
    tier = derive_tier(rows, dim=16, dtype=dtype)
    engine, parts = build(tier)
    scores = queries @ rows.T
    for k in (1, 5, 12):
        found = find(engine, queries, k, 20).best
        expected = [search_slowly(parts, each, k, 20, set(range(300)))[0] for each in scores]
        assert found.rows.tolist() == expected


@pytest.mark.parametrize("dtype", [Dtype.FLOAT32, Dtype.FLOAT16, Dtype.BINARY])
@pytest.mark.parametrize("degree", [4, 12])
def test_a_graph_is_the_slow_graph(dtype: Dtype, degree: int) -> None:
    # Signs in 64 dimensions have exact cosines, many of them equal.
    rows = tied_rows(400, FULL)
    rows[:40] = rows[200:240]
    tier = derive_tier(rows, dim=FULL, dtype=dtype)
    _, parts = build(tier, {"degree": degree, "build_window": 20})
    lists = link_slowly(rows @ rows.T / FULL, find_twins(tier), degree, 20)
    assert lists_of(parts) == lists


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [64, 37, 5])
def test_a_row_is_a_query_for_others(dtype: Dtype, dim: int) -> None:
    tier = derive_tier(clustered_rows(30), dim=dim, dtype=dtype)
    layout = RowScorer(tier).layout
    weights = np.ones(dim, np.float32) if tier.scale is None else tier.scale**2
    if "binary" in dtype:
        weights /= 2 * dim
    weights = lay_out(layout.kind, weights[None])[0][0]
    norms = 0 if tier.norms is None else tier.norms.ctypes.data
    values = unit_rows(tier, 0, 30)
    cosines = normalize(values) @ normalize(values).T
    listed, scores = np.arange(30, dtype=np.int32), np.empty(30, np.float32)
    no_rows = np.empty((0, 1), np.int32)
    graph = _walk_kernels.Graph(layout, norms, no_rows, no_rows[:, 0], no_rows[:, 0])
    numbers, tail = np.zeros(len(weights), np.float32), np.zeros(64, np.uint8)
    lists = _walk_kernels.Lists(*np.array([0, 30, 5, 30], np.uint64))
    for row in range(30):
        query = _link_kernels.query_of_row(layout, norms, weights, row, numbers, tail)
        _walk_kernels.score_listed(graph, query, listed, lists, scores)
        atol = 2e-3 if dtype is Dtype.FLOAT16 else 2e-6
        np.testing.assert_allclose(scores, cosines[row], atol=atol, rtol=0)


@pytest.mark.parametrize("dtype", [Dtype.INT8, Dtype.FLOAT32])
def test_threads_change_no_byte(dtype: Dtype, tmp_path: Path) -> None:
    tier = derive_tier(repeated_rows(1500), dim=32, dtype=dtype)
    contents = []
    for num_threads in (1, 2, 3):
        folder = tmp_path / str(num_threads)
        folder.mkdir()
        names = build(tier, num_threads=num_threads)[0].save(folder)
        contents.append([(folder / name).read_bytes() for name in names])
    assert contents[0] == contents[1] == contents[2]


def test_equal_rows_are_one_node(tmp_path: Path) -> None:
    rows = repeated_rows(800)
    tier = derive_tier(rows, dim=32, dtype=Dtype.INT8)
    twins = find_twins(tier)
    groups: dict[bytes, list[int]] = {}
    for row, codes in enumerate(tier.codes):
        groups.setdefault(codes.tobytes(), []).append(row)
    expected = np.full(800, -1)
    for group in groups.values():
        expected[group[:-1]] = group[1:]
    np.testing.assert_array_equal(twins, expected)
    slots = number_nodes(twins)
    assert [int(slots[group[0]]) for group in groups.values()] == list(range(len(groups)))
    _, parts = build(tier)
    assert len(parts.neighbours) == len(groups)
    lists = lists_of(parts)
    assert set(lists) == {group[0] for group in groups.values()}
    assert all(len(set(each)) == len(each) for each in lists.values())
    assert {near for each in lists.values() for near in each} <= set(lists)


@pytest.mark.parametrize("make_rows", [clustered_rows, repeated_rows])
@pytest.mark.parametrize("dtype", [Dtype.INT8, Dtype.FLOAT32])
def test_recall(make_rows: Callable[[int], np.ndarray], dtype: Dtype) -> None:
    rows, queries = make_rows(3000), clustered_rows(100, seed=1)
    tier = derive_tier(rows, dim=48, dtype=dtype)
    engine, parts = build(tier, {"degree": 16, "build_window": 50})
    assert reached(lists_of(parts), parts.entries.tolist()) == set(lists_of(parts))
    exact = RowScorer(tier).scan(tier.fold(queries), 10)
    for window, floor in ((16, 0.8), (64, 0.95), (256, 0.99)):
        found = find(engine, queries, 10, window).best
        assert (found.scores >= exact.scores[:, -1:]).mean() >= floor


def test_all_rows_equal() -> None:
    rows = np.tile(clustered_rows(1), (300, 1))
    engine, parts = build(derive_tier(rows, dim=32, dtype=Dtype.INT8))
    assert parts.neighbours.shape == (1, BUILD["degree"])
    found = find(engine, clustered_rows(3, seed=1), 40, 10).best
    np.testing.assert_array_equal(found.rows, np.tile(np.arange(40), (3, 1)))


def test_zero_rows_score_zero() -> None:
    rows = clustered_rows(200)
    rows[::7] = 0
    engine, _ = build(derive_tier(rows, dim=32, dtype=Dtype.INT8))
    found = find(engine, clustered_rows(3, seed=1), 200, 200).best
    assert set(found.rows[0]) == set(range(200))
    assert (found.scores[found.rows % 7 == 0] == 0).all()


def test_rows_that_nobody_links_to_become_entries() -> None:
    neighbours = np.array([[1, 0], [0, 1], [3, 1], [3, 3], [5, 4], [4, 5]], np.int32)
    no_slots, rows = np.empty(0, np.int32), np.arange(6, dtype=np.int32)
    tier = derive_tier(clustered_rows(6), dim=8, dtype=Dtype.FLOAT32)
    entries = np.array([1], np.int32)
    graph = _walk_kernels.Graph(RowScorer(tier).layout, 0, neighbours, no_slots, entries)
    added = np.empty(6, np.int32)
    num_added = _link_kernels.add_entries(
        graph, rows, np.zeros(1, np.uint64), np.empty(6, np.int32), added
    )
    assert added[:num_added].tolist() == [2, 4]


def test_an_extended_graph_knows_new_equals_of_old_rows() -> None:
    rows = repeated_rows(1200)
    rows[1000:1100] = rows[:100]
    tier = derive_tier(rows, dim=32, dtype=Dtype.INT8)
    norms = tier.norms
    assert norms is not None
    first = replace(tier, codes=tier.codes[:1000], norms=norms[:1000])
    engine, parts = build(first)
    before = parts.neighbours.copy()
    grown = engine.extended(tier, NO_VECTORS, settings=BUILD)
    np.testing.assert_array_equal(parts.neighbours, before)
    grown_parts = grown._parts
    assert grown_parts is not None
    np.testing.assert_array_equal(grown_parts.twins, find_twins(tier))
    lists = lists_of(grown_parts)
    assert reached(lists, grown_parts.entries.tolist()) == set(lists)
    queries = clustered_rows(100, seed=1)
    exact = RowScorer(tier).scan(tier.fold(queries), 10)
    found = find(grown, queries, 10, 100).best
    assert (found.scores >= exact.scores[:, -1:]).mean() >= 0.95


def test_progress_counts_all_rows() -> None:
    told: list[tuple[str, int, int]] = []
    tier = derive_tier(clustered_rows(300), dim=16, dtype=Dtype.INT8)
    link_rows(
        tier,
        degree=8,
        window=20,
        num_threads=1,
        progress=lambda *words: told.append(words),
    )
    assert told[-1] == ("link rows", 300, 300)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    link_rows(tier, degree=8, window=20, num_threads=1, progress=silent)


def test_what_walks_leave_behind_changes_nothing() -> None:
    tier = derive_tier(clustered_rows(600), dim=32, dtype=Dtype.INT8)
    engine, _ = build(tier)
    queries = clustered_rows(5, seed=1)
    narrow = find(engine, queries, 5, 5).best
    find(engine, queries, 300, 300)
    again = find(engine, queries, 5, 5).best
    np.testing.assert_array_equal(again.rows, narrow.rows)
    np.testing.assert_array_equal(again.scores, narrow.scores)
