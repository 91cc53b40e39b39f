"""Run a plan: search the head tier, then re-score ever fewer rows at ever greater width.

The ranking of a query does not depend on how much of it is asked for: it is made of blocks. The first
block holds what the first stage finds at its shortlist size S, in the order of the last stage; block j
holds what it finds at size S x 2^j and no earlier block holds, re-ranked likewise. A middle stage makes
blocks of what it is given in the same way. A single stage whose engine is approximate takes the engine's
`page_size` for S; exact ones need no blocks. So pages of a result fit together, wherever they are cut.
"""

import math
from collections.abc import Mapping
from functools import cached_property
from time import perf_counter
from typing import Any, NamedTuple, Protocol, final, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from nestling.core import Dtype, Space, TopK, find_bad_rows
from nestling.core.fingerprint import Fingerprint, check_same_space
from nestling.errors import DimensionError, VectorError
from nestling.search.engines.base import Engine, EngineFound
from nestling.search.plan import Plan, Stage
from nestling.search.rescore import RowScorer, pick_best
from nestling.search.rowfile import CheckedRows
from nestling.search.rowset import RowSet
from nestling.search.tier import Tier, raw_tier
from nestling.search.trace import StageTrace

SCAN = "scan"
"""Named in a trace where rows are scored one by one instead of searched by the engine."""

Queries = Float32[np.ndarray, "queries width"]


@runtime_checkable
class StoredRows(Protocol):
    """The stored vectors, which a stage narrower than planned reads."""

    @property
    def rows(self) -> Float[np.ndarray, "rows full"]:
        """All of them."""


@runtime_checkable
class FunnelView(Protocol):
    """What a funnel reads: one generation of an index."""

    @property
    def plan(self) -> Plan:
        """What to run."""

    @property
    def vectors(self) -> StoredRows:
        """The stored vectors."""

    @property
    def tiers(self) -> Mapping[tuple[int, Dtype], Tier]:
        """What each stage of the plan reads, by width and format."""

    @property
    def engine(self) -> Engine:
        """What searches the head; for the first `engine.num_rows` rows."""

    @property
    def search_settings(self) -> Mapping[str, int]:
        """All settings of a query, checked."""

    @property
    def num_rows(self) -> int:
        """Rows of the head, those that the engine does not know yet included."""


class Ran(NamedTuple):
    """What a funnel found, and how.

    Attributes:
        best: Rows and the scores of the last stage, padded with -1 and minus infinity.
        stages: What was done, in this order.
        certificate: What the engine proves about what it found; None if nothing.
    """

    best: TopK
    stages: list[StageTrace]
    certificate: Mapping[str, Any] | None


def exact_plan(space: Space, dtype: Dtype) -> Plan:
    """Return the plan of an index that was given none: one exact stage over the full width."""
    stage = Stage(dim=space.embed_dim, dtype=dtype)
    return Plan(stages=(stage,), embed_dim=space.embed_dim, space=space, evidence={})


def check_plan(plan: Plan, fingerprint: Fingerprint) -> None:
    """Refuse a plan that was made for other vectors.

    Raises:
        DimensionError: If the plan is for another full width.
        FingerprintError: If its evidence was measured in another space.
    """
    if plan.embed_dim != fingerprint.space.embed_dim:
        raise DimensionError(
            f"`plan` must be for vectors of width {fingerprint.space.embed_dim}, got one for "
            f"{plan.embed_dim}. Measure and choose on these vectors."
        )
    if plan.space is not None:
        measured = Fingerprint(space=plan.space, encoder={})
        check_same_space(measured, fingerprint, left_name="the plan", right_name="the vectors")


