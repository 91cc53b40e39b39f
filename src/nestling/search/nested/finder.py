"""The way of a query through the bands."""

from collections.abc import Sequence
from typing import NamedTuple, final

import numpy as np
from jaxtyping import Float32, Float64, Int16, Int64, UInt16

from nestling.core._candidates import read_only
from nestling.search.nested import _kernels as kernels
from nestling.search.nested._products import FETCHED_ROWS
from nestling.search.nested.bands import WORDS, Bands
from nestling.search.nested.certificate import Tally
from nestling.search.nested.proof import fixed_slack, rotation_error
from nestling.search.tier import Tier
from nestling.search.unpack import widen_float16

EARLY_ROWS = 54
"""Rows beyond k that are scored exactly after the first band, before any is dropped: they make the
threshold."""

LATER_ROWS = 6
"""Rows beyond k that raise it after a later band, where so many times as many are left:"""

WORTH_SHARPENING = 8

LOWEST = -2.0
"""The threshold while fewer than k rows are scored: only a row that is out has a bound below it."""

SCAN_SHARE = 8
"""Below one allowed row in so many, these are visited one by one."""

QUERIES_AT_ONCE = 4
"""Queries that meet the records of a tile of rows together."""


class Found(NamedTuple):
    """What some queries found.

    Attributes:
        rows: Best first, padded with -1.
        scores: Float64 cosines, padded with minus infinity.
        tally: What it took.
    """

    rows: Int64[np.ndarray, "queries k"]
    scores: Float64[np.ndarray, "queries k"]
    tally: Tally


class Prepared(NamedTuple):
    """Some queries, turned and weighted.

    Attributes:
        queries: As given.
        lengths: Of the queries.
        weights: Of nibbles, per query, band, nibble of a word, and word.
        terms: What turns sums into scores and bounds, per query and band.
    """

    queries: Float32[np.ndarray, "queries dim"]
    lengths: Float64[np.ndarray, " queries"]
    weights: Int16[np.ndarray, "queries bands nibbles words"]
    terms: Float64[np.ndarray, "queries bands terms"]


class Left(NamedTuple):
    """Rows that are neither dropped nor scored exactly, in the first places of work arrays."""

    rows: Int64[np.ndarray, " places"]
    scores: Float32[np.ndarray, " places"]
    bounds: Float32[np.ndarray, " places"]


@final
class Room:
    """Work arrays of a few queries, used again by the next ones."""

    def __init__(self, num_queries: int, num_rows: int) -> None:
        self.scores = np.empty((num_queries, num_rows), np.float32)
        self.bounds = np.empty((num_queries, num_rows), np.float32)
        # More places: a row that is not kept is written behind the last one that is, and the rows
        # behind the last one are fetched.
        num_places = num_rows + FETCHED_ROWS
        self.left = Left(
            np.empty(num_places, np.int64),
            np.empty(num_places, np.float32),
            np.empty(num_places, np.float32),
        )


@final
class Finder:
    """Searches the records of a tier's rows; thread-safe."""

    def __init__(
        self, tier: Tier, bands: Bands, records: Sequence[UInt16[np.ndarray, "rows words"]]
    ) -> None:
        """Take what is searched.

        Args:
            tier: The native rows; it may have more than there are records of.
            bands: The map.
            records: Per band.
        """
        dim, num_axes = bands.basis.shape
        self.num_rows = len(records[0])
        self.bands = bands
        self.records = records
        self._tier = tier
        self._spare = bands.excess + 4 * rotation_error(dim, num_axes)
        self._slack = fixed_slack(dim, num_axes, bands.num_bands, bands.excess)
        self._rooms: list[Room] = []

    def find(
        self,
        queries: Float32[np.ndarray, "queries dim"],
        k: int,
        allowed: Int64[np.ndarray, " allowed"] | None,
    ) -> Found:
        """Return the k best rows per query.

        Args:
            queries: Float32, C-contiguous, as wide as the tier.
            k: At least 1.
            allowed: The rows that count, ascending; None for all.
        """
        rows = np.full((len(queries), k), -1, np.int64)
        scores = np.full((len(queries), k), -np.inf)
        tally = Tally(rows_read=[0] * self.bands.num_bands)
        visited = allowed
        if allowed is not None and len(allowed) * SCAN_SHARE > self.num_rows:
            visited = None
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            prepared = self.prepare(read_only(queries[start : start + QUERIES_AT_ONCE]))
            room = self._take_room(len(prepared.queries))
            if visited is None:
                self._scan(prepared, room, allowed)
            for number in range(len(prepared.queries)):
                search = QuerySearch(self, prepared, number, k, tally)
                found = search.run(room, visited)
                place = start + number
                rows[place, : len(found[0])], scores[place, : len(found[0])] = found
            self._rooms.append(room)
        return Found(rows, scores, tally)

    def prepare(self, queries: Float32[np.ndarray, "queries dim"]) -> Prepared:
        """Turn some queries to the axes; read-only, as `score` takes them."""
        bands = self.bands
        turned = np.empty(bands.basis.shape[1])
        lengths = np.empty(len(queries))
        shape = (len(queries), bands.num_bands)
        weights = np.empty((*shape, kernels.NUM_NIBBLES, WORDS), np.int16)
        terms = np.empty((*shape, kernels.NUM_TERMS))
        for number, query in enumerate(queries):
            lengths[number] = kernels.prepare(
                query,
                bands.basis,
                bands.centres,
                bands.steps,
                bands.coarse_ends,
                bands.fine_ends,
                self._spare,
                self._slack,
                turned,
                weights[number],
                terms[number],
            )
        return Prepared(queries, lengths, weights, terms)

    def score(
        self, rows: Int64[np.ndarray, " rows"], query: Float32[np.ndarray, " dim"], length: float
    ) -> Float64[np.ndarray, " rows"]:
        """Return the float64 cosines of native rows, each checked first if the tier is mapped."""
        self._tier.ensure(rows)
        matrix, places = self._tier.codes, rows
        if matrix.dtype != np.float32 or not matrix.flags.c_contiguous:
            matrix, places = matrix[rows], np.arange(len(rows))
            if matrix.dtype != np.float32:
                matrix = widen_float16(matrix)
        scores = np.empty(len(rows))
        kernels.score_rows(read_only(matrix), places, query, length, scores)
        return scores

    def _scan(
        self, prepared: Prepared, room: Room, allowed: Int64[np.ndarray, " allowed"] | None
    ) -> None:
        kernels.scan_band(
            self.records[0], prepared.weights, prepared.terms, room.scores, room.bounds
        )
        if allowed is not None:
            is_out = np.ones(self.num_rows, bool)
            is_out[allowed] = False
            room.scores[:, is_out] = -np.inf
            room.bounds[:, is_out] = -np.inf

    def _take_room(self, num_queries: int) -> Room:
        try:
            room = self._rooms.pop()
        except IndexError:
            return Room(num_queries, self.num_rows)
        return room if len(room.scores) >= num_queries else Room(num_queries, self.num_rows)


