"""Write the first generation of an index, or one that shares nothing with those before it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from nestling.core import Dtype, Fingerprint, check_unique_ids
from nestling.core.files import fsync_folder
from nestling.data.types import Corpus, content_hash
from nestling.encode import VectorFolder
from nestling.errors import DataError
from nestling.search.catalogue import EMPTY, Catalogue, CatalogueState
from nestling.search.derive import Work, checked_settings, derive_engine, derive_tiers
from nestling.search.entries import Entry, make_entries
from nestling.search.funnel import check_plan, exact_plan
from nestling.search.manifest import CATALOGUE, EngineEntry, Manifest, named
from nestling.search.plan import Plan
from nestling.search.row_files import RowsWriter, open_vectors
from nestling.search.rowfile import FileState, rows_per_chunk


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Content:
    """What an index is made from.

    Attributes:
        vectors: Full-width rows in the format in which they will be stored; sound.
        entries: Id, text and metadata of each.
        fingerprint: What made the vectors.
    """

    vectors: Float[np.ndarray, "rows full"]
    entries: Sequence[Entry]
    fingerprint: Fingerprint


def choose_plan(vectors: VectorFolder, plan: Plan | None) -> Plan:
    """Return the plan to build for, by default one exact stage, after checking that it fits.

    Raises:
        DataError: If there are no vectors.
        DimensionError, FingerprintError, FormatError: If the plan does not fit the vectors.
    """
    if len(vectors.vectors) == 0:
        raise DataError(
            "`vectors` must hold at least one row to index, got none. Encode a corpus first."
        )
    dtype = Dtype(vectors.vectors.dtype.name)
    plan = plan or exact_plan(vectors.fingerprint.space, dtype)
    check_plan(plan, vectors.fingerprint)
    checked_settings(plan)
    return plan


def match_entries(vectors: VectorFolder, corpus: Corpus | None) -> list[Entry]:
    """Return what the catalogue will hold, in the order of the vectors.

    Raises:
        DataError: If an id is repeated, or the corpus lacks a document or holds another text than
            the one that was encoded.
    """
    doc_ids = vectors.doc_ids
    check_unique_ids(doc_ids, source="`vectors`")
    if corpus is None:
        return make_entries(doc_ids, None, None)
    check_unique_ids(corpus.doc_ids, source="`corpus`")
    places = {doc_id: place for place, doc_id in enumerate(corpus.doc_ids)}
    if missing := [doc_id for doc_id in doc_ids if doc_id not in places]:
        raise DataError(
            f"`corpus` must hold every document of `vectors`, got {len(missing)} missing: "
            f"{', '.join(map(repr, missing[:5]))}. Name the corpus that was encoded."
        )
    order = [places[doc_id] for doc_id in doc_ids]
    texts = [corpus.texts[place] for place in order]
    _check_unchanged(vectors, corpus, texts)
    metadata = None if corpus.metadata is None else [corpus.metadata[place] for place in order]
    return make_entries(doc_ids, texts, metadata)


def _check_unchanged(vectors: VectorFolder, corpus: Corpus, texts: list[str]) -> None:
    # Vectors that were looked up in a file were not made from texts, so there is nothing to check.
    is_lookup = vectors.fingerprint.encoder.get("backend") == "vectors"
    if is_lookup or vectors.corpus_hash == corpus.corpus_hash:
        return
    changed = [
        doc_id
        for doc_id, text, encoded in zip(
            vectors.doc_ids, texts, vectors.content_hashes, strict=True
        )
        if content_hash(text) != encoded
    ]
    if changed:
        raise DataError(
            f"texts of `corpus` must be those that were encoded, got {len(changed)} others: "
            f"{', '.join(map(repr, changed[:5]))}. Encode the corpus again."
        )


def write_generation(work: Work, content: Content, plan: Plan) -> Manifest:
    """Write everything but the manifest, and flush it to the disk.

    Returns:
        What to save: from then on the generation counts.
    """
    rows = f"rows-{work.generation}"
    (work.path / rows).mkdir()
    catalogue = _write_catalogue(work, rows, content.entries)
    states = _write_rows(work, rows, content)
    fsync_folder(work.path / rows)
    manifest = Manifest(
        generation=work.generation,
        num_rows=len(content.vectors),
        vector_dtype=Dtype(content.vectors.dtype.name),
        fingerprint=content.fingerprint,
        nesting_dims=nesting_dims(plan),
        plan=plan,
        rows=rows,
        tiers=(),
        engine=EngineEntry(name=plan.engine.name, build={}, folder="", num_rows=0),
        files=named(rows, states),
        catalogue=catalogue,
    )
    vectors = open_vectors(work.path, manifest)
    manifest = derive_tiers(work, manifest, plan, vectors, reused=None)
    return derive_engine(work, manifest, vectors, reused=None)


def nesting_dims(plan: Plan, known: tuple[int, ...] = ()) -> tuple[int, ...]:
    """Return the widths a plan reads, the full one, and those known before, ascending."""
    return tuple(sorted({*known, *(stage.dim for stage in plan.stages), plan.embed_dim}))


def _write_rows(work: Work, rows: str, content: Content) -> dict[str, FileState]:
    full = content.vectors
    step = rows_per_chunk(full.shape[1])
    with RowsWriter(work.path / rows, {}) as writer:
        writer.write_ids([entry.doc_id for entry in content.entries])
        for start in range(0, len(full), step):
            chunk = full[start : start + step]
            writer.write(chunk)
            work.progress("copy vectors", start + len(chunk), len(full))
    return writer.states


def _write_catalogue(work: Work, rows: str, entries: Sequence[Entry]) -> CatalogueState:
    catalogue = Catalogue.create(work.path / rows / CATALOGUE)
    try:
        return catalogue.write(EMPTY, generation=work.generation, entries=entries)
    finally:
        catalogue.close()
