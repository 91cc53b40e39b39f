"""Write the files of a new index into an empty folder."""

from pathlib import Path

from nestling.core import Dtype, check_unique_ids
from nestling.core.files import fsync_folder
from nestling.core.progress import Progress
from nestling.data.types import Corpus, content_hash
from nestling.encode import VectorFolder
from nestling.errors import DataError
from nestling.search.catalogue import Catalogue, Entry, make_entries
from nestling.search.engines import DEFAULT_ENGINE, engine_class
from nestling.search.funnel import check_plan, exact_plan
from nestling.search.manifest import CATALOGUE, VECTORS, Manifest
from nestling.search.plan import Plan
from nestling.search.rowfile import FileState, RowWriter, map_rows, measure_file, rows_per_chunk
from nestling.search.tier import derive_tier, open_tier

HEAD = "head-1"


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


def write_index(
    folder: Path,
    vectors: VectorFolder,
    entries: list[Entry],
    plan: Plan,
    *,
    progress: Progress,
) -> None:
    """Write everything, the manifest last, and flush it to the disk.

    Raises:
        FormatError: If the vectors are damaged.
    """
    # Before the copy gets checksums of its own, which would vouch for any damage.
    vectors.verify()
    (folder / VECTORS).parent.mkdir()
    (folder / HEAD).mkdir()
    files = {VECTORS: _copy_vectors(vectors, folder / VECTORS, progress)}
    full = vectors.vectors
    full = map_rows(folder / VECTORS, full.shape, full.dtype)
    dim, dtype = plan.head.dim, plan.head.dtype
    head_files = derive_tier(full, folder / HEAD, dim=dim, dtype=dtype, progress=progress)
    files |= {f"{HEAD}/{name}": state for name, state in head_files.items()}
    tier = open_tier(full, folder / HEAD, dim=dim, dtype=dtype)
    engine = engine_class(DEFAULT_ENGINE).build(tier, progress=progress)
    files |= {
        f"{HEAD}/{name}": measure_file(folder / HEAD / name) for name in engine.save(folder / HEAD)
    }
    catalogue = Catalogue.create(folder / CATALOGUE)
    checksum = catalogue.append(entries, first_row=0, checksum=0)
    catalogue.close()
    fsync_folder((folder / VECTORS).parent)
    fsync_folder(folder / HEAD)
    Manifest(
        generation=1,
        num_rows=len(full),
        vector_dtype=Dtype(full.dtype.name),
        fingerprint=vectors.fingerprint,
        plan=plan,
        engine=DEFAULT_ENGINE,
        head=HEAD,
        files=files,
        catalogue_checksum=checksum,
    ).save(folder)


def _copy_vectors(vectors: VectorFolder, path: Path, progress: Progress) -> FileState:
    full = vectors.vectors
    step = rows_per_chunk(full.shape[1])
    with RowWriter(path) as writer:
        for start in range(0, len(full), step):
            chunk = full[start : start + step]
            writer.write(chunk)
            progress("copy vectors", start + len(chunk), len(full))
    return writer.state
