"""A graph over the rows of a tier, built in batches.

All rows of a batch look for their neighbours in the graph of the batches before it, and only then become
neighbours themselves (Manohar et al. 2024, ParlayANN, doi:10.1145/3627535.3638475). So rows of one batch
do not depend on each other, and the graph is the same whatever the number of threads.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple, final

import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt8

from nestling.core.progress import Progress
from nestling.core.row_sums import row_sums
from nestling.search.graph.parts import GraphParts, WalkRoom, number_nodes
from nestling.search.rescore import RowScorer
from nestling.search.rowfile import aligned_empty
from nestling.search.tier import SIGNS, Tier

NUM_ENTRIES = 64
"""Rows that every walk starts from: a random sample, so that one of them is near."""

BATCH_SHARE = 0.02
SMALLEST_BATCH = 64
"""A batch is this share of all rows, but not fewer rows than this, nor more than are linked by now."""

ROWS_AT_ONCE = 1 << 16
SEED = 0


def link_rows(
    tier: Tier,
    *,
    degree: int,
    window: int,
    num_threads: int,
    progress: Progress,
    known: GraphParts | None = None,
) -> GraphParts:
    """Return a graph over all rows of a tier, of which there is at least one.

    Args:
        tier: Its rows.
        degree: Most neighbours of a row.
        window: Near rows that these are chosen from.
        num_threads: Threads to use.
        progress: Counts rows.
        known: A graph over the first rows of the tier; it is left as it is.
    """
    twins = find_twins(tier)
    is_node = _is_node(twins)
    nodes = np.flatnonzero(is_node).astype(np.int32)
    num_known = 0 if known is None else len(known.neighbours)
    neighbours = aligned_empty((len(nodes), degree), np.int32)
    neighbours[:] = nodes[:, None]
    new = np.random.default_rng(SEED).permutation(nodes[num_known:])
    entries = new[:NUM_ENTRIES]
    if known is not None:
        neighbours[:num_known] = known.neighbours
        entries = known.entries
    has_twins = len(nodes) < len(twins)
    twins = twins if has_twins else twins[:0]
    parts = GraphParts(
        neighbours=neighbours, entries=entries, twins=twins, slots=number_nodes(twins)
    )
    linker = _Linker(tier, parts, window, num_threads)
    linker.link(new, num_known, progress)
    return linker.completed(nodes)


def find_twins(tier: Tier) -> Int32[np.ndarray, " rows"]:
    """Return the next higher row with the same codes for each row of a tier, or -1."""
    sums = row_sums(tier.codes)
    order = np.argsort(sums, kind="stable")
    lower, higher = order[:-1], order[1:]
    may_be = sums[lower] == sums[higher]
    lower, higher = lower[may_be], higher[may_be]
    twins = np.full(len(tier), -1, np.int32)
    for start in range(0, len(lower), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        is_equal = (tier.codes[lower[part]] == tier.codes[higher[part]]).all(axis=1)
        twins[lower[part][is_equal]] = higher[part][is_equal]
    return twins


def _is_node(twins: Int32[np.ndarray, " rows"]) -> Bool[np.ndarray, " rows"]:
    is_node = np.ones(len(twins), dtype=bool)
    is_node[twins[twins >= 0]] = False
    return is_node


class _Bench(NamedTuple):
    """What one thread overwrites while it links rows."""

    room: Any
    numbers: Float32[np.ndarray, " laid_out"]
    tail: UInt8[np.ndarray, " bytes"]


@final
class _Linker:
    """Links rows into a graph."""

    def __init__(self, tier: Tier, parts: GraphParts, window: int, num_threads: int) -> None:
        # Here and not above: numba takes a third of a second to import.
        from nestling.search._row_kernels import TAIL_BYTES
        from nestling.search.graph import _link_kernels, _walk_kernels

        self._kernels, self._walk_kernels = _link_kernels, _walk_kernels
        self._tail_bytes = TAIL_BYTES
        self._parts = parts
        self._num_rows = len(tier)
        self._window = window
        self._num_threads = num_threads
        self._scorer = RowScorer(tier)
        self._norms_at = 0 if tier.norms is None else tier.norms.ctypes.data
        self._weights = _lay_out_weights(tier, self._scorer.layout.kind)

    def link(self, rows: Int32[np.ndarray, " new"], num_known: int, progress: Progress) -> None:
        """Link rows that are linked to nothing, in this order, when so many others are linked."""
        total = num_known + len(rows)
        batch = max(SMALLEST_BATCH, int(BATCH_SHARE * total))
        done = 0 if num_known else 1
        with ThreadPoolExecutor(self._num_threads, thread_name_prefix="link") as executor:
            while done < len(rows):
                progress("link rows", num_known + done, total)
                stop = min(done + batch, 2 * done + num_known, len(rows))
                num_entries = NUM_ENTRIES if num_known else done
                self._link_batch(rows[done:stop], num_entries, executor)
                done = stop
        progress("link rows", total, total)

    def completed(self, nodes: Int32[np.ndarray, " nodes"]) -> GraphParts:
        """Return the graph with more entries, so that every node can be reached."""
        seen = np.zeros(self._num_rows // 64 + 1, np.uint64)
        added, open_rows = np.empty_like(nodes), np.empty_like(nodes)
        graph = self._graph(len(self._parts.entries))
        num_added = self._kernels.add_entries(graph, nodes, seen, open_rows, added)
        return replace(
            self._parts, entries=np.concatenate([self._parts.entries, added[:num_added]])
        )

    def _link_batch(
        self, rows: Int32[np.ndarray, " batch"], num_entries: int, executor: ThreadPoolExecutor
    ) -> None:
        graph = self._graph(num_entries)
        degree = self._parts.neighbours.shape[1]
        links = np.empty((len(rows), degree), np.int64)

        def link(part: slice) -> None:
            bench = self._bench(self._window)
            self._kernels.link_rows(
                graph, self._weights, rows[part], self._window, *bench, links[part]
            )

        list(executor.map(link, _parts(len(rows), self._num_threads)))
        flat = np.sort(links[links >= 0])
        neighbours = flat >> 32
        starts = np.flatnonzero(np.diff(neighbours, prepend=-1, append=-1))
        longest = int(np.diff(starts).max())

        def link_back(part: slice) -> None:
            bench = self._bench(degree + longest)
            bounds = starts[part.start : part.stop + 1]
            self._kernels.link_back(graph, self._weights, flat, bounds, *bench)

        list(executor.map(link_back, _parts(len(starts) - 1, self._num_threads)))

    def _graph(self, num_entries: int) -> Any:
        parts = self._parts
        return self._walk_kernels.Graph(
            self._scorer.layout,
            self._norms_at,
            parts.neighbours,
            parts.slots,
            parts.entries[:num_entries],
        )

    def _bench(self, window: int) -> _Bench:
        room = WalkRoom(self._parts, self._num_rows, window)
        return _Bench(
            self._walk_kernels.Room(room.seen, room.keys, room.rows, room.scores),
            np.zeros(len(self._weights), np.float32),
            np.zeros(self._tail_bytes, np.uint8),
        )


def _lay_out_weights(tier: Tier, kind: int) -> Float32[np.ndarray, " laid_out"]:
    """Return what a product of two rows' codes counts, in the order of the compiled code."""
    from nestling.search._row_kernels import lay_out

    weights = np.ones(tier.dim, np.float32) if tier.scale is None else tier.scale**2
    if tier.dtype in SIGNS:
        weights /= 2 * tier.dim  # half, for `lay_out` doubles what signs are multiplied with
    return lay_out(kind, weights[None])[0][0]


def _parts(num: int, num_parts: int) -> list[slice]:
    bounds = [num * part // num_parts for part in range(num_parts + 1)]
    return list(map(slice, bounds[:-1], bounds[1:]))
