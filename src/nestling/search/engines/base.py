"""What every engine can do: the seam of the search room."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from nestling.core import Dtype, TopK
from nestling.core.progress import Progress, silent
from nestling.search.rowset import RowSet
from nestling.search.tier import Tier


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A whole number that an engine takes.

    Attributes:
        default: What it is where a plan says nothing.
        low: Smallest allowed value.
        high: Largest allowed value.
        help: What it does, in half a sentence.
    """

    default: int
    low: int
    high: int
    help: str


class EngineFound(NamedTuple):
    """What an engine found.

    Attributes:
        best: Rows and scores, best first, padded with -1 and minus infinity.
        num_scored: Rows scored, counted once per query; None if it does not count.
        bytes_read: Bytes of vectors read; None if it does not count.
        certificate: What is proven about the result; None if nothing is.
    """

    best: TopK
    num_scored: int | None = None
    bytes_read: int | None = None
    certificate: Mapping[str, Any] | None = None


class Engine(ABC):
    """Finds the best rows of a tier.

    The tier and the full vectors are the truth; what an engine keeps beyond them (a graph, say) can be
    made again. An engine approximates at most which rows it finds: the score it returns for a row is
    its cosine in the tier's format (up to rounding), higher is better, and ties go to the lower row. An
    engine that scans its own codes re-scores what it found from the tier before it returns.

    An engine is made for rows [0, `num_rows`). Rows that an index got since are no concern of it.
    Searching is thread-safe.

    Attributes:
        name: As in the table of engines and in a plan.
        build_settings: What shapes the engine's files, by name.
        search_settings: What a query may set, by name.
        formats: Formats of the tiers that it can search.
        effort: The setting of a query that buys recall with time; None for exact engines.
        checks_itself: Files of `save` too large to be read when an index is opened. The engine maps
            them, and checks what it reads of them; all others are checked before `load`.
        checks_rows: Whether it has the rows of a mapped tier checked that it reads. Otherwise all are
            checked before its first search.
        is_exact: Whether it finds the k best rows of the tier, whatever its settings.
        num_rows: Rows it was made for.
    """

    name: ClassVar[str]
    build_settings: ClassVar[Mapping[str, Setting]] = {}
    search_settings: ClassVar[Mapping[str, Setting]] = {}
    formats: ClassVar[frozenset[Dtype]] = frozenset(Dtype)
    effort: ClassVar[str | None] = None
    checks_itself: ClassVar[frozenset[str]] = frozenset()
    checks_rows: ClassVar[bool] = False
    is_exact: ClassVar[bool] = False

    num_rows: int

    @classmethod
    @abstractmethod
    def build(
        cls,
        tier: Tier,
        vectors: Float[np.ndarray, "rows full"],
        *,
        settings: Mapping[str, int],
        num_threads: int = 1,
        progress: Progress = silent,
    ) -> "Engine":
        """Make an engine over all rows of a tier, which may have none.

        Same input, same engine, whatever `num_threads`, unless the class says otherwise.

        Args:
            tier: What the first stage scans.
            vectors: Full vectors of the same rows, for engines that need more than the tier.
            settings: All of `build_settings`, checked.
            num_threads: Threads to use.
            progress: Counts rows.
        """

    @abstractmethod
    def search(
        self,
        queries: Float32[np.ndarray, "queries width"],
        k: int,
        *,
        settings: Mapping[str, int],
        allowed: RowSet | None = None,
        num_threads: int = 1,
    ) -> EngineFound:
        """Return the k best rows per query, padded with -1 where fewer were found.

        Args:
            queries: At least as wide as the tier, finite, not zero, of any length.
            k: At least 1.
            settings: All of `search_settings`, checked. A window smaller than `k` counts as `k`.
            allowed: Rows that may be found, for `num_rows` or more rows; None for all.
            num_threads: Threads to use; it changes no result.
        """

    @abstractmethod
    def save(self, folder: Path) -> tuple[str, ...]:
        """Write what the engine keeps beyond the tier into an existing empty folder, and flush it.

        Returns:
            The names of the files written.
        """

    @classmethod
    @abstractmethod
    def load(
        cls,
        folder: Path,
        tier: Tier,
        vectors: Float[np.ndarray, "rows full"],
        *,
        settings: Mapping[str, int],
        num_rows: int,
    ) -> "Engine":
        """Read what `save` wrote; the files were checked by the caller.

        Args:
            folder: As given to `save`.
            tier: The tier it was made for; it may have more rows by now.
            vectors: Full vectors, likewise.
            settings: Build settings it was made with.
            num_rows: Rows it was made for.
        """

    def extended(
        self,
        tier: Tier,
        vectors: Float[np.ndarray, "rows full"],
        *,
        settings: Mapping[str, int],
        num_threads: int = 1,
        progress: Progress = silent,
    ) -> "Engine":
        """Return an engine for all rows of a tier that has more rows than this one's; this one stays usable.

        By default it is built anew.
        """
        return type(self).build(
            tier, vectors, settings=settings, num_threads=num_threads, progress=progress
        )

    def page_size(self, settings: Mapping[str, int]) -> int | None:
        """Return how many rows one search yields in an order that a larger `k` does not change.

        None if there is no limit, as for exact engines.
        """
        return None

    def prefers_scan(self, num_allowed: int) -> bool:
        """Say whether so few allowed rows are better scored one by one than searched for."""
        return False

    @property
    def num_bytes(self) -> int:
        """RAM that the engine takes beyond the tier as it is stored; graphs and copies of codes count."""
        return 0
