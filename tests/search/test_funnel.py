from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling.core import Dtype, Fingerprint, Space, TopK, cosine_scores, rescore, top_k
from nestling.core.row_sums import row_sums
from nestling.errors import DimensionError, FingerprintError, FormatError, VectorError
from nestling.search.engines import engine_class, full_settings
from nestling.search.engines.base import Engine, EngineFound
from nestling.search.engines.flat import FlatEngine
from nestling.search.funnel import (
    SCAN,
    Funnel,
    Ran,
    check_plan,
    check_queries,
    exact_plan,
    run_funnel,
)
from nestling.search.plan import EngineChoice, Plan, Stage
from nestling.search.rescore import RowScorer
from nestling.search.rowfile import CheckedRows
from nestling.search.rowset import RowSet
from nestling.search.tier import Tier, derive_tier, raw_tier

WIDTH = 24
FLOATS = (Dtype.FLOAT32, Dtype.FLOAT16)


def random_rows(num_rows: int, dim: int = WIDTH, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((num_rows, dim)) * generator.uniform(0.5, 2.0, (num_rows, 1))
    return rows.astype(np.float32)


def plan_of(*stages: tuple[int, Dtype, int | None], engine: str = "flat") -> Plan:
    return Plan(
        stages=tuple(
            Stage(dim=dim, dtype=dtype, shortlist_size=size) for dim, dtype, size in stages
        ),
        embed_dim=WIDTH,
        space=None,
        evidence={},
        engine=EngineChoice(name=engine),
    )


class HidingEngine(Engine):
    """Overlooks rows, the fewer the more it is asked for: the order of a page is its own.

    It searches as if asked for `window` rows at least, and finds a row only if its number, hashed, is
    below what the size allows.
    """

    name: ClassVar[str] = "hiding"
    window: ClassVar[int] = 8

    def __init__(self, tier: Tier, num_rows: int) -> None:
        self._scorer = RowScorer(tier)
        self.num_rows = num_rows

    @classmethod
    def build(cls, tier: Tier, vectors: np.ndarray, **_: Any) -> "HidingEngine":
        return cls(tier, len(tier))

    @classmethod
    def load(cls, folder: Path, tier: Tier, vectors: np.ndarray, **_: Any) -> "HidingEngine":
        return cls(tier, len(tier))

    def save(self, folder: Path) -> tuple[str, ...]:
        return ()

    def search(
        self,
        queries: np.ndarray,
        k: int,
        *,
        settings: Mapping[str, int],
        allowed: RowSet | None = None,
        num_threads: int = 1,
    ) -> EngineFound:
        size = max(k, self.window)
        rows = np.arange(self.num_rows)
        rows = rows[rows * 7919 % 101 < 60 + size]
        if allowed is not None:
            rows = rows[allowed.mask[rows]]
        found = self._scorer.scan(self._scorer.tier.fold(queries), size, rows=rows)
        if len(rows) == 0:
            found = TopK(np.full_like(found.rows, -1), np.full_like(found.scores, -np.inf))
        best = TopK(found.rows[:, :k], found.scores[:, :k])
        return EngineFound(best, None, None, {"window": size})

    def page_size(self, settings: Mapping[str, int]) -> int | None:
        return self.window


@dataclass(frozen=True, kw_only=True)
class View:
    """What a funnel reads, without files."""

    plan: Plan
    vectors: Any
    tiers: Mapping[tuple[int, Dtype], Tier]
    engine: Engine
    search_settings: Mapping[str, int]
    num_rows: int


@dataclass(frozen=True)
class Bare:
    """Vectors in RAM, which need no checks."""

    rows: np.ndarray


def view_of(
    plan: Plan, rows: np.ndarray, *, num_indexed: int | None = None, engine: Engine | None = None
) -> View:
    """An index whose engine knows the first rows only."""
    tiers: dict[tuple[int, Dtype], Tier] = {}
    for stage in plan.stages:
        key = (stage.dim, stage.dtype)
        is_stored = stage is not plan.head and stage.dtype in FLOATS
        tiers[key] = tiers.get(key) or (
            raw_tier(rows, stage.dim)
            if is_stored
            else derive_tier(rows, dim=stage.dim, dtype=stage.dtype)
        )
    head = tiers[plan.head.dim, plan.head.dtype]
    num_indexed = len(rows) if num_indexed is None else num_indexed
    norms = None if head.norms is None else head.norms[:num_indexed]
    known = replace(head, codes=head.codes[:num_indexed], norms=norms)
    kind = HidingEngine if plan.engine.name == "hiding" else engine_class(plan.engine.name)
    build = full_settings(plan.engine.name, {}, kind.build_settings)
    return View(
        plan=plan,
        vectors=Bare(rows),
        tiers=tiers,
        engine=engine or kind.build(known, rows[:num_indexed], settings=build),
        search_settings=full_settings(plan.engine.name, {}, kind.search_settings),
        num_rows=len(rows),
    )


def rows_of(ran: Ran) -> list[list[int]]:
    return [[row for row in rows if row >= 0] for rows in ran.best.rows.tolist()]


@settings(max_examples=50)
@given(
    head=st.tuples(st.integers(1, WIDTH), st.sampled_from(Dtype)),
    middle=st.tuples(st.integers(1, WIDTH), st.sampled_from(Dtype)) | st.none(),
    engine=st.sampled_from(["flat", "hiding"]),
    num_rows=st.integers(1, 60),
    share_indexed=st.sampled_from([0.0, 0.5, 1.0]),
    k=st.integers(1, 70),
    seed=st.integers(0, 2**16),
)
def test_an_unlimited_shortlist_gives_exact_search(
    head: tuple[int, Dtype],
    middle: tuple[int, Dtype] | None,
    engine: str,
    num_rows: int,
    share_indexed: float,
    k: int,
    seed: int,
) -> None:
    rows, queries = random_rows(num_rows, seed=seed), random_rows(3, seed=seed + 1)
    stages = [(*head, num_rows), (WIDTH, Dtype.FLOAT32, None)]
    if middle is not None and middle[0] >= head[0]:
        stages.insert(1, (*middle, num_rows))
    view = view_of(plan_of(*stages, engine=engine), rows, num_indexed=int(num_rows * share_indexed))
    found = run_funnel(view, queries, num_results=k).best
    expected = top_k(cosine_scores(queries, rows, WIDTH), k)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)
    chosen = rescore(queries, rows, found.rows, WIDTH)
    np.testing.assert_allclose(chosen, expected.scores, atol=1e-6)
    assert all(len(set(best)) == len(best) for best in found.rows[:, : min(k, num_rows)])


