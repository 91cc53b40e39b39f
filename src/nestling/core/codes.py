"""Number formats of a stored prefix: float32, float16, int8 and int4 codes, sign bits.

Codes nest like the vectors they come from: they are taken coordinate by coordinate from the raw
(not renormalised) embedding, so the first `dim` codes of a vector are the codes of its first `dim`
coordinates, and a stored tier can be cut again. The norm of the decoded prefix is kept beside int8
and int4 codes; sign bits need none, since all sign vectors of one width are equally long.

Rotated binary is the one format that does not nest: its signs are those of the prefix after a
rotation of this width (see `rotate_prefix`), so every width has bits of its own.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from enum import StrEnum
from typing import ClassVar, TypeVar, final

import numpy as np
from jaxtyping import Float, Float32, Float64, Int8, UInt8

from nestling.errors import VectorError

CALIBRATION_ROWS = 4096
"""Rows read at a time to find the largest magnitudes, and rows in all that int4 is fitted on."""

NUM_RANGES = 32
"""Ranges that int4 tries per dimension."""


Codec = TypeVar("Codec", bound="ScalarCodec")


class Dtype(StrEnum):
    """A number format, in the order of its size."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"
    INT4 = "int4"
    BINARY = "binary"
    ROTATED_BINARY = "rotated-binary"


def bytes_per_vector(dtype: Dtype, dim: int) -> int:
    """Return what one stored prefix takes, the norm beside int8 and int4 codes included.

    Float prefixes are stored renormalised and need no norm; sign vectors are all equally long.
    """
    return {
        Dtype.FLOAT32: 4 * dim,
        Dtype.FLOAT16: 2 * dim,
        Dtype.INT8: dim + 4,
        Dtype.INT4: (dim + 1) // 2 + 4,
        Dtype.BINARY: (dim + 7) // 8,
        Dtype.ROTATED_BINARY: (dim + 7) // 8,
    }[dtype]


class ScalarCodec(ABC):
    """Per-dimension symmetric codes: code = round(x / scale), clipped to the largest code.

    Always decode, or fold the scale into the query, before scoring: dot products of bare codes
    weigh every dimension wrongly.

    Attributes:
        largest_code: Codes lie within [-largest_code, largest_code].
        scale: Width of one code step, per dimension, of shape (dim,).
    """

    largest_code: ClassVar[int]

    def __init__(self, scale: Float[np.ndarray, " dim"]) -> None:
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            raise VectorError(
                "`scale` must be positive and finite in every dimension. "
                "Calibrate on vectors without NaN or infinite values."
            )
        self.scale = scale.astype(np.float32)

    @classmethod
    def calibrate(cls: type[Codec], vectors: Float[np.ndarray, "rows dim"]) -> Codec:
        """Fit the scale to vectors, which may be memory-mapped; a dimension of zeros gets 1.

        Raises:
            VectorError: If there are no rows, or they hold NaN or infinite values.
        """
        if len(vectors) == 0:
            raise VectorError(
                "`vectors` must hold at least one row to calibrate integer codes, got none."
            )
        scale = cls._fit(vectors)
        return cls(np.where(scale == 0.0, np.float32(1.0), scale))

    def encode(
        self, embeddings: Float[np.ndarray, "rows dim"]
    ) -> tuple[Int8[np.ndarray, "rows dim"], int]:
        """Return the codes, and how many values lay outside the calibrated range and were clipped."""
        steps = np.rint(embeddings / self.scale)
        num_clipped = int(np.count_nonzero(np.abs(steps) > self.largest_code))
        return np.clip(steps, -self.largest_code, self.largest_code).astype(np.int8), num_clipped

    def decode(self, codes: Int8[np.ndarray, "rows dim"]) -> Float[np.ndarray, "rows dim"]:
        """Return the float32 values that the codes stand for."""
        return codes * self.scale

    def take_prefix(self: Codec, dim: int) -> Codec:
        """Return the codec of the first `dim` dimensions."""
        return type(self)(self.scale[:dim])

    @classmethod
    @abstractmethod
    def _fit(cls, vectors: Float[np.ndarray, "rows dim"]) -> Float32[np.ndarray, " dim"]:
        """Return the scale; 0 for a dimension of zeros."""


