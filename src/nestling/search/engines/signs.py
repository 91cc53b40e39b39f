"""Exact search of packed signs, by counting bits."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar, NamedTuple, final

import numpy as np
from jaxtyping import Float, Float32, Int64, UInt8, UInt64

from nestling.core import Dtype
from nestling.core.progress import Progress, silent
from nestling.search.engines.base import Engine, EngineFound
from nestling.search.engines.own_scores import OwnScores
from nestling.search.rowset import RowSet
from nestling.search.tier import Tier

LARGEST_CODE = 127
NUM_PLANES = 8
WORD_BYTES = 8

WORDS_PER_THREAD = 1 << 19
"""Words of packed signs that are read before a second thread has started."""

SCAN_SHARE = 32
"""Below one allowed row in so many, reading these alone beats passing over the others."""

_ALL = np.empty(0, np.uint8)


class CodedQuery(NamedTuple):
    """A query in 8-bit codes.

    Attributes:
        planes: Its codes, one bit per plane, packed as the signs of a row are: (words, planes).
        slack: How far apart two sums of codes may be while the scores are in the other order.
    """

    planes: UInt64[np.ndarray, "words planes"]
    slack: int


@final
class SignsEngine(Engine):
    """Scores all rows with 8-bit codes of the query, and those in reach of the best k again exactly.

    A score is the sum of the query's coordinates at the set bits, doubled, less the sum of all. Rounding
    the coordinates to codes moves it by at most the sum of what was rounded away; rows that could be
    among the best k within twice this much are scored by the tier's own rule. So the result is exact.
    """

    name: ClassVar[str] = "signs"
    checks_rows: ClassVar[bool] = True
    formats: ClassVar[frozenset[Dtype]] = frozenset({Dtype.BINARY, Dtype.ROTATED_BINARY})
    is_exact: ClassVar[bool] = True

    def __init__(self, tier: Tier, num_rows: int) -> None:
        self._tier = tier
        self._scores = OwnScores(tier)
        self.num_rows = num_rows
        width = tier.codes.shape[1]
        self._is_padded = width % WORD_BYTES != 0
        codes = tier.codes[:num_rows]
        if self._is_padded:
            codes = np.pad(codes, ((0, 0), (0, -width % WORD_BYTES)))
        words = np.ascontiguousarray(codes).view(np.uint64)
        words.flags.writeable = False
        self._words = words

    @classmethod
    def build(
        cls,
        tier: Tier,
        vectors: Float[np.ndarray, "rows full"],
        *,
        settings: Mapping[str, int],
        num_threads: int = 1,
        progress: Progress = silent,
    ) -> "SignsEngine":
        """Take the tier as it is, or a copy if its rows are no whole number of words."""
        return cls(tier, len(tier))

    def search(
        self,
        queries: Float32[np.ndarray, "queries width"],
        k: int,
        *,
        settings: Mapping[str, int],
        allowed: RowSet | None = None,
        num_threads: int = 1,
    ) -> EngineFound:
        """Return the k best rows per query."""
        folded = self._tier.fold(queries)
        candidates = self._candidates(folded, k, allowed, num_threads)
        width = max([1, *map(len, candidates)])
        rows = np.full((len(queries), width), -1, dtype=np.int64)
        for place, found in enumerate(candidates):
            rows[place, : len(found)] = found
        best = self._scores.scorer.best(folded, rows, k, num_threads=num_threads).best
        num_scored = len(queries) * self.num_rows
        return EngineFound(best, num_scored, num_scored * self._tier.row_bytes)

    def save(self, folder: Path) -> tuple[str, ...]:
        """Write nothing."""
        return ()

    @classmethod
    def load(
        cls,
        folder: Path,
        tier: Tier,
        vectors: Float[np.ndarray, "rows full"],
        *,
        settings: Mapping[str, int],
        num_rows: int,
    ) -> "SignsEngine":
        """Take the tier as it is, or a copy if its rows are no whole number of words."""
        return cls(tier, num_rows)

    def prefers_scan(self, num_allowed: int) -> bool:
        """Say whether the allowed rows are few enough to be read one by one."""
        return num_allowed * SCAN_SHARE < self.num_rows

    @property
    def num_bytes(self) -> int:
        """The copy, if there is one."""
        return self._words.nbytes if self._is_padded else 0

    def _candidates(
        self,
        folded: Float32[np.ndarray, "queries dim"],
        k: int,
        allowed: RowSet | None,
        num_threads: int,
    ) -> list[Int64[np.ndarray, " found"]]:
        # Here and not above: numba takes a third of a second to import.
        from nestling.search.engines._signs_kernels import scan_signs

        bits: UInt8[np.ndarray, " bytes"] = _ALL if allowed is None else allowed.bits
        num_wanted = max(1, min(k, self.num_rows))

        def scan(query: CodedQuery, start: int, stop: int) -> Int64[np.ndarray, " found"]:
            words = self._words
            return scan_signs(words, query.planes, bits, start, stop, num_wanted, query.slack)

        coded = [code_query(each, self._words.shape[1]) for each in folded]
        num_shares = min(num_threads, 1 + len(coded) * self._words.size // WORDS_PER_THREAD)
        if num_shares == 1:
            return [scan(query, 0, self.num_rows) for query in coded]
        bounds = [self.num_rows * share // num_shares for share in range(num_shares + 1)]
        with ThreadPoolExecutor(num_shares, thread_name_prefix="signs") as executor:
            parts = [
                [executor.submit(scan, query, *bounds[share : share + 2]) for query in coded]
                for share in range(num_shares)
            ]
        return [
            np.concatenate([part.result() for part in each]) for each in zip(*parts, strict=True)
        ]


def code_query(folded: Float32[np.ndarray, " dim"], num_words: int) -> CodedQuery:
    """Return a folded query in 8-bit codes."""
    step = max(float(np.abs(folded).max()) / LARGEST_CODE, float(np.finfo(np.float32).tiny))
    codes = np.rint(folded / step).astype(np.int8)
    rounded_away = float(np.abs(folded - codes * step).sum(dtype=np.float64))
    # The bound on the rounding of a float32 sum of so many terms, the score's own, comes on top.
    rounding = len(folded) * float(np.finfo(np.float32).eps) * float(np.abs(folded).sum())
    slack = int(np.ceil((rounded_away + rounding) / step)) + 1
    padded = np.zeros(num_words * 8 * WORD_BYTES, dtype=np.uint8)
    padded[: len(codes)] = codes.view(np.uint8)
    planes = np.unpackbits(padded[:, None], axis=1, bitorder="little")
    packed = np.ascontiguousarray(np.packbits(planes.T, axis=1)).view(np.uint64)
    return CodedQuery(np.ascontiguousarray(packed.T), slack)
