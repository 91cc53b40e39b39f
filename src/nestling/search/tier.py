"""Where vectors live while they are scanned: one prefix width in one number format.

A tier is derived from the full vectors and can be derived again at any other width or format
without encoding anything. One rule scores all formats: a query is folded once (cut, renormalised,
and multiplied by what turns codes into values), and then

    cosine(query, row) = folded_query . codes[row] / norms[row]

where rows without `norms` are of length 1 already (float, and signs once folded). A rotated binary
tier holds signs of rotated prefixes, so its queries are rotated alike.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int8, UInt8

from nestling.core import (
    CODECS,
    Dtype,
    bytes_per_vector,
    check_dim,
    pack_nibbles,
    pack_signs,
    random_rotation,
    rotate_prefix,
    take_prefix,
)
from nestling.core.progress import Progress, silent
from nestling.search.rowfile import NOTHING, FileState, RowWriter, read_rows, rows_per_chunk
from nestling.search.unpack import spread_nibbles, spread_signs, widen_float16

CODES = "codes.bin"
NORMS = "norms.bin"
SCALE = "scale.bin"

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """Rows of one width in one format, ready to be scanned.

    Attributes:
        dim: Prefix width.
        dtype: Number format.
        codes: Float rows, int8 codes of the raw coordinates, packed int4 codes, or packed signs.
        norms: Length of each decoded row, 1 where the row is zero, so that it scores 0. Float rows
            have norms only if the tier is borrowed.
        scale: Width of one int8 or int4 step per dimension; None in other formats.
    """

    dim: int
    dtype: Dtype
    codes: Codes
    norms: Float32[np.ndarray, " rows"] | None = None
    scale: Float32[np.ndarray, " dim"] | None = None

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def is_borrowed(self) -> bool:
        """Whether the codes are the stored full vectors themselves, so that only norms are added."""
        return self.norms is not None and self.scale is None

    @property
    def num_bytes(self) -> int:
        """Bytes that the tier adds to the stored full vectors."""
        return sum(part.nbytes for part in self._parts(self.codes, self.norms).values())

    def fold(
        self, queries: Float[np.ndarray, "queries width"]
    ) -> Float32[np.ndarray, "queries dim"]:
        """Return what to multiply unpacked rows with; `queries` may be wider than the tier."""
        prefixes = take_prefix(queries.astype(np.float32, copy=False), self.dim, renormalize=True)
        if self.scale is not None:
            return prefixes * self.scale
        if self.dtype is Dtype.ROTATED_BINARY:
            # Not `rotate_prefix`: a few queries are not worth loading its compiled code for.
            prefixes = prefixes @ random_rotation(self.dim)
        return prefixes / np.float32(self.dim**0.5) if self.dtype in SIGNS else prefixes

    def unpack(self, start: int, stop: int) -> Float32[np.ndarray, "rows dim"]:
        """Return rows [start, stop) as float32 codes, which are values only up to `scale`."""
        codes = self.codes[start:stop]
        if self.dtype in SIGNS:
            return spread_signs(codes, self.dim)
        if self.dtype is Dtype.INT4:
            return spread_nibbles(codes, self.dim)
        if codes.dtype == np.float16:
            return widen_float16(codes)
        return codes.astype(np.float32, copy=False)

    def encode(self, vectors: Float[np.ndarray, "rows full"]) -> TierRows:
        """Return full-width vectors in this tier's format, with this tier's scale."""
        prefixes = vectors[:, : self.dim].astype(np.float32, copy=False)
        if self.dtype is Dtype.BINARY:
            return TierRows(pack_signs(prefixes), None, 0)
        if self.dtype is Dtype.ROTATED_BINARY:
            return TierRows(pack_signs(rotate_prefix(prefixes, self.dim)), None, 0)
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

    def extended(self, rows: TierRows, vectors: Float[np.ndarray, "rows full"]) -> "Tier":
        """Return the tier with more rows behind the present ones.

        Args:
            rows: The new rows, as `encode` returned them.
            vectors: All stored full vectors, the new ones included: what a borrowed tier shows.
        """
        codes = vectors if self.is_borrowed else np.concatenate([self.codes, rows.codes])
        norms = None if rows.norms is None else np.concatenate([self.norms, rows.norms])
        return replace(self, codes=codes, norms=norms)

    def append(
        self, folder: Path, rows: TierRows, files: Mapping[str, FileState]
    ) -> dict[str, FileState]:
        """Write rows behind the committed part of the tier's files; return all new states by name."""
        states = dict(files)
        for name, part in self._parts(rows.codes, rows.norms).items():
            with RowWriter(folder / name, files.get(name, NOTHING)) as writer:
                writer.write(part)
            states[name] = writer.state
        return states

    def _parts(
        self, codes: Codes, norms: Float32[np.ndarray, " rows"] | None
    ) -> dict[str, np.ndarray]:
        parts: dict[str, np.ndarray] = {} if self.is_borrowed else {CODES: codes}
        return parts if norms is None else {**parts, NORMS: norms}


