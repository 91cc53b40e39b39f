"""Cut an embedding, and rescale what is left."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from nestling.core.dims import check_dim, check_dims


def normalize(embeddings: Float[np.ndarray, "*batch dim"]) -> Float[np.ndarray, "*batch dim"]:
    """Scale each row to unit L2 norm; all-zero rows stay zero.

    Norms are taken in float32 at least: the squares of float16 values overflow at 256.

    Returns:
        A new array of the same dtype. The input is never written to.
    """
    wide = embeddings.astype(np.promote_types(embeddings.dtype, np.float32), copy=False)
    norms = np.linalg.norm(wide, axis=-1, keepdims=True)
    return (wide / np.where(norms == 0, 1, norms)).astype(embeddings.dtype, copy=False)


def take_prefix(
    embeddings: Float[np.ndarray, "*batch full"], dim: int, *, renormalize: bool
) -> Float[np.ndarray, "*batch {dim}"]:
    """Return the first `dim` coordinates of each embedding.

    The truncation z_{1:m} of Kusupati et al. 2022, Section 3 (arXiv:2205.13147).

    Args:
        embeddings: Row vectors; leading batch axes are kept.
        dim: Prefix width m, in coordinates (not bytes).
        renormalize: Rescale each prefix to unit L2 norm; all-zero rows stay zero. A cosine needs
            it: the norm of a prefix differs from row to row.

    Returns:
        A new array. The input is never written to.

    Raises:
        DimensionError: If `dim` is outside [1, full].
    """
    prefix = embeddings[..., : check_dim(dim, embeddings.shape[-1])]
    return normalize(prefix) if renormalize else prefix.copy()


def prefix_norms(
    embeddings: Float[np.ndarray, "rows full"], dims: Sequence[int]
) -> Float[np.ndarray, "rows widths"]:
    """Return the L2 norm of every prefix of every row, each coordinate being read once.

    Args:
        embeddings: Row vectors.
        dims: Ascending unique prefix widths.

    Returns:
        Norms in float32, or float64 if the input is; one column per width, in the order of `dims`.

    Raises:
        DimensionError: If `dims` breaks the rules of `check_dims`.
    """
    widths = check_dims(dims, embeddings.shape[-1])
    dtype = np.promote_types(embeddings.dtype, np.float32)
    squares = np.empty((len(embeddings), len(widths)), dtype=dtype)
    start = 0
    for column, width in enumerate(widths):
        band = embeddings[:, start:width]
        np.einsum("ij,ij->i", band, band, out=squares[:, column], dtype=dtype)
        start = width
    np.cumsum(squares, axis=1, out=squares)
    return np.sqrt(squares, out=squares)
