"""Where the numbers of a row go: principal axes, cut into nibbles, cut into bands.

A row is turned to the principal axes of all rows, strongest first, and each coordinate becomes a
coarse nibble (16 steps) and, if there is room, a fine one (a sixteenth of a step each). All nibbles
stand in one order, by what they are worth to the bound, and a band is the next `SLOTS` of them: the
nest has widths and bits in it. One band of one row is one record of 64 bytes, which is a cache line.
"""

from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float32, Float64, Int64

from nestling.search.nested.proof import measure_excess, unit_rows
from nestling.search.tier import Tier

WORDS = 32
"""16-bit words of a record: four nibbles in each but the last two, which hold two lengths."""

SLOT_WORDS = WORDS - 2
SLOTS = 4 * SLOT_WORDS
RECORD_BYTES = 2 * WORDS

DIMS_PER_BAND = 171
"""Of the tier, for each band kept by default: where one more costs as many bytes as it saves."""

SPREAD = 2.7
"""Standard deviations on either side of the mean that the coarse steps span."""

FINE_WORTH = 0.04
"""What a fine nibble is worth, as a share of its axis' coarse one: an error of length r, of which it
takes the larger part, widens the bound by r, and a coordinate left out by its square."""

LEVELS = 16
LEAST_STEP = 1e-9

SAMPLE_BLOCKS = 64
BLOCK_ROWS = 512


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Bands:
    """The map of rows to records.

    Attributes:
        basis: Principal axes as columns, strongest first; orthonormal but for `excess`.
        excess: At least the 2-norm of basis^T basis - 1.
        centres: Middle of the coarse steps, per axis.
        steps: Width of a coarse step, per axis.
        coarse_ends: Axes whose coarse nibble is in this band or an earlier one, per band.
        fine_ends: The same of fine nibbles.
        num_fitted: Rows there were when the map was made.
    """

    basis: Float32[np.ndarray, "dim axes"]
    excess: float
    centres: Float64[np.ndarray, " axes"]
    steps: Float64[np.ndarray, " axes"]
    coarse_ends: Int64[np.ndarray, " bands"]
    fine_ends: Int64[np.ndarray, " bands"]
    num_fitted: int

    @property
    def num_bands(self) -> int:
        """Records per row."""
        return len(self.coarse_ends)


def default_num_bands(dim: int) -> int:
    """Return how many bands pay for rows of this width, by measurement."""
    return min(-(-dim // DIMS_PER_BAND), most_bands(dim))


def most_bands(dim: int) -> int:
    """Return how many bands hold all nibbles of a row."""
    return -(-2 * dim // SLOTS)


def fit_bands(tier: Tier, num_bands: int) -> Bands:
    """Return the map for the rows of a tier, from up to 32,768 of them.

    Nothing is centred before the axes are found, since a common offset would change cosines; the
    offset only moves the middle of the steps.

    Args:
        tier: Float rows, any number.
        num_bands: At least 1; no more than hold all nibbles are made.
    """
    second_moment, mean = _moments(tier)
    values, vectors = np.linalg.eigh(second_moment)
    energies = np.maximum(values[::-1], 0.0)
    num_bands = min(num_bands, most_bands(tier.dim))
    coarse_ends, fine_ends = _cut(energies, num_bands)
    num_axes = int(coarse_ends[-1])
    basis = np.ascontiguousarray(vectors[:, ::-1][:, :num_axes], np.float32)
    centres = mean @ basis
    deviations = np.sqrt(np.maximum(energies[:num_axes] - centres**2, 0.0))
    return Bands(
        basis=basis,
        excess=measure_excess(basis),
        centres=centres,
        steps=np.maximum(2 * SPREAD / LEVELS * deviations, LEAST_STEP),
        coarse_ends=coarse_ends,
        fine_ends=fine_ends,
        num_fitted=len(tier),
    )


def _moments(tier: Tier) -> tuple[Float64[np.ndarray, "dim dim"], Float64[np.ndarray, " dim"]]:
    """Return the mean of x^T x and of x over a sample of unit rows."""
    second_moment, mean = np.zeros((tier.dim, tier.dim)), np.zeros(tier.dim)
    num_rows = len(tier)
    num_blocks = min(SAMPLE_BLOCKS, -(-num_rows // BLOCK_ROWS))
    num_sampled = 0
    for block in range(num_blocks):
        start = block * num_rows // num_blocks
        stop = min(start + BLOCK_ROWS, num_rows)
        rows = unit_rows(tier.unpack(start, stop))[0].astype(np.float32)
        second_moment += rows.T @ rows
        mean += rows.sum(axis=0, dtype=np.float64)
        num_sampled += len(rows)
    return second_moment / max(1, num_sampled), mean / max(1, num_sampled)


def _cut(
    energies: Float64[np.ndarray, " dim"], num_bands: int
) -> tuple[Int64[np.ndarray, " bands"], Int64[np.ndarray, " bands"]]:
    """Order all nibbles by worth, and return how many of each kind every band and its forerunners hold."""
    worth = np.concatenate([energies, FINE_WORTH * energies])
    is_fine = np.argsort(-worth, kind="stable")[: num_bands * SLOTS] >= len(energies)
    ends = np.minimum(SLOTS * np.arange(1, num_bands + 1), len(is_fine))
    fine_ends = np.cumsum(is_fine)[ends - 1]
    return ends - fine_ends, fine_ends