def check_queries(
    queries: Float[np.ndarray, "*shape"], *, head_dim: int, embed_dim: int
) -> Queries:
    """Return queries as a funnel takes them.

    Args:
        queries: One per row, as wide as the vectors or narrower, of any length.
        head_dim: Width of the head, below which a query cannot be searched.
        embed_dim: Full width.

    Raises:
        VectorError: If a query is too narrow or too wide, zero, or not finite.
    """
    if queries.ndim != 2 or not head_dim <= queries.shape[1] <= embed_dim:
        widths = f"{embed_dim}" if head_dim == embed_dim else f"{head_dim} to {embed_dim}"
        raise VectorError(
            f"`queries` must have the shape (rows, {widths}), one row per query, got {queries.shape}. "
            f"Encode with the model of the index; the first stage of its plan reads {head_dim} dims."
        )
    if queries.dtype == np.float32:
        rows = np.ascontiguousarray(queries)
    else:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is named
            rows = np.ascontiguousarray(queries, np.float32)
    # The square of a single query tells of all three faults; it may overflow without any of them.
    if len(rows) != 1 or not 0.0 < float(np.vdot(rows, rows)) < math.inf:
        bad = np.flatnonzero(find_bad_rows(rows))
        if len(bad):
            raise VectorError(
                f"`queries` must be finite and not all zero, got {len(bad)} bad of {len(rows)}: "
                f"query {', '.join(map(str, bad[:5]))}. Mend these (an empty text encodes to zero)."
            )
    return rows


def run_funnel(
    view: FunnelView,
    queries: Queries,
    *,
    num_results: int,
    allowed: RowSet | None = None,
    num_threads: int = 1,
) -> Ran:
    """Return the best rows per query; see `Funnel.run`."""
    return Funnel(view).run(
        queries, num_results=num_results, allowed=allowed, num_threads=num_threads
    )


class _LaterStage(NamedTuple):
    """A stage behind the first.

    Attributes:
        shortlist_size: What it hands on; None for the last one.
        scorer: Scores rows of its tier.
    """

    shortlist_size: int | None
    scorer: RowScorer


@final
class Funnel:
    """A plan over one generation of an index, ready to run; several threads may run it."""

    def __init__(self, view: FunnelView) -> None:
        """Take what to read; nothing is loaded or compiled before the first run."""
        self._view = view
        self._stages = view.plan.stages
        self._head = view.tiers[view.plan.head.dim, view.plan.head.dtype]
        self._later: dict[int, list[_LaterStage]] = {}

    def run(
        self,
        queries: Queries,
        *,
        num_results: int,
        allowed: RowSet | None = None,
        num_threads: int = 1,
    ) -> Ran:
        """Return the best rows per query.

        Args:
            queries: As `check_queries` returns them. Stages wider than these are replaced by one
                that re-scores the stored vectors at the width of the queries.
            num_results: How many to return per query, at least 1. Fewer are found only if fewer are
                allowed.
            allowed: Rows that may be found; None for all.
            num_threads: Threads to use; it changes no result.
        """
        num_allowed = self._view.num_rows if allowed is None else len(allowed)
        width = queries.shape[1]
        later = self._later.get(width)
        if later is None:
            later = self._later[width] = self._stages_at(width)
        run = _Run(self._view, self._head_scorer, queries, allowed, num_allowed, num_threads)
        limit = min(num_results, num_allowed)
        found = run.rank(later, self._first_size(later), limit)
        return Ran(_padded(found, num_results), run.traces, run.certificate)

    def _first_size(self, later: list[_LaterStage]) -> int | None:
        if later:
            return self._stages[0].shortlist_size
        return self._view.engine.page_size(self._view.search_settings)

    @cached_property
    def _head_scorer(self) -> RowScorer:
        if not self._view.engine.checks_rows:
            self._head.ensure_span(0, len(self._head))
        return RowScorer(self._head)

    def _stages_at(self, width: int) -> list[_LaterStage]:
        later = [stage for stage in self._stages[1:] if stage.dim <= width]
        tiers = [self._view.tiers[stage.dim, stage.dtype] for stage in later]
        if len(later) < len(self._stages) - 1:
            vectors = self._view.vectors
            checked = vectors if isinstance(vectors, CheckedRows) else None
            tiers.append(raw_tier(vectors.rows, width, checked=checked))
        sizes = [stage.shortlist_size for stage in later] + [None]
        return [
            _LaterStage(size, RowScorer(tier)) for size, tier in zip(sizes, tiers, strict=False)
        ]


