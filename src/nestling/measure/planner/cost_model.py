"""What a plan would cost with more documents, fitted to what it costs with fewer."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nestling.errors import EvidenceError


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerLaw:
    """value = factor * rows ** exponent, the line of least squares through the logarithms.

    Attributes:
        factor: Value at one row.
        exponent: How it grows: 1 is in step with the rows, 0 not at all.
    """

    factor: float
    exponent: float

    @classmethod
    def fit(cls, num_rows: Sequence[int], values: Sequence[float]) -> "PowerLaw":
        """Fit it to at least two different numbers of rows."""
        if len(set(num_rows)) < 2:
            raise EvidenceError(
                f"`num_rows` must hold two different sizes to fit growth, got {sorted(set(num_rows))}. "
                f"Measure more sizes."
            )
        smallest = np.finfo(np.float64).tiny
        exponent, constant = np.polyfit(
            np.log(np.asarray(num_rows, dtype=np.float64)),
            np.log(np.maximum(np.asarray(values, dtype=np.float64), smallest)),
            1,
        )
        return cls(factor=float(np.exp(constant)), exponent=float(exponent))

    def at(self, num_rows: int) -> float:
        """Return the value for so many rows."""
        return float(self.factor * num_rows**self.exponent)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Predicted cost of a plan.

    Attributes:
        num_rows: For so many documents.
        latency_ms: Mean time of one query; the stages behind the head take as long as they do now.
        memory_bytes: RAM of head tier and engine.
        build_s: Time to make them.
        is_extrapolated: Whether the documents are more than were measured.
    """

    num_rows: int
    latency_ms: float
    memory_bytes: int
    build_s: float
    is_extrapolated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModel:
    """How the cost of a plan grows with the documents, at unchanged settings.

    It says nothing about quality: with more documents a shortlist must grow to keep it.

    Attributes:
        head_ms: Time of the first stage.
        later_ms: Time of the stages behind it, which read as many rows however many there are.
        memory_bytes: RAM of head tier and engine.
        build_s: Time to make them.
        measured_rows: Sizes that were measured, ascending.
    """

    head_ms: PowerLaw
    later_ms: float
    memory_bytes: PowerLaw
    build_s: PowerLaw
    measured_rows: tuple[int, ...]

    def predict(self, num_rows: int) -> Cost:
        """Return the cost for so many documents."""
        return Cost(
            num_rows=num_rows,
            latency_ms=self.head_ms.at(num_rows) + self.later_ms,
            memory_bytes=round(self.memory_bytes.at(num_rows)),
            build_s=self.build_s.at(num_rows),
            is_extrapolated=num_rows > self.measured_rows[-1],
        )
