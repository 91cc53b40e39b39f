"""Does an adapter that was fitted once, and its int8 ranges, still fit new vectors?

Three numbers per prefix, now against then: the energy in it, the share of values that int8 clips,
and how many of the ten nearest neighbours at full width it finds.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int

from nestling.core import (
    Int8Codec,
    View,
    check_nesting_dims,
    find_bad_rows,
    nested_top_k,
    normalize,
    prefix_norms,
)
from nestling.errors import FormatError, VectorError
from nestling.measure.drift_report import DriftReport, WidthDrift
from nestling.measure.metrics import CUTOFF, overlap

OVERLAP_SIZES = (250, 500, 1000, 2000)
"""Sizes of the samples that neighbours are looked for in: overlap depends on the number of rows, so
only equal sizes are compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A number per row and width, summed up over the rows.

    Attributes:
        mean: Mean over the rows, per width.
        spread: Standard deviation over the rows, per width.
        num_rows: How many rows there were.
    """

    mean: tuple[float, ...]
    spread: tuple[float, ...]
    num_rows: int

    @classmethod
    def of(cls, values: Float[np.ndarray, "rows widths"]) -> "Summary":
        """Sum up at least two rows."""
        wide = values.astype(np.float64)
        return cls(
            mean=tuple(wide.mean(axis=0).tolist()),
            spread=tuple(wide.std(axis=0, ddof=1).tolist()),
            num_rows=len(wide),
        )

    @property
    def error(self) -> Float64[np.ndarray, " widths"]:
        """Standard error of the mean, per width."""
        return np.array(self.spread) / np.sqrt(self.num_rows)

    @classmethod
    def from_json(cls, data: Any) -> "Summary":
        """Read what `dataclasses.asdict` made of one."""
        return cls(
            mean=tuple(float(value) for value in data["mean"]),
            spread=tuple(float(value) for value in data["spread"]),
            num_rows=int(data["num_rows"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftReference:
    """What adapted vectors were like when their adapter was fitted.

    Attributes:
        dims: Widths that are watched, the last the full one.
        seed: Of the samples that neighbours are looked for in.
        int8_scale: Width of one int8 step per dimension, calibrated on these very rows. An index
            calibrates its own on the rows that it is built from.
        energy: Squared norm of the prefix of a unit row.
        overlaps: By the size of the sample: the share of the ten nearest neighbours at full width
            that are among the ten nearest at the prefix. Empty for fewer than 250 rows.
    """

    dims: tuple[int, ...]
    seed: int
    int8_scale: tuple[float, ...]
    energy: Summary
    overlaps: dict[int, Summary]

    @classmethod
    def of(
        cls, rows: Float32[np.ndarray, "rows embed_dim"], dims: Sequence[int], *, seed: int
    ) -> "DriftReference":
        """Look at adapted rows, best at some that the adapter was not fitted on.

        A map does a little better on the rows it was fitted on than on any others; taken as the
        reference, they make part of that difference look like drift.

        Args:
            rows: Adapted rows; they are scaled to unit length.
            dims: Ascending widths; the full one is added if it is missing.
            seed: Of the samples that neighbours are looked for in.

        Raises:
            DimensionError: If `dims` breaks the rules of `check_dims`.
            VectorError: If there are fewer than two rows, or one is zero or not finite.
        """
        widths = check_nesting_dims(dims, rows.shape[1])
        unit = _unit(rows)
        return cls(
            dims=widths,
            seed=seed,
            int8_scale=tuple(Int8Codec.calibrate(unit).scale.tolist()),
            energy=_energy(unit, widths),
            overlaps={
                size: _overlap(unit, widths, size=size, seed=seed)
                for size in OVERLAP_SIZES
                if size <= len(unit)
            },
        )

    @property
    def embed_dim(self) -> int:
        """Full width."""
        return self.dims[-1]

    def to_json(self) -> dict[str, Any]:
        """Return plain data that `from_json` reads back."""
        data = asdict(self)
        data["overlaps"] = {str(size): asdict(found) for size, found in self.overlaps.items()}
        return data

    @classmethod
    def from_json(cls, data: Any) -> "DriftReference":
        """Read what `to_json` wrote, also through a JSON file.

        Raises:
            FormatError: If a field is missing, or does not fit the others.
        """
        try:
            reference = cls(
                dims=check_nesting_dims(data["dims"], data["dims"][-1]),
                seed=int(data["seed"]),
                int8_scale=tuple(float(step) for step in data["int8_scale"]),
                energy=Summary.from_json(data["energy"]),
                overlaps={
                    int(size): Summary.from_json(found) for size, found in data["overlaps"].items()
                },
            )
            summaries = [reference.energy, *reference.overlaps.values()]
            lengths = {len(part) for found in summaries for part in (found.mean, found.spread)}
            if lengths != {len(reference.dims)} or len(reference.int8_scale) != reference.embed_dim:
                raise ValueError("its parts are of different lengths")
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise FormatError(
                f"`reference` must be what the fit of an adapter wrote, got something else: {error!r}. "
                f"Fit the adapter again."
            ) from error
        return reference


def measure_drift(
    reference: DriftReference, rows: Float32[np.ndarray, "rows embed_dim"]
) -> DriftReport:
    """Compare new adapted rows with those at the fit.

    Neighbours are looked for in samples of one size on both sides, the largest that both have rows
    for; with fewer than 250 rows on either side they are not compared.

    Even rows like those at the fit are clipped now and then: of `n` rows the largest value of a
    dimension was taken as its range, and the next row is beyond it with probability 1 / (n + 1).
    What is judged is the share above that.

    Args:
        reference: What the rows were like.
        rows: New rows, mapped by the same adapter; they are scaled to unit length. A sample of a
            few thousand says enough.

    Raises:
        VectorError: If the rows are of another width, fewer than two, or one is zero or not finite.
    """
    if rows.shape[1] != reference.embed_dim:
        raise VectorError(
            f"`rows` must be {reference.embed_dim} wide like those at the fit, got {rows.shape[1]}. "
            f"Map them by the adapter first."
        )
    unit, widths = _unit(rows), reference.dims
    energy = _energy(unit, widths)
    clipped = _clipped(unit, reference)
    size = max((size for size in reference.overlaps if size <= len(unit)), default=None)
    then = None if size is None else reference.overlaps[size]
    now = None if size is None else _overlap(unit, widths, size=size, seed=reference.seed)
    expected = 1.0 / (reference.energy.num_rows + 1)
    # The ranges are extremes of a sample: that share is itself no surer than its own size.
    clipped_error = np.hypot(clipped.error, expected)
    energy_error = np.hypot(energy.error, reference.energy.error)
    overlap_error = None if now is None or then is None else np.hypot(now.error, then.error)
    return DriftReport(
        num_rows=len(unit),
        num_fit_rows=reference.energy.num_rows,
        num_overlap_rows=size,
        widths=tuple(
            WidthDrift(
                dim=dim,
                energy_then=reference.energy.mean[column],
                energy_now=energy.mean[column],
                energy_error=float(energy_error[column]),
                clipped_then=expected,
                clipped_now=clipped.mean[column],
                clipped_error=float(clipped_error[column]),
                overlap_then=None if then is None else then.mean[column],
                overlap_now=None if now is None else now.mean[column],
                overlap_error=None if overlap_error is None else float(overlap_error[column]),
            )
            for column, dim in enumerate(widths)
        ),
    )


def _unit(rows: Float32[np.ndarray, "rows embed_dim"]) -> Float32[np.ndarray, "rows embed_dim"]:
    if len(rows) < 2:
        raise VectorError(
            f"`rows` must hold at least two rows to tell how they spread, got {len(rows)}. Give more."
        )
    num_bad = int(find_bad_rows(rows).sum())
    if num_bad:
        raise VectorError(
            f"`rows` must be finite and not all zero, got {num_bad} bad of {len(rows)}. "
            f"Leave them out, or encode their inputs again."
        )
    return normalize(rows)


def _energy(unit: Float32[np.ndarray, "rows embed_dim"], dims: Sequence[int]) -> Summary:
    return Summary.of(np.square(prefix_norms(unit, dims)))


def _clipped(unit: Float32[np.ndarray, "rows embed_dim"], reference: DriftReference) -> Summary:
    """Sum up the share of each row's prefix that lies outside the int8 ranges of the fit."""
    scale = np.array(reference.int8_scale, dtype=np.float32)
    is_outside: Bool[np.ndarray, "rows embed_dim"] = (
        np.abs(np.rint(unit / scale)) > Int8Codec.largest_code
    )
    dims = np.array(reference.dims)
    return Summary.of(np.cumsum(is_outside, axis=1)[:, dims - 1] / dims)


