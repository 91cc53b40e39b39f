"""What loss is tolerated, and how sure a certificate must be: plain data."""

from dataclasses import dataclass

from nestling.measure.certify import check_confidence, check_max_loss


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """What a certificate claims.

    Attributes:
        max_loss: Tolerated mean loss, in (0, 1).
        relative: Whether it is a share of the mean of the exact full-width search, else absolute.
        confidence: 1 - delta, in (0.5, 1).
    """

    max_loss: float = 0.02
    relative: bool = True
    confidence: float = 0.95

    def __post_init__(self) -> None:
        check_max_loss(self.max_loss)
        check_confidence(self.confidence)

    def points(self, full_value: float) -> float:
        """Return the tolerated loss in points of the metric (0 to 1)."""
        return self.max_loss * full_value if self.relative else self.max_loss
