"""What a search did: candidates, bytes and seconds per stage, and what is proven about the result."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from nestling.core import Dtype


class StageTrace(NamedTuple):
    """One stage of a search, all its queries together.

    Attributes:
        dim: Prefix width that was scored.
        dtype: Number format of the corpus side.
        engine: What found the candidates; None for a stage that re-scores a shortlist.
        num_scored: Rows that were scored, counted once per query; None where an engine does not tell.
        bytes_read: Bytes of vectors that were scored; None where an engine does not tell.
        seconds: Wall time.
    """

    dim: int
    dtype: Dtype
    engine: str | None
    num_scored: int | None
    bytes_read: int | None
    seconds: float


class SearchTrace(NamedTuple):
    """What a search did.

    Attributes:
        generation: Of the index that was searched.
        stages: In the order they ran. With blocks (paging beyond the shortlist) or a filter, a stage
            may appear more than once.
        certificate: What is proven about the result, as the engine states it; None if nothing is.
    """

    generation: int
    stages: tuple[StageTrace, ...]
    certificate: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return self._asdict() | {"stages": [stage._asdict() for stage in self.stages]}
