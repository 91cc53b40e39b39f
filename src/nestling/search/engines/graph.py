"""The default fast engine: a graph of near rows, walked in compiled code over the tier's own codes."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar, final

import numpy as np
from jaxtyping import Float, Float32, UInt8

from nestling.core import TopK
from nestling.core.progress import Progress, silent
from nestling.search.engines.base import Engine, EngineFound, Setting
from nestling.search.graph.build import link_rows
from nestling.search.graph.parts import GraphParts, WalkRoom
from nestling.search.rescore import RowScorer, norms_of
from nestling.search.rowfile import read_only
from nestling.search.rowset import RowSet
from nestling.search.tier import Tier

QUERIES_PER_THREAD = 16
"""Fewer are not worth starting a thread for."""

WIDEST = 4096
"""How far a filter may widen the window."""

PLACE_ROWS = 40
"""Rows that are scored one by one in the time that one place of a window takes."""

TYPICAL_WINDOW = 100


@final
class GraphEngine(Engine):
    """Walks a graph of near rows.

    Rows of equal codes are one node of the graph, so that they crowd out nobody's neighbours. A filter
    widens the window by the share of rows that it leaves, for the walk passes through all.

    The graph is the same whatever the number of threads. One that was extended differs from one built at
    once.
    """

    name: ClassVar[str] = "graph"
    effort: ClassVar[str | None] = "window"
    build_settings: ClassVar[Mapping[str, Setting]] = {
        "degree": Setting(default=32, low=4, high=256, help="most neighbours of a row"),
        "build_window": Setting(
            default=100, low=8, high=4096, help="near rows that neighbours are chosen from"
        ),
    }
    search_settings: ClassVar[Mapping[str, Setting]] = {
        "window": Setting(
            default=64, low=1, high=65_536, help="best rows kept while the graph is walked"
        )
    }

    def __init__(self, tier: Tier, parts: GraphParts | None, num_rows: int) -> None:
        self.num_rows = num_rows
        self._tier = tier
        self._parts = parts
        self._rooms: list[WalkRoom] = []

    @cached_property
    def _search_rows(self) -> Callable[..., int]:
        """The compiled walk through this graph, loaded when the first query comes."""
        # Here and not above: numba takes a third of a second to import.
        from nestling.search.graph._walk_kernels import search_rows

        parts = self._parts
        assert parts is not None  # noqa: S101  (without rows there is nothing to walk through)
        return partial(
            search_rows,
            RowScorer(self._tier).layout,
            norms_of(self._tier),
            parts.neighbours,
            parts.slots,
            parts.entries,
            parts.twins,
        )

    @classmethod
    def build(
        cls,
        tier: Tier,
        vectors: Float[np.ndarray, "rows full"],
        *,
        settings: Mapping[str, int],
        num_threads: int = 1,
        progress: Progress = silent,
    ) -> "GraphEngine":
        """Link all rows, each to near rows in all directions."""
        return cls._linked(tier, settings, num_threads, progress, None)

    def extended(
        self,
        tier: Tier,
        vectors: Float[np.ndarray, "rows full"],
        *,
        settings: Mapping[str, int],
        num_threads: int = 1,
        progress: Progress = silent,
    ) -> "GraphEngine":
        """Link the new rows into a copy of the graph; one that more than doubles is built anew."""
        known = self._parts if len(tier) <= 2 * self.num_rows else None
        return self._linked(tier, settings, num_threads, progress, known)

    @classmethod
    def _linked(
        cls,
        tier: Tier,
        settings: Mapping[str, int],
        num_threads: int,
        progress: Progress,
        known: GraphParts | None,
    ) -> "GraphEngine":
        if len(tier) == 0:
            return cls(tier, None, 0)
        tier.ensure_span(0, len(tier))
        parts = link_rows(
            tier,
            degree=settings["degree"],
            window=settings["build_window"],
            num_threads=num_threads,
            progress=progress,
            known=known,
        )
        return cls(tier, parts, len(tier))

    def search(
        self,
        queries: Float32[np.ndarray, "queries width"],
        k: int,
        *,
        settings: Mapping[str, int],
        allowed: RowSet | None = None,
        num_threads: int = 1,
    ) -> EngineFound:
        """Return the best rows met on the walk."""
        found = TopK(np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32))
        bits, num_allowed = _ALL, self.num_rows
        if allowed is not None:
            bits, num_allowed = read_only(allowed.bits), len(allowed)
        if self._parts is None or num_allowed == 0:
            found.rows[:], found.scores[:] = -1, -np.inf
            return EngineFound(found, 0, 0)
        window = self._window(max(settings["window"], k), num_allowed)
        folded = self._tier.fold(queries)
        folded.flags.writeable = False  # compiled once per kind of array
        num_shares = min(num_threads, len(queries) // QUERIES_PER_THREAD)
        if num_shares <= 1:
            num_scored = self._walk(self._parts, folded, window, bits, found)
        else:
            num_scored = self._share(self._parts, folded, window, bits, found, num_shares)
        return EngineFound(found, num_scored, num_scored * self._tier.row_bytes)

    def _window(self, wanted: int, num_allowed: int) -> int:
        if num_allowed < self.num_rows:
            wider = -(-wanted * self.num_rows // num_allowed)
            wanted = max(wanted, min(wider, WIDEST))
        return min(wanted, self.num_rows)

    def _share(
        self,
        parts: GraphParts,
        folded: Float32[np.ndarray, "queries dim"],
        window: int,
        bits: UInt8[np.ndarray, " bytes"],
        found: TopK,
        num_shares: int,
    ) -> int:
        bounds = [len(folded) * share // num_shares for share in range(num_shares + 1)]

        def walk(start: int, stop: int) -> int:
            part = TopK(found.rows[start:stop], found.scores[start:stop])
            return self._walk(parts, folded[start:stop], window, bits, part)

        with ThreadPoolExecutor(num_shares, thread_name_prefix="graph") as executor:
            return sum(executor.map(walk, bounds[:-1], bounds[1:]))

    def _walk(
        self,
        parts: GraphParts,
        folded: Float32[np.ndarray, "queries dim"],
        window: int,
        bits: UInt8[np.ndarray, " bytes"],
        found: TopK,
    ) -> int:
        room = self._take_room(parts, max(window, found.rows.shape[1]))
        num_scored = self._search_rows(
            bits,
            folded,
            window,
            room.seen,
            room.keys,
            room.rows,
            room.scores,
            room.best,
            found.rows,
            found.scores,
        )
        self._rooms.append(room)
        return int(num_scored)

    def _take_room(self, parts: GraphParts, window: int) -> WalkRoom:
        try:
            room = self._rooms.pop()  # one step: no other thread gets the same one
        except IndexError:
            return WalkRoom(parts, self.num_rows, window)
        return room if room.window >= window else WalkRoom(parts, self.num_rows, window)

    def save(self, folder: Path) -> tuple[str, ...]:
        """Write the graph; nothing if there are no rows."""
        return () if self._parts is None else self._parts.save(folder)

    @classmethod
    def load(
        cls,
        folder: Path,
        tier: Tier,
        vectors: Float[np.ndarray, "rows full"],
        *,
        settings: Mapping[str, int],
        num_rows: int,
    ) -> "GraphEngine":
        """Read the graph."""
        if num_rows == 0:
            return cls(tier, None, 0)
        return cls(tier, GraphParts.load(folder, degree=settings["degree"]), num_rows)

    def page_size(self, settings: Mapping[str, int]) -> int | None:
        """Return the window: a larger `k` widens it."""
        return settings["window"]

    def prefers_scan(self, num_allowed: int) -> bool:
        """Say whether scoring the allowed rows takes less than a walk with a window widened for them."""
        costs_less = num_allowed**2 < PLACE_ROWS * TYPICAL_WINDOW * self.num_rows
        return costs_less and num_allowed < self.num_rows

    @property
    def num_bytes(self) -> int:
        """The graph."""
        return 0 if self._parts is None else self._parts.num_bytes


_ALL: UInt8[np.ndarray, " bytes"] = read_only(np.empty(0, np.uint8))
