"""Encode into a vector folder: resume, copy what is known, swap a rebuilt folder in."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from nestling.core import check_rows
from nestling.core.files import naming_write_errors
from nestling.encode.blocks import BlockWriter, Row
from nestling.encode.folder_places import (
    FolderPlaces,
    only_writer,
    read_own_manifest,
    remove_parts,
)
from nestling.encode.job import FolderJob
from nestling.encode.known_rows import KnownRows
from nestling.encode.vector_folder import MANIFEST_FILE, STORED_DTYPES, Manifest, VectorFolder
from nestling.errors import FormatError, VectorError, WriteError


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A finished vector folder, and where its rows come from.

    Attributes:
        folder: The folder, open for reading.
        num_resumed: Inputs that an earlier run had finished in this folder.
        num_reused: Inputs whose vector was copied from one of the same content: unchanged since
            the folder was last encoded, or repeated within the inputs.
        num_encoded: Inputs that this run encoded.
        dropped_ids: Inputs left out because their vectors cannot be compared.
    """

    folder: VectorFolder
    num_resumed: int
    num_reused: int
    num_encoded: int
    dropped_ids: tuple[str, ...]


def fill_folder(job: FolderJob, out: Path) -> Encoded:
    """Encode the inputs of a job into the folder `out`, or finish what an earlier run began there.

    If `out` holds another state of the inputs by the same encoder, or a finished folder with
    damaged blocks, a new folder is filled beside it and swapped in; rows of unchanged content in
    intact blocks are copied, not encoded.

    Raises:
        FingerprintError: If `out` holds vectors of another space, or of the same space by an
            encoder with other settings, or in another role or dtype.
        VectorError: If a vector is bad and the job does not drop bad rows.
        WriteError: If the folder cannot be written, the disk is full, another process is writing
            there, or it holds vectors of inputs that have nothing in common with these and the
            job may not overwrite them. What was finished stays; the next run goes on from it.
    """
    places = FolderPlaces(out.resolve())
    with only_writer(places.out):
        with naming_write_errors(places.out):
            places.recover()
            places.out.mkdir(exist_ok=True)
        found = read_own_manifest(places.out, job.manifest)
        if found is not None and _needs_rebuild(places.out, found, job):
            if found.corpus_hash != job.manifest.corpus_hash:
                _check_not_a_stranger(job, places)
            encoded = _rebuild(job, places)
        elif found is not None and found.complete:
            encoded = _finished(job, places.out)
        else:
            encoded = _fill(job, places.out, sources=())
        with naming_write_errors(places.out):
            places.clear()
    return _checked(encoded, job)


def _needs_rebuild(out: Path, found: Manifest, job: FolderJob) -> bool:
    if found.corpus_hash != job.manifest.corpus_hash:
        return True
    if not found.complete:
        return False
    try:
        VectorFolder.open(out).verify()
    except FormatError:
        return True
    return False


def _check_not_a_stranger(job: FolderJob, places: FolderPlaces) -> None:
    """Refuse to replace vectors of inputs of which none is among the new ones.

    A corpus that was edited shares most of its texts; one that shares none was not meant.
    """
    if job.overwrite:
        return
    known = KnownRows(job.manifest)
    for folder in (places.out, places.next, places.stale):
        if folder.exists():
            known.add_intact_blocks(folder)
    if len(known) > 0 and not any(content in known for content in job.contents):
        raise WriteError(
            f"{places.out} holds {len(known):,} vectors of other inputs, none of which is among the new ones. "
            f"Pass --overwrite to replace them, or another --out."
        )


def _rebuild(job: FolderJob, places: FolderPlaces) -> Encoded:
    with naming_write_errors(places.next):
        places.set_stale_aside(job.manifest)
        places.next.mkdir(exist_ok=True)
    sources = [folder for folder in (places.out, places.stale) if folder.exists()]
    encoded = _fill(job, places.next, sources=sources)
    with naming_write_errors(places.out):
        places.swap()
    return replace(encoded, folder=VectorFolder.open(places.out))


