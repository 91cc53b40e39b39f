"""Check what a write is given, before anything is written."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from nestling.core import check_rows, check_unique_ids
from nestling.errors import DataError, VectorError
from nestling.search.entries import Entry, make_entries
from nestling.search.manifest import Manifest
from nestling.search.snapshot import Snapshot
from nestling.search.tier import STORED_AS
from nestling.search.writer import Change


def check_new(
    manifest: Manifest,
    vectors: Float[np.ndarray, "rows width"],
    doc_ids: Sequence[str],
    texts: Sequence[str] | None,
    metadata: Sequence[Mapping[str, Any]] | None,
) -> tuple[Float[np.ndarray, "rows full"], list[Entry]]:
    """Return new vectors in the format in which they are stored, and what the catalogue will hold.

    Raises:
        VectorError: If a row is of another width, zero, or not finite.
        DataError: If an id is repeated, or a list has another length.
    """
    embed_dim = manifest.embed_dim
    if vectors.ndim != 2 or vectors.shape[1] != embed_dim:
        raise VectorError(
            f"`vectors` must have the shape (rows, {embed_dim}), one row per document, got "
            f"{vectors.shape}. Encode with the model of the index, at its full width."
        )
    if len(doc_ids) != len(vectors):
        raise DataError(
            f"`doc_ids` must hold one id per row: {len(vectors)}, got {len(doc_ids)}. "
            f"Pass as many ids as there are vectors."
        )
    check_unique_ids(doc_ids, source="`doc_ids`")
    with np.errstate(over="ignore"):  # what float16 cannot hold becomes infinite, and is named
        rows = vectors.astype(STORED_AS[manifest.vector_dtype], copy=False)
    check_rows(rows, doc_ids, policy="error")
    return rows, make_entries(doc_ids, texts, metadata)


def addition(
    path: Path, snapshot: Snapshot, rows: Float[np.ndarray, "rows full"], entries: list[Entry]
) -> Change:
    """Return the change that adds documents.

    Raises:
        DataError: If an id is known already.
    """
    doc_ids = [entry.doc_id for entry in entries]
    known = snapshot.catalogue.find_live(doc_ids, generation=snapshot.manifest.generation)
    if known:
        named = [doc_id for doc_id in doc_ids if doc_id in known]
        raise DataError(
            f"`doc_ids` must be new to {path}, got {len(named)} known: "
            f"{', '.join(map(repr, named[:5]))}. Leave them out, or replace them with `upsert`."
        )
    return Change(vectors=rows, entries=entries, dead=np.empty(0, np.int64))


def replacement(
    snapshot: Snapshot, rows: Float[np.ndarray, "rows full"], entries: list[Entry]
) -> Change:
    """Return the change that adds documents, and takes away those of the same ids."""
    doc_ids = [entry.doc_id for entry in entries]
    known = snapshot.catalogue.find_live(doc_ids, generation=snapshot.manifest.generation)
    dead = np.array(sorted(known.values()), np.int64)
    return Change(vectors=rows, entries=entries, dead=dead)


def deletion(path: Path, snapshot: Snapshot, doc_ids: Sequence[str]) -> Change:
    """Return the change that takes documents away.

    Raises:
        DataError: If an id is repeated or unknown.
    """
    check_unique_ids(doc_ids, source="`doc_ids`")
    known = snapshot.catalogue.find_live(doc_ids, generation=snapshot.manifest.generation)
    missing = [doc_id for doc_id in doc_ids if doc_id not in known]
    if missing:
        raise DataError(
            f"`doc_ids` must be documents of {path}, got {len(missing)} unknown: "
            f"{', '.join(map(repr, missing[:5]))}. Leave them out; nothing was deleted."
        )
    manifest = snapshot.manifest
    return Change(
        vectors=np.empty((0, manifest.embed_dim), STORED_AS[manifest.vector_dtype]),
        entries=(),
        dead=np.array(sorted(known.values()), np.int64),
    )
