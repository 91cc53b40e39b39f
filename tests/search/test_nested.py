"""The nested engine, judged by a float64 scan of the native rows."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling.core import Dtype
from nestling.core.row_sums import row_sums
from nestling.errors import FormatError
from nestling.search.engines.base import EngineFound
from nestling.search.engines.nested import NestedEngine
from nestling.search.nested.bands import RECORD_BYTES
from nestling.search.rowfile import CheckedRows
from nestling.search.rowset import RowSet
from nestling.search.tier import Tier, derive_tier

LANES = 32


def float_tier(rows: np.ndarray, dim: int | None = None) -> Tier:
    return derive_tier(rows, dim=dim or rows.shape[1], dtype=Dtype(rows.dtype.name))


def build(tier: Tier, *, bands: int = 0, num_threads: int = 1) -> NestedEngine:
    return NestedEngine.build(tier, tier.codes, settings={"bands": bands}, num_threads=num_threads)


def search(
    engine: NestedEngine,
    queries: np.ndarray,
    k: int,
    *,
    allowed: RowSet | None = None,
    num_threads: int = 1,
) -> EngineFound:
    return engine.search(queries, k, settings={}, allowed=allowed, num_threads=num_threads)


def in_lanes(products: np.ndarray) -> np.ndarray:
    """Sums over the last axis in the stated order: in lanes, then lane by lane."""
    width = products.shape[-1]
    padding = [(0, 0)] * (products.ndim - 1) + [(0, -width % LANES)]
    lanes = np.pad(products, padding).reshape(*products.shape[:-1], -1, LANES)
    total = np.zeros((*lanes.shape[:-2], LANES))
    for place in range(lanes.shape[-2]):
        total = total + lanes[..., place, :]
    result = np.zeros(total.shape[:-1])
    for lane in range(LANES):
        result = result + total[..., lane]
    return result


def exact_scores(rows: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Float64 cosines, as the engine states how they are taken."""
    wide, query = rows.astype(np.float64), queries.astype(np.float64)[:, : rows.shape[1]]
    square = np.zeros(len(query))
    for column in range(query.shape[1]):
        square = square + query[:, column] ** 2
    lengths = np.sqrt(in_lanes(wide * wide))[None] * np.sqrt(square)[:, None]
    dots = np.array([in_lanes(wide * each) for each in query]).reshape(lengths.shape)
    return np.divide(dots, lengths, out=np.zeros_like(dots), where=lengths > 0)


