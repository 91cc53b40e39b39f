"""The tier's own scores for the rows that an engine found in its own way."""

from functools import cached_property
from typing import final

import numpy as np
from jaxtyping import Float32, Int64

from nestling.core import TopK
from nestling.search.rescore import RowScorer
from nestling.search.tier import Tier


@final
class OwnScores:
    """Scores rows of a tier; what is compiled for that is loaded when the first query comes."""

    def __init__(self, tier: Tier) -> None:
        self.tier = tier

    @cached_property
    def scorer(self) -> RowScorer:
        """The compiled code, for this tier."""
        return RowScorer(self.tier)

    def best(
        self,
        queries: Float32[np.ndarray, "queries width"],
        rows: Int64[np.ndarray, "queries found"],
        k: int,
        *,
        num_threads: int = 1,
    ) -> TopK:
        """Return the k best of the rows found, with the tier's cosines, ties to the lower row.

        Args:
            queries: As an engine gets them.
            rows: Distinct rows per query in any order; -1 for an empty place.
            k: How many to return per query; places beyond what was found hold -1 and minus infinity.
            num_threads: Threads to use.
        """
        folded = self.tier.fold(queries)
        return self.scorer.best(folded, rows, k, num_threads=num_threads).best


def unit_rows(tier: Tier, start: int, stop: int) -> Float32[np.ndarray, "rows dim"]:
    """Return decoded rows [start, stop) at length 1, zero rows at 0: what a cosine compares."""
    values = tier.unpack(start, stop)
    if tier.scale is not None:
        values = values * tier.scale
    return values if tier.norms is None else values / tier.norms[start:stop, None]
