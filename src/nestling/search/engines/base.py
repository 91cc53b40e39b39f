"""What every engine can do: the seam of the search room."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from nestling.core import TopK
from nestling.core.progress import Progress, silent
from nestling.search.tier import Tier


class Engine(ABC):
    """Finds the best rows of a tier.

    The tier is the truth; what an engine keeps beyond it (a graph, say) can be made again from it.
    An engine approximates at most which rows it finds: the score of a row is its cosine in the
    tier's format, higher is better, and ties go to the lower row.

    Attributes:
        name: As in the table of engines and in an index's manifest.
    """

    name: ClassVar[str]

    @classmethod
    @abstractmethod
    def build(cls, tier: Tier, *, progress: Progress = silent) -> "Engine":
        """Make an engine over all rows of a tier, which may have none."""

    @abstractmethod
    def search(self, queries: Float[np.ndarray, "queries width"], k: int) -> TopK:
        """Return the k best rows per query, padded with -1 where the tier has fewer rows.

        Args:
            queries: At least as wide as the tier; only the first `dim` coordinates count.
            k: At least 1.
        """

    @abstractmethod
    def add(self, tier: Tier) -> None:
        """Take over a tier that equals the present one, but for zero or more rows at its end."""

    def save(self, folder: Path) -> tuple[str, ...]:
        """Write what the engine keeps beyond the tier; return the names of the files written."""
        return ()

    @classmethod
    def load(cls, folder: Path, tier: Tier) -> "Engine":
        """Read what `save` wrote into `folder`, possibly for fewer rows than `tier` has now.

        Rows that were added since are taken in as by `add`.
        """
        return cls.build(tier)
