"""The fixed rotation inside a prefix, before its signs are taken."""

from functools import lru_cache

import numpy as np
from jaxtyping import Float, Float32

from nestling.core.dims import check_dim
from nestling.core.projection import Projection

ROTATIONS_KEPT = 32
"""Matrices held in memory at a time."""


@lru_cache(maxsize=ROTATIONS_KEPT)
def random_rotation(dim: int, seed: int = 0) -> Float32[np.ndarray, "{dim} {dim}"]:
    """Return a random orthogonal matrix, read-only: the same for the same width and seed, always.

    The Q of a QR decomposition of a Gaussian matrix, with the signs that make it uniformly
    distributed (Mezzadri 2007, arXiv:math-ph/0609050). A stored index relies on it, so the numbers
    come from raw bits of PCG64, which NumPy promises never to change, as it does not promise for
    normal draws. Machines may differ in the last bits of the decomposition.

    Args:
        dim: Width of the prefix that is turned, as `prefix @ rotation`.
        seed: Another seed gives another rotation.

    Raises:
        DimensionError: If `dim` is below 1.
    """
    check_dim(dim, max(1, dim))
    num_draws = dim * dim
    bits = np.random.PCG64(seed).random_raw(2 * num_draws)
    uniform = ((bits >> np.uint64(11)) + 0.5) * 2.0**-53
    radius = np.sqrt(-2.0 * np.log(uniform[:num_draws]))
    gaussian = radius * np.cos(2.0 * np.pi * uniform[num_draws:])
    orthogonal, triangular = np.linalg.qr(gaussian.reshape(dim, dim))
    orthogonal *= np.where(np.diagonal(triangular) < 0.0, -1.0, 1.0)
    rotation = orthogonal.astype(np.float32)
    rotation.flags.writeable = False
    return rotation


def rotate_prefix(
    embeddings: Float[np.ndarray, "rows full"], dim: int
) -> Float32[np.ndarray, "rows {dim}"]:
    """Return the first `dim` coordinates turned by `random_rotation(dim)`.

    Rotations that sort coordinates by variance, as PCA does, and nested training as well, leave
    most of the variance to the first coordinates, yet a sign weighs every coordinate alike. The
    turn spreads the variance evenly, and lengths and angles stay. A row gives the same bits
    whatever rows are beside it.

    Raises:
        DimensionError: If `dim` is outside [1, full].
    """
    prefix = embeddings[:, : check_dim(dim, embeddings.shape[1])]
    return _projection(dim)(prefix.astype(np.float32, copy=False))


@lru_cache(maxsize=ROTATIONS_KEPT)
def _projection(dim: int) -> Projection:
    return Projection(random_rotation(dim))
