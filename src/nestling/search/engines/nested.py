"""Nested exact search: the k best rows of the full width, proven, from a fraction of the bytes."""

import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

import numpy as np
from jaxtyping import Float, Float32, Int64

from nestling.core import Dtype, TopK
from nestling.core.files import fsync_folder
from nestling.core.progress import Progress, silent
from nestling.search.engines.base import Engine, EngineFound, Setting
from nestling.search.engines.blas import one_blas_thread
from nestling.search.nested.bands import (
    DIMS_PER_BAND,
    RECORD_BYTES,
    Bands,
    default_num_bands,
    fit_bands,
)
from nestling.search.nested.certificate import Tally
from nestling.search.nested.records import Records, empty_records, encode_rows
from nestling.search.rowset import RowSet
from nestling.search.tier import Tier

if TYPE_CHECKING:
    from nestling.search.nested.finder import Finder

HEADER = "nested.json"
BASIS = "basis.bin"
AXES = "axes.bin"
BAND = "band-{}.bin"


@final
class NestedEngine(Engine):
    """Reads all rows in a few bits, some in a few more, and the last ones as they are.

    Every row is kept a second time, turned to principal axes and cut into records (`nested.bands`),
    and what a record leaves out is bounded (`nested.proof`): only a row whose bound falls below the
    k-th best score so far is dropped. What is not dropped is scored from the tier's own rows, in
    float64, which decides the order; equal scores go to the lower row. So what it finds is what a
    float64 scan finds, for any rows and queries; how fast, depends on how well the principal axes of
    the rows hold their energy.
    """

    name: ClassVar[str] = "nested"
    formats: ClassVar[frozenset[Dtype]] = frozenset({Dtype.FLOAT32, Dtype.FLOAT16})
    is_exact: ClassVar[bool] = True
    checks_rows: ClassVar[bool] = True
    build_settings: ClassVar[Mapping[str, Setting]] = {
        "bands": Setting(
            default=0,
            low=0,
            high=64,
            help=f"records of {RECORD_BYTES} bytes kept per row; 0 for one per {DIMS_PER_BAND} dims",
        )
    }

    def __init__(self, tier: Tier, bands: Bands, records: Records) -> None:
        self.num_rows = len(records[0])
        self._tier = tier
        self._bands = bands
        self._records = records

    @cached_property
    def _finder(self) -> "Finder":
        """What searches the records, loaded when the first query comes."""
        # Here and not above: numba takes a third of a second to import.
        from nestling.search.nested.finder import Finder

        return Finder(self._tier, self._bands, self._records)

    @classmethod
    def build(
        cls,
        tier: Tier,
        vectors: Float[np.ndarray, "rows full"],
        *,
        settings: Mapping[str, int],
        num_threads: int = 1,
        progress: Progress = silent,
    ) -> "NestedEngine":
        """Find the axes, and cut all rows."""
        with one_blas_thread():
            bands = fit_bands(tier, settings["bands"] or default_num_bands(tier.dim))
            records = empty_records(bands.num_bands, len(tier))
            encode_rows(tier, bands, records, 0, num_threads=num_threads, progress=progress)
        return cls(tier, bands, records)

    def search(
        self,
        queries: Float32[np.ndarray, "queries width"],
        k: int,
        *,
        settings: Mapping[str, int],
        allowed: RowSet | None = None,
        num_threads: int = 1,
    ) -> EngineFound:
        """Return the k best rows per query, and the certificate."""
        prefixes = np.ascontiguousarray(queries[:, : self._tier.dim])
        members = None if allowed is None else self._members(allowed)
        num_parts = max(1, min(num_threads, len(prefixes)))
        if num_parts == 1:
            found = [self._finder.find(prefixes, k, members)]
        else:
            parts = np.array_split(prefixes, num_parts)
            with ThreadPoolExecutor(num_parts, thread_name_prefix="nested") as executor:
                found = list(executor.map(lambda part: self._finder.find(part, k, members), parts))
        best = TopK(
            np.concatenate([part.rows for part in found]),
            np.concatenate([part.scores for part in found]).astype(np.float32),
        )
        num_rows = self.num_rows if members is None else len(members)
        return self._report(best, Tally.total([part.tally for part in found]), num_rows)

    def _members(self, allowed: RowSet) -> Int64[np.ndarray, " members"]:
        return allowed.rows[: np.searchsorted(allowed.rows, self.num_rows)]

    def _report(self, best: TopK, tally: Tally, num_rows: int) -> EngineFound:
        num_queries = len(best.rows)
        row_bytes = self._tier.dim * self._tier.codes.dtype.itemsize
        bytes_read = (
            RECORD_BYTES * sum(tally.rows_read)
            + row_bytes * tally.rows_rescored
            + num_queries * self._bands.basis.nbytes
        )
        certificate = tally.to_json(
            num_queries=num_queries,
            bytes_read=bytes_read,
            bytes_flat=num_queries * num_rows * row_bytes,
        )
        return EngineFound(best, num_queries * num_rows, bytes_read, certificate)

    def save(self, folder: Path) -> tuple[str, ...]:
        """Write the map and the records."""
        bands = self._bands
        header = {
            "num_fitted": bands.num_fitted,
            "excess": bands.excess,
            "coarse_ends": bands.coarse_ends.tolist(),
            "fine_ends": bands.fine_ends.tolist(),
        }
        files = {
            HEADER: np.frombuffer(json.dumps(header).encode(), np.uint8),
            BASIS: bands.basis,
            AXES: np.stack([bands.centres, bands.steps]),
            **{BAND.format(number): part for number, part in enumerate(self._records)},
        }
        for name, content in files.items():
            with (folder / name).open("wb") as file:
                file.write(content.reshape(-1).view(np.uint8).data)
                file.flush()
                os.fsync(file.fileno())
        fsync_folder(folder)
        return tuple(files)

    @classmethod
    def load(
        cls,
        folder: Path,
        tier: Tier,
        vectors: Float[np.ndarray, "rows full"],
        *,
        settings: Mapping[str, int],
        num_rows: int,
    ) -> "NestedEngine":
        """Read the map and the records into RAM."""
        header = json.loads((folder / HEADER).read_bytes())
        num_axes = header["coarse_ends"][-1]
        centres, steps = np.fromfile(folder / AXES).reshape(2, num_axes)
        bands = Bands(
            basis=np.fromfile(folder / BASIS, np.float32).reshape(tier.dim, num_axes),
            excess=header["excess"],
            centres=centres,
            steps=steps,
            coarse_ends=np.array(header["coarse_ends"]),
            fine_ends=np.array(header["fine_ends"]),
            num_fitted=header["num_fitted"],
        )
        records = empty_records(bands.num_bands, num_rows)
        for number, part in enumerate(records):
            with (folder / BAND.format(number)).open("rb") as file:
                file.readinto(part.reshape(-1).view(np.uint8).data)
        return cls(tier, bands, records)

    def extended(
        self,
        tier: Tier,
        vectors: Float[np.ndarray, "rows full"],
        *,
        settings: Mapping[str, int],
        num_threads: int = 1,
        progress: Progress = silent,
    ) -> "NestedEngine":
        """Cut the new rows by the same map, whose proof holds for any; one for twice the rows is made anew."""
        if len(tier) > 2 * self._bands.num_fitted:
            return self.build(
                tier, vectors, settings=settings, num_threads=num_threads, progress=progress
            )
        records = empty_records(self._bands.num_bands, len(tier))
        for old, new in zip(self._records, records, strict=True):
            new[: self.num_rows] = old
        with one_blas_thread():
            encode_rows(
                tier,
                self._bands,
                records,
                self.num_rows,
                num_threads=num_threads,
                progress=progress,
            )
        return NestedEngine(tier, self._bands, records)

    @property
    def num_bytes(self) -> int:
        """Records, and the map."""
        return sum(part.nbytes for part in self._records) + self._bands.basis.nbytes
