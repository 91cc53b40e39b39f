"""A generation that is open for searching, with what one search leaves for the next."""

import gc
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import pairwise, repeat
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
from jaxtyping import Float, Float32, Int64

from nestling.errors import DataError, FormatError
from nestling.search.filter import compile_filter
from nestling.search.funnel import Funnel, check_queries
from nestling.search.manifest import Manifest, mark_of
from nestling.search.rowset import RowSet
from nestling.search.snapshot import Snapshot
from nestling.search.trace import SearchTrace

FILTERS_KEPT = 16


class Hit(NamedTuple):
    """One result of a search.

    Attributes:
        doc_id: Which document.
        score: Cosine at the width of the plan's last stage, in the format that stage reads.
        text: What was encoded, or None if the index was given no texts or none were asked for.
        metadata: What was given beside the text, or None, likewise.
    """

    doc_id: str
    score: float
    text: str | None
    metadata: Mapping[str, Any] | None


class Found(NamedTuple):
    """What a search found, by row.

    Attributes:
        rows: Rows of the index, best first; -1 where fewer were found. They mean the same until the
            index is compacted.
        scores: Cosines, as of a `Hit`; minus infinity where `rows` is -1.
        trace: What the search did.
    """

    rows: Int64[np.ndarray, "queries k"]
    scores: Float32[np.ndarray, "queries k"]
    trace: SearchTrace


_new_hit: Callable[[tuple[Any, ...]], Hit] = partial(tuple.__new__, Hit)
"""Makes a hit of a tuple of its parts, in half the time."""


@final
class Opened:
    """A generation that is open for searching, from several threads.

    Attributes:
        snapshot: All that a search reads.
        mark: What tells its manifest from a newer one.
    """

    def __init__(self, snapshot: Snapshot, mark: tuple[int, ...] | None) -> None:
        self.snapshot = snapshot
        self.mark = mark
        self._funnel = Funnel(snapshot)
        self._selected: OrderedDict[str, RowSet] = OrderedDict()
        self._lock = threading.Lock()

    def search(
        self,
        queries: Float[np.ndarray, "*batch width"],
        *,
        top_k: int,
        offset: int,
        where: str | None,
        num_threads: int,
    ) -> Found:
        """Return the best rows of each query from place `offset` on, by running the plan.

        Raises:
            VectorError: If a query is too narrow or too wide, zero, or not finite.
            DataError: If `top_k` or `offset` is out of range, or the filter is no filter.
            FormatError: If a row that is read is damaged.
        """
        if top_k < 1:
            raise DataError(f"`top_k` must be at least 1, got {top_k}. Ask for one hit or more.")
        if offset < 0:
            raise DataError(f"`offset` must be at least 0, got {offset}. Begin at the best hit.")
        snapshot = self.snapshot
        manifest = snapshot.manifest
        head_dim = manifest.plan.head.dim
        rows = check_queries(queries, head_dim=head_dim, embed_dim=manifest.embed_dim)
        allowed = snapshot.allowed_live
        num_allowed = manifest.num_live
        if where is not None:
            allowed = self._select(where)
            num_allowed = len(allowed)
        num_results = min(offset + top_k, num_allowed)
        if num_results <= offset or len(rows) == 0:
            return _nothing(len(rows), manifest.generation)
        ran = self._funnel.run(
            rows, num_results=num_results, allowed=allowed, num_threads=num_threads
        )
        trace = SearchTrace(manifest.generation, tuple(ran.stages), ran.certificate)
        if offset == 0:
            return Found(*ran.best, trace)
        return Found(ran.best.rows[:, offset:], ran.best.scores[:, offset:], trace)

    def hits(self, found: Found, *, with_documents: bool) -> list[list[Hit]]:
        """Return what was found as documents.

        Raises:
            FormatError: If one of them is damaged.
        """
        rows, scores = found.rows, found.scores
        num_hits = None
        if len(rows) == 1:
            rows, scores = rows[0], scores[0]
            if len(rows) and rows[-1] < 0:  # empty places come last
                is_hit = rows >= 0
                rows, scores = rows[is_hit], scores[is_hit]
        else:
            is_hit = rows >= 0
            num_hits = is_hit.sum(axis=1)
            rows, scores = rows[is_hit], scores[is_hit]
        doc_ids = self.snapshot.ids.lookup(rows)
        texts: Iterable[str | None] = repeat(None)
        metadata: Iterable[Mapping[str, Any] | None] = repeat(None)
        if with_documents:
            entries = self.snapshot.catalogue.lookup(np.unique(rows).tolist())
            whole = [entries[row] for row in rows.tolist()]
            texts = [entry.text for entry in whole]
            metadata = [_parse(entry.metadata) for entry in whole]
        parts = zip(doc_ids, scores.tolist(), texts, metadata, strict=False)
        if num_hits is None:
            return [list(map(_new_hit, parts))]
        with _collector_paused():
            flat = list(map(_new_hit, parts))
        ends = num_hits.cumsum().tolist()
        return [flat[start:end] for start, end in pairwise([0, *ends])]

    def _select(self, where: str) -> RowSet:
        with self._lock:
            if where in self._selected:
                self._selected.move_to_end(where)
                return self._selected[where]
        snapshot = self.snapshot
        selected = snapshot.catalogue.select(
            compile_filter(where),
            generation=snapshot.manifest.generation,
            num_rows=snapshot.num_rows,
        )
        if snapshot.allowed_live is not None:
            selected = selected & snapshot.allowed_live
        with self._lock:
            self._selected[where] = selected
            if len(self._selected) > FILTERS_KEPT:
                self._selected.popitem(last=False)
        return selected


def open_newest(path: Path, known: Opened | None = None) -> Opened:
    """Open the newest generation of an index, whatever writers do meanwhile.

    Args:
        path: The index folder.
        known: An older generation; of what it shares with the newest, only what is new is read.

    Raises:
        FormatError: If there is no index, or a file is missing, shorter than it should be, or
            damaged as far as it is read now.
    """
    while True:
        mark = mark_of(path)
        try:
            manifest = Manifest.load(path)
            snapshot = Snapshot.open(
                path, manifest, known=None if known is None else known.snapshot
            )
            return Opened(snapshot, mark)
        except (FormatError, OSError):
            # A writer may have switched, and removed what was about to be opened.
            if mark_of(path) == mark:
                raise


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Keep the garbage collector from looking at hits while they are made.

    Thousands of new objects make it look through all others of the process, again and again, which
    takes longer than the search; and none of them is garbage.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _nothing(num_queries: int, generation: int) -> Found:
    return Found(
        np.empty((num_queries, 0), np.int64),
        np.empty((num_queries, 0), np.float32),
        SearchTrace(generation=generation, stages=()),
    )


def _parse(metadata: str | None) -> Mapping[str, Any] | None:
    return None if metadata is None else json.loads(metadata)