@final
class _Run:
    """One run of a funnel.

    Attributes:
        traces: What was done so far.
        certificate: Of the engine's last search.
    """

    __slots__ = (
        "_allowed",
        "_folded",
        "_head",
        "_num_allowed",
        "_num_threads",
        "_queries",
        "_view",
        "certificate",
        "traces",
    )

    def __init__(
        self,
        view: FunnelView,
        head: RowScorer,
        queries: Queries,
        allowed: RowSet | None,
        num_allowed: int,
        num_threads: int,
    ) -> None:
        self._view = view
        self._head = head
        self._queries = queries
        self._allowed = allowed
        self._num_allowed = num_allowed
        self._num_threads = num_threads
        self._folded: dict[RowScorer, Queries] = {}
        self.traces: list[StageTrace] = []
        self.certificate: Mapping[str, Any] | None = None

    def rank(self, later: list[_LaterStage], size: int | None, limit: int) -> TopK:
        """Return the first rows of every query's ranking, at least `limit` of them.

        Args:
            later: Stages behind the first.
            size: Of the first block at the first stage; None if it needs no blocks.
            limit: At most as many as there are allowed rows.
        """
        if limit == 0 or len(self._queries) == 0:
            return _nothing(len(self._queries), limit)
        size = limit if size is None else min(size, self._num_allowed)
        found = self._find(size)
        ranked = self._rescore(later, 0, found.rows, limit) if later else found
        if size >= limit:
            return ranked
        blocks, num_ranked = [ranked], size
        while num_ranked < limit:
            size = min(2 * size, self._num_allowed)
            before, found = found, self._find(size)
            fresh = _without(found, before)
            ranked = self._rescore(later, 0, fresh.rows, limit) if later else fresh
            blocks.append(ranked)
            found = TopK(*map(np.hstack, zip(found, before, strict=True)))
            num_ranked = int(sum((block.rows >= 0).sum(axis=1) for block in blocks).min())
        return _joined(blocks)

    def _rescore(
        self,
        later: list[_LaterStage],
        place: int,
        rows: Int64[np.ndarray, "queries kept"],
        wanted: int,
    ) -> TopK:
        """Return the first `wanted` rows, or all, of the ranking of some rows by stages from `place` on."""
        start_s = perf_counter()
        size, scorer = later[place]
        wanted = min(wanted, rows.shape[1])
        num_kept = wanted if size is None else min(_grown(size, wanted), rows.shape[1])
        folded = self._fold(scorer)
        best, num_scored = scorer.best(folded, rows, num_kept, num_threads=self._num_threads)
        self._note(scorer.tier, None, num_scored, num_scored * scorer.row_bytes, start_s)
        if size is None:
            return best
        if wanted <= size:
            return self._rescore(later, place + 1, best.rows, wanted)
        blocks, start, stop = [], 0, size
        while start < num_kept:
            block = best.rows[:, start:stop]
            blocks.append(self._rescore(later, place + 1, block, block.shape[1]))
            start, stop = stop, 2 * stop
        return TopK(*map(np.hstack, zip(*blocks, strict=True)))

    def _find(self, size: int) -> TopK:
        """Return the best rows of the head, as many as `size`, which is at most what is allowed."""
        view, allowed = self._view, self._allowed
        start_s = perf_counter()
        engine, num_indexed = view.engine, view.engine.num_rows
        if num_indexed == 0 or (allowed is not None and engine.prefers_scan(self._num_allowed)):
            return self._scan(size)
        found = engine.search(
            self._queries,
            size,
            settings=view.search_settings,
            allowed=allowed,
            num_threads=self._num_threads,
        )
        if num_indexed < view.num_rows:
            found = self._with_tail(found, size)
        self.certificate = found.certificate
        self._note(self._head.tier, engine.name, found.num_scored, found.bytes_read, start_s)
        # Sorted, with empty places behind: the last place that must be taken tells of all.
        rows = found.best.rows
        if (rows[0, size - 1] if len(rows) == 1 else rows[:, size - 1].min()) < 0:
            return self._complete(found.best, rows[:, size - 1] < 0, size)
        return found.best

    def _with_tail(self, found: EngineFound, size: int) -> EngineFound:
        """Add the rows that the engine does not know."""
        start, stop = self._view.engine.num_rows, self._view.num_rows
        rows = None
        if self._allowed is not None:
            rows = self._allowed.rows
            start, stop = int(np.searchsorted(rows, start)), len(rows)
        tail = self._head.scan(
            self._fold(self._head),
            min(size, max(1, stop - start)),
            rows=rows,
            start=start,
            stop=stop,
            num_threads=self._num_threads,
        )
        known = found.best
        best = pick_best(
            np.hstack([known.rows, tail.rows]), np.hstack([known.scores, tail.scores]), size
        )
        num_scored, bytes_read = found.num_scored, found.bytes_read
        num_tail = len(self._queries) * (stop - start)
        return EngineFound(
            best,
            None if num_scored is None else num_scored + num_tail,
            None if bytes_read is None else bytes_read + num_tail * self._head.row_bytes,
            found.certificate,
        )

    def _complete(self, best: TopK, is_short: Bool[np.ndarray, " queries"], size: int) -> TopK:
        """Scan for the queries that the engine found too little for."""
        places = np.flatnonzero(is_short)
        scanned = self._scan(size, places)
        best = TopK(best.rows.copy(), best.scores.copy())
        best.rows[places], best.scores[places] = scanned
        return best

    def _scan(self, size: int, places: Int64[np.ndarray, " some"] | None = None) -> TopK:
        """Return the best allowed rows of all queries, or those in some places, exactly."""
        start_s = perf_counter()
        folded = self._fold(self._head)
        folded = folded if places is None else folded[places]
        rows = None if self._allowed is None else self._allowed.rows
        best = self._head.scan(folded, size, rows=rows, num_threads=self._num_threads)
        num_scored = len(folded) * self._num_allowed
        self._note(self._head.tier, SCAN, num_scored, num_scored * self._head.row_bytes, start_s)
        return best

    def _fold(self, scorer: RowScorer) -> Queries:
        folded = self._folded.get(scorer)
        if folded is None:
            folded = self._folded[scorer] = scorer.tier.fold(self._queries)
        return folded

    def _note(
        self,
        tier: Tier,
        engine: str | None,
        num_scored: int | None,
        num_bytes: int | None,
        start_s: float,
    ) -> None:
        self.traces.append(
            StageTrace(
                tier.dim, tier.dtype, engine, num_scored, num_bytes, perf_counter() - start_s
            )
        )


