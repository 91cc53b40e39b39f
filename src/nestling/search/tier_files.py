"""The files of a tier: written row by row, read into RAM or mapped."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
from jaxtyping import Float, Float32, Shaped

from nestling.core import CODECS, Dtype
from nestling.core.progress import Progress
from nestling.core.row_sums import row_sums
from nestling.search.manifest import Manifest, TierEntry
from nestling.search.plan import Plan, Stage
from nestling.search.rowfile import (
    NOTHING,
    CheckedRows,
    FileState,
    LoadedRows,
    RowWriter,
    rows_per_chunk,
)
from nestling.search.tier import (
    CODES,
    NORMS,
    ROTATION,
    SCALE,
    Tier,
    TierRows,
    calibrated_scale,
    empty_tier,
    raw_tier,
)

SUMS = "sums.bin"

TierKey = tuple[int, Dtype]


@final
class TierWriter:
    """Append rows to the files of a tier; a context manager that flushes them to the disk.

    Attributes:
        states: What of each file will count, by name.
    """

    def __init__(self, folder: Path, tier: Tier, states: Mapping[str, FileState]) -> None:
        """Open the files.

        Args:
            folder: Where they are, or will be.
            tier: A tier of this kind; its rows are not used.
            states: What counts of each file by now, by name; none if the tier is new.
        """
        self.states = dict(states)
        self._folder = folder
        self._names = [] if tier.is_borrowed else [CODES, SUMS]
        if tier.norms is not None:
            self._names.append(NORMS)
        self._writers: dict[str, RowWriter] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "TierWriter":
        for name in self._names:
            writer = RowWriter(self._folder / name, self.states.get(name, NOTHING))
            self._writers[name] = self._stack.enter_context(writer)
        return self

    def __exit__(self, *failure: Any) -> None:
        self._stack.__exit__(*failure)
        self.states |= {name: writer.state for name, writer in self._writers.items()}

    def write(self, rows: TierRows) -> None:
        """Append rows as `Tier.encode` returned them."""
        if CODES in self._writers:
            self._writers[CODES].write(rows.codes)
            self._writers[SUMS].write(row_sums(rows.codes))
        if rows.norms is not None:
            self._writers[NORMS].write(rows.norms)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OpenTier:
    """A tier that was opened.

    Attributes:
        tier: What a search reads.
        loaded: Its files in RAM, by name; when they grew, only what is new must be read.
    """

    tier: Tier
    loaded: Mapping[str, LoadedRows]


def needed_tiers(plan: Plan, vector_dtype: Dtype) -> list[TierKey]:
    """Return the tiers that a plan needs files of, that of the head first.

    A later stage that re-scores floats reads the stored vectors: float32 codes of float16 vectors
    would hold nothing more.
    """
    keys = [(stage.dim, stage.dtype) for stage in plan.stages]
    return keys[:1] + [
        (dim, dtype)
        for dim, dtype in dict.fromkeys(keys[1:])
        if dtype not in (Dtype.FLOAT32, vector_dtype) and (dim, dtype) != keys[0]
    ]


def derive_tier_files(
    vectors: Float[np.ndarray, "rows full"],
    folder: Path,
    *,
    dim: int,
    dtype: Dtype,
    progress: Progress,
) -> dict[str, FileState]:
    """Write the tier of all `vectors` into an existing empty folder, chunk by chunk.

    A float tier of the full width in the format of `vectors` is borrowed: it stores norms, no copy.

    Args:
        vectors: Full-width rows, sound, at least one; may be memory-mapped.
        folder: Where the files go.
        dim: Prefix width.
        dtype: Number format.
        progress: Counts rows.

    Returns:
        What was written, by file name.
    """
    scale = calibrated_scale(vectors, dim, dtype)
    tier = empty_tier(Dtype(vectors.dtype.name), vectors.shape[1], dim, dtype, scale=scale)
    states = write_constants(folder, tier)
    step = rows_per_chunk(vectors.shape[1])
    with TierWriter(folder, tier, states) as writer:
        for start in range(0, len(vectors), step):
            chunk = vectors[start : start + step]
            writer.write(tier.encode(chunk))
            progress(f"derive {dim}-d {dtype} tier", start + len(chunk), len(vectors))
    return writer.states


def write_constants(folder: Path, tier: Tier) -> dict[str, FileState]:
    """Write what all rows of a tier share; return what was written, by file name."""
    states = {}
    for name, content in ((SCALE, tier.scale), (ROTATION, tier.rotation)):
        if content is not None:
            with RowWriter(folder / name) as writer:
                writer.write(content)
            states[name] = writer.state
    return states


def open_stage(
    path: Path,
    manifest: Manifest,
    stage: Stage,
    vectors: CheckedRows,
    *,
    is_mapped: bool,
    known: OpenTier | None = None,
) -> OpenTier:
    """Open what a stage reads.

    Args:
        path: Of the index.
        manifest: Of the generation.
        stage: Which stage.
        vectors: The stored vectors.
        is_mapped: Whether codes stay on the disk; their rows are checked when they are read. Borrowed
            ones always do.
        known: The same when it had fewer rows; it stays usable.

    Raises:
        FormatError: If a file that is read whole is damaged; the message names it.
    """
    entry = manifest.tier_of(stage)
    if entry is None:
        return OpenTier(tier=raw_tier(vectors.rows, stage.dim, checked=vectors), loaded={})
    return _Opening(path, manifest, entry, known).open(vectors, is_mapped=is_mapped)


@final
class _Opening:
    """The files of one tier while they are opened."""

    def __init__(
        self, path: Path, manifest: Manifest, entry: TierEntry, known: OpenTier | None
    ) -> None:
        self._folder = path / entry.folder
        self._manifest = manifest
        self._entry = entry
        self._known = known
        self._loaded: dict[str, LoadedRows] = {}

    def open(self, vectors: CheckedRows, *, is_mapped: bool) -> OpenTier:
        num_rows, full = vectors.rows.shape
        tier = self._empty(full)
        norms = None if tier.norms is None else self._load(NORMS, (num_rows,), np.float32)
        shape = (num_rows, tier.codes.shape[1])
        checked: CheckedRows | None = None
        if tier.is_borrowed:
            checked = vectors
        elif is_mapped:
            checked = self._map(shape, tier.codes.dtype)
        codes = checked.rows if checked is not None else self._load(CODES, shape, tier.codes.dtype)
        tier = replace(tier, codes=codes, norms=norms, checked=checked)
        return OpenTier(tier=tier, loaded=self._loaded)

    def _empty(self, full: int) -> Tier:
        dim, dtype = self._entry.dim, self._entry.dtype
        scale: Float32[np.ndarray, " dim"] | None = None
        rotation: Float32[np.ndarray, "dim dim"] | None = None
        if self._known is not None:
            scale, rotation = self._known.tier.scale, self._known.tier.rotation
        else:
            if dtype in CODECS:
                scale = self._load(SCALE, (dim,), np.float32)
            if dtype is Dtype.ROTATED_BINARY:
                rotation = self._load(ROTATION, (dim, dim), np.float32)
        return empty_tier(
            self._manifest.vector_dtype, full, dim, dtype, scale=scale, rotation=rotation
        )

    def _load(self, name: str, shape: tuple[int, ...], dtype: Any) -> Shaped[np.ndarray, "..."]:
        self._loaded[name] = LoadedRows.load(
            self._folder / name,
            self._manifest.state(self._entry.folder, name),
            shape,
            dtype,
            known=None if self._known is None else self._known.loaded.get(name),
        )
        return self._loaded[name].rows

    def _map(self, shape: tuple[int, int], dtype: Any) -> CheckedRows:
        return CheckedRows(
            self._folder / CODES,
            self._folder / SUMS,
            shape,
            dtype,
            known=None if self._known is None else self._known.tier.checked,
        )
