"""Rewrite an index without its dead rows, and let the engine take in what was added."""

from dataclasses import replace

import numpy as np
from jaxtyping import Int64

from nestling.core.files import fsync_folder
from nestling.search.derive import Work, derive_engine
from nestling.search.manifest import CATALOGUE, Manifest, TierEntry, named
from nestling.search.row_files import RowsWriter, open_vectors
from nestling.search.rowfile import FileState, rows_per_chunk
from nestling.search.snapshot import Snapshot
from nestling.search.tier import TierRows
from nestling.search.tier_files import TierWriter, write_constants
from nestling.search.writer import absorb


def compact_generation(work: Work, snapshot: Snapshot) -> Manifest | None:
    """Write a generation without dead rows and without a tail that the engine does not know.

    Rows are numbered anew, in their order. Codes are copied, so that no score changes.

    Args:
        work: Where and how; the folder is locked.
        snapshot: The newest generation.

    Returns:
        What to save; None if there is nothing to do.

    Raises:
        FormatError: If a row that lives is damaged.
    """
    before = snapshot.manifest
    if before.num_dead:
        return _without_dead_rows(work, snapshot)
    if before.engine.num_rows == before.num_rows:
        return None
    manifest = absorb(work, replace(before, generation=work.generation), snapshot)
    catalogue = snapshot.catalogue.write(before.catalogue, generation=work.generation)
    return replace(manifest, catalogue=catalogue)


def _without_dead_rows(work: Work, snapshot: Snapshot) -> Manifest:
    before = snapshot.manifest
    rows = f"rows-{work.generation}"
    (work.path / rows).mkdir()
    catalogue = snapshot.catalogue.copy_live(
        work.path / rows / CATALOGUE, generation=before.generation, born=work.generation
    )
    files = named(rows, _copy_rows(work, rows, snapshot))
    fsync_folder(work.path / rows)
    tiers = []
    for entry in before.tiers:
        copied = replace(entry, folder=f"tier-{work.generation}-{entry.dim}-{entry.dtype}")
        files |= named(copied.folder, _copy_tier(work, copied, snapshot))
        tiers.append(copied)
    manifest = replace(
        before,
        generation=work.generation,
        num_rows=before.num_live,
        rows=rows,
        tiers=tuple(tiers),
        files=files,
        catalogue=catalogue,
    )
    return derive_engine(work, manifest, open_vectors(work.path, manifest), reused=None)


def _copy_rows(work: Work, rows: str, snapshot: Snapshot) -> dict[str, FileState]:
    kept = _living_rows(snapshot)
    step = rows_per_chunk(snapshot.manifest.embed_dim)
    with RowsWriter(work.path / rows, {}) as writer:
        for start in range(0, len(kept), step):
            chunk = kept[start : start + step]
            snapshot.vectors.ensure(chunk)
            writer.write(snapshot.vectors.rows[chunk])
            writer.write_ids(snapshot.ids.lookup(chunk))
            work.progress("copy vectors", start + len(chunk), len(kept))
    return writer.states


def _copy_tier(work: Work, entry: TierEntry, snapshot: Snapshot) -> dict[str, FileState]:
    tier = snapshot.tiers[entry.dim, entry.dtype]
    folder = work.path / entry.folder
    folder.mkdir()
    kept = _living_rows(snapshot)
    step = rows_per_chunk(entry.dim)
    with TierWriter(folder, tier, write_constants(folder, tier)) as writer:
        for start in range(0, len(kept), step):
            chunk = kept[start : start + step]
            tier.ensure(chunk)
            norms = None if tier.norms is None else tier.norms[chunk]
            writer.write(TierRows(tier.codes[chunk], norms, 0))
            work.progress(f"copy {entry.dim}-d {entry.dtype} tier", start + len(chunk), len(kept))
    fsync_folder(folder)
    return writer.states


def _living_rows(snapshot: Snapshot) -> Int64[np.ndarray, " living"]:
    live = snapshot.allowed_live
    return np.arange(snapshot.num_rows) if live is None else live.rows
