"""What new vectors are like beside those at the fit of their adapter, and what follows from it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

NOISE_ERRORS = 3.0
"""Standard errors taken off a change before it is judged, as chance is no drift. Three and not two: the
errors are those of independent rows, and rows that find neighbours in one pool are not quite that."""

MOST_ENERGY_LOST = 0.10
"""Of the energy of a prefix at the fit."""

MOST_OVERLAP_LOST = 0.05
"""In points of 0 to 1: for every other row, one of its ten nearest neighbours."""

MOST_CLIPPED = 0.001
"""Share of values, above what int8 clips of rows like those at the fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WidthDrift:
    """One prefix, then and now.

    Attributes:
        dim: Its width.
        energy_then: Mean squared norm of the prefix of unit rows, at the fit.
        energy_now: The same of the new rows.
        energy_error: Standard error of their difference.
        clipped_then: Share of values outside the int8 ranges to expect of rows like those at the fit.
        clipped_now: Share of the new values outside them.
        clipped_error: Standard error of their difference.
        overlap_then: Share of the ten nearest neighbours at full width that the prefix finds, at
            the fit; None, like the two below, if too few rows were there then or now.
        overlap_now: The same of the new rows.
        overlap_error: Standard error of their difference.
    """

    dim: int
    energy_then: float
    energy_now: float
    energy_error: float
    clipped_then: float
    clipped_now: float
    clipped_error: float
    overlap_then: float | None
    overlap_now: float | None
    overlap_error: float | None

    @property
    def has_lost_energy(self) -> bool:
        """Whether the energy fell by more than a tenth, beyond noise."""
        lost = self.energy_then - self.energy_now - NOISE_ERRORS * self.energy_error
        return lost > MOST_ENERGY_LOST * self.energy_then

    @property
    def has_lost_overlap(self) -> bool:
        """Whether the overlap fell by more than five points, beyond noise."""
        if self.overlap_then is None or self.overlap_now is None or self.overlap_error is None:
            return False
        lost = self.overlap_then - self.overlap_now - NOISE_ERRORS * self.overlap_error
        return lost > MOST_OVERLAP_LOST

    @property
    def is_clipped(self) -> bool:
        """Whether int8 clips more than it should by 0.1% of the values, beyond noise."""
        beyond = self.clipped_now - self.clipped_then - NOISE_ERRORS * self.clipped_error
        return beyond > MOST_CLIPPED


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftReport:
    """New vectors beside those at the fit.

    The verdict is "refit" if at some width, three standard errors taken off the change,

    - the energy of the prefix fell by more than 10% of what it was,
    - the overlap of the ten nearest neighbours fell by more than 5 points of 100, or
    - int8 clips more than it does of rows like those at the fit, by more than 0.1% of the values.

    These bound the size of a change: that it is no chance is not enough. What rose is no reason to
    refit.

    Attributes:
        num_rows: New rows looked at.
        num_fit_rows: Rows looked at when the adapter was fitted.
        num_overlap_rows: Size of the samples that neighbours were looked for in; None if one side
            had too few rows.
        widths: One entry per width, the last the full one.
    """

    num_rows: int
    num_fit_rows: int
    num_overlap_rows: int | None
    widths: tuple[WidthDrift, ...]

    @property
    def verdict(self) -> Literal["fits", "refit"]:
        """What to do."""
        return "refit" if self.reasons else "fits"

    @property
    def reasons(self) -> dict[str, str]:
        """What drifted, in words, by "energy", "overlap" and "clipping"; empty if nothing did."""
        found = {}
        if drifted := [width for width in self.widths if width.has_lost_energy]:
            worst = max(drifted, key=lambda width: 1.0 - width.energy_now / width.energy_then)
            found["energy"] = (
                f"the energy of the prefix fell by more than {MOST_ENERGY_LOST:.0%} at {_name(drifted)} "
                f"(from {worst.energy_then:.3f} to {worst.energy_now:.3f} at {worst.dim})"
            )
        if drifted := [width for width in self.widths if width.has_lost_overlap]:
            then, now, dim = max(
                (
                    (width.overlap_then or 0.0, width.overlap_now or 0.0, width.dim)
                    for width in drifted
                ),
                key=lambda change: change[0] - change[1],
            )
            found["overlap"] = (
                f"the prefix finds fewer of the ten nearest neighbours, by more than "
                f"{100 * MOST_OVERLAP_LOST:g} points, at {_name(drifted)} (from {then:.1%} to {now:.1%} at {dim})"
            )
        if drifted := [width for width in self.widths if width.is_clipped]:
            worst = max(drifted, key=lambda width: width.clipped_now)
            found["clipping"] = (
                f"int8 clips more than {MOST_CLIPPED:.1%} of the values too many at {_name(drifted)} "
                f"({worst.clipped_now:.2%} at {worst.dim}, where {worst.clipped_then:.2%} is to be expected)"
            )
        return found

    @property
    def advice(self) -> str:
        """The verdict in a few sentences."""
        reasons = self.reasons
        text = "; ".join(reasons.values())
        if not reasons:
            what = "energy, neighbours" if self.num_overlap_rows else "energy"
            sentence = f"The adapter fits these vectors: no prefix has drifted in {what} or int8 ranges beyond the bounds."
        elif set(reasons) == {"clipping"}:
            sentence = (
                f"Refit the adapter, or build the index again on such vectors, which calibrates int8 anew: "
                f"its map still fits, but {text}."
            )
        else:
            sentence = f"Refit the adapter on vectors like these: {text}."
        if self.num_overlap_rows:
            return sentence
        return (
            f"{sentence} Neighbours were not compared: that takes at least 250 new vectors, and 250 "
            f"held-out ones at the fit."
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain data, the verdict and its reasons first."""
        return {
            "verdict": self.verdict,
            "advice": self.advice,
            "reasons": self.reasons,
            **asdict(self),
        }


def _name(widths: Sequence[WidthDrift]) -> str:
    """Return widths in words, e.g. "16, 32 and 64 dims"."""
    *first, last = (str(width.dim) for width in widths)
    return f"{', '.join(first)} and {last} dims" if first else f"{last} dims"
