"""Why no row that is left out can be among the best.

Let x and q be a row and a query of length 1, R the stored basis (float32 numbers, taken as exact),
y = x R, p = q R, and epsilon >= ||R^T R - 1||. With the projection P onto the columns of R,

    q.x = p.y + q (1 - P) x + q (P - R R^T) x <= p.y + ||q - qP|| ||x - xP|| + epsilon,
    ||x - xP||^2 <= 1 - ||y||^2 + epsilon,                         and the same of q,

by Cauchy and Schwarz, since P - R R^T = R ((R^T R)^-1 - 1) R^T has the eigenvalues 1 - s of
those s of R^T R. It holds for the first columns of R alone, too: a band uses those whose nibbles
it has seen. Of these, y = z + e with z the decoded nibbles, so that p.y <= p.z + ||p|| ||e||:

    q.x <= p.z + ||p|| ||e|| + sqrt(1 - ||p||^2 + epsilon) sqrt(1 - ||y||^2 + epsilon) + epsilon.

||e|| and the last root are stored per row and band, rounded up. What arithmetic adds:

- the query's weights are 16-bit integers, whose products with nibbles are summed exactly; what
  rounding took from each weight, times half the greatest nibble, is summed up per query (`delta`);
- y and p are taken in float64, with errors of at most eta = gamma(dim + 8) sqrt(axes) in length, where
  gamma(n) = n u / (1 - n u), u = 2^-53 (Higham 2002, eq. 3.5: any order of summation). It enters the
  stored lengths (once each), p.z, both products, and the float64 score that is compared with: 16 eta;
- sums and bounds, below 8, are kept in float32: 2^-21 for every time one is rounded.

So a bound below the k-th best float64 score proves that the row's own float64 score is below it.
"""

import numpy as np
from jaxtyping import Float, Float32, Float64

UNIT_ROUNDOFF = 2.0**-53

GRID = 3.0 / 65_535
"""Stored lengths are whole multiples of this, rounded up. None reaches 3: decoded rows are at most
about as long as their steps together, 0.2, beyond what they decode, and that is 1, less a mean of at most 1."""

STORED_ROUNDING = 2.0**-21
"""Half the last place of a float32 below 8, twice: a score and its bound."""


def rotation_error(dim: int, num_axes: int) -> float:
    """Return eta: the length of the error of a unit row times the basis, in float64."""
    terms = (dim + 8) * UNIT_ROUNDOFF
    return float(terms / (1 - terms) * np.sqrt(num_axes) * 1.01)


def fixed_slack(dim: int, num_axes: int, num_bands: int, excess: float) -> float:
    """Return by how much every bound is widened, but for the rounding of the query's weights."""
    return excess + 16 * rotation_error(dim, num_axes) + (num_bands + 1) * STORED_ROUNDING


def measure_excess(basis: Float32[np.ndarray, "dim axes"]) -> float:
    """Return an upper bound of ||R^T R - 1||: its Frobenius norm, and what float64 may have hidden."""
    dim, num_axes = basis.shape
    wide = basis.astype(np.float64)
    gram = wide.T @ wide
    gram[np.diag_indices(num_axes)] -= 1.0
    return float(np.linalg.norm(gram)) * 1.01 + 2 * (dim + 8) * UNIT_ROUNDOFF * num_axes


def unit_rows(
    rows: Float[np.ndarray, "rows dim"],
) -> tuple[Float64[np.ndarray, "rows dim"], Float64[np.ndarray, " rows"]]:
    """Return rows at length 1 in float64, zero rows at 0, and the squares of these lengths: 1 or 0."""
    wide = rows.astype(np.float64)
    norms = np.sqrt(np.einsum("ij,ij->i", wide, wide))
    wide /= np.where(norms == 0.0, 1.0, norms)[:, None]
    return wide, (norms > 0.0).astype(np.float64)