@settings(max_examples=20)
@given(
    head_dim=st.integers(1, WIDTH // 2),
    dtype=st.sampled_from(Dtype),
    k=st.integers(1, 10),
    seed=st.integers(0, 2**16),
)
def test_in_two_stages_a_longer_shortlist_never_lowers_recall(
    head_dim: int, dtype: Dtype, k: int, seed: int
) -> None:
    rows, queries = random_rows(80, seed=seed), random_rows(4, seed=seed + 1)
    exact = top_k(cosine_scores(queries, rows, WIDTH), k).rows
    before = np.zeros(4)
    for size in (k, k + 1, 12, 30, 80):
        plan = plan_of((head_dim, dtype, size), (WIDTH, Dtype.FLOAT32, None))
        found = run_funnel(view_of(plan, rows), queries, num_results=k).best.rows
        recall = np.array([len(set(a) & set(b)) for a, b in zip(found, exact, strict=True)])
        assert (recall >= before).all()
        before = recall
    assert (before == k).all()


PLANS = [
    [(WIDTH, Dtype.FLOAT32, None)],
    [(8, Dtype.INT8, 5), (WIDTH, Dtype.FLOAT32, None)],
    [(8, Dtype.INT4, 11), (16, Dtype.INT8, 3), (WIDTH, Dtype.FLOAT32, None)],
    [(4, Dtype.FLOAT32, 20), (8, Dtype.INT8, 9), (16, Dtype.FLOAT16, 2), (20, Dtype.FLOAT32, None)],
]


@settings(max_examples=60)
@given(
    stages=st.sampled_from(PLANS),
    engine=st.sampled_from(["flat", "hiding", "hnsw"]),
    num_rows=st.integers(1, 90),
    share_indexed=st.sampled_from([0.5, 1.0]),
    share_allowed=st.sampled_from([0.0, 0.05, 0.4, 0.95, None]),
    offset=st.integers(0, 100),
    k=st.integers(1, 50),
    seed=st.integers(0, 2**16),
)
def test_pages_fit_together_wherever_they_are_cut(
    stages: list[tuple[int, Dtype, int | None]],
    engine: str,
    num_rows: int,
    share_indexed: float,
    share_allowed: float | None,
    offset: int,
    k: int,
    seed: int,
) -> None:
    rows, queries = random_rows(num_rows, seed=seed), random_rows(2, seed=seed + 1)
    plan = plan_of(*stages, engine=engine)
    view = view_of(plan, rows, num_indexed=max(1, int(num_rows * share_indexed)))
    allowed, members = None, set(range(num_rows))
    if share_allowed is not None:
        mask = np.random.default_rng(seed).random(num_rows) < share_allowed
        allowed, members = RowSet.of_mask(mask), set(np.flatnonzero(mask).tolist())
    funnel = Funnel(view)
    first = funnel.run(queries, num_results=offset, allowed=allowed) if offset else None
    both = funnel.run(queries, num_results=offset + k, allowed=allowed)
    assert both.best.rows.shape == both.best.scores.shape == (2, offset + k)
    if first is not None:
        np.testing.assert_array_equal(first.best.rows, both.best.rows[:, :offset])
        np.testing.assert_array_equal(first.best.scores, both.best.scores[:, :offset])
    for found in rows_of(both):
        assert len(found) == len(set(found)) == min(offset + k, len(members))
        assert set(found) <= members
    assert ((both.best.scores == -np.inf) == (both.best.rows < 0)).all()


@pytest.mark.parametrize("engine", ["flat", "hiding"])
def test_a_ranking_is_made_of_blocks(engine: str) -> None:
    rows, queries = random_rows(80), random_rows(2, seed=1)
    plan = plan_of((8, Dtype.INT8, 5), (WIDTH, Dtype.FLOAT32, None), engine=engine)
    view = view_of(plan, rows)
    exact = cosine_scores(queries, rows, WIDTH)
    expected: list[list[int]] = [[], []]
    for size in (5, 10, 20, 40):
        best = view.engine.search(queries, size, settings={}).best.rows.tolist()
        for query, (ranking, candidates) in enumerate(zip(expected, best, strict=True)):
            block = [row for row in candidates if row not in ranking]
            ranking += sorted(block, key=lambda row: -exact[query, row])
    found = run_funnel(view, queries, num_results=33).best.rows.tolist()
    assert found == [ranking[:33] for ranking in expected]


def test_a_middle_stage_makes_blocks_as_well() -> None:
    rows, queries = random_rows(80), random_rows(1, seed=1)
    plan = plan_of((8, Dtype.FLOAT32, 30), (16, Dtype.FLOAT32, 4), (WIDTH, Dtype.FLOAT32, None))
    by_width = {dim: cosine_scores(queries, rows, dim)[0] for dim in (8, 16, WIDTH)}
    candidates = np.argsort(-by_width[8])[:30]
    candidates = candidates[np.argsort(-by_width[16][candidates])]
    expected: list[int] = []
    for start, stop in ((0, 4), (4, 8), (8, 16), (16, 30)):
        block = candidates[start:stop]
        expected += block[np.argsort(-by_width[WIDTH][block])].tolist()
    for k in (3, 4, 5, 12, 30):
        found = run_funnel(view_of(plan, rows), queries, num_results=k).best.rows
        assert found.tolist() == [expected[:k]]


def test_stages_do_what_they_say() -> None:
    rows, queries = random_rows(80), random_rows(4, seed=1)
    plan = plan_of((4, Dtype.FLOAT32, 30), (12, Dtype.FLOAT32, 10), (20, Dtype.FLOAT32, None))
    found = run_funnel(view_of(plan, rows), queries, num_results=5).best.rows
    for query, best in zip(queries, found, strict=True):
        kept = np.arange(80)
        for dim, size in ((4, 30), (12, 10), (20, 5)):
            scores = cosine_scores(query[None], rows[kept], dim)[0]
            kept = kept[np.argsort(-scores)[:size]]
        np.testing.assert_array_equal(best, kept)


def test_float16_rows_are_rescored_in_float32() -> None:
    rows, queries = random_rows(80).astype(np.float16), random_rows(4, seed=1)
    plan = plan_of((8, Dtype.INT8, 80), (WIDTH, Dtype.FLOAT16, None))
    found = run_funnel(view_of(plan, rows), queries, num_results=10).best
    expected = top_k(cosine_scores(queries, rows.astype(np.float32), WIDTH), 10)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)


