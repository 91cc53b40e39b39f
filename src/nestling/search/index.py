"""An index: full vectors once, a head tier derived from them, and a catalogue of what they mean."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
from jaxtyping import Float, Float32

from nestling.core import (
    Fingerprint,
    TopK,
    check_rows,
    check_same_space,
    check_unique_ids,
    find_bad_rows,
)
from nestling.core.files import naming_write_errors
from nestling.core.progress import Progress, silent
from nestling.data.types import Corpus
from nestling.encode import VectorFolder
from nestling.errors import DataError, FormatError, VectorError
from nestling.search.build import choose_plan, match_entries, write_index
from nestling.search.catalogue import Catalogue, Entry, make_entries
from nestling.search.engines import engine_class
from nestling.search.folder import locked, new_folder, read_steadily
from nestling.search.funnel import run_funnel
from nestling.search.manifest import CATALOGUE, VECTORS, Manifest
from nestling.search.plan import Plan
from nestling.search.rowfile import RowWriter, check_size, map_rows, measure_file
from nestling.search.tier import STORED_AS, open_tier


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One result of a search.

    Attributes:
        doc_id: Which document.
        score: Cosine at the width of the plan's last stage, in the format that stage reads.
        text: What was encoded, or None if the index was given no texts.
        metadata: What was given beside the text, or None.
    """

    doc_id: str
    score: float
    text: str | None
    metadata: Mapping[str, Any] | None


class Added(NamedTuple):
    """What `Index.add` did.

    Attributes:
        num_rows: Documents added.
        num_clipped: Values outside the int8 range that was calibrated when the index was built;
            they were clipped to it. Many of them call for building the index again.
    """

    num_rows: int
    num_clipped: int


