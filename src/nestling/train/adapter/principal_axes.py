"""Uncentred PCA of unit rows: as a whole, by bands, and within the bands of a rotation."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Float32, Float64

Matrix = Float64[np.ndarray, "dim dim"]

GRAM_ROWS = 2_048
"""Rows that a PCA takes to float64 at a time."""


def pca_basis(rows: Float32[np.ndarray, "rows dim"]) -> Matrix:
    """Return the eigenvectors of X^T X as columns, largest eigenvalue first; nothing is centred.

    Fewer rows than dims leave eigenvalues of zero, whose eigenvectors complete the basis.
    """
    gram = np.zeros((rows.shape[1], rows.shape[1]))
    for start in range(0, len(rows), GRAM_ROWS):
        wide = rows[start : start + GRAM_ROWS].astype(np.float64)
        gram += wide.T @ wide
    _, vectors = np.linalg.eigh(gram)
    return np.ascontiguousarray(vectors[:, ::-1])


def banded_basis(rows: Float32[np.ndarray, "rows dim"], bands: Sequence[int]) -> Matrix:
    """Return the PCA of each band between boundaries, as one block-diagonal matrix."""
    edges = [0, *bands, rows.shape[1]]
    basis = np.zeros((rows.shape[1], rows.shape[1]))
    for first, last in pairwise(edges):
        basis[first:last, first:last] = pca_basis(rows[:, first:last])
    return basis


def in_principal_axes(
    rotation: Matrix, rows: Float32[np.ndarray, "rows dim"], widths: Sequence[int]
) -> Matrix:
    """Return the rotation with the coordinates between two neighbouring widths in their principal axes.

    Prefixes of these widths keep their scores; those between come to be better than any other
    choice by their energy.
    """
    edges = [0, *sorted(set(widths)), len(rotation)]
    turned = rotation.copy()
    for first, last in pairwise(edges):
        band = rows @ rotation[:, first:last].astype(np.float32)
        turned[:, first:last] = rotation[:, first:last] @ pca_basis(band)
    return turned