def _grown(size: int, wanted: int) -> int:
    """Return what blocks of `size` rows, as many, twice as many and so on, reach to cover `wanted`."""
    while size < wanted:
        size *= 2
    return size


def _without(found: TopK, before: TopK) -> TopK:
    """Return what was found now and not before, with empty places in between."""
    queries = np.arange(len(found.rows))[:, None] << 33
    is_old = np.isin(found.rows + queries, before.rows + queries)
    return TopK(
        np.where(is_old, -1, found.rows), np.where(is_old, np.float32(-np.inf), found.scores)
    )


def _joined(blocks: list[TopK]) -> TopK:
    """Return blocks one behind the other, empty places last."""
    rows, scores = map(np.hstack, zip(*blocks, strict=True))
    order = np.argsort(rows < 0, axis=1, kind="stable")
    return TopK(np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1))


def _padded(found: TopK, k: int) -> TopK:
    """Return `k` places per query."""
    num_found = found.rows.shape[1]
    if num_found == k:
        return found
    if num_found > k:
        return TopK(found.rows[:, :k], found.scores[:, :k])
    best = _nothing(len(found.rows), k)
    best.rows[:, :num_found], best.scores[:, :num_found] = found
    return best


def _nothing(num_queries: int, k: int) -> TopK:
    return TopK(
        np.full((num_queries, k), -1, np.int64), np.full((num_queries, k), -np.inf, np.float32)
    )
