"""Number formats of a stored prefix: float32, float16, int8 codes, sign bits.

Codes nest like the vectors they come from: they are taken coordinate by coordinate from the raw
(not renormalised) embedding, so the first `dim` codes of a vector are the codes of its first `dim`
coordinates, and a stored tier can be cut again. The norm of the decoded prefix is kept beside int8
codes; sign bits need none, since all sign vectors of one width are equally long.
"""

from enum import StrEnum

import numpy as np
from jaxtyping import Float, Int8, UInt8

from nestling.errors import VectorError

CALIBRATION_ROWS = 4096
"""Rows read at a time to find the largest magnitudes."""


class Dtype(StrEnum):
    """A number format, in the order of its size."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"
    BINARY = "binary"


def bytes_per_vector(dtype: Dtype, dim: int) -> int:
    """Return what one stored prefix takes, the norm beside int8 codes included.

    Float prefixes are stored renormalised and need no norm; sign vectors are all equally long.
    """
    return {
        Dtype.FLOAT32: 4 * dim,
        Dtype.FLOAT16: 2 * dim,
        Dtype.INT8: dim + 4,
        Dtype.BINARY: (dim + 7) // 8,
    }[dtype]


class Int8Codec:
    """Per-dimension symmetric int8: code = round(x / scale), clipped to [-127, 127].

    Always decode, or fold the scale into the query, before scoring: dot products of bare codes
    weigh every dimension wrongly.

    Attributes:
        scale: Width of one code step, per dimension, of shape (dim,).
    """

    def __init__(self, scale: Float[np.ndarray, " dim"]) -> None:
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            raise VectorError(
                "`scale` must be positive and finite in every dimension. "
                "Calibrate on vectors without NaN or infinite values."
            )
        self.scale = scale.astype(np.float32)

    @classmethod
    def calibrate(cls, vectors: Float[np.ndarray, "rows dim"]) -> "Int8Codec":
        """Fit the scale so that the largest magnitude of each dimension gets code 127.

        A dimension that is zero throughout gets the scale 1. Memory-mapped vectors are read in
        chunks.

        Raises:
            VectorError: If there are no rows, or they hold NaN or infinite values.
        """
        if len(vectors) == 0:
            raise VectorError("`vectors` must hold at least one row to calibrate int8, got none.")
        largest = np.zeros(vectors.shape[1], dtype=np.float32)
        for start in range(0, len(vectors), CALIBRATION_ROWS):
            chunk = np.abs(vectors[start : start + CALIBRATION_ROWS]).max(axis=0)
            np.maximum(largest, chunk, out=largest, casting="same_kind")
        return cls(np.where(largest == 0.0, np.float32(1.0), largest / np.float32(127.0)))

    def encode(
        self, embeddings: Float[np.ndarray, "rows dim"]
    ) -> tuple[Int8[np.ndarray, "rows dim"], int]:
        """Return the codes, and how many values lay outside the calibrated range and were clipped."""
        steps = np.rint(embeddings / self.scale)
        num_clipped = int(np.count_nonzero(np.abs(steps) > 127))
        return np.clip(steps, -127, 127).astype(np.int8), num_clipped

    def decode(self, codes: Int8[np.ndarray, "rows dim"]) -> Float[np.ndarray, "rows dim"]:
        """Return the float32 values that the codes stand for."""
        return codes * self.scale

    def take_prefix(self, dim: int) -> "Int8Codec":
        """Return the codec of the first `dim` dimensions."""
        return Int8Codec(self.scale[:dim])


def pack_signs(embeddings: Float[np.ndarray, "rows dim"]) -> UInt8[np.ndarray, "rows packed"]:
    """Return one bit per coordinate, 1 where it is positive, eight to a byte, zero-padded."""
    return np.packbits(embeddings > 0, axis=1)


def unpack_signs(
    packed: UInt8[np.ndarray, "rows packed"], dim: int
) -> Float[np.ndarray, "rows {dim}"]:
    """Return the sign vectors, +1 or -1 in float32, that `pack_signs` stored.

    Score them against a float query (asymmetric): the query's own signs would throw away
    information that costs nothing to keep.
    """
    bits = np.unpackbits(packed, axis=1, count=dim)
    return bits.astype(np.float32) * 2.0 - 1.0
