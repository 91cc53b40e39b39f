"""An index: full vectors once, tiers derived from them, and a catalogue of what they mean."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
from jaxtyping import Float, Int64

from nestling.core import Fingerprint, check_same_space
from nestling.core.progress import Progress, silent
from nestling.data.types import Corpus
from nestling.encode import VectorFolder
from nestling.errors import FormatError
from nestling.search.backup import copy_generation
from nestling.search.build import Content, choose_plan, match_entries, write_generation
from nestling.search.changes import addition, check_new, deletion, replacement
from nestling.search.compact import compact_generation
from nestling.search.derive import Work, threads_to_use
from nestling.search.folder import empty_folder, is_index, new_folder
from nestling.search.manifest import Manifest, mark_of
from nestling.search.migrate import migrate
from nestling.search.opened import Found, Hit, open_newest
from nestling.search.plan import Plan
from nestling.search.resize import resize_generation
from nestling.search.snapshot import Snapshot
from nestling.search.verify import verify_generation
from nestling.search.writer import Change, overwriting, switch, write_change, writing


class Added(NamedTuple):
    """What `Index.add` or `Index.upsert` did.

    Attributes:
        num_rows: Documents added or replaced.
        num_clipped: Values outside the int8 range that was calibrated when the tier was derived;
            they were clipped to it. Many of them call for building the index again.
    """

    num_rows: int
    num_clipped: int


@final
class Index:
    """An opened index folder; a context manager.

    One process at a time may write to a folder, any number may read it. A reader keeps seeing the
    generation that it opened until it calls `refresh`, or writes. Several threads may use one opened
    index; it must not cross a fork.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        migrate(path)
        self._opened = open_newest(path)
        self._lock = threading.RLock()

    @classmethod
    def open(cls, path: Path) -> "Index":
        """Open an index folder; head tier and engine are read into RAM, full vectors are mapped.

        An index of an older format version is written anew first.

        Raises:
            FormatError: If it is not an index, a file is missing or truncated, what is read into RAM
                is damaged, or the format is newer than this version reads.
            MissingExtraError: If its engine needs a package that is not installed.
            WriteError: If it is of an older version and cannot be written.
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
        num_threads: int | None = None,
    ) -> "Index":
        """Write an index folder and open it; killed at any point, `path` is what it was before.

        Args:
            path: The folder to write.
            vectors: Full-width vectors, which are copied.
            corpus: Texts and metadata of these documents; it may hold more documents.
            plan: The funnel to run; by default one exact stage over the full width.
            overwrite: Whether to replace an index that is there already. Its readers go on, and see
                the new one when they refresh.
            progress: Counts rows.
            num_threads: Threads to use; by default, all processors.

        Raises:
            DataError: If there are no vectors, an id is repeated, or the corpus lacks a document
                or holds another text than the one that was encoded.
            DimensionError, FingerprintError, FormatError: If the plan does not fit the vectors.
            FormatError: If the vectors differ from their checksums.
            MissingExtraError: If the plan's engine needs a package that is not installed.
            WriteError: If `path` exists, or cannot be written.
        """
        plan = choose_plan(vectors, plan)
        entries = match_entries(vectors, corpus)
        # Before the copy gets checksums of its own, which would vouch for any damage.
        vectors.verify()
        content = Content(vectors=vectors.vectors, entries=entries, fingerprint=vectors.fingerprint)
        threads = threads_to_use(num_threads)
        if overwrite and is_index(path):
            with overwriting(path) as generation:
                work = Work(
                    path=path, generation=generation, num_threads=threads, progress=progress
                )
                switch(path, write_generation(work, content, plan))
        else:
            with new_folder(path) as folder:
                work = Work(path=folder, generation=1, num_threads=threads, progress=progress)
                write_generation(work, content, plan).save(folder)
        return cls(path)

    def __len__(self) -> int:
        return self._manifest.num_live

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the catalogue; without it, that happens when the index is no longer used."""
        self._opened.snapshot.catalogue.close()

    @property
    def snapshot(self) -> Snapshot:
        """All of the generation that a search reads now."""
        return self._opened.snapshot

    @property
    def plan(self) -> Plan:
        """The funnel that `search` runs."""
        return self._manifest.plan

    @property
    def fingerprint(self) -> Fingerprint:
        """What made the vectors."""
        return self._manifest.fingerprint

    @property
    def nesting_dims(self) -> tuple[int, ...]:
        """Prefix widths that plans of this index have read, ascending; the last is the full one."""
        return self._manifest.nesting_dims

    @property
    def generation(self) -> int:
        """How many changes were committed, counting from 1."""
        return self._manifest.generation

    @property
    def num_rows(self) -> int:
        """Rows stored, those of deleted and replaced documents included."""
        return self._manifest.num_rows

    @property
    def head_bytes(self) -> int:
        """RAM that the head tier takes; of a full-width head, only what it adds to the vectors."""
        return self._opened.snapshot.head.num_bytes

    @property
    def engine_bytes(self) -> int:
        """RAM that the engine takes beyond the head tier."""
        return self._opened.snapshot.engine.num_bytes

    @property
    def full_bytes(self) -> int:
        """Disk that the full vectors take."""
        return self._opened.snapshot.vectors.rows.nbytes

    def doc_ids(self, rows: Int64[np.ndarray, " rows"]) -> list[str]:
        """Return the ids of rows, each at least 0 and below `num_rows`."""
        return self._opened.snapshot.ids.lookup(rows)

    def live_vectors(self) -> tuple[Float[np.ndarray, "documents full"], list[str]]:
        """Return the full vectors of all documents, checked, and their ids, in the order of rows.

        Nothing is copied unless there are deleted or replaced documents among them.

        Raises:
            FormatError: If a stored row is damaged.
        """
        snapshot = self._opened.snapshot
        vectors, live = snapshot.vectors, snapshot.allowed_live
        vectors.ensure_span(0, len(vectors.rows))
        rows = np.arange(len(vectors.rows)) if live is None else live.rows
        return vectors.rows if live is None else vectors.rows[rows], snapshot.ids.lookup(rows)

    def check_encoder(self, fingerprint: Fingerprint) -> None:
        """Refuse an encoder whose queries cannot be compared with the documents.

        Raises:
            FingerprintError: If the spaces differ; the message names both.
        """
        check_same_space(
            self.fingerprint, fingerprint, left_name=f"index {self.path}", right_name="the encoder"
        )

    def refresh(self) -> bool:
        """Move to the newest generation; it costs next to nothing if this is the newest.

        Returns:
            Whether there was a newer one.

        Raises:
            FormatError: If it cannot be read; this index then stays where it was.
        """
        with self._lock:
            opened = self._opened
            if mark_of(self.path) == opened.mark:
                return False
            self._opened = open_newest(self.path, opened)
            return self._opened.snapshot.manifest != opened.snapshot.manifest

    def search(
        self,
        queries: Float[np.ndarray, "*batch width"],
        *,
        top_k: int = 10,
        offset: int = 0,
        where: str | None = None,
        with_documents: bool = True,
        num_threads: int = 1,
    ) -> list[list[Hit]]:
        """Return the best documents of each query, best first, by running the plan.

        Within a generation, pages join: `offset=10` goes on where `top_k=10` ended.

        Args:
            queries: Rows at least as wide as the head, one per query; their length does not matter.
                Stages wider than the queries are cut to their width.
            top_k: At least 1; above the number of documents, all of them are returned.
            offset: How many of the best to leave out.
            where: A filter over metadata, such as 'year >= 2020 and lang == "en"'; None for all.
            with_documents: Whether hits carry texts and metadata.
            num_threads: Threads to use.

        Raises:
            VectorError: If a query is of another width, zero, or not finite.
            DataError: If `top_k` or `offset` is out of range, or `where` is no filter.
            FormatError: If a row or document that is read is damaged.
        """
        opened = self._opened
        found = opened.search(
            queries, top_k=top_k, offset=offset, where=where, num_threads=num_threads
        )
        return opened.hits(found, with_documents=with_documents)

    def explain(
        self,
        queries: Float[np.ndarray, "*batch width"],
        *,
        top_k: int = 10,
        offset: int = 0,
        where: str | None = None,
        num_threads: int = 1,
    ) -> Found:
        """Search, and return rows and what was done to find them; arguments and errors as in `search`."""
        return self._opened.search(
            queries, top_k=top_k, offset=offset, where=where, num_threads=num_threads
        )

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

        A tier with a scale keeps it. What another process wrote since this index was opened is seen
        afterwards.

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
        with self._writing() as snapshot:
            self.check_encoder(fingerprint)
            new = check_new(snapshot.manifest, vectors, doc_ids, texts, metadata)
            return self._write(addition(self.path, snapshot, *new))

    def upsert(
        self,
        vectors: Float[np.ndarray, "rows width"],
        *,
        doc_ids: Sequence[str],
        fingerprint: Fingerprint,
        texts: Sequence[str] | None = None,
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> Added:
        """Add documents, and replace those whose ids are known; otherwise the same as `add`."""
        with self._writing() as snapshot:
            self.check_encoder(fingerprint)
            new = check_new(snapshot.manifest, vectors, doc_ids, texts, metadata)
            return self._write(replacement(snapshot, *new))

    def delete(self, doc_ids: Sequence[str]) -> int:
        """Delete documents; when it returns, that is on the disk. Their space is freed by `compact`.

        Returns:
            How many were deleted: as many as there are ids.

        Raises:
            DataError: If an id is repeated or unknown; then nothing is deleted.
            WriteError: If the folder cannot be written, or another process is writing.
        """
        with self._writing() as snapshot:
            self._write(deletion(self.path, snapshot, doc_ids))
            return len(doc_ids)

    def resize(
        self, plan: Plan, *, progress: Progress = silent, num_threads: int | None = None
    ) -> None:
        """Search by another plan from now on: other widths, formats or engine. Nothing is encoded again.

        Tiers and the engine are derived from the stored vectors unless they are there already. Readers go on
        meanwhile. Formats with a scale are calibrated on all rows that are stored.

        Raises:
            DimensionError, FingerprintError, FormatError: If the plan does not fit the vectors.
            FormatError: If a stored vector is damaged.
            MissingExtraError: If the plan's engine needs a package that is not installed.
            WriteError: If the folder cannot be written, or another process is writing.
        """
        with self._writing() as snapshot:
            work = self._work(snapshot, progress, num_threads)
            switch(self.path, resize_generation(work, snapshot, plan))
            self.refresh()

    def compact(self, *, progress: Progress = silent, num_threads: int | None = None) -> bool:
        """Drop what was deleted, and let the engine take in what was added. Readers go on meanwhile.

        Rows are numbered anew; the scores of documents stay what they are.

        Returns:
            Whether there was anything to do.

        Raises:
            FormatError: If a stored row is damaged.
            WriteError: If the folder cannot be written, or another process is writing.
        """
        with self._writing() as snapshot:
            work = self._work(snapshot, progress, num_threads)
            manifest = compact_generation(work, snapshot)
            if manifest is None:
                return False
            switch(self.path, manifest)
            self.refresh()
            return True

    def verify(self, *, progress: Progress = silent) -> None:
        """Read every committed byte of the newest generation and compare it with its checksum.

        Raises:
            FormatError: Naming every damaged file.
        """
        self.verify_folder(self.path, progress=progress)

    @classmethod
    def verify_folder(cls, path: Path, *, progress: Progress = silent) -> None:
        """Do the same as `verify` for an index that need not be opened, and perhaps cannot be.

        Raises:
            FormatError: Naming every damaged file; or if the manifest is missing, damaged or newer.
        """
        migrate(path)
        _on_newest(path, lambda manifest: verify_generation(path, manifest, progress=progress))

    def backup(self, path: Path, *, progress: Progress = silent) -> None:
        """Copy the newest generation to a new folder, while others may read and write.

        Every byte is checked on the way.

        Raises:
            FormatError: If a file is damaged; the message names it.
            WriteError: If `path` exists, or cannot be written.
        """
        with new_folder(path) as folder:

            def copy(manifest: Manifest) -> None:
                empty_folder(folder)
                copy_generation(self.path, manifest, folder, progress=progress)

            _on_newest(self.path, copy)

    @property
    def _manifest(self) -> Manifest:
        return self._opened.snapshot.manifest

    @contextmanager
    def _writing(self) -> Iterator[Snapshot]:
        """Hold the lock of the folder, and yield its newest generation, which this index moves to."""
        with self._lock, writing(self.path):
            self.refresh()
            yield self._opened.snapshot

    def _work(self, snapshot: Snapshot, progress: Progress, num_threads: int | None) -> Work:
        return Work(
            path=self.path,
            generation=snapshot.manifest.generation + 1,
            num_threads=threads_to_use(num_threads),
            progress=progress,
        )

    def _write(self, change: Change) -> Added:
        if not change.entries and not len(change.dead):
            return Added(0, 0)
        num_clipped = write_change(self.path, self._opened.snapshot, change)
        self.refresh()
        return Added(len(change.entries), num_clipped)


def _on_newest(path: Path, read: Callable[[Manifest], None]) -> None:
    """Run `read` on the newest generation of an index, and again if a writer moved on meanwhile."""
    while True:
        mark = mark_of(path)
        try:
            return read(Manifest.load(path))
        except (FormatError, FileNotFoundError):
            if mark_of(path) == mark:
                raise