@final
class Index:
    """An opened index folder; a context manager.

    One process at a time may write to a folder, any number may read it. A reader keeps seeing the
    generation that it opened. Several threads may search one opened index, but not while one of
    them adds to it; an opened index must not cross a fork.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        read_steadily(path, lambda: self._load(Manifest.load(path)))

    @classmethod
    def open(cls, path: Path) -> "Index":
        """Open an index folder; the head tier is read into RAM, full vectors are memory-mapped.

        Raises:
            FormatError: If it is not an index, a file is missing or truncated, or the format is
                newer than this version reads.
        """
        return cls(path)

    @classmethod
    def build(
        cls,
        path: Path,
        vectors: VectorFolder,
        corpus: Corpus | None = None,
        *,
        plan: Plan | None = None,
        overwrite: bool = False,
        progress: Progress = silent,
    ) -> "Index":
        """Write an index folder and open it; killed at any point, `path` is what it was before.

        Args:
            path: The folder to write.
            vectors: Full-width vectors, which are copied.
            corpus: Texts and metadata of these documents; it may hold more documents.
            plan: The funnel to run; by default one exact stage over the full width.
            overwrite: Whether to replace an index that is there already.
            progress: Counts rows.

        Raises:
            DataError: If there are no vectors, an id is repeated, or the corpus lacks a document
                or holds another text than the one that was encoded.
            DimensionError, FingerprintError, FormatError: If the plan does not fit the vectors.
            FormatError: If the vectors differ from their checksums.
            WriteError: If `path` exists, or cannot be written.
        """
        plan = choose_plan(vectors, plan)
        entries = match_entries(vectors, corpus)
        with new_folder(path, overwrite=overwrite) as folder:
            write_index(folder, vectors, entries, plan, progress=progress)
        return cls(path)

    def __len__(self) -> int:
        return self._manifest.num_rows

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the catalogue; without it, that happens when the index is no longer used."""
        self._catalogue.close()

    @property
    def plan(self) -> Plan:
        """The funnel that `search` runs."""
        return self._manifest.plan

    @property
    def fingerprint(self) -> Fingerprint:
        """What made the vectors."""
        return self._manifest.fingerprint

    @property
    def generation(self) -> int:
        """How many changes were committed, counting from 1."""
        return self._manifest.generation

    @property
    def head_bytes(self) -> int:
        """RAM that the head tier takes; of a full-width head, only what it adds to the vectors."""
        return self._tier.num_bytes

    @property
    def full_bytes(self) -> int:
        """Disk that the full vectors take."""
        return self._vectors.nbytes

    def check_encoder(self, fingerprint: Fingerprint) -> None:
        """Refuse an encoder whose queries cannot be compared with the documents.

        Raises:
            FingerprintError: If the spaces differ; the message names both.
        """
        check_same_space(
            self.fingerprint, fingerprint, left_name=f"index {self.path}", right_name="the encoder"
        )

    def search(
        self, queries: Float[np.ndarray, "*batch width"], *, top_k: int = 10
    ) -> list[list[Hit]]:
        """Return the best documents of each query, best first, by running the plan.

        Args:
            queries: Full-width rows, one per query; their length does not matter.
            top_k: At least 1; above the number of documents, all of them are returned. A stage
                with a shorter shortlist keeps `top_k` rows instead.

        Raises:
            VectorError: If a query is of another width, zero, or not finite.
            DataError: If `top_k` is below 1.
        """
        if top_k < 1:
            raise DataError(f"`top_k` must be at least 1, got {top_k}. Ask for one hit or more.")
        found = run_funnel(
            self.plan.stages,
            self._engine,
            self._vectors,
            self._check_queries(queries),
            min(top_k, len(self)),
        )
        return self._hits(found)

    def add(
        self,
        vectors: Float[np.ndarray, "rows width"],
        *,
        doc_ids: Sequence[str],
        fingerprint: Fingerprint,
        texts: Sequence[str] | None = None,
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> Added:
        """Add documents; when it returns, they are on the disk. All are added, or none.

        An int8 or int4 head keeps the scale it was built with. What another process added since
        this index was opened is seen afterwards.

        Args:
            vectors: Full-width rows; stored in the float format of the index.
            doc_ids: One new id per row.
            fingerprint: What made the vectors.
            texts: What was encoded, or None.
            metadata: Per document, plain JSON data, or None.

        Raises:
            FingerprintError: If the vectors are of another space.
            VectorError: If a row is of another width, zero, or not finite.
            DataError: If an id is repeated or known already, or a list has another length.
            WriteError: If the folder cannot be written, or another process is writing.
        """
        with locked(self.path), naming_write_errors(self.path):
            manifest = Manifest.load(self.path)
            if manifest != self._manifest:
                self._load(manifest)
            self.check_encoder(fingerprint)
            rows, entries = self._check_new(vectors, doc_ids, texts, metadata)
            if not entries:
                return Added(0, 0)
            return self._append(rows, entries)

    def verify(self) -> None:
        """Read every committed byte and compare it with its checksum.

        Raises:
            FormatError: Naming every damaged file.
        """
        manifest = self._manifest
        damaged = [
            name
            for name, state in manifest.files.items()
            if measure_file(self.path / name, state.num_bytes) != state
        ]
        expected = (manifest.num_rows, manifest.catalogue_checksum)
        if self._catalogue.measure(manifest.num_rows) != expected:
            damaged.append(CATALOGUE)
        if damaged:
            raise FormatError(
                f"the files of {self.path} must hold the bytes that were written, but these differ "
                f"from their checksum: {', '.join(damaged)}. "
                f"Build the index again, or restore them from a copy."
            )

    def _load(self, manifest: Manifest) -> None:
        for name, state in manifest.files.items():
            check_size(self.path / name, state)
        head = manifest.plan.head
        folder = self.path / manifest.head
        self._manifest = manifest
        self._vectors = self._map_vectors(manifest)
        self._tier = open_tier(self._vectors, folder, dim=head.dim, dtype=head.dtype)
        self._engine = engine_class(manifest.engine).load(folder, self._tier)
        self._catalogue = Catalogue.open(self.path / CATALOGUE, num_rows=manifest.num_rows)

    def _map_vectors(self, manifest: Manifest) -> Float[np.ndarray, "rows full"]:
        shape = (manifest.num_rows, manifest.fingerprint.space.embed_dim)
        return map_rows(self.path / VECTORS, shape, STORED_AS[manifest.vector_dtype])

    def _check_queries(
        self, queries: Float[np.ndarray, "*batch width"]
    ) -> Float32[np.ndarray, "queries full"]:
        self._check_width(queries, "queries", "one row per query")
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is named
            rows = queries.astype(np.float32, copy=False)
        bad = np.flatnonzero(find_bad_rows(rows))
        if len(bad):
            raise VectorError(
                f"`queries` must be finite and not all zero, got {len(bad)} bad of {len(queries)}: "
                f"query {', '.join(map(str, bad[:5]))}. Mend these (an empty text encodes to zero)."
            )
        return rows

    def _check_width(
        self, vectors: Float[np.ndarray, "*batch width"], name: str, rule: str
    ) -> None:
        embed_dim = self.fingerprint.space.embed_dim
        if vectors.ndim != 2 or vectors.shape[1] != embed_dim:
            raise VectorError(
                f"`{name}` must have the shape (rows, {embed_dim}), {rule}, got {vectors.shape}. "
                f"Encode with the model of the index, at its full width."
            )

    def _check_new(
        self,
        vectors: Float[np.ndarray, "rows width"],
        doc_ids: Sequence[str],
        texts: Sequence[str] | None,
        metadata: Sequence[Mapping[str, Any]] | None,
    ) -> tuple[Float[np.ndarray, "rows full"], list[Entry]]:
        self._check_width(vectors, "vectors", "one row per document")
        if len(doc_ids) != len(vectors):
            raise DataError(
                f"`doc_ids` must hold one id per row: {len(vectors)}, got {len(doc_ids)}. "
                f"Pass as many ids as there are vectors."
            )
        check_unique_ids(doc_ids, source="`doc_ids`")
        with np.errstate(over="ignore"):  # what float16 cannot hold becomes infinite, and is named
            rows = vectors.astype(STORED_AS[self._manifest.vector_dtype], copy=False)
        check_rows(rows, doc_ids, policy="error")
        entries = make_entries(doc_ids, texts, metadata)
        known = self._catalogue.find_known(doc_ids, num_rows=len(self))
        if known:
            raise DataError(
                f"`doc_ids` must be new to {self.path}, got {len(known)} known: "
                f"{', '.join(map(repr, known[:5]))}. Leave them out, or build the index again."
            )
        return rows, entries

    def _append(self, rows: Float[np.ndarray, "rows full"], entries: list[Entry]) -> Added:
        manifest = self._manifest
        with RowWriter(self.path / VECTORS, manifest.files[VECTORS]) as writer:
            writer.write(rows)
        encoded = self._tier.encode(rows)
        head_files = self._tier.append(self.path / manifest.head, encoded, manifest.head_files)
        self._catalogue.cut(manifest.num_rows)
        checksum = self._catalogue.append(
            entries, first_row=manifest.num_rows, checksum=manifest.catalogue_checksum
        )
        manifest = replace(
            manifest,
            generation=manifest.generation + 1,
            num_rows=manifest.num_rows + len(rows),
            files={
                VECTORS: writer.state,
                **{f"{manifest.head}/{name}": state for name, state in head_files.items()},
            },
            catalogue_checksum=checksum,
        )
        manifest.save(self.path)
        self._vectors = self._map_vectors(manifest)
        self._tier = self._tier.extended(encoded, self._vectors)
        self._engine.add(self._tier)
        # Last: whatever fails above, e.g. for lack of memory, the next call reads the folder again.
        self._manifest = manifest
        return Added(len(rows), encoded.num_clipped)

    def _hits(self, found: TopK) -> list[list[Hit]]:
        rows = np.unique(found.rows).tolist()
        entries = self._catalogue.lookup(rows)
        if len(entries) < len(rows):
            raise FormatError(
                f"{self.path / CATALOGUE} lacks {len(rows) - len(entries)} of the documents found. "
                f"Build the index again."
            )
        return [
            [_hit(entries[row], score) for row, score in zip(row_list, score_list, strict=True)]
            for row_list, score_list in zip(found.rows.tolist(), found.scores.tolist(), strict=True)
        ]


def _hit(entry: Entry, score: float) -> Hit:
    metadata = None if entry.metadata is None else json.loads(entry.metadata)
    return Hit(doc_id=entry.doc_id, score=score, text=entry.text, metadata=metadata)
