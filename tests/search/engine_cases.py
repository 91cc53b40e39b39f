"""Engines, tiers and the judge of what they find, for the tests of engines."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from nestling.core import (
    Dtype,
    Int4Codec,
    Int8Codec,
    TopK,
    cosine_scores,
    normalize,
    top_k,
    unpack_nibbles,
    unpack_signs,
)
from nestling.errors import MissingExtraError
from nestling.search.engines import ENGINES, engine_class, full_settings
from nestling.search.engines.base import Engine
from nestling.search.rowset import RowSet
from nestling.search.tier import SIGNS, Tier, derive_tier

FULL, DIM, NUM_ROWS = 48, 32, 600
RECALL_FLOOR = 0.9

BUILD: Mapping[str, Mapping[str, int]] = {"ivf": {"clustering_dim": 16}}
"""Where a setting that is not the default is worth a test of its own."""


def clustered_rows(num_rows: int, seed: int = 0) -> np.ndarray:
    """Rows around 20 centres, of different lengths, so that a forgotten norm shows."""
    centres = np.random.default_rng(5).standard_normal((20, FULL))
    generator = np.random.default_rng(seed)
    rows = centres[generator.integers(0, 20, num_rows)]
    rows = normalize(rows + 0.7 * generator.standard_normal((num_rows, FULL)))
    return (rows * generator.uniform(0.5, 2.0, (num_rows, 1))).astype(np.float32)


ROWS, QUERIES = clustered_rows(NUM_ROWS), clustered_rows(12, seed=1)


def load_class(name: str) -> type[Engine]:
    module = ENGINES[name][0]
    try:
        return engine_class(name)
    except MissingExtraError as error:
        pytest.skip(str(error))
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        pytest.skip(f"there is no module {module} yet: the engine {name!r} is not judged")


@dataclass(frozen=True)
class Case:
    """An engine and the tier it searches."""

    kind: type[Engine]
    tier: Tier
    rows: np.ndarray

    @property
    def build_settings(self) -> dict[str, int]:
        return full_settings(
            self.kind.name, BUILD.get(self.kind.name, {}), self.kind.build_settings
        )

    @property
    def search_settings(self) -> dict[str, int]:
        """All at their defaults, but for the one that buys recall."""
        given = {} if self.kind.effort is None else {self.kind.effort: 100}
        return full_settings(self.kind.name, given, self.kind.search_settings)

    def build(self, num_threads: int = 1) -> Engine:
        return self.kind.build(
            self.tier, self.rows, settings=self.build_settings, num_threads=num_threads
        )

    def load(self, folder: Path, num_rows: int) -> Engine:
        return self.kind.load(
            folder, self.tier, self.rows, settings=self.build_settings, num_rows=num_rows
        )

    def cut(self, num_rows: int) -> "Case":
        norms = None if self.tier.norms is None else self.tier.norms[:num_rows]
        tier = replace(self.tier, codes=self.tier.codes[:num_rows], norms=norms)
        return Case(self.kind, tier, self.rows[:num_rows])

    def find(
        self,
        engine: Engine,
        queries: np.ndarray,
        k: int,
        *,
        allowed: RowSet | None = None,
        num_threads: int = 1,
    ) -> TopK:
        return engine.search(
            queries, k, settings=self.search_settings, allowed=allowed, num_threads=num_threads
        ).best

    def judge(self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> TopK:
        """The naive twin: decode everything, score everything, sort everything."""
        scores = self.scores(queries)
        if allowed is not None:
            rows = np.flatnonzero(allowed)
            return top_k(scores[:, rows], k, rows=np.broadcast_to(rows, (len(queries), len(rows))))
        return top_k(scores, k)

    def scores(self, queries: np.ndarray) -> np.ndarray:
        tier = self.tier
        if tier.dtype in SIGNS:
            values = unpack_signs(tier.codes, tier.dim)
        elif tier.dtype is Dtype.INT4:
            assert tier.scale is not None
            values = Int4Codec(tier.scale).decode(unpack_nibbles(tier.codes, tier.dim))
        elif tier.scale is not None:
            values = Int8Codec(tier.scale).decode(tier.codes)
        else:
            values = tier.codes.astype(np.float32)
        prefixes = queries[:, : tier.dim]
        if tier.rotation is not None:
            prefixes = prefixes @ tier.rotation
        return cosine_scores(prefixes, values, tier.dim)

    @property
    def tolerance(self) -> float:
        # The rounding of a float16 row changes its length a little, which its stored form ignores.
        return 1e-3 if self.tier.dtype is Dtype.FLOAT16 else 2e-6


def cases() -> list[tuple[str, Dtype | None]]:
    """Every engine with every format that it states; an engine that is missing, once per test."""
    pairs: list[tuple[str, Dtype | None]] = []
    for name in sorted(ENGINES):
        try:
            formats = engine_class(name).formats
        except (MissingExtraError, ModuleNotFoundError):
            pairs.append((name, None))
        else:
            pairs.extend((name, dtype) for dtype in Dtype if dtype in formats)
    return pairs


def first_case(kind: type[Engine], rows: np.ndarray = ROWS, dim: int = DIM) -> Case:
    dtype = next(dtype for dtype in Dtype if dtype in kind.formats)
    return Case(kind, derive_tier(rows, dim=dim, dtype=dtype), rows)


def assert_true(case: Case, queries: np.ndarray, found: TopK) -> None:
    """Whatever was found: each row once, with the tier's cosine, best first, padded at the end."""
    assert found.rows.dtype == np.int64
    assert found.scores.dtype == np.float32
    is_found = found.rows >= 0
    assert (np.diff(is_found.astype(int), axis=1) <= 0).all()
    assert (found.rows[~is_found] == -1).all()
    assert np.isneginf(found.scores[~is_found]).all()
    for rows, each in zip(found.rows, is_found, strict=True):
        assert len(set(rows[each])) == each.sum()
    expected = np.take_along_axis(case.scores(queries), np.maximum(found.rows, 0), axis=1)
    np.testing.assert_allclose(
        found.scores[is_found], expected[is_found], atol=case.tolerance, rtol=0
    )
    for rows, scores in zip(found.rows, found.scores, strict=True):
        pairs = [(-score, row) for row, score in zip(rows, scores, strict=True) if row >= 0]
        assert pairs == sorted(pairs)


def assert_good(case: Case, found: TopK, expected: TopK) -> None:
    """Exact engines find the best scores, others most of them."""
    if case.kind.is_exact:
        np.testing.assert_allclose(found.scores, expected.scores, atol=case.tolerance, rtol=0)
        return
    lowest = expected.scores.min(axis=1, keepdims=True, where=expected.rows >= 0, initial=1.0)
    num_good = ((found.rows >= 0) & (found.scores >= lowest - case.tolerance)).sum()
    assert num_good >= RECALL_FLOOR * (expected.rows >= 0).sum()
