"""The best rows so far, when scores arrive in chunks."""

from typing import final

import numpy as np
from jaxtyping import Float32, Int64, UInt64

from nestling.core import TopK

_LAST_ROW = (1 << 32) - 1
_LOWEST = np.finfo(np.float32).min


@final
class RunningTopK:
    """The best rows so far, when scores arrive in chunks of ascending rows.

    A candidate is one 64-bit key: the bits of its score, made to sort as an unsigned number, above
    the inverted row. The greater key is the better candidate, and the lower row wins a tie. Keys
    gather until their place is full, and only then are the best k selected; a later row that merely
    equals the k-th best never enters, and neither does a score of minus infinity.
    """

    def __init__(self, num_queries: int, k: int) -> None:
        self._k = k
        self._keys = np.zeros((num_queries, 2 * k), dtype=np.uint64)
        self._counts = np.zeros(num_queries, dtype=np.int64)
        self._threshold = np.full(num_queries, -np.inf, dtype=np.float32)

    def offer(self, scores: Float32[np.ndarray, "queries chunk"], first_row: int) -> None:
        """Take in the scores of rows `first_row`, `first_row` + 1, ..."""
        num_columns = scores.shape[1]
        if num_columns > self._k and not self._counts.any():
            kth = np.partition(scores, -self._k, axis=1)[:, -self._k]
            self._threshold = np.maximum(kth, _LOWEST)
            places = np.flatnonzero(scores >= self._threshold[:, None])
        else:
            places = np.flatnonzero(scores > self._threshold[:, None])
        queries, columns = np.divmod(places, num_columns)
        offered = np.bincount(queries, minlength=len(self._counts))
        self._make_room(offered)
        first_places = self._counts - np.cumsum(offered) + offered
        keys = _to_keys(scores.ravel()[places], first_row + columns)
        self._keys[queries, first_places[queries] + np.arange(len(places))] = keys
        self._counts += offered

    def merge(self, other: "RunningTopK") -> None:
        """Take in all that another one of the same shape was offered."""
        self._keys = np.concatenate([self._best_keys(), other._best_keys()], axis=1)
        self._counts[:] = self._keys.shape[1]

    def result(self) -> TopK:
        """Return the best of everything offered, best first, padded with -1."""
        keys = self._best_keys()
        scores, rows = _from_keys(keys)
        is_empty = keys == 0
        return TopK(np.where(is_empty, -1, rows), np.where(is_empty, np.float32(-np.inf), scores))

    def _make_room(self, offered: Int64[np.ndarray, " queries"]) -> None:
        if (self._counts + offered <= self._keys.shape[1]).all():
            return
        best = self._best_keys()
        is_full = best[:, -1] > 0
        self._threshold[is_full] = _from_keys(best[is_full, -1])[0]
        self._counts = np.minimum(self._counts, self._k)
        width = max(self._keys.shape[1], self._k + int(offered.max()))
        self._keys = np.zeros((len(best), width), dtype=np.uint64)
        self._keys[:, : self._k] = best

    def _best_keys(self) -> UInt64[np.ndarray, "queries k"]:
        # Empty places hold 0, which sorts behind every key.
        return np.sort(self._keys, axis=1)[:, : -self._k - 1 : -1]


def _to_keys(
    scores: Float32[np.ndarray, " places"], rows: Int64[np.ndarray, " places"]
) -> UInt64[np.ndarray, " places"]:
    bits = (scores + np.float32(0.0)).view(np.uint32)  # the sum makes one zero of both
    sortable = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    return sortable.astype(np.uint64) << 32 | (_LAST_ROW - rows).astype(np.uint64)


def _from_keys(
    keys: UInt64[np.ndarray, "*places"],
) -> tuple[Float32[np.ndarray, "*places"], Int64[np.ndarray, "*places"]]:
    sortable = (keys >> 32).astype(np.uint32)
    bits = np.where(sortable >> 31, sortable & np.uint32((1 << 31) - 1), ~sortable)
    return bits.view(np.float32), _LAST_ROW - (keys & _LAST_ROW).astype(np.int64)