@pytest.mark.parametrize("engine", ["flat", "hiding"])
@pytest.mark.parametrize("num_indexed", [0, 1, 33, 79, 80])
@pytest.mark.parametrize("share_allowed", [None, 0.6])
def test_rows_that_the_engine_does_not_know_are_found(
    engine: str, num_indexed: int, share_allowed: float | None
) -> None:
    rows, queries = random_rows(80), random_rows(3, seed=1)
    plan = plan_of((8, Dtype.FLOAT32, None), engine=engine)
    mask = np.random.default_rng(5).random(80) < (share_allowed or 1.0)
    allowed = None if share_allowed is None else RowSet.of_mask(mask)
    view = view_of(plan, rows, num_indexed=num_indexed)
    ran = run_funnel(view, queries, num_results=40, allowed=allowed)
    late = np.flatnonzero(mask & (np.arange(80) >= num_indexed))
    scores = cosine_scores(queries, rows, 8)
    expected = top_k(np.where(mask, scores, -np.inf), 40).rows
    for found, best in zip(rows_of(ran), expected.tolist(), strict=True):
        assert {row for row in best if row in late} <= set(found)
        if engine == "flat":
            assert found == [row for row in best if mask[row]]


@pytest.mark.parametrize("engine", ["flat", "hiding"])
def test_few_allowed_rows_are_scanned_and_all_found(engine: str) -> None:
    rows, queries = random_rows(80), random_rows(3, seed=1)
    plan = plan_of((8, Dtype.INT8, 10), (WIDTH, Dtype.FLOAT32, None), engine=engine)
    allowed = RowSet.of_rows(np.array([3, 17, 55, 79]), 80)
    ran = run_funnel(view_of(plan, rows), queries, num_results=10, allowed=allowed)
    assert [set(found) for found in rows_of(ran)] == [{3, 17, 55, 79}] * 3
    scans = [trace for trace in ran.stages if trace.engine == SCAN]
    assert [(scan.num_scored, scan.bytes_read) for scan in scans] == [(12, 12 * (8 + 4))]