def derive_tier(
    vectors: Float[np.ndarray, "rows full"],
    folder: Path,
    *,
    dim: int,
    dtype: Dtype,
    progress: Progress = silent,
) -> dict[str, FileState]:
    """Write the tier of all `vectors` into an existing empty folder, chunk by chunk.

    A float tier of the full width in the format of `vectors` is borrowed: it stores norms, no copy.
    The int8 scale is calibrated on all rows, the int4 scale on at most 4,096 of them.

    Args:
        vectors: Full-width rows, at least one; may be memory-mapped.
        folder: Where the files go.
        dim: Prefix width.
        dtype: Number format.
        progress: Counts rows.

    Returns:
        What was written, by file name; `open_tier` reads it.

    Raises:
        DimensionError: If `dim` is outside [1, full].
    """
    check_dim(dim, vectors.shape[1])
    scale = CODECS[dtype].calibrate(vectors[:, :dim]).scale if dtype in CODECS else None
    tier = _empty_tier(vectors, dim, dtype, scale)
    files: dict[str, FileState] = {}
    if scale is not None:
        with RowWriter(folder / SCALE) as writer:
            writer.write(scale)
        files[SCALE] = writer.state
    step = rows_per_chunk(vectors.shape[1])
    for start in range(0, len(vectors), step):
        chunk = vectors[start : start + step]
        files = tier.append(folder, tier.encode(chunk), files)
        progress(f"derive {dim}-d {dtype} tier", start + len(chunk), len(vectors))
    return files


def open_tier(
    vectors: Float[np.ndarray, "rows full"], folder: Path, *, dim: int, dtype: Dtype
) -> Tier:
    """Read the tier that `derive_tier` wrote for (at least) the rows of `vectors`.

    It is read into RAM, but for the codes of a borrowed tier, which stay what `vectors` is.
    """
    scale = read_rows(folder / SCALE, (dim,), np.float32) if dtype in CODECS else None
    tier = _empty_tier(vectors, dim, dtype, scale)
    codes: Codes = vectors
    if not tier.is_borrowed:
        codes = read_rows(folder / CODES, (len(vectors), tier.codes.shape[1]), STORED_AS[dtype])
    norms = None
    if tier.norms is not None:
        norms = read_rows(folder / NORMS, (len(vectors),), np.float32)
    return replace(tier, codes=codes, norms=norms)


def _empty_tier(
    vectors: Float[np.ndarray, "rows full"],
    dim: int,
    dtype: Dtype,
    scale: Float32[np.ndarray, " dim"] | None,
) -> Tier:
    no_norms = np.empty(0, dtype=np.float32)
    full_width = check_dim(dim, vectors.shape[1]) == vectors.shape[1]
    if full_width and vectors.dtype == STORED_AS[dtype]:
        return Tier(dim=dim, dtype=dtype, codes=vectors[:0], norms=no_norms)
    norms = None if scale is None else no_norms
    code_bytes = bytes_per_vector(dtype, dim) - (0 if norms is None else NORM_BYTES)
    width = code_bytes // np.dtype(STORED_AS[dtype]).itemsize
    codes = np.empty((0, width), dtype=STORED_AS[dtype])
    return Tier(dim=dim, dtype=dtype, codes=codes, norms=norms, scale=scale)


def _lengths(rows: Float32[np.ndarray, "rows dim"]) -> Float32[np.ndarray, " rows"]:
    norms = np.linalg.norm(rows, axis=1)
    return np.where(norms == 0.0, np.float32(1.0), norms)
