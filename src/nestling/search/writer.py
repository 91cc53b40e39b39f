"""Change an index: append rows, bury rows, and switch the generation."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import numpy as np
from jaxtyping import Float, Int64

from nestling.core.files import fsync_folder, naming_write_errors
from nestling.core.locks import locked
from nestling.core.progress import silent
from nestling.search.catalogue import CatalogueState
from nestling.search.derive import Work, has_files, threads_to_use, with_engine
from nestling.search.entries import Entry
from nestling.search.folder import find_parts, sweep
from nestling.search.manifest import (
    Manifest,
    check_not_newer,
    mark_of,
    named,
    next_generation,
    version_of,
)
from nestling.search.row_files import RowsWriter, open_vectors
from nestling.search.rowfile import FileState
from nestling.search.snapshot import Snapshot
from nestling.search.tier_files import TierWriter, open_stage

LONGEST_TAIL = 10_000
"""Rows that a search scans one by one before the engine takes them in."""
LONGEST_TAIL_SHARE = 10
"""And so does a tenth of the rows that the engine knows."""


@contextmanager
def writing(path: Path) -> Iterator[Manifest]:
    """Hold the writer's lock of an index, and yield the manifest of its newest generation.

    What writers that died have left in the folder is removed first, and what the block leaves when it
    fails is removed last.

    Raises:
        WriteError: If the folder cannot be written, or another process is writing.
        FormatError: If the manifest is damaged.
    """
    with _holding(path):
        manifest = Manifest.load(path)
        sweep(path, manifest.folders, is_flushed=False)
        with _leaving_no_parts(path):
            yield manifest


@contextmanager
def overwriting(path: Path) -> Iterator[int]:
    """Hold the writer's lock of an index, and yield the number of a generation that follows all others.

    The manifest may be damaged or of an older version: nothing of the index is needed.

    Raises:
        WriteError: If the folder cannot be written, or another process is writing.
        FormatError: If the index is of a newer version.
    """
    with _holding(path):
        check_not_newer(path, version_of(path))
        with _leaving_no_parts(path):
            yield next_generation(path)


@contextmanager
def _holding(path: Path) -> Iterator[None]:
    with naming_write_errors(path), locked(path):
        # Whoever made the index may have been killed after it appeared, but before its name was
        # on the disk; what is written now must not be lost with it.
        fsync_folder(path.resolve().parent)
        yield


@contextmanager
def _leaving_no_parts(path: Path) -> Iterator[None]:
    """Remove what the block has made if it fails, unless it switched to it."""
    before = frozenset(part.name for part in find_parts(path))
    mark = mark_of(path)
    try:
        yield
    except BaseException:
        if mark_of(path) == mark:
            with suppress(OSError):
                sweep(path, before, is_flushed=True)
        raise


def switch(path: Path, manifest: Manifest) -> None:
    """Let a generation count, and remove what it no longer needs.

    All of its files have been flushed, and so have its folders.
    """
    if manifest.has_new_folders:
        # Before the manifest may name them.
        fsync_folder(path)
    manifest.save(path)
    # The change is on the disk. What cannot be removed now is swept by the next writer.
    with suppress(OSError):
        sweep(path, manifest.folders, is_flushed=True)


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Change:
    """What one write does, checked.

    Attributes:
        vectors: New rows, in the format in which they are stored.
        entries: Id, text and metadata of each.
        dead: Rows that die.
    """

    vectors: Float[np.ndarray, "rows full"]
    entries: Sequence[Entry]
    dead: Int64[np.ndarray, " dead"]


def write_change(path: Path, snapshot: Snapshot, change: Change) -> int:
    """Write a change and switch to it; when it returns, it is on the disk.

    Args:
        path: The index folder, locked.
        snapshot: Its newest generation.
        change: What to do.

    Returns:
        How many values were clipped to the range of the head's codes.
    """
    before = snapshot.manifest
    rows = path / before.rows
    with RowsWriter(rows, before.states_in(before.rows)) as writer:
        if change.entries:  # a deletion need not wait until what sums rows is loaded
            writer.write(change.vectors)
            writer.write_ids([entry.doc_id for entry in change.entries])
        writer.bury(change.dead)
    files = {**before.files, **named(before.rows, writer.states)}
    num_clipped = 0
    if len(change.vectors):
        num_clipped = _append_to_tiers(path, snapshot, change, files)
    manifest = replace(
        before,
        generation=before.generation + 1,
        num_rows=before.num_rows + len(change.vectors),
        files=files,
    )
    manifest = _take_in(path, manifest, snapshot)
    catalogue: CatalogueState = snapshot.catalogue.write(
        before.catalogue,
        generation=manifest.generation,
        entries=change.entries,
        buried=change.dead.tolist(),
    )
    switch(path, replace(manifest, catalogue=catalogue))
    return num_clipped


def absorb(work: Work, manifest: Manifest, snapshot: Snapshot) -> Manifest:
    """Return a manifest with an engine that covers all rows, after writing it.

    Args:
        work: Where and how.
        manifest: Of the generation that is being written; all of its rows are.
        snapshot: The generation before, with the same rows but perhaps the last ones.
    """
    head = manifest.plan.head
    vectors = open_vectors(work.path, manifest, snapshot.vectors)
    vectors.ensure_span(0, len(vectors.rows))
    known = snapshot.open_tiers[head.dim, head.dtype]
    tier = open_stage(work.path, manifest, head, vectors, is_mapped=False, known=known).tier
    settings = manifest.engine.build
    engine = snapshot.engine.extended(
        tier,
        vectors.rows,
        settings=settings,
        num_threads=work.num_threads,
        progress=work.progress,
    )
    return with_engine(work, manifest, engine, settings)


def _take_in(path: Path, manifest: Manifest, snapshot: Snapshot) -> Manifest:
    engine = manifest.engine
    if not has_files(manifest):
        return replace(manifest, engine=replace(engine, num_rows=manifest.num_rows))
    longest = max(LONGEST_TAIL, engine.num_rows // LONGEST_TAIL_SHARE)
    if manifest.num_rows - engine.num_rows > longest:
        work = Work(
            path=path,
            generation=manifest.generation,
            num_threads=threads_to_use(None),
            progress=silent,
        )
        return absorb(work, manifest, snapshot)
    return manifest


def _append_to_tiers(
    path: Path, snapshot: Snapshot, change: Change, files: dict[str, FileState]
) -> int:
    manifest = snapshot.manifest
    num_clipped = 0
    for entry in manifest.tiers:
        tier = snapshot.tiers[entry.dim, entry.dtype]
        encoded = tier.encode(change.vectors)
        states = manifest.states_in(entry.folder)
        with TierWriter(path / entry.folder, tier, states) as writer:
            writer.write(encoded)
        files |= named(entry.folder, writer.states)
        if entry is manifest.tiers[0]:
            num_clipped = encoded.num_clipped
    return num_clipped
