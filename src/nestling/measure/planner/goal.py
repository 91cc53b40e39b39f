"""What a search plan must reach, and what it may cost."""

from dataclasses import dataclass

from nestling.errors import EvidenceError
from nestling.measure.planner.sample import Sample
from nestling.measure.tolerance import Tolerance


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanGoal:
    """What a plan must keep: exactly one of the two.

    Attributes:
        min_quality: Share of the task metric of the exact full-width search, in (0, 1].
        min_recall: Mean share of the exact full-width top 10 that the plan's top 10 holds, in (0, 1].
    """

    min_quality: float | None = None
    min_recall: float | None = None

    def __post_init__(self) -> None:
        if (self.min_quality is None) == (self.min_recall is None):
            raise EvidenceError(
                f"exactly one of `min_quality` and `min_recall` must be given, got "
                f"{self.min_quality} and {self.min_recall}. Say which of the two counts."
            )
        for name, value in (("min_quality", self.min_quality), ("min_recall", self.min_recall)):
            if value is not None and not 0.0 < value <= 1.0:
                raise EvidenceError(
                    f"`{name}` must lie in (0, 1], got {value}. Give a share, such as 0.99."
                )

    @property
    def share(self) -> float:
        """The share to keep, of whichever of the two counts."""
        return self.min_quality if self.min_quality is not None else self.min_recall or 1.0

    def describe(self, metric: str) -> str:
        """Return the goal in words."""
        what = metric if self.min_quality is not None else "recall@10 of the exact search"
        return f"at least {self.share:.1%} of {what}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanBudget:
    """What a plan, and finding it, may cost.

    Attributes:
        memory_bytes: RAM for what must be there to search fast: the head tier and the engine. Stored
            vectors and the tiers of later stages are memory-mapped and reported apart.
        latency_ms: Mean time of one query on one thread, in milliseconds.
        time_s: Time for building and measuring candidates; what is measured when it is over counts.
            The exact search that everything is compared with comes on top.
    """

    memory_bytes: int | None = None
    latency_ms: float | None = None
    time_s: float = 120.0

    def __post_init__(self) -> None:
        for name in ("memory_bytes", "latency_ms", "time_s"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise EvidenceError(
                    f"`{name}` must be above 0, got {value}. Give more, or leave it out."
                )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CertifyBy:
    """How plans are certified.

    Attributes:
        tolerance: What is claimed.
        sample: Queries of another split, none of which chose; None to take the half that tells.
        guard: Columns of the sample whose every segment must hold.
        cluster: Column by which queries are drawn together for the bootstrap; None for those that
            share relevant documents.
    """

    tolerance: Tolerance
    sample: Sample | None = None
    guard: tuple[str, ...] = ()
    cluster: str | None = None
