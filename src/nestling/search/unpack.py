"""Stored codes into float32, fast: twins of a NumPy cast and of what `core` unpacks."""

from functools import cache

import numpy as np
from jaxtyping import Float16, Float32, UInt8

from nestling.core import unpack_signs


def widen_float16(values: Float16[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """Return finite float16 values in float32, exactly and faster than NumPy casts.

    Exponent and mantissa are moved to their places in float32, whose exponent is biased by 127
    instead of 15; the product makes up for that, and for the subnormal numbers as well.
    """
    bits = values.view(np.int16).astype(np.int32)
    bits <<= 13
    bits &= np.int32(0x8FFFE000 - (1 << 32))  # the sign, which the cast spread, and 15 more bits
    widened = bits.view(np.float32)
    widened *= np.float32(2.0**112)
    return widened


def spread_signs(
    packed: UInt8[np.ndarray, "rows packed"], dim: int
) -> Float32[np.ndarray, "rows {dim}"]:
    """Return sign vectors, +1 or -1, by looking up eight at a time."""
    return np.take(_signs_of_bytes(), packed, axis=0).reshape(len(packed), 8 * packed.shape[1])[
        :, :dim
    ]


def spread_nibbles(
    packed: UInt8[np.ndarray, "rows packed"], dim: int
) -> Float32[np.ndarray, "rows {dim}"]:
    """Return int4 codes as numbers, by shifts and without a table.

    Each byte becomes two, with one of its halves at the top of each, whence it is shifted down with
    its sign; what lay below it falls off.
    """
    pairs = packed.astype("<u2")
    halves = pairs << 4
    pairs <<= 8
    halves |= pairs
    codes = halves.view(np.int8)
    codes >>= 4
    return codes.astype(np.float32)[:, :dim]


@cache
def _signs_of_bytes() -> Float32[np.ndarray, "256 8"]:
    return unpack_signs(np.arange(256, dtype=np.uint8)[:, None], 8)