def _finished(job: FolderJob, folder: Path) -> Encoded:
    total = len(job.ids)
    job.progress(job.label, total, total)
    return Encoded(
        folder=VectorFolder.open(folder),
        num_resumed=total,
        num_reused=0,
        num_encoded=0,
        dropped_ids=(),
    )


def _fill(job: FolderJob, folder: Path, *, sources: Sequence[Path]) -> Encoded:
    """Append blocks until all inputs are read, then mark the folder as complete."""
    remove_parts(folder)
    manifest = job.manifest
    if (folder / MANIFEST_FILE).exists():
        # The blocks on disk decide: a block size that changed in between would move the bytes.
        manifest = replace(manifest, block_rows=Manifest.load(folder).block_rows)
    else:
        manifest.save(folder)
    total = len(job.ids)
    num_encoded = 0
    with BlockWriter(folder, manifest.row_bytes) as writer:
        num_resumed = writer.num_inputs
        known = KnownRows(manifest)
        if num_resumed < total:
            for source in sources:
                known.add_intact_blocks(source)
            known.add_blocks(folder, writer.blocks)
        job.progress(job.label, num_resumed, total)
        while (start := writer.num_inputs) < total:
            places = job.block_from(start, most_rows=manifest.block_rows)
            vectors, keep, num_fresh = _make_block(job, places, known)
            num_encoded += num_fresh
            block = slice(start, places.stop)
            rows = list(compress(map(Row, job.ids[block], job.contents[block]), keep.tolist()))
            known.add(folder, rows, first_row=writer.num_rows)
            writer.append(vectors, rows, num_inputs=len(places))
            job.progress(job.label, writer.num_inputs, total)
        num_rows = writer.num_rows
    replace(manifest, num_rows=num_rows, complete=True).save(folder)
    return Encoded(
        folder=VectorFolder.open(folder),
        num_resumed=num_resumed,
        num_reused=total - num_resumed - num_encoded,
        num_encoded=num_encoded,
        dropped_ids=(),
    )


def _make_block(
    job: FolderJob, places: range, known: KnownRows
) -> tuple[Float[np.ndarray, "kept embed_dim"], Bool[np.ndarray, " inputs"], int]:
    """Return the vectors of one block as stored, which inputs they are for, and how many are new."""
    contents = [job.contents[place] for place in places]
    first: dict[str, int] = {}
    for offset, content in enumerate(contents):
        first.setdefault(content, offset)
    copied = {offset: content for content, offset in first.items() if content in known}
    fresh = [offset for offset in first.values() if offset not in copied]
    block = np.empty((len(places), job.manifest.embed_dim), STORED_DTYPES[job.manifest.dtype])
    keep = np.ones(len(places), dtype=np.bool_)
    if fresh:
        made = job.encode([places[offset] for offset in fresh])
        with np.errstate(over="ignore"):  # what float16 cannot hold becomes infinite, and is named
            block[fresh] = made
        names = [job.ids[places[offset]] for offset in fresh]
        keep[fresh] = check_rows(block[fresh], names, policy=job.bad_rows)
    known.copy_into(block, copied)
    source = np.array([first[content] for content in contents])
    keep = keep[source]
    return block[source[keep]], keep, len(fresh)


def _checked(encoded: Encoded, job: FolderJob) -> Encoded:
    """Name the inputs that have no row; refuse them unless the job drops bad rows."""
    if len(encoded.folder) == len(job.ids):
        return encoded
    kept = set(encoded.folder.doc_ids)
    dropped = tuple(name for name in job.ids if name not in kept)
    if not kept or job.bad_rows == "error":
        raise VectorError(
            f"vectors must be finite and not all zero, got {len(dropped)} bad of {len(job.ids)}, left out of "
            f"{encoded.folder.path}: {', '.join(map(repr, dropped[:5]))}. Mend these inputs, "
            f"or leave the rows out with --bad-rows drop."
        )
    return replace(encoded, dropped_ids=dropped)
