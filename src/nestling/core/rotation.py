"""The fixed rotation inside a prefix, before its signs are taken."""

from collections import OrderedDict
from threading import Lock
from typing import final

import numpy as np
from jaxtyping import Float, Float32

from nestling.core.dims import check_dim
from nestling.core.projection import Projection

MOST_BYTES = 128 << 20
"""Memory that rotations are kept in: enough for all halved widths of 3,072 dims at once, so that training
for rotated-binary codes, which uses each of them at every step, draws each once."""


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
    return _ROTATIONS.get(dim, seed).matrix


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
    return _ROTATIONS.get(dim, 0)(prefix.astype(np.float32, copy=False))


@final
class RotationCache:
    """The rotations used last, as many as fit into some memory, and one at least.

    A bound on their number would not do: they take from a kilobyte to a hundred megabytes each.
    """

    def __init__(self, *, most_bytes: int) -> None:
        """Keep none yet.

        Args:
            most_bytes: Memory for all, each counted with the copy that it is multiplied by.
        """
        self._most_bytes = most_bytes
        self._kept: OrderedDict[tuple[int, int], Projection] = OrderedDict()
        self._lock = Lock()

    @property
    def num_bytes(self) -> int:
        """What those that are kept take."""
        return sum(8 * dim * dim for dim, _ in self._kept)

    def get(self, dim: int, seed: int) -> Projection:
        """Return the rotation of a width and seed, the same object while it is kept."""
        with self._lock:
            found = self._kept.pop((dim, seed), None) or Projection(_draw(dim, seed))
            self._kept[dim, seed] = found
            while self.num_bytes > self._most_bytes and len(self._kept) > 1:
                self._kept.popitem(last=False)
            return found


def _draw(dim: int, seed: int) -> Float32[np.ndarray, "{dim} {dim}"]:
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


_ROTATIONS = RotationCache(most_bytes=MOST_BYTES)