def _overlap(
    unit: Float32[np.ndarray, "rows embed_dim"], dims: Sequence[int], *, size: int, seed: int
) -> Summary:
    """Sum up the overlap of neighbours at each width with those at full width, in a sample."""
    chosen = np.random.default_rng(seed).permutation(len(unit))[:size]
    sample = unit[np.sort(chosen)]
    view = View(name="rows", queries=sample)
    by_dim = nested_top_k(sample, [view], dims, CUTOFF + 1)["rows"].by_dim
    own = np.arange(len(sample))
    neighbours = [without_own(by_dim[dim].rows, own) for dim in dims]
    return Summary.of(np.stack([overlap(found, neighbours[-1]) for found in neighbours], axis=1))


def without_own(
    rows: Int[np.ndarray, "queries found"], own: Int[np.ndarray, " queries"]
) -> Int[np.ndarray, "queries neighbours"]:
    """Return the best rows of each query but itself, one fewer than were found.

    Args:
        rows: Row numbers, best first.
        own: The row that each query is itself. Where it is not among those found, as may happen
            among many equal rows, or where it is the number of none, the worst is left out.
    """
    order = np.argsort(rows == own[:, None], axis=1, kind="stable")
    return np.take_along_axis(rows, order, axis=1)[:, :-1]