def test_no_allowed_row_gives_nothing() -> None:
    plan = plan_of((8, Dtype.INT8, 10), (WIDTH, Dtype.FLOAT32, None))
    ran = run_funnel(
        view_of(plan, random_rows(30)),
        random_rows(2, seed=1),
        num_results=3,
        allowed=RowSet.of_rows(np.array([], dtype=np.int64), 30),
    )
    assert ran.best.rows.tolist() == [[-1] * 3] * 2
    assert (ran.best.scores == -np.inf).all()
    assert ran.stages == []


def test_no_query_gives_nothing() -> None:
    plan = plan_of((8, Dtype.INT8, 10), (WIDTH, Dtype.FLOAT32, None))
    ran = run_funnel(view_of(plan, random_rows(30)), random_rows(0), num_results=3)
    assert ran.best.rows.shape == (0, 3)


@pytest.mark.parametrize("width", [8, 12, 16, 20, WIDTH])
def test_a_narrower_query_cuts_the_stages_that_are_wider(width: int) -> None:
    rows, queries = random_rows(80), random_rows(4, seed=1)
    plan = plan_of((8, Dtype.INT8, 30), (16, Dtype.INT8, 10), (WIDTH, Dtype.FLOAT32, None))
    ran = run_funnel(view_of(plan, rows), queries[:, :width].copy(), num_results=5)
    dims = [trace.dim for trace in ran.stages]
    assert dims == ([8, 16, width] if width >= 16 else [8, width])
    assert ran.stages[-1].dtype is Dtype.FLOAT32
    expected = cosine_scores(queries, rows, width)
    np.testing.assert_allclose(
        ran.best.scores, np.take_along_axis(expected, ran.best.rows, axis=1), atol=1e-6
    )


