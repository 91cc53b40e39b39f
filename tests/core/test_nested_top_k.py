from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nestling.core import (
    Int8Codec,
    TopK,
    View,
    cosine_scores,
    nested_top_k,
    pack_signs,
    top_k,
    unpack_signs,
)
from nestling.errors import DimensionError, VectorError

SEPARATED = 1e-5

# The fixture only sets sizes, the same for all examples.
keep_fixture = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture(params=["default sizes", "many seams"], autouse=True)
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test runs twice: as shipped, and with so small parts that seams are everywhere."""
    monkeypatch.setattr("nestling.core._one_pass.SMALL_JOB", 0)
    if request.param == "many seams":
        for name, value in {
            "TILE_BYTES": 1,
            "QUERIES_PER_SHARE": 8,
            "FEW_QUERIES": 2,
            "PIECE_ROWS": 64,
            "COPIED_CHUNK_BYTES": 1,
            "MAPPED_CHUNK_BYTES": 1,
        }.items():
            monkeypatch.setattr(f"nestling.core._one_pass.{name}", value)
    return str(request.param)


def draw_vectors(generator: np.random.Generator, rows: int, full: int) -> np.ndarray:
    return generator.standard_normal((rows, full), dtype=np.float32)


def check_against_scores(found: TopK, scores: np.ndarray, k: int) -> None:
    """Judge by the full score matrix: values to 1e-5, rows wherever no neighbour is that close."""
    expected = top_k(scores, k)
    np.testing.assert_allclose(found.scores, expected.scores, atol=SEPARATED)
    filled = min(k, scores.shape[1])
    rows, values = found.rows[:, :filled], found.scores[:, :filled]
    assert (np.diff(values, axis=1) <= 0).all()
    np.testing.assert_allclose(values, np.take_along_axis(scores, rows, axis=1), atol=SEPARATED)
    assert all(len(set(row)) == filled for row in rows.tolist())
    drops = -np.diff(-np.sort(-scores, axis=1), axis=1)[:, :filled]
    is_clear = np.ones((len(scores), filled), bool)
    is_clear[:, : drops.shape[1]] &= drops > SEPARATED
    is_clear[:, 1:] &= drops[:, : filled - 1] > SEPARATED
    np.testing.assert_array_equal(rows[is_clear], expected.rows[:, :filled][is_clear])
    assert (found.rows[:, filled:] == -1).all()


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    full = draw(st.integers(1, 40))
    dims = sorted(draw(st.sets(st.integers(1, full), min_size=1, max_size=5)))
    return {
        "rows": draw(st.integers(0, 400)),
        "full": full,
        "dims": dims,
        "num_queries": draw(st.integers(0, 40)),
        "k": draw(st.sampled_from([1, 2, 10, 100, 500])),
        "num_threads": draw(st.integers(1, 3)),
        "dtype": draw(st.sampled_from(["float32", "float16"])),
        "num_zero": draw(st.integers(0, 5)),
        "num_repeated": draw(st.integers(0, 50)),
        "seed": draw(st.integers(0, 9)),
    }


@keep_fixture
@given(problems())
def test_agrees_with_scoring_every_prefix_from_scratch(problem: dict[str, Any]) -> None:
    generator = np.random.default_rng(problem["seed"])
    rows, full = problem["rows"], problem["full"]
    corpus = draw_vectors(generator, rows, full)
    queries = draw_vectors(generator, problem["num_queries"], full)
    if rows:
        corpus[generator.integers(0, rows, problem["num_zero"])] = 0
        target = generator.integers(0, rows, problem["num_repeated"])
        corpus[target] = corpus[generator.integers(0, rows, problem["num_repeated"])]
    queries[:1] = 0
    corpus = corpus.astype(problem["dtype"])
    view = View(name="as it is", queries=queries)
    found = nested_top_k(
        corpus, [view], problem["dims"], problem["k"], num_threads=problem["num_threads"]
    )["as it is"]
    assert list(found.by_dim) == problem["dims"]
    for dim, best in found.by_dim.items():
        assert best.rows.dtype == np.int64
        assert best.scores.dtype == np.float32
        scores = cosine_scores(queries, corpus.astype(np.float32), dim)
        check_against_scores(best, scores, problem["k"])


@keep_fixture
@given(st.integers(0, 5), st.sampled_from([1, 7, 100]), st.sampled_from([1, 5, 30]))
def test_equal_rows_come_in_corpus_order(seed: int, k: int, num_queries: int) -> None:
    generator = np.random.default_rng(seed)
    unique = draw_vectors(generator, 13, 24)
    unique[0] = 0
    names = generator.integers(0, len(unique), 700)
    queries = draw_vectors(generator, num_queries, 24)
    found = nested_top_k(unique[names], [View(name="v", queries=queries)], (3, 24), k)["v"]
    for dim, best in found.by_dim.items():
        expected = top_k(cosine_scores(queries, unique, dim)[:, names], k)
        np.testing.assert_array_equal(best.rows, expected.rows)


@pytest.mark.parametrize("num_queries", [1, 70])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_threads_change_no_bit(num_queries: int, dtype: str) -> None:
    generator = np.random.default_rng(3)
    corpus = draw_vectors(generator, 3000, 32).astype(dtype)
    rotation = np.linalg.qr(draw_vectors(generator, 32, 32))[0]
    queries = draw_vectors(generator, num_queries, 32)
    views = [
        View(name="as it is", queries=queries),
        View(name="rotated", queries=queries @ rotation, transform=lambda rows: rows @ rotation),
    ]
    alone = nested_top_k(corpus, views, (8, 32), 20, num_threads=1)
    for num_threads in (2, 3, 7):
        shared = nested_top_k(corpus, views, (8, 32), 20, num_threads=num_threads)
        for view in views:
            for dim in (8, 32):
                expected, found = alone[view.name].by_dim[dim], shared[view.name].by_dim[dim]
                np.testing.assert_array_equal(found.rows, expected.rows)
                np.testing.assert_array_equal(found.scores, expected.scores)


def test_views_share_a_pass_and_do_not_touch_each_other() -> None:
    generator = np.random.default_rng(4)
    corpus = draw_vectors(generator, 1500, 24)
    queries = draw_vectors(generator, 20, 24)
    codec = Int8Codec.calibrate(corpus)
    permutation = generator.permutation(24)
    transforms = {
        "as it is": None,
        "int8": lambda rows: codec.decode(codec.encode(rows)[0]),
        "float16": lambda rows: rows.astype(np.float16).astype(np.float32),
        "signs": lambda rows: unpack_signs(pack_signs(rows), rows.shape[1]),
        "permuted": lambda rows: rows[:, permutation],
    }
    views = [
        View(
            name=name,
            queries=queries[:, permutation].copy() if name == "permuted" else queries,
            transform=transform,
        )
        for name, transform in transforms.items()
    ]
    found = nested_top_k(corpus, views, (5, 16), 10)
    assert list(found) == list(transforms)
    for view in views:
        seen = corpus if view.transform is None else view.transform(corpus)
        assert found[view.name].seconds > 0
        for dim in (5, 16):
            scores = cosine_scores(view.queries, seen, dim)
            check_against_scores(found[view.name].by_dim[dim], scores, 10)


def test_rows_that_get_better_and_better_all_pass_through_the_list() -> None:
    angles = np.linspace(np.pi, 0, 1000)
    corpus = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    queries = np.tile(np.array([[1.0, 0.0]], np.float32), (20, 1))
    best = nested_top_k(corpus, [View(name="v", queries=queries)], (2,), 5)["v"].by_dim[2]
    check_against_scores(best, cosine_scores(queries, corpus, 2), 5)
    assert best.rows[0, 0] == 999


@pytest.mark.parametrize("num_queries", [1, 30])
def test_a_memory_mapped_corpus_is_read_as_it_lies(tmp_path: Path, num_queries: int) -> None:
    generator = np.random.default_rng(5)
    vectors = draw_vectors(generator, 900, 24)
    queries = draw_vectors(generator, num_queries, 24)
    view = View(name="v", queries=queries)
    expected = nested_top_k(vectors, [view], (8, 24), 10)["v"]
    np.save(tmp_path / "vectors.npy", vectors)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    strided = np.asfortranarray(vectors)
    for corpus in (mapped, strided):
        found = nested_top_k(corpus, [view], (8, 24), 10)["v"]
        for dim in (8, 24):
            np.testing.assert_array_equal(found.by_dim[dim].rows, expected.by_dim[dim].rows)
            np.testing.assert_array_equal(found.by_dim[dim].scores, expected.by_dim[dim].scores)


def test_a_transform_sees_rows_it_cannot_spoil() -> None:
    def spoil(rows: np.ndarray) -> np.ndarray:
        rows[:] = 0
        return rows

    corpus = draw_vectors(np.random.default_rng(6), 10, 4)
    view = View(name="v", queries=corpus[:2].copy(), transform=spoil)
    with pytest.raises(ValueError, match="read-only"):
        nested_top_k(corpus, [view], (4,), 1)


def test_progress_ends_at_the_last_row() -> None:
    corpus = draw_vectors(np.random.default_rng(7), 300, 4)
    steps: list[tuple[str, int, int]] = []
    nested_top_k(
        corpus,
        [View(name="v", queries=corpus[:1].copy())],
        (4,),
        1,
        progress=lambda label, done, total: steps.append((label, done, total)),
    )
    assert steps[-1] == ("score", 300, 300)
    assert [done for _, done, _ in steps] == sorted({done for _, done, _ in steps})


def test_callers_in_several_threads_do_not_disturb_each_other() -> None:
    generator = np.random.default_rng(8)
    corpus = draw_vectors(generator, 2000, 16)
    views = [View(name="v", queries=draw_vectors(generator, 33, 16)) for _ in range(6)]
    alone = [nested_top_k(corpus, [view], (4, 16), 5)["v"] for view in views]
    with ThreadPoolExecutor(6) as executor:
        together = list(
            executor.map(lambda view: nested_top_k(corpus, [view], (4, 16), 5)["v"], views)
        )
    for expected, found in zip(alone, together, strict=True):
        np.testing.assert_array_equal(found.by_dim[16].rows, expected.by_dim[16].rows)
        np.testing.assert_array_equal(found.by_dim[4].scores, expected.by_dim[4].scores)


def test_empty_sides_give_empty_places() -> None:
    corpus = np.zeros((0, 8), np.float32)
    best = nested_top_k(corpus, [View(name="v", queries=np.ones((3, 8), np.float32))], (8,), 2)
    np.testing.assert_array_equal(best["v"].by_dim[8].rows, np.full((3, 2), -1))
    np.testing.assert_array_equal(best["v"].by_dim[8].scores, np.full((3, 2), -np.inf))
    no_queries = View(name="v", queries=np.zeros((0, 8), np.float32))
    best = nested_top_k(np.ones((5, 8), np.float32), [no_queries], (4, 8), 2)
    assert best["v"].by_dim[4].rows.shape == (0, 2)
    assert nested_top_k(corpus, [], (8,), 1) == {}


def test_bad_requests_are_refused_by_name() -> None:
    corpus = np.ones((4, 8), np.float32)
    view = View(name="v", queries=np.ones((1, 8), np.float32))
    with pytest.raises(DimensionError, match=r"`dim` must lie in \[1, 8\].*got 9"):
        nested_top_k(corpus, [view], (4, 9), 1)
    with pytest.raises(VectorError, match=r"`k` must be at least 1, got 0. Ask for one result"):
        nested_top_k(corpus, [view], (8,), 0)
    with pytest.raises(VectorError, match=r"distinct names, got \['v', 'v'\]. Rename one"):
        nested_top_k(corpus, [view, view], (8,), 1)
    narrow = View(name="narrow", queries=np.ones((1, 7), np.float32))
    with pytest.raises(
        VectorError, match=r"`queries` of view 'narrow' .* corpus, 8, got 7. Encode"
    ):
        nested_top_k(corpus, [narrow], (4,), 1)
    endless = np.broadcast_to(corpus[:1], (1 << 32, 8))
    with pytest.raises(VectorError, match=r"fewer than 4294967296 rows, got 4294967296. Search it"):
        nested_top_k(endless, [view], (8,), 1)
    cut = View(name="cut", queries=view.queries, transform=lambda rows: rows[:, :1])
    with pytest.raises(VectorError, match=r"`transform` of view 'cut' must keep .* \(4, 1\) for"):
        nested_top_k(corpus, [cut], (4,), 1)
