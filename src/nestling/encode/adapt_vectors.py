"""Apply an adapter to vectors that exist already, a block at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from nestling.core import (
    BadRowPolicy,
    Dtype,
    Fingerprint,
    check_same_space,
    check_unique_ids,
)
from nestling.core.progress import Progress, silent
from nestling.encode.adapted import AdaptedEncoder
from nestling.encode.fill_folder import Encoded, fill_folder
from nestling.encode.job import check_folder_format
from nestling.encode.stored_rows import FileRows, FolderRows, StoredRows
from nestling.encode.vector_folder import Manifest, VectorFolder
from nestling.errors import VectorError, WriteError

BLOCK_ROWS = 4096
"""Rows per block: three flushes to the disk for each, and a few tens of MB in memory."""

LABEL = "adapting vectors"


def adapt_vectors(
    adapter: AdaptedEncoder,
    path: Path,
    out: Path,
    *,
    dtype: Dtype = Dtype.FLOAT32,
    block_rows: int = BLOCK_ROWS,
    bad_rows: BadRowPolicy = "error",
    overwrite: bool = False,
    progress: Progress = silent,
) -> Encoded:
    """Map stored vectors into a vector folder that survives being killed at any moment.

    No text is read and no model is run. Run again, it goes on after the last finished block; the
    final bytes do not depend on how often it was cut off. A vector folder, .npy or .fvecs file in
    float32 or float16 is read a block at a time, whatever its size; other files are read whole.

    Args:
        adapter: What maps them. Its parent is not opened.
        path: Vector folder, or .npy, .npz, .fvecs or .parquet file. A folder says which model made
            it, and must agree with the adapter; its rows are mapped as they are. A file does not,
            and is believed; its rows are scaled to unit length first.
        out: Folder to make, or to go on with. Ids and content hashes are those of `path`.
        dtype: Number format on disk, float32 or float16. Not that of `path` unless asked for:
            float16 would round mapped rows anew, which moves full-width scores.
        block_rows: Rows per block. A folder that was begun keeps its own.
        bad_rows: "error" refuses NaN, infinite and zero rows by id; "drop" leaves them out.
        overwrite: Whether vectors that share no content with these may be replaced.
        progress: Told after every block.

    Raises:
        DataError: If a file cannot be read.
        FingerprintError: If the vectors, or those in `out`, are of another space than the adapter's,
            or those in `out` were mapped from rows in another number format.
        FormatError: If the vectors are damaged or not finished.
        VectorError: If they are not as wide as the adapter, or a row is bad and `bad_rows` is
            "error".
        WriteError: If `out` holds the vectors themselves, or cannot be written; what is finished
            stays.
    """
    source = _open_source(path, adapter, progress)
    _check_apart(path, out)
    job = AdaptJob(
        adapter=adapter,
        source=source,
        dtype=dtype,
        block_rows=block_rows,
        bad_rows=bad_rows,
        overwrite=overwrite,
        progress=progress,
    )
    return fill_folder(job, out)


@dataclass(frozen=True, kw_only=True)
class AdaptJob:
    """Vectors to map, and how to keep them; what `fill_folder` asks for.

    Attributes:
        adapter: Maps the rows.
        source: The rows.
        dtype: Number format on disk, float32 or float16.
        block_rows: Rows per block.
        bad_rows: What to do with rows that cannot be compared.
        overwrite: Whether vectors that share no content with these may be replaced.
        progress: Told after every block.
    """

    adapter: AdaptedEncoder
    source: StoredRows
    dtype: Dtype
    block_rows: int
    bad_rows: BadRowPolicy
    overwrite: bool
    progress: Progress

    label = LABEL

    def __post_init__(self) -> None:
        check_unique_ids(self.ids, source=self.label)
        check_folder_format(self.dtype, self.block_rows)

    @property
    def ids(self) -> Sequence[str]:
        """Those of the source."""
        return self.source.ids

    @property
    def contents(self) -> Sequence[str]:
        """Those of the source: rows made from equal inputs are equal, and so are their images."""
        return self.source.contents

    @cached_property
    def manifest(self) -> Manifest:
        """The adapter's vectors, with the settings that the source was encoded and kept with."""
        made_by, fingerprint = self.source.made_by, self.adapter.fingerprint
        encoder = {**made_by.encoder, "adapter": fingerprint.encoder["adapter"]}
        stored = self.source.vectors.dtype.name
        if stored != Dtype.FLOAT32:
            # These rows were rounded before they were mapped: others are not to stand beside them.
            encoder["source_dtype"] = stored
        endpoint = {key: made_by.origin[key] for key in ("base_url",) if key in made_by.origin}
        return Manifest(
            fingerprint=Fingerprint(
                space=fingerprint.space,
                encoder=encoder,
                origin={**fingerprint.origin, **endpoint},
            ),
            corpus_hash=self.source.corpus_hash,
            role=self.source.role,
            dtype=self.dtype,
            num_inputs=len(self.ids),
            block_rows=self.block_rows,
        )

    def block_from(self, start: int, *, most_rows: int) -> range:
        """Return the places of the block that starts at `start`."""
        return range(start, min(start + most_rows, len(self.ids)))

    def encode(self, places: Sequence[int]) -> Float32[np.ndarray, "rows embed_dim"]:
        """Return the mapped rows at some places; which others are mapped with them changes no bit."""
        return self.adapter.map(self.source.read(places))


def _open_source(path: Path, adapter: AdaptedEncoder, progress: Progress) -> StoredRows:
    if path.is_dir():
        rows = FolderRows(VectorFolder.open(path))
        check_same_space(
            rows.made_by,
            adapter.parent,
            left_name=f"the folder {path}",
            right_name=f"what {adapter.uri} was fitted on",
        )
        return rows
    source = FileRows(path, made_by=adapter.parent, progress=progress)
    if source.vectors.shape[1] != adapter.embed_dim:
        raise VectorError(
            f"vectors of {path} must be as wide as those that {adapter.uri} was fitted on, "
            f"{adapter.embed_dim}, got {source.vectors.shape[1]}. Name the adapter of the model that made them."
        )
    return source


def _check_apart(path: Path, out: Path) -> None:
    source, target = path.resolve(), out.resolve()
    if source == target or source in target.parents or target in source.parents:
        raise WriteError(
            f"`out` must be a folder apart from the vectors that are read, got {out} for the vectors {path}. "
            f"Name another --out."
        )
