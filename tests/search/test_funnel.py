from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling.core import Dtype, Space, TopK, cosine_scores, rescore, top_k
from nestling.errors import DimensionError, FingerprintError, FormatError
from nestling.search import Plan, Stage, derive_tier, engine_class, open_tier
from nestling.search.funnel import check_plan, exact_plan, run_funnel
from tests.search.support import fingerprint_of, plan_of, random_rows

WIDTH = 24


def funnel_of(plan: Plan, rows: np.ndarray, queries: np.ndarray, k: int, folder: Path) -> TopK:
    folder.mkdir(parents=True, exist_ok=True)
    derive_tier(rows, folder, dim=plan.head.dim, dtype=plan.head.dtype)
    tier = open_tier(rows, folder, dim=plan.head.dim, dtype=plan.head.dtype)
    return run_funnel(plan.stages, engine_class("flat").build(tier), rows, queries, k)


@given(
    head=st.tuples(st.integers(1, WIDTH), st.sampled_from(Dtype)),
    middle=st.integers(1, WIDTH) | st.none(),
    num_rows=st.integers(1, 60),
    k=st.integers(1, 70),
    seed=st.integers(0, 2**16),
)
def test_an_unlimited_shortlist_gives_exact_search(
    tmp_path_factory: pytest.TempPathFactory,
    head: tuple[int, Dtype],
    middle: int | None,
    num_rows: int,
    k: int,
    seed: int,
) -> None:
    rows, queries = random_rows(num_rows, WIDTH, seed), random_rows(3, WIDTH, seed + 1)
    stages = [(*head, num_rows), (WIDTH, Dtype.FLOAT32, None)]
    if middle is not None and middle >= head[0]:
        stages.insert(1, (middle, Dtype.FLOAT32, num_rows))
    folder = tmp_path_factory.mktemp("tier")
    found = funnel_of(plan_of(WIDTH, *stages), rows, queries, k, folder)
    expected = top_k(cosine_scores(queries, rows, WIDTH), k)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)
    chosen = rescore(queries, rows, found.rows, WIDTH)
    np.testing.assert_allclose(chosen, expected.scores, atol=1e-6)
    assert all(len(set(best)) == len(best) for best in found.rows[:, : min(k, num_rows)])


@settings(max_examples=40)
@given(
    head_dim=st.integers(1, WIDTH // 2),
    dtype=st.sampled_from(Dtype),
    k=st.integers(1, 10),
    seed=st.integers(0, 2**16),
)
def test_in_two_stages_a_longer_shortlist_never_lowers_recall(
    tmp_path_factory: pytest.TempPathFactory, head_dim: int, dtype: Dtype, k: int, seed: int
) -> None:
    rows, queries = random_rows(80, WIDTH, seed), random_rows(4, WIDTH, seed + 1)
    exact = top_k(cosine_scores(queries, rows, WIDTH), k).rows
    folder = tmp_path_factory.mktemp("tier")
    before = np.zeros(4)
    for size in (1, 5, 12, 30, 80):
        plan = plan_of(WIDTH, (head_dim, dtype, size), (WIDTH, Dtype.FLOAT32, None))
        found = funnel_of(plan, rows, queries, k, folder / str(size)).rows
        recall = np.array([len(set(a) & set(b)) for a, b in zip(found, exact, strict=True)])
        assert (recall >= before).all()
        before = recall
    assert (before == k).all()


def test_a_shortlist_below_top_k_is_widened(tmp_path: Path) -> None:
    rows, queries = random_rows(80, WIDTH), random_rows(4, WIDTH, 1)
    narrow = plan_of(WIDTH, (8, Dtype.INT8, 3), (WIDTH, Dtype.FLOAT32, None))
    wide = plan_of(WIDTH, (8, Dtype.INT8, 20), (WIDTH, Dtype.FLOAT32, None))
    found = funnel_of(narrow, rows, queries, 20, tmp_path / "narrow")
    expected = funnel_of(wide, rows, queries, 20, tmp_path / "wide")
    np.testing.assert_array_equal(found.rows, expected.rows)


def test_three_stages_do_what_they_say(tmp_path: Path) -> None:
    rows, queries = random_rows(80, WIDTH), random_rows(4, WIDTH, 1)
    plan = plan_of(
        WIDTH, (4, Dtype.FLOAT32, 30), (12, Dtype.FLOAT32, 10), (20, Dtype.FLOAT32, None)
    )
    found = funnel_of(plan, rows, queries, 5, tmp_path)
    for query, best in zip(queries, found.rows, strict=True):
        kept = np.arange(80)
        for dim, size in ((4, 30), (12, 10), (20, 5)):
            scores = cosine_scores(query[None], rows[kept], dim)[0]
            kept = kept[np.argsort(-scores)[:size]]
        np.testing.assert_array_equal(best, kept)


def test_float16_rows_are_rescored_in_float32(tmp_path: Path) -> None:
    rows, queries = random_rows(80, WIDTH).astype(np.float16), random_rows(4, WIDTH, 1)
    plan = plan_of(WIDTH, (8, Dtype.INT8, 80), (WIDTH, Dtype.FLOAT16, None))
    found = funnel_of(plan, rows, queries, 10, tmp_path)
    expected = top_k(cosine_scores(queries, rows.astype(np.float32), WIDTH), 10)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)


def test_without_a_plan_one_exact_stage_runs() -> None:
    space = fingerprint_of(WIDTH).space
    plan = exact_plan(space, Dtype.FLOAT16)
    assert plan.stages == (Stage(dim=WIDTH, dtype=Dtype.FLOAT16),)
    assert plan.space == space
    check_plan(plan, fingerprint_of(WIDTH))


def test_a_plan_for_another_width_is_refused() -> None:
    with pytest.raises(
        DimensionError, match="`plan` must be for vectors of width 32, got one for 24"
    ):
        check_plan(plan_of(24, (24, Dtype.FLOAT32, None)), fingerprint_of(32))


def test_a_plan_measured_in_another_space_is_refused() -> None:
    space = Space(
        model="other", revision="1", pooling="none", normalization="none", embed_dim=WIDTH
    )
    with pytest.raises(FingerprintError, match="the plan is 'other' and the vectors is 'fake'"):
        check_plan(exact_plan(space, Dtype.FLOAT32), fingerprint_of(WIDTH))


def test_codes_behind_the_head_are_refused() -> None:
    plan = plan_of(WIDTH, (8, Dtype.BINARY, 30), (16, Dtype.INT8, None))
    with pytest.raises(FormatError, match=r"re-score the stored full vectors.*got '16-d int8'"):
        check_plan(plan, fingerprint_of(WIDTH))