def test_a_trace_counts_rows_and_bytes() -> None:
    rows, queries = random_rows(80), random_rows(3, seed=1)
    plan = plan_of((8, Dtype.INT8, 30), (16, Dtype.FLOAT16, 10), (WIDTH, Dtype.FLOAT32, None))
    ran = run_funnel(view_of(plan, rows, num_indexed=50), queries, num_results=5)
    assert [(trace.dim, trace.dtype, trace.engine) for trace in ran.stages] == [
        (8, Dtype.INT8, "flat"),
        (16, Dtype.FLOAT32, None),
        (WIDTH, Dtype.FLOAT32, None),
    ]
    assert [(trace.num_scored, trace.bytes_read) for trace in ran.stages] == [
        (3 * 80, 3 * 80 * 12),
        (3 * 30, 3 * 30 * 64),
        (3 * 10, 3 * 10 * 96),
    ]
    assert all(0 < trace.seconds < 60 for trace in ran.stages)


def test_what_the_engine_proves_is_passed_on() -> None:
    plan = plan_of((WIDTH, Dtype.FLOAT32, None), engine="hiding")
    ran = run_funnel(view_of(plan, random_rows(80)), random_rows(1, seed=1), num_results=5)
    assert ran.certificate == {"window": 8}
    assert ran.stages[0].num_scored is None


def test_threads_and_company_change_nothing() -> None:
    rows, queries = random_rows(300), random_rows(40, seed=1)
    plan = plan_of((8, Dtype.INT8, 20), (WIDTH, Dtype.FLOAT32, None), engine="hiding")
    funnel = Funnel(view_of(plan, rows, num_indexed=200))
    best = funnel.run(queries, num_results=30).best
    threaded = funnel.run(queries, num_results=30, num_threads=3).best
    np.testing.assert_array_equal(best.rows, threaded.rows)
    np.testing.assert_array_equal(best.scores, threaded.scores)
    for place in (0, 17):
        alone = funnel.run(queries[place : place + 1], num_results=30).best
        np.testing.assert_array_equal(alone.rows[0], best.rows[place])


def mapped(folder: Path, rows: np.ndarray, damaged_row: int) -> CheckedRows:
    row_sums(rows).tofile(folder / "sums.bin")
    rows = rows.copy()
    rows[damaged_row, 0] += 1.0
    rows.tofile(folder / "vectors.bin")
    return CheckedRows(folder / "vectors.bin", folder / "sums.bin", rows.shape, np.float32)


def test_a_damaged_row_is_not_served(tmp_path: Path) -> None:
    rows, queries = random_rows(40), random_rows(1, seed=1)
    nearest = int(cosine_scores(queries, rows, WIDTH).argmax())
    checked = mapped(tmp_path, rows, nearest)
    plan = plan_of((8, Dtype.INT8, 40), (WIDTH, Dtype.FLOAT32, None))
    view = view_of(plan, rows)
    later = {(WIDTH, Dtype.FLOAT32): raw_tier(checked.rows, WIDTH, checked=checked)}
    damaged = replace(view, tiers={**view.tiers, **later}, vectors=checked)
    with pytest.raises(FormatError, match=f"vectors.bin is damaged: row {nearest}"):
        run_funnel(damaged, queries, num_results=3)
    with pytest.raises(FormatError, match=f"vectors.bin is damaged: row {nearest}"):
        run_funnel(damaged, queries[:, :12].copy(), num_results=3)


def test_a_mapped_head_is_checked_before_an_engine_reads_it(tmp_path: Path) -> None:
    rows, queries = random_rows(40), random_rows(1, seed=1)
    furthest = int(cosine_scores(queries, rows, WIDTH).argmin())
    checked = mapped(tmp_path, rows, furthest)
    plan = plan_of((WIDTH, Dtype.FLOAT32, None))
    view = view_of(plan, rows)
    head = replace(view.tiers[WIDTH, Dtype.FLOAT32], codes=checked.rows, checked=checked)
    damaged = replace(view, tiers={(WIDTH, Dtype.FLOAT32): head}, engine=Trusting(head, 40))
    with pytest.raises(FormatError, match=f"vectors.bin is damaged: row {furthest}"):
        run_funnel(damaged, queries, num_results=3)
    wary = replace(damaged, engine=Wary(head, 40))
    assert run_funnel(wary, queries, num_results=3).best.rows.tolist() == [[0, 1, 2]]