def judge(
    rows: np.ndarray, queries: np.ndarray, k: int, mask: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    scores = exact_scores(rows, queries)
    best = np.full((len(queries), k), -1, np.int64)
    best_scores = np.full((len(queries), k), -np.inf, np.float32)
    members = np.arange(len(rows)) if mask is None else np.flatnonzero(mask)
    for number in range(len(queries)):
        order = np.lexsort((members, -scores[number, members]))[:k]
        best[number, : len(order)] = members[order]
        best_scores[number, : len(order)] = scores[number, members[order]]
    return best, best_scores


def assert_exact(found: EngineFound, expected: tuple[np.ndarray, np.ndarray]) -> None:
    np.testing.assert_array_equal(found.best.rows, expected[0])
    np.testing.assert_array_equal(found.best.scores, expected[1])


def nested_rows(num_rows: int, dim: int, seed: int = 0) -> np.ndarray:
    """Rows of falling energy in a turned basis, around a common mean, of many lengths."""
    generator = np.random.default_rng(seed)
    basis = np.linalg.qr(np.random.default_rng(99).standard_normal((dim, dim)))[0]
    rows = generator.standard_normal((num_rows, dim)) * np.arange(1, dim + 1) ** -0.7 + 0.1
    lengths = np.exp(generator.standard_normal((num_rows, 1)))
    return (rows @ basis * lengths).astype(np.float32)


ROWS, QUERIES = nested_rows(3000, 192), nested_rows(9, 192, seed=1)


@pytest.mark.parametrize("bands", [0, 1, 2, 64])
@pytest.mark.parametrize("k", [1, 10, 700])
def test_finds_what_a_float64_scan_finds(bands: int, k: int) -> None:
    engine = build(float_tier(ROWS), bands=bands)
    assert_exact(search(engine, QUERIES, k), judge(ROWS, QUERIES, k))


def test_agrees_with_plain_float64_cosines() -> None:
    wide, query = ROWS.astype(np.float64), QUERIES.astype(np.float64)
    scores = (query @ wide.T) / np.linalg.norm(wide, axis=1)
    scores /= np.linalg.norm(query, axis=1)[:, None]
    found = search(build(float_tier(ROWS)), QUERIES, 10).best
    np.testing.assert_array_equal(found.rows, np.argsort(-scores, axis=1)[:, :10])
    np.testing.assert_allclose(found.scores, -np.sort(-scores, axis=1)[:, :10], rtol=1e-6)


@pytest.mark.parametrize("num_queries", [0, 1, 4, 5])
@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_batches_and_threads_change_nothing(num_queries: int, num_threads: int) -> None:
    engine = build(float_tier(ROWS), num_threads=num_threads)
    found = search(engine, QUERIES[:num_queries], 10, num_threads=num_threads)
    assert_exact(found, judge(ROWS, QUERIES[:num_queries], 10))
    alone = [search(build(float_tier(ROWS)), query[None], 10) for query in QUERIES[:num_queries]]
    assert found.bytes_read == sum(each.bytes_read or 0 for each in alone)


def test_a_float16_tier_and_one_of_unit_prefixes() -> None:
    half = (ROWS / np.abs(ROWS).max()).astype(np.float16)
    assert_exact(search(build(float_tier(half)), QUERIES, 10), judge(half, QUERIES, 10))
    prefixes = derive_tier(ROWS, dim=64, dtype=Dtype.FLOAT16)
    assert not prefixes.is_borrowed
    expected = judge(prefixes.codes, QUERIES, 10)
    assert_exact(search(build(prefixes), QUERIES, 10), expected)


@pytest.mark.parametrize("bands", [0, 1])
@pytest.mark.parametrize("share", [0.0, 0.002, 0.05, 0.3, 1.0])
def test_only_allowed_rows_are_found(share: float, bands: int) -> None:
    mask = np.random.default_rng(0).random(len(ROWS)) < share
    longer = RowSet.of_mask(np.concatenate([mask, np.ones(7, bool)]))
    found = search(build(float_tier(ROWS), bands=bands), QUERIES, 10, allowed=longer)
    assert_exact(found, judge(ROWS, QUERIES, 10, mask))


def test_equal_rows_come_in_order() -> None:
    rows = np.repeat(nested_rows(7, 40), 100, axis=0)
    rows[::2] *= 2  # exactly the same angle
    queries = nested_rows(5, 40, seed=3)
    for k in (1, 99, 100, 101, 450):
        assert_exact(search(build(float_tier(rows)), queries, k), judge(rows, queries, k))


def test_zero_rows_score_zero_and_zero_queries_find_the_first_rows() -> None:
    rows = ROWS[:300].copy()
    rows[::3] = 0
    queries = np.concatenate([-rows[1:2], np.zeros((1, 192), np.float32)])
    assert_exact(search(build(float_tier(rows)), queries, 250), judge(rows, queries, 250))
    nothing = np.zeros((50, 192), np.float32)
    assert_exact(search(build(float_tier(nothing)), queries, 60), judge(nothing, queries, 60))


def test_an_empty_tier_finds_nothing() -> None:
    tier = float_tier(ROWS)
    assert tier.norms is not None
    engine = build(replace(tier, codes=tier.codes[:0], norms=tier.norms[:0]))
    found = search(engine, QUERIES, 3)
    assert (found.best.rows == -1).all()
    assert np.isneginf(found.best.scores).all()
    assert found.certificate is not None
    assert found.certificate["threshold"] is None


@settings(max_examples=120)
@given(
    seed=st.integers(0, 10_000),
    dim=st.sampled_from([1, 2, 3, 5, 8, 17, 33, 64, 121, 130]),
    num_rows=st.integers(1, 400),
    k=st.integers(1, 60),
    noise=st.sampled_from([0.0, 1e-7, 1e-5, 1e-3, 1.0]),
    spread=st.sampled_from([0.0, 1.0, 4.0]),
    bands=st.sampled_from([0, 1]),
)
def test_near_ties_and_wide_ranges(
    seed: int, dim: int, num_rows: int, k: int, noise: float, spread: float, bands: int
) -> None:
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((3, dim)) * np.exp(spread * generator.standard_normal(dim))
    rows = centres[generator.integers(0, 3, num_rows)]
    rows = rows * (1 + noise * generator.standard_normal(rows.shape))
    rows = (rows * np.exp(spread * generator.standard_normal((num_rows, 1)))).astype(np.float32)
    queries = np.concatenate([rows[:2], generator.standard_normal((1, dim)).astype(np.float32)])
    found = search(build(float_tier(rows), bands=bands), queries, k)
    assert_exact(found, judge(rows, queries, k))


@pytest.mark.parametrize("first", [0, 1, 1000, 1600, len(ROWS)])
def test_grown_finds_the_same(first: int) -> None:
    tier = float_tier(ROWS)
    assert tier.norms is not None
    engine = build(replace(tier, codes=tier.codes[:first], norms=tier.norms[:first]))
    before = search(engine, QUERIES, 10)
    grown = engine.extended(tier, ROWS, settings={"bands": 0})
    assert grown.num_rows == len(ROWS)
    assert_exact(search(grown, QUERIES, 10), judge(ROWS, QUERIES, 10))
    np.testing.assert_array_equal(search(engine, QUERIES, 10).best.rows, before.best.rows)


def test_rows_that_the_map_was_not_made_for_are_found_all_the_same() -> None:
    strange = np.random.default_rng(4).standard_normal((2000, 192)).astype(np.float32)
    strange[0], strange[1] = 1e-30, 0
    rows = np.concatenate([ROWS, strange])
    grown = build(float_tier(ROWS)).extended(float_tier(rows), rows, settings={"bands": 0})
    queries = np.concatenate([QUERIES, strange[:4] + 0.1])
    assert_exact(search(grown, queries, 10), judge(rows, queries, 10))


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    engine = build(float_tier(ROWS))
    names = engine.save(tmp_path)
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
    assert sum((tmp_path / name).stat().st_size for name in names) == pytest.approx(
        engine.num_bytes, rel=0.02
    )
    longer = np.concatenate([ROWS, QUERIES])  # the tier has grown since
    loaded = NestedEngine.load(
        tmp_path, float_tier(longer), longer, settings={"bands": 0}, num_rows=len(ROWS)
    )
    one, other = search(engine, QUERIES, 10), search(loaded, QUERIES, 10)
    np.testing.assert_array_equal(one.best.rows, other.best.rows)
    assert one.certificate == other.certificate


def test_the_same_input_gives_the_same_files_whatever_the_threads(tmp_path: Path) -> None:
    for num_threads in (1, 3):
        folder = tmp_path / str(num_threads)
        folder.mkdir()
        build(float_tier(nested_rows(9000, 64)), num_threads=num_threads).save(folder)
    for path in (tmp_path / "1").iterdir():
        assert path.read_bytes() == (tmp_path / "3" / path.name).read_bytes()


def test_the_certificate_counts_what_was_read() -> None:
    engine = build(float_tier(ROWS))
    found = search(engine, QUERIES, 10)
    certificate = found.certificate
    assert certificate is not None
    assert certificate["exact"] is True
    assert certificate["num_queries"] == len(QUERIES)
    assert certificate["bytes_flat"] == len(QUERIES) * ROWS.nbytes
    assert certificate["rows_read"][0] == len(QUERIES) * len(ROWS) == found.num_scored
    assert certificate["rows_read"][1] < certificate["rows_read"][0]
    assert len(QUERIES) * 64 <= certificate["rows_rescored"] < len(QUERIES) * len(ROWS) / 5
    map_bytes = engine.num_bytes - RECORD_BYTES * len(ROWS) * len(certificate["rows_read"])
    assert certificate["bytes_read"] == found.bytes_read
    assert certificate["bytes_read"] == (
        RECORD_BYTES * sum(certificate["rows_read"])
        + certificate["rows_rescored"] * 192 * 4
        + len(QUERIES) * map_bytes
    )
    assert 0 < certificate["slack"] < 1e-3
    assert certificate["margin"] > 0
    assert certificate["threshold"] == pytest.approx(found.best.scores[:, -1].min())


def test_only_what_is_read_is_checked(tmp_path: Path) -> None:
    tier = float_tier(ROWS)
    engine = build(tier)
    best = search(engine, QUERIES[:1], 3).best.rows[0]
    worst = int(np.argmin(exact_scores(ROWS, QUERIES[:1])[0]))
    row_sums(ROWS).tofile(tmp_path / "sums")
    for damaged, is_found in ((int(best[0]), True), (worst, False)):
        rows = ROWS.copy()
        rows[damaged, 5] += 1
        rows.tofile(tmp_path / "rows")
        checked = CheckedRows(tmp_path / "rows", tmp_path / "sums", ROWS.shape, np.float32)
        engine.save(tmp_path)
        mapped = replace(tier, codes=checked.rows, checked=checked)
        loaded = NestedEngine.load(
            tmp_path, mapped, mapped.codes, settings={"bands": 0}, num_rows=len(ROWS)
        )
        if is_found:
            with pytest.raises(FormatError, match=f"row {damaged} differs from its sum"):
                search(loaded, QUERIES[:1], 3)
        else:
            np.testing.assert_array_equal(search(loaded, QUERIES[:1], 3).best.rows[0], best)
