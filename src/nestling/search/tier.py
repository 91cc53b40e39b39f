"""Where vectors live while they are scanned: one prefix width in one number format.

A tier is derived from the full vectors and can be derived again at any other width or format
without encoding anything. One rule scores all formats: a query is folded once (cut, renormalised,
and multiplied by what turns codes into values), and then

    cosine(query, row) = folded_query . codes[row] / norms[row]

where rows without `norms` are of length 1 already (float, and signs once folded), or raw, so that
their norms are taken when they are scored. A rotated binary tier holds signs of rotated prefixes, so
its queries are rotated alike.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int8, Int64, UInt8

from nestling.core import (
    CODECS,
    Dtype,
    Projection,
    bytes_per_vector,
    check_dim,
    pack_nibbles,
    pack_signs,
    random_rotation,
    take_prefix,
)
from nestling.search.rowfile import CheckedRows
from nestling.search.unpack import spread_nibbles, spread_signs, widen_float16

CODES = "codes.bin"
NORMS = "norms.bin"
SCALE = "scale.bin"
ROTATION = "rotation.bin"

Codes = (
    Float[np.ndarray, "rows dim"] | Int8[np.ndarray, "rows dim"] | UInt8[np.ndarray, "rows packed"]
)

STORED_AS: Mapping[Dtype, Any] = {
    Dtype.FLOAT32: np.float32,
    Dtype.FLOAT16: np.float16,
    Dtype.INT8: np.int8,
    Dtype.INT4: np.uint8,
    Dtype.BINARY: np.uint8,
    Dtype.ROTATED_BINARY: np.uint8,
}
"""NumPy's name of what each format is stored in; a byte packs two int4 codes, or eight signs."""

SIGNS = (Dtype.BINARY, Dtype.ROTATED_BINARY)
NORM_BYTES = 4

_NO_SCALE = np.empty(0, dtype=np.float32)


class TierRows(NamedTuple):
    """Rows in a tier's format.

    Attributes:
        codes: What is stored of each row.
        norms: Length of each decoded row, 1 for a zero row; None if the tier keeps no norms.
        num_clipped: Values outside the calibrated int8 range, which were clipped to it. int4 clips
            by design, and counts none.
    """

    codes: Codes
    norms: Float32[np.ndarray, " rows"] | None
    num_clipped: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tier:
    """Rows of one width in one format, ready to be scanned.

    Attributes:
        dim: Prefix width.
        dtype: Number format.
        codes: Float rows, int8 codes of the raw coordinates, packed int4 codes, or packed signs; in
            RAM, or mapped.
        norms: Length of each decoded row, 1 where the row is zero, so that it scores 0. Float rows
            have norms only if the tier is borrowed.
        scale: Width of one int8 or int4 step per dimension; None in other formats.
        rotation: What turns prefixes before their signs are taken; None in other formats. It is
            stored, because machines may differ in its last bits, and because it takes long to make.
        checked: Mapped codes, to be checked before they are read; None in RAM.
        is_raw: Whether the codes are the first coordinates of the stored vectors, which are of any
            length, and whose norms are not stored.
    """

    dim: int
    dtype: Dtype
    codes: Codes
    norms: Float32[np.ndarray, " rows"] | None = None
    scale: Float32[np.ndarray, " dim"] | None = None
    rotation: Float32[np.ndarray, "dim dim"] | None = None
    checked: CheckedRows | None = None
    is_raw: bool = False

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def is_borrowed(self) -> bool:
        """Whether the codes are the stored full vectors themselves, so that only norms are added."""
        return self.norms is not None and self.scale is None

    @property
    def row_bytes(self) -> int:
        """Bytes that scoring one row reads."""
        if self.is_raw or self.is_borrowed:
            norm_bytes = 0 if self.is_raw else NORM_BYTES
            return self.dim * self.codes.dtype.itemsize + norm_bytes
        return bytes_per_vector(self.dtype, self.dim)

    @property
    def num_bytes(self) -> int:
        """Bytes that the tier adds to the stored full vectors."""
        codes = 0 if self.is_raw or self.is_borrowed else self.codes.nbytes
        return codes + (0 if self.norms is None else self.norms.nbytes)

    def fold(
        self, queries: Float[np.ndarray, "queries width"]
    ) -> Float32[np.ndarray, "queries dim"]:
        """Return what to multiply unpacked rows with; `queries` may be wider than the tier.

        Raises:
            DimensionError: If they are narrower.
        """
        check_dim(self.dim, queries.shape[1])
        factor = self.dim**-0.5 if self.dtype in SIGNS else 1.0
        scale = _NO_SCALE if self.scale is None else self.scale.view()
        scale.flags.writeable = False  # compiled once per kind of array
        folded = np.empty((len(queries), self.dim), np.float32)
        rows = np.ascontiguousarray(queries, np.float32).view()
        rows.flags.writeable = False
        _fold_kernel()(rows, scale, factor, folded)
        return folded if self.rotation is None else folded @ self.rotation

    def ensure(self, rows: Int64[np.ndarray, "*places"]) -> None:
        """Check rows that are about to be read; -1 is passed over.

        Raises:
            FormatError: If one is damaged; the message names the file.
        """
        if self.checked is not None:
            self.checked.ensure(rows)

    def ensure_span(self, start: int, stop: int) -> None:
        """Check rows [start, stop) that are about to be read.

        Raises:
            FormatError: If one is damaged; the message names the file.
        """
        if self.checked is not None:
            self.checked.ensure_span(start, stop)

    def unpack(self, start: int, stop: int) -> Float32[np.ndarray, "rows dim"]:
        """Return rows [start, stop) as float32 codes, which are values only up to `scale`.

        Raises:
            FormatError: If a row is damaged.
        """
        self.ensure_span(start, stop)
        codes = self.codes[start:stop]
        if self.dtype in SIGNS:
            return spread_signs(codes, self.dim)
        if self.dtype is Dtype.INT4:
            return spread_nibbles(codes, self.dim)
        if codes.dtype == np.float16:
            return widen_float16(codes)
        return codes.astype(np.float32, copy=False)

    def encode(self, vectors: Float[np.ndarray, "rows full"]) -> TierRows:
        """Return full-width vectors in this tier's format, with this tier's scale and rotation."""
        prefixes = vectors[:, : self.dim].astype(np.float32, copy=False)
        if self.rotation is not None:
            return TierRows(pack_signs(Projection(self.rotation)(prefixes)), None, 0)
        if self.dtype is Dtype.BINARY:
            return TierRows(pack_signs(prefixes), None, 0)
        if self.scale is not None:
            codec = CODECS[self.dtype](self.scale)
            codes, num_clipped = codec.encode(prefixes)
            norms = _lengths(codec.decode(codes))
            if self.dtype is Dtype.INT4:
                return TierRows(pack_nibbles(codes), norms, 0)
            return TierRows(codes, norms, num_clipped)
        if self.is_borrowed:
            return TierRows(vectors, _lengths(prefixes), 0)
        unit = take_prefix(prefixes, self.dim, renormalize=True)
        return TierRows(unit.astype(STORED_AS[self.dtype]), None, 0)