class Trusting(HidingEngine):
    """Reads nothing and finds the first rows."""

    def search(self, queries: np.ndarray, k: int, **_: Any) -> EngineFound:
        return EngineFound(TopK(np.arange(k)[None], np.zeros((1, k), np.float32)))


class Wary(Trusting):
    checks_rows: ClassVar[bool] = True


def test_flat_is_the_default_engine() -> None:
    assert isinstance(view_of(plan_of((8, Dtype.INT8, None)), random_rows(9)).engine, FlatEngine)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_good_queries_pass(dtype: type) -> None:
    queries: np.ndarray = random_rows(3).astype(dtype)
    for some in (queries, queries[:1], queries[:, :8], queries[::2], queries[:0]):
        checked = check_queries(some, head_dim=8, embed_dim=WIDTH)
        assert checked.dtype == np.float32
        assert checked.flags.c_contiguous
        np.testing.assert_array_equal(checked, some.astype(np.float32))


@pytest.mark.parametrize("length", [1e-30, 1e30])
def test_queries_of_any_length_pass(length: float) -> None:
    query = (random_rows(1) * length).astype(np.float32)
    assert check_queries(query, head_dim=8, embed_dim=WIDTH) is query


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 0.0, 1e300])
@pytest.mark.parametrize("place", [0, 2])
def test_bad_queries_are_named(bad: float, place: int) -> None:
    queries = random_rows(place + 1).astype(np.float64)
    queries[place] = bad
    with pytest.raises(
        VectorError, match=rf"finite and not all zero, got 1 bad of {place + 1}: query {place}\."
    ):
        check_queries(queries, head_dim=8, embed_dim=WIDTH)


@pytest.mark.parametrize("shape", [(WIDTH,), (2, 7), (2, WIDTH + 1), (1, 2, WIDTH)])
def test_queries_of_another_width_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(VectorError, match=r"must have the shape \(rows, 8 to 24\).*reads 8 dims"):
        check_queries(np.ones(shape, np.float32), head_dim=8, embed_dim=WIDTH)
    with pytest.raises(VectorError, match=r"must have the shape \(rows, 24\)"):
        check_queries(np.ones((1, 23), np.float32), head_dim=WIDTH, embed_dim=WIDTH)


def fingerprint_of(embed_dim: int, model: str = "fake") -> Fingerprint:
    space = Space(
        model=model, revision="1", pooling="none", normalization="none", embed_dim=embed_dim
    )
    return Fingerprint(space=space, encoder={"backend": "fake"})


def test_without_a_plan_one_exact_stage_runs() -> None:
    space = fingerprint_of(WIDTH).space
    plan = exact_plan(space, Dtype.FLOAT16)
    assert plan.stages == (Stage(dim=WIDTH, dtype=Dtype.FLOAT16),)
    assert plan.space == space
    check_plan(plan, fingerprint_of(WIDTH))


def test_codes_may_stand_behind_the_head() -> None:
    plan = plan_of((8, Dtype.BINARY, 30), (16, Dtype.INT8, None))
    check_plan(plan, fingerprint_of(WIDTH))


def test_a_plan_for_another_width_is_refused() -> None:
    with pytest.raises(
        DimensionError, match="`plan` must be for vectors of width 32, got one for 24"
    ):
        check_plan(plan_of((24, Dtype.FLOAT32, None)), fingerprint_of(32))


def test_a_plan_measured_in_another_space_is_refused() -> None:
    other = fingerprint_of(WIDTH, model="other").space
    with pytest.raises(FingerprintError, match="the plan is 'other' and the vectors is 'fake'"):
        check_plan(exact_plan(other, Dtype.FLOAT32), fingerprint_of(WIDTH))
