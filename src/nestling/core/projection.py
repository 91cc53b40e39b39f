"""Rows times a fixed matrix, in a way that goes together with `nested_top_k`."""

from functools import cached_property

import numpy as np
from jaxtyping import Float32

from nestling.core._candidates import read_only
from nestling.errors import VectorError


class Projection:
    """Computes `rows @ matrix` on the calling thread alone.

    Made for the transform of a `View`, which runs on every thread of `nested_top_k` at once: BLAS
    would start threads of its own beside them, and leave these spinning after each call. A product
    does not depend on the rows beside it: any cut of the rows gives the same bits.

    Attributes:
        matrix: Of shape (full, width).
    """

    def __init__(self, matrix: Float32[np.ndarray, "full width"]) -> None:
        self.matrix = matrix

    def __call__(self, rows: Float32[np.ndarray, "rows full"]) -> Float32[np.ndarray, "rows width"]:
        """Return the projected rows.

        Raises:
            VectorError: If the rows are not as wide as the matrix is high.
        """
        # Here and not above: numba takes a third of a second to import.
        from nestling.core._kernels import multiply_rows

        full, width = self.matrix.shape
        if rows.shape[1] != full:
            raise VectorError(
                f"`rows` must be as wide as the matrix is high, {full}, got {rows.shape[1]}. "
                f"Take both from one model."
            )
        columns = self._columns
        products = np.empty((len(rows), columns.shape[0] * columns.shape[2]), np.float32)
        multiply_rows(read_only(np.ascontiguousarray(rows)), columns, products)
        return products[:, :width]

    @cached_property
    def _columns(self) -> np.ndarray:
        from nestling.core._kernels import group_vectors

        return group_vectors(self.matrix.T)