@cache
def _fold_kernel() -> Callable[..., None]:
    # Not above: numba takes a third of a second to import. Kept, for every query asks for it.
    from nestling.search._rescore_kernels import fold_queries

    return fold_queries


def empty_tier(
    vector_dtype: Dtype,
    full_width: int,
    dim: int,
    dtype: Dtype,
    *,
    scale: Float32[np.ndarray, " dim"] | None = None,
    rotation: Float32[np.ndarray, "dim dim"] | None = None,
) -> Tier:
    """Return a tier without rows, which says how rows are stored and can encode some.

    Args:
        vector_dtype: Format of the stored vectors. A float tier of their full width in their own
            format is borrowed: it keeps norms, and shows the vectors themselves.
        full_width: Of the stored vectors.
        dim: Prefix width.
        dtype: Number format.
        scale: For int8 and int4, as `calibrated_scale` returns it.
        rotation: For rotated binary; by default it is drawn, which takes seconds at great widths.

    Raises:
        DimensionError: If `dim` is outside [1, full].
    """
    check_dim(dim, full_width)
    stored_as = STORED_AS[dtype]
    no_norms = np.empty(0, dtype=np.float32)
    if dim == full_width and dtype is vector_dtype:
        return Tier(dim=dim, dtype=dtype, codes=np.empty((0, dim), stored_as), norms=no_norms)
    norms = None if scale is None else no_norms
    if dtype is Dtype.ROTATED_BINARY and rotation is None:
        rotation = random_rotation(dim)
    code_bytes = bytes_per_vector(dtype, dim) - (0 if norms is None else NORM_BYTES)
    codes = np.empty((0, code_bytes // np.dtype(stored_as).itemsize), stored_as)
    return Tier(dim=dim, dtype=dtype, codes=codes, norms=norms, scale=scale, rotation=rotation)


def raw_tier(
    vectors: Float[np.ndarray, "rows full"], dim: int, *, checked: CheckedRows | None = None
) -> Tier:
    """Return the first coordinates of the stored vectors as a tier; nothing is copied.

    Args:
        vectors: Float32 or float16 rows.
        dim: Prefix width.
        checked: The same vectors, if they are mapped.

    Raises:
        DimensionError: If `dim` is outside [1, full].
    """
    check_dim(dim, vectors.shape[1])
    return Tier(
        dim=dim,
        dtype=Dtype(vectors.dtype.name),
        codes=vectors[:, :dim],
        checked=checked,
        is_raw=True,
    )


def calibrated_scale(
    vectors: Float[np.ndarray, "rows full"], dim: int, dtype: Dtype
) -> Float32[np.ndarray, " dim"] | None:
    """Return the scale of an int8 tier, fitted to all rows, or of an int4 tier, fitted to 4,096.

    None for other formats.

    Raises:
        DimensionError: If `dim` is outside [1, full].
    """
    check_dim(dim, vectors.shape[1])
    return CODECS[dtype].calibrate(vectors[:, :dim]).scale if dtype in CODECS else None


def derive_tier(vectors: Float[np.ndarray, "rows full"], *, dim: int, dtype: Dtype) -> Tier:
    """Return the tier of all `vectors`, in RAM.

    Args:
        vectors: Full-width rows, at least one.
        dim: Prefix width.
        dtype: Number format.

    Raises:
        DimensionError: If `dim` is outside [1, full].
    """
    scale = calibrated_scale(vectors, dim, dtype)
    tier = empty_tier(Dtype(vectors.dtype.name), vectors.shape[1], dim, dtype, scale=scale)
    rows = tier.encode(vectors)
    return replace(tier, codes=rows.codes, norms=rows.norms)


def _lengths(rows: Float32[np.ndarray, "rows dim"]) -> Float32[np.ndarray, " rows"]:
    norms = np.linalg.norm(rows, axis=1)
    return np.where(norms == 0.0, np.float32(1.0), norms)