@final
class Int8Codec(ScalarCodec):
    """int8: the largest magnitude of each dimension, over all rows, gets code 127.

    With so many codes the range may be wide. What lies outside it later has drifted.
    """

    largest_code: ClassVar[int] = 127

    @classmethod
    def _fit(cls, vectors: Float[np.ndarray, "rows dim"]) -> Float32[np.ndarray, " dim"]:
        largest = np.zeros(vectors.shape[1], dtype=np.float32)
        for start in range(0, len(vectors), CALIBRATION_ROWS):
            chunk = np.abs(vectors[start : start + CALIBRATION_ROWS]).max(axis=0)
            np.maximum(largest, chunk, out=largest, casting="same_kind")
        return largest / np.float32(cls.largest_code)


@final
class Int4Codec(ScalarCodec):
    """int4: the range of each dimension is what makes the squared error smallest.

    Fifteen codes spread as far as the largest magnitude would be too coarse for the many small
    values, so the largest are clipped: that is the design, and no sign of drift.

    The error is that of at most 4,096 rows, evenly spaced. `NUM_RANGES` ranges are tried, from the
    root mean square of the dimension to its largest magnitude, each a constant factor above the
    last; nothing is drawn by chance.
    """

    largest_code: ClassVar[int] = 7

    @classmethod
    def _fit(cls, vectors: Float[np.ndarray, "rows dim"]) -> Float32[np.ndarray, " dim"]:
        num_fitted = min(len(vectors), CALIBRATION_ROWS)
        chosen = np.arange(num_fitted) * len(vectors) // num_fitted
        magnitudes = np.abs(vectors[chosen].astype(np.float32))
        largest = magnitudes.max(axis=0)
        if not np.isfinite(largest).all():
            return largest
        # In units of the largest magnitude, so that no square vanishes.
        magnitudes /= np.where(largest == 0.0, np.float32(1.0), largest)
        # In float64: NumPy's float32 sums and powers differ in their last bits with the number of
        # columns, and the scale of a prefix must be the prefix of the scale.
        spread = np.sqrt(np.square(magnitudes).mean(axis=0, dtype=np.float64))
        spread[largest == 0.0] = 1.0
        scales = np.geomspace(spread, np.ones_like(spread), NUM_RANGES) / cls.largest_code
        scales = scales.astype(np.float32)
        errors = [cls._squared_error(magnitudes, scale) for scale in scales]
        best = np.argmin(errors, axis=0)
        return np.take_along_axis(scales, best[None], axis=0)[0] * largest

    @classmethod
    def _squared_error(
        cls, magnitudes: Float32[np.ndarray, "rows dim"], scale: Float32[np.ndarray, " dim"]
    ) -> Float64[np.ndarray, " dim"]:
        codes = np.minimum(np.rint(magnitudes / scale), cls.largest_code)
        return np.square(codes * scale - magnitudes).sum(axis=0, dtype=np.float64)


CODECS: Mapping[Dtype, type[ScalarCodec]] = {Dtype.INT8: Int8Codec, Dtype.INT4: Int4Codec}
"""The formats that are calibrated on data."""


def pack_nibbles(codes: Int8[np.ndarray, "rows dim"]) -> UInt8[np.ndarray, "rows packed"]:
    """Return int4 codes two to a byte, the low half first, an odd width padded with code 0."""
    rows, dim = codes.shape
    padded = np.zeros((rows, dim + dim % 2), dtype=np.uint8)
    padded[:, :dim] = codes.view(np.uint8) & 15
    return padded[:, ::2] | padded[:, 1::2] << 4


def unpack_nibbles(
    packed: UInt8[np.ndarray, "rows packed"], dim: int
) -> Int8[np.ndarray, "rows {dim}"]:
    """Return the int4 codes that `pack_nibbles` stored."""
    halves = np.stack([packed & 15, packed >> 4], axis=-1)
    codes = halves.reshape(len(packed), 2 * packed.shape[1])[:, :dim].astype(np.int8)
    # Two's complement in four bits: 8 to 15 stand for -8 to -1.
    return np.where(codes > 7, codes - 16, codes).astype(np.int8)


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
