"""What is proven about a result, and what the proof read."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, final


@final
@dataclass(kw_only=True)
class Tally:
    """What some queries read, and how close they came to what they dropped.

    Attributes:
        rows_read: Records read, per band; all queries together.
        rows_rescored: Native rows read.
        slack: By how much a bound was widened at most.
        threshold: The least k-th best score; infinite if none.
        margin: The least distance from a k-th best score down to a bound that was dropped; infinite
            if nothing was.
    """

    rows_read: list[int]
    rows_rescored: int = 0
    slack: float = 0.0
    threshold: float = field(default=float("inf"))
    margin: float = field(default=float("inf"))

    def close(
        self, *, rescored: int, threshold: float, largest_dropped: float, slack: float
    ) -> None:
        """Take in one query that is done."""
        self.rows_rescored += rescored
        self.slack = max(self.slack, slack)
        self.threshold = min(self.threshold, threshold)
        self.margin = min(self.margin, threshold - largest_dropped)

    @classmethod
    def total(cls, tallies: Sequence["Tally"]) -> "Tally":
        """Return all of some, which is at least one, together."""
        return cls(
            rows_read=[
                sum(counts) for counts in zip(*(each.rows_read for each in tallies), strict=True)
            ],
            rows_rescored=sum(each.rows_rescored for each in tallies),
            slack=max(each.slack for each in tallies),
            threshold=min(each.threshold for each in tallies),
            margin=min(each.margin for each in tallies),
        )

    def to_json(self, *, num_queries: int, bytes_read: int, bytes_flat: int) -> dict[str, Any]:
        """Return the certificate as plain data.

        Args:
            num_queries: How many there were.
            bytes_read: Of records, native rows and the map; work arrays do not count.
            bytes_flat: What a scan of the native rows would have read.
        """
        return {
            "exact": True,
            "num_queries": num_queries,
            "rows_read": self.rows_read,
            "rows_rescored": self.rows_rescored,
            "bytes_read": bytes_read,
            "bytes_flat": bytes_flat,
            "slack": self.slack,
            "threshold": _finite(self.threshold),
            "margin": _finite(self.margin),
        }


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None
