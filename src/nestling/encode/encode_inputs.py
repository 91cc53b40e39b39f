"""The two doors of the room: encode a corpus into a folder, or anything into an array."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from nestling.core import BadRowPolicy, Dtype, Fingerprint, check_rows
from nestling.core.progress import Progress, silent
from nestling.data.types import Corpus, Inputs, content_hash
from nestling.encode.adapt_vectors import adapt_vectors
from nestling.encode.adapted import AdaptedEncoder
from nestling.encode.fill_folder import Encoded, fill_folder
from nestling.encode.job import EncodeJob
from nestling.encode.protocol import Encoder, Role
from nestling.encode.vector_folder import Manifest, VectorFolder
from nestling.errors import FormatError, VectorError

BLOCK_ROWS = 1024
"""Most inputs per block: a kill costs one block, and each block waits for the disk three times."""

LABELS: dict[Role, str] = {"query": "encoding queries", "document": "encoding documents"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """Vectors of some inputs.

    Attributes:
        vectors: Full-width unit rows in float32; memory-mapped and read-only if they come from
            the cache.
        kept: Which input each row belongs to, ascending: all of them unless bad rows were dropped.
    """

    vectors: Float[np.ndarray, "rows embed_dim"]
    kept: Int[np.ndarray, " rows"]


def encode_corpus(
    encoder: Encoder,
    corpus: Corpus,
    out: Path,
    *,
    dtype: Dtype = Dtype.FLOAT32,
    block_rows: int = BLOCK_ROWS,
    bad_rows: BadRowPolicy = "error",
    overwrite: bool = False,
    progress: Progress = silent,
) -> Encoded:
    """Encode documents into a vector folder that survives being killed at any moment.

    Run again, it goes on after the last finished block and encodes nothing twice; on a finished
    folder it checks every checksum and mends damaged blocks; on a folder of another state of the
    corpus it encodes only what is new. The final bytes do not depend on how often it was cut off.

    Args:
        encoder: Makes the vectors.
        corpus: Documents; equal texts are encoded once.
        out: Folder to make, or to go on with.
        dtype: Number format on disk, float32 or float16.
        block_rows: Most documents per block; long ones make shorter blocks. A folder that was
            begun keeps its own.
        bad_rows: "error" refuses NaN, infinite and zero vectors by id; "drop" leaves them out.
        overwrite: Whether vectors of a corpus that shares no text with this one may be replaced.
        progress: Told after every block.

    Raises:
        DataError: If the corpus is empty or names an id twice.
        FingerprintError: If `out` was made by another encoder, or with another dtype.
        VectorError: If a vector is bad and `bad_rows` is "error".
        WriteError: If the folder cannot be written; what is finished stays.
    """
    job = EncodeJob(
        encoder=encoder,
        inputs=corpus.texts,
        ids=corpus.doc_ids,
        role="document",
        dtype=dtype,
        block_rows=block_rows,
        bad_rows=bad_rows,
        overwrite=overwrite,
        label=LABELS["document"],
        progress=progress,
    )
    return fill_folder(job, out)


def embed(
    encoder: Encoder,
    inputs: Inputs,
    *,
    role: Role,
    ids: Sequence[str] | None = None,
    cache: Path | None = None,
    bad_rows: BadRowPolicy = "error",
    progress: Progress = silent,
) -> Embedded:
    """Return the vectors of some texts or images, from the cache if they were encoded before.

    Args:
        encoder: Makes the vectors. Those that only look vectors up are never cached.
        inputs: Texts or images.
        role: Queries or documents.
        ids: One unique id per input; by default its number.
        cache: Folder of the cache, e.g. `cache_root()`; None keeps nothing.
        bad_rows: "error" refuses NaN, infinite and zero vectors by id; "drop" leaves them out.
        progress: Told after every block.

    Raises:
        DataError: If there are no inputs, or an id is named twice.
        VectorError: If a vector is bad and `bad_rows` is "error", or all are bad.
        WriteError: If the cache cannot be written.
    """
    names = [str(number) for number in range(len(inputs))] if ids is None else ids
    job = EncodeJob(
        encoder=encoder,
        inputs=inputs,
        ids=names,
        role=role,
        dtype=Dtype.FLOAT32,
        block_rows=BLOCK_ROWS,
        bad_rows=bad_rows,
        overwrite=False,
        label=LABELS[role],
        progress=progress,
    )
    if cache is None or job.is_lookup:
        return _embed_in_memory(job)
    path = cache_folder(encoder.fingerprint, job.corpus_hash, role, root=cache)
    folder = _open_cached(path)
    # A folder that lacks rows may be used as it is only by those who let them be dropped, and one
    # that lacks them all by nobody; `fill_folder` finds the words for both.
    if folder is None or len(folder) < (len(names) if bad_rows == "error" else 1):
        folder = _fill_cached(job, path, cache=cache).folder
    if len(folder) == len(names):
        return Embedded(vectors=folder.vectors, kept=np.arange(len(names)))
    have = set(folder.doc_ids)
    kept = [number for number, name in enumerate(names) if name in have]
    return Embedded(vectors=folder.vectors, kept=np.array(kept, dtype=np.int64))


def cache_root() -> Path:
    """Return where vectors are cached: `$NESTLING_CACHE`, or `~/.cache/nestling`."""
    configured = os.environ.get("NESTLING_CACHE")
    return Path(configured) if configured else Path.home() / ".cache" / "nestling"


def cache_folder(
    fingerprint: Fingerprint, corpus_hash: str, role: Role, *, root: Path | None = None
) -> Path:
    """Return the vector folder that caches some inputs.

    Its name says which encoder made it (space and settings), of what, and in which role, so that
    a change of any of them is another folder.
    """
    made_by = {"space": asdict(fingerprint.space), "encoder": fingerprint.encoder}
    maker = content_hash(json.dumps(made_by, sort_keys=True))
    return (root or cache_root()) / "vectors" / f"{maker}-{corpus_hash}-{role}"


def _open_cached(path: Path) -> VectorFolder | None:
    try:
        return VectorFolder.open(path) if Manifest.load(path).complete else None
    except FormatError:
        return None


def _fill_cached(job: EncodeJob, path: Path, *, cache: Path) -> Encoded:
    if not isinstance(job.encoder, AdaptedEncoder):
        return fill_folder(job, path)
    # What the parent has encoded before is there already, and may have been paid for.
    parent = job.encoder.parent_encoder
    embed(
        parent,
        job.inputs,
        role=job.role,
        ids=job.ids,
        cache=cache,
        bad_rows=job.bad_rows,
        progress=job.progress,
    )
    vectors = cache_folder(parent.fingerprint, job.corpus_hash, job.role, root=cache)
    return adapt_vectors(job.encoder, vectors, path, bad_rows=job.bad_rows, progress=job.progress)


def _embed_in_memory(job: EncodeJob) -> Embedded:
    total = len(job.ids)
    vectors = np.empty((total, job.encoder.embed_dim), dtype=np.float32)
    kept = np.empty(total, dtype=np.int64)
    num_kept = 0
    job.progress(job.label, 0, total)
    stop = 0
    while stop < total:
        places = job.block_from(stop, most_rows=job.block_rows)
        made = job.encode(places)
        keep = check_rows(made, job.ids[stop : places.stop], policy=job.bad_rows)
        new = slice(num_kept, num_kept + int(keep.sum()))
        vectors[new], kept[new] = made[keep], stop + np.flatnonzero(keep)
        num_kept, stop = new.stop, places.stop
        job.progress(job.label, stop, total)
    if num_kept == 0:
        raise VectorError(
            f"vectors must be finite and not all zero, got {total} bad of {total}. Mend the inputs."
        )
    return Embedded(vectors=vectors[:num_kept], kept=kept[:num_kept])
