"""Widths between the trained ones: does the metric lie between those of its neighbours?

Kusupati et al. 2022, Section 4.2 (arXiv:2205.13147), report that prefixes no loss looked at lie on the
curve of those it did. Here that is checked, not assumed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from nestling.core import check_dims
from nestling.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class InterpolatedWidth:
    """A width that no loss looked at, between two that one did.

    Attributes:
        dim: The width.
        value: Its metric.
        below: The next nesting dim below, and its metric.
        above: The next nesting dim above, and its metric.
        excess: How far the value is outside the two: negative below the lower metric, positive
            above the higher one, 0 between them.
        is_between: Whether it is outside by no more than the tolerance.
    """

    dim: int
    value: float
    below: tuple[int, float]
    above: tuple[int, float]
    excess: float
    is_between: bool


def check_interpolation(
    values: Mapping[int, float], nesting_dims: Sequence[int], *, tolerance: float
) -> list[InterpolatedWidth]:
    """Return for every untrained width whether its metric lies between those of its neighbours.

    Args:
        values: A metric by width, higher being better: of the nesting dims, and of others.
        nesting_dims: Widths that were trained. Widths outside their range have no neighbours and
            are left out.
        tolerance: How far outside its neighbours a value may be, in units of the metric.

    Raises:
        DataError: If a nesting dim has no value, a value is not finite, or `tolerance` is negative.
    """
    dims = check_dims(nesting_dims, max(nesting_dims, default=1))
    missing = [dim for dim in dims if dim not in values]
    if missing:
        raise DataError(
            f"`values` must hold the metric of every nesting dim, got none for "
            f"{','.join(map(str, missing))}. Measure these widths too."
        )
    strange = {dim: value for dim, value in values.items() if not math.isfinite(value)}
    if strange or not tolerance >= 0:
        raise DataError(
            f"`values` must be finite and `tolerance` at least 0, got {strange or tolerance}."
        )
    found = []
    for below, above in pairwise(dims):
        low, high = sorted((values[below], values[above]))
        for dim in sorted(dim for dim in values if below < dim < above):
            excess = values[dim] - min(max(values[dim], low), high)
            found.append(
                InterpolatedWidth(
                    dim=dim,
                    value=values[dim],
                    below=(below, values[below]),
                    above=(above, values[above]),
                    excess=excess,
                    is_between=abs(excess) <= tolerance,
                )
            )
    return found