@final
class QuerySearch:
    """One query: its best exact scores so far, and what they let drop."""

    def __init__(
        self, finder: Finder, prepared: Prepared, number: int, k: int, tally: Tally
    ) -> None:
        self._finder = finder
        self._query = prepared.queries[number]
        self._length = float(prepared.lengths[number])
        self._weights = prepared.weights[number]
        self._terms = prepared.terms[number]
        self._number = number
        self._k = k
        self._tally = tally
        self._rows = np.empty(0, np.int64)
        self._scores = np.empty(0)
        self._num_rescored = 0
        self._largest_dropped = -np.inf

    def run(
        self, room: Room, visited: Int64[np.ndarray, " visited"] | None
    ) -> tuple[Int64[np.ndarray, " found"], Float64[np.ndarray, " found"]]:
        """Return the best rows and their scores, best first.

        Args:
            room: Where the first band of all rows was scored, or for work alone.
            visited: Rows to visit one by one; None if all were scored.
        """
        left = room.left
        num_left = self._gather(room) if visited is None else self._visit(left, visited)
        for band in range(1, len(self._terms)):
            num_left = self._next_band(band, left, num_left)
            if num_left > WORTH_SHARPENING * (self._k + LATER_ROWS):
                num_left = self._sharpen(left, num_left, self._k + LATER_ROWS)
        self._rescore(left.rows[:num_left])
        self._tally.close(
            rescored=self._num_rescored,
            threshold=self._threshold if len(self._scores) == self._k else np.inf,
            largest_dropped=self._largest_dropped,
            slack=float(self._terms[-1, kernels.SLACK]),
        )
        return self._rows, self._scores

    @property
    def _threshold(self) -> float:
        return float(self._scores[-1]) if len(self._scores) == self._k else LOWEST

    def _gather(self, room: Room) -> int:
        """Make a threshold from the rows that look best, and gather what may reach it."""
        scores, bounds = room.scores[self._number], room.bounds[self._number]
        self._tally.rows_read[0] += len(scores)
        early = kernels.best_places(scores, self._k + EARLY_ROWS)
        early = early[bounds[early] > -np.inf]
        self._rescore(early)
        bounds[early] = -np.inf
        num_left, self._largest_dropped = kernels.keep_reaching(
            self._threshold, scores, bounds, *room.left
        )
        return num_left

    def _visit(self, left: Left, rows: Int64[np.ndarray, " visited"]) -> int:
        left.rows[: len(rows)] = rows
        left.scores[: len(rows)] = 0.0
        num_left = self._next_band(0, left, len(rows))
        return self._sharpen(left, num_left, self._k + EARLY_ROWS)

    def _next_band(self, band: int, left: Left, num_left: int) -> int:
        self._tally.rows_read[band] += num_left
        num_left, self._largest_dropped = kernels.scan_rows(
            self._finder.records[band],
            self._weights[band],
            self._terms[band],
            self._threshold,
            left.rows,
            num_left,
            left.scores,
            left.bounds,
            self._largest_dropped,
        )
        return num_left

    def _sharpen(self, left: Left, num_left: int, num_early: int) -> int:
        """Score the most promising rows exactly, and drop what cannot reach the new threshold."""
        early = kernels.best_places(left.scores[:num_left], num_early)
        self._rescore(left.rows[early])
        left.bounds[early] = -np.inf
        num_left, self._largest_dropped = kernels.keep_left(
            self._threshold, *left, num_left, self._largest_dropped
        )
        return num_left

    def _rescore(self, rows: Int64[np.ndarray, " rows"]) -> None:
        self._num_rescored += len(rows)
        scores = self._finder.score(rows, self._query, self._length)
        rows, scores = np.concatenate([self._rows, rows]), np.concatenate([self._scores, scores])
        order = np.lexsort((rows, -scores))[: self._k]
        self._rows, self._scores = rows[order], scores[order]
