"""The compiled walk through a graph; importing this module imports numba.

A query goes from the best row it knows to that row's neighbours, and keeps the best rows it met in one
sorted window, until all of these were visited (the search of Subramanya et al. 2019, DiskANN, NeurIPS).
What this costs is waiting for memory, so three visits are under way at a time: of the first the
neighbours' codes are there and are scored, of the second the list of neighbours is there and their codes
are asked for, and of the third the list is asked for. Codes are asked for one row at a time, between the
rows that are scored: a processor waits when it is asked for more lines at once than it can keep track of.
The rows met before are one bit each, which stay in the first-level cache.

The NumPy twins that judge these loops stand in `tests/search/test_graph.py`.
"""

from typing import NamedTuple, no_type_check

import numpy as np

from nestling.core._kernels import _compile
from nestling.search._row_kernels import (
    BLOCK_BYTES,
    BLOCK_DIMS,
    FLOAT16,
    FLOAT32,
    INT4,
    INT8,
    LINE_BYTES,
    TAIL_BYTES,
    Layout,
    address_of,
    dot_float16,
    dot_float32,
    dot_int4,
    dot_int8,
    dot_signs,
    fetch_line,
    fetch_row,
    lay_out,
    load_single,
    score_row,
)
from nestling.search.graph._window_kernels import (
    KEY_LANES,
    LAST_ROW,
    LOW_32_BITS,
    empty_window,
    insert,
    make_key,
    row_of,
    score_of,
)

_LOW_6_BITS = np.uint64(63)
_SIX = np.uint64(6)
_ONE = np.uint64(1)


class Graph(NamedTuple):
    """What a walk reads.

    Attributes:
        layout: Where and how the rows lie.
        norms: Address of what their scores are divided by; 0 if that is 1.
        neighbours: Int32, of shape (slots, degree): near rows of each slot, filled up with the row itself.
        slots: Int32: slot of each row that has one; empty if slots are rows.
        entries: Int32: rows to start from, at least one, each with a slot.
    """

    layout: Layout
    norms: int
    neighbours: np.ndarray
    slots: np.ndarray
    entries: np.ndarray


class Query(NamedTuple):
    """What rows are scored with; see `score_row`.

    Attributes:
        address: Of its coordinates, laid out.
        constant: What to add to a product.
        num_blocks: Full blocks of a row.
        tail: Address of room for a block.
    """

    address: int
    constant: float
    num_blocks: int
    tail: int


class Lists(NamedTuple):
    """Two lists of rows in a room: uint64 places of their starts, and behind their ends.

    Attributes:
        start: Of the list whose codes are there.
        stop: Of the same.
        later_start: Of the list whose codes are to be asked for.
        later_stop: Of the same.
    """

    start: int
    stop: int
    later_start: int
    later_stop: int


class Room(NamedTuple):
    """What a walk overwrites; one thread needs one.

    Attributes:
        seen: Uint64: one bit per row.
        keys: Uint64: `KEY_LANES` greatest keys, then the window, then `KEY_LANES` places more.
        rows: Int32: room for the entries, and for two lists of neighbours.
        scores: Float32, as long as `rows`.
    """

    seen: np.ndarray
    keys: np.ndarray
    rows: np.ndarray
    scores: np.ndarray


@_compile()
@no_type_check
def slot_of(graph: Graph, row: int) -> int:
    """Return where the neighbours of a row are listed."""
    return np.uint64(graph.slots[np.uint64(row)]) if len(graph.slots) > 0 else np.uint64(row)


@_compile()
@no_type_check
def _fetch_neighbours(graph: Graph, row: int) -> None:
    list_bytes = np.uint64(graph.neighbours.strides[0])
    first = np.uint64(graph.neighbours.ctypes.data) + list_bytes * slot_of(graph, row)
    for line in range(np.uint64(0), list_bytes, np.uint64(LINE_BYTES)):
        fetch_line(first + line)


@_compile()
@no_type_check
def _list_unseen(graph: Graph, row: int, room: Room, start: int) -> int:
    """List the neighbours not met before, and return where the list ends."""
    slot, stop = slot_of(graph, row), start
    for i in range(np.uint64(graph.neighbours.shape[1])):
        near = np.uint64(graph.neighbours[slot, i])
        word, bit = room.seen[near >> _SIX], _ONE << (near & _LOW_6_BITS)
        room.seen[near >> _SIX] = word | bit
        room.rows[np.uint64(stop)] = near
        stop += np.int64(word & bit == 0)
    return stop


@_compile()
@no_type_check
def _fetch_listed(layout: Layout, norms: int, rows: np.ndarray, place: int, stop: int) -> None:
    if place < stop:
        fetch_row(layout, norms, rows[place])


@_compile()
@no_type_check
def _fetch_all(layout: Layout, norms: int, rows: np.ndarray, start: int, stop: int) -> None:
    for place in range(np.uint64(start), np.uint64(stop)):
        fetch_row(layout, norms, rows[place])


@_compile()
@no_type_check
def _lists(start: int, stop: int, later_start: int, later_stop: int) -> Lists:
    return Lists(np.uint64(start), np.uint64(stop), np.uint64(later_start), np.uint64(later_stop))


@_compile()
@no_type_check
def _multiply_floats(
    layout: Layout, norms: int, query: Query, rows: np.ndarray, lists: Lists, scores: np.ndarray
) -> None:
    first, stride = np.uint64(layout.address), np.uint64(layout.stride)
    at, num_blocks = query.address, query.num_blocks
    start, later, later_stop = lists.start, lists.later_start, lists.later_stop
    if layout.kind == FLOAT32:
        for i in range(start, lists.stop):
            _fetch_listed(layout, norms, rows, later + i - start, later_stop)
            scores[i] = dot_float32(first + np.uint64(rows[i]) * stride, at, num_blocks)[0]
    else:
        for i in range(start, lists.stop):
            _fetch_listed(layout, norms, rows, later + i - start, later_stop)
            scores[i] = dot_float16(first + np.uint64(rows[i]) * stride, at, num_blocks)[0]


@_compile()
@no_type_check
def _multiply_codes(
    layout: Layout, norms: int, query: Query, rows: np.ndarray, lists: Lists, scores: np.ndarray
) -> None:
    first, stride = np.uint64(layout.address), np.uint64(layout.stride)
    at, num_blocks = query.address, query.num_blocks
    start, later, later_stop = lists.start, lists.later_start, lists.later_stop
    if layout.kind == INT8:
        for i in range(start, lists.stop):
            _fetch_listed(layout, norms, rows, later + i - start, later_stop)
            scores[i] = dot_int8(first + np.uint64(rows[i]) * stride, at, num_blocks)[0]
    elif layout.kind == INT4:
        for i in range(start, lists.stop):
            _fetch_listed(layout, norms, rows, later + i - start, later_stop)
            scores[i] = dot_int4(first + np.uint64(rows[i]) * stride, at, num_blocks)[0]
    else:
        for i in range(start, lists.stop):
            _fetch_listed(layout, norms, rows, later + i - start, later_stop)
            scores[i] = dot_signs(first + np.uint64(rows[i]) * stride, at, num_blocks)[0]


@_compile()
@no_type_check
def score_listed(
    graph: Graph, query: Query, rows: np.ndarray, lists: Lists, scores: np.ndarray
) -> None:
    """Write the scores of listed rows, each as `score_row` computes it, and ask for those listed next.

    A call and a choice of the format per row would take as long as the product itself.
    """
    layout, norms, start, stop = graph.layout, graph.norms, lists.start, lists.stop
    whole_bytes = query.num_blocks * np.uint64(BLOCK_BYTES[layout.kind])
    is_split = layout.takes_norms or whole_bytes < np.uint64(layout.num_bytes)
    if is_split:
        for i in range(start, stop):
            _fetch_listed(layout, norms, rows, lists.later_start + i - start, lists.later_stop)
            scores[i] = score_row(
                layout,
                graph.norms,
                rows[i],
                query.address,
                query.constant,
                query.num_blocks,
                query.tail,
            )
    elif layout.kind in (FLOAT32, FLOAT16):
        _multiply_floats(layout, norms, query, rows, lists, scores)
    else:
        _multiply_codes(layout, norms, query, rows, lists, scores)
    _fetch_all(layout, norms, rows, lists.later_start + stop - start, lists.later_stop)
    if not is_split:
        for i in range(start, stop):
            score = scores[i] + query.constant
            if graph.norms != 0:
                score /= load_single(graph.norms + np.uint64(4) * np.uint64(rows[i]))
            scores[i] = score


@_compile()
@no_type_check
def _offer(
    graph: Graph, query: Query, room: Room, lists: Lists, size: int, window: int
) -> tuple[int, int]:
    """Score listed rows, and keep them if they are good enough; ask for those listed next.

    Args:
        graph: Where the rows lie.
        query: What to score them with.
        room: Its lists are read, its scores and its window are written.
        lists: Where they are.
        size: Keys in the window.
        window: Keys it may hold.

    Returns:
        Keys in the window now, and the first place that changed, or `window`.
    """
    score_listed(graph, query, room.rows, lists, room.scores)
    keys_at = np.uint64(room.keys.ctypes.data) + np.uint64(8 * KEY_LANES)
    last, first_changed = np.uint64(KEY_LANES + window - 1), np.int64(window)
    for i in range(lists.start, lists.stop):
        key = make_key(room.scores[i], room.rows[i])
        if key > room.keys[last]:
            place = insert(keys_at, min(size, window - 1), key)
            size = min(size + 1, window)
            first_changed = min(first_changed, place)
    return size, first_changed


@_compile()
@no_type_check
def walk(graph: Graph, query: Query, window: int, room: Room) -> tuple[int, int]:
    """Find rows that score high, and leave their keys in the room, the best first.

    Args:
        graph: Where to walk.
        query: What to score rows with.
        window: How many of the best rows to keep.
        room: Overwritten.

    Returns:
        How many keys the window holds, and how many rows were scored.
    """
    keys, degree = room.keys, np.int64(graph.neighbours.shape[1])
    room.seen[:] = 0
    empty_window(keys, window)
    num_scored = np.int64(len(graph.entries))
    for i in range(np.uint64(num_scored)):
        row = np.uint64(graph.entries[i])
        room.rows[i] = row
        room.seen[row >> _SIX] |= _ONE << (row & _LOW_6_BITS)
    size, _ = _offer(graph, query, room, _lists(0, num_scored, 0, 0), 0, window)
    best_open, visited = np.int64(0), np.int64(-1)
    start = stop = np.int64(0)
    while True:
        while best_open < size and keys[np.uint64(KEY_LANES + best_open)] & _ONE:
            best_open += 1
        next_visited = np.int64(-1)
        if best_open < size:
            place = np.uint64(KEY_LANES + best_open)
            keys[place] |= _ONE
            next_visited = row_of(keys[place])
            _fetch_neighbours(graph, next_visited)
        # The other half of the room than that of the list that is about to be scored.
        next_start = degree if start == 0 else np.int64(0)
        next_stop = next_start
        if visited >= 0:
            next_stop = _list_unseen(graph, visited, room, next_start)
        if start < stop:
            num_scored += stop - start
            lists = _lists(start, stop, next_start, next_stop)
            size, first_changed = _offer(graph, query, room, lists, size, window)
            best_open = min(best_open, first_changed)
        elif visited < 0 and next_visited < 0:
            return size, num_scored
        else:
            _fetch_all(graph.layout, graph.norms, room.rows, next_start, next_stop)
        start, stop, visited = next_start, next_stop, next_visited


@_compile()
@no_type_check
def _is_allowed(allowed: np.ndarray, row: int) -> bool:
    if len(allowed) == 0:
        return True
    return (allowed[np.uint64(row) >> np.uint64(3)] >> np.uint8(row & 7)) & np.uint8(1) != 0


@_compile()
@no_type_check
def collect(
    keys: np.ndarray, size: int, twins: np.ndarray, allowed: np.ndarray, best: np.ndarray, k: int
) -> int:
    """Copy the best keys of a window, and those of the rows equal to them; return how many.

    Args:
        keys: As in `Room`.
        size: Keys in the window.
        twins: Int32: the next higher row that equals each row, or -1; empty if no two rows are equal.
        allowed: Bitmap of the rows that may be found; empty for all.
        best: An array like `keys`; its window is written.
        k: How many to keep.
    """
    best_at, last = np.uint64(best.ctypes.data) + np.uint64(8 * KEY_LANES), KEY_LANES + k - 1
    num_best = 0
    empty_window(best, k)
    for i in range(np.uint64(KEY_LANES), np.uint64(KEY_LANES + size)):
        score = keys[i] & ~LOW_32_BITS
        # A row of the same score may be lower than one found before.
        if score | LOW_32_BITS < best[last]:
            break
        row = row_of(keys[i])
        while row >= 0:
            key = score | ((LAST_ROW - np.uint64(row)) << _ONE)
            if key < best[last]:
                break
            if _is_allowed(allowed, row):
                insert(best_at, min(num_best, k - 1), key)
                num_best = min(num_best + 1, k)
            row = np.int64(twins[np.uint64(row)]) if len(twins) > 0 else np.int64(-1)
    return num_best


@_compile()
@no_type_check
def search_rows(
    layout: Layout,
    norms: np.ndarray,
    neighbours: np.ndarray,
    slots: np.ndarray,
    entries: np.ndarray,
    twins: np.ndarray,
    allowed: np.ndarray,
    folded: np.ndarray,
    window: int,
    seen: np.ndarray,
    keys: np.ndarray,
    rows: np.ndarray,
    scores: np.ndarray,
    best: np.ndarray,
    found_rows: np.ndarray,
    found_scores: np.ndarray,
) -> int:
    """Search for some queries, and return how many rows were scored.

    Args:
        layout: As in `Graph`, and so are the next four. Single arrays reach compiled code faster.
        norms: Float32; empty if there are none.
        neighbours: See there.
        slots: See there.
        entries: See there.
        twins: As in `collect`.
        allowed: As in `collect`.
        folded: Queries, of shape (queries, dim).
        window: Rows to keep on the way, at least `k`.
        seen: As in `Room`, and so are the next three.
        keys: See there.
        rows: See there.
        scores: See there.
        best: As in `collect`.
        found_rows: Written: int64, of shape (queries, k), -1 behind the last.
        found_scores: Written: float32, likewise, minus infinity behind the last.
    """
    graph = Graph(layout, address_of(norms), neighbours, slots, entries)
    room = Room(seen, keys, rows, scores)
    laid_out, constants = lay_out(layout.kind, folded)
    num_blocks = np.uint64(folded.shape[1] // BLOCK_DIMS[layout.kind])
    tail = np.zeros(TAIL_BYTES, np.uint8)
    num_scored, k = 0, found_rows.shape[1]
    for q in range(len(folded)):
        # Addresses are taken inside of the loop: behind its last use an array is given back.
        address = np.uint64(laid_out.ctypes.data) + np.uint64(4 * q * laid_out.shape[1])
        query = Query(address, constants[q], num_blocks, np.uint64(tail.ctypes.data))
        size, num = walk(graph, query, window, room)
        num_scored += num
        num_best = collect(keys, size, twins, allowed, best, k)
        for i in range(num_best):
            found_rows[q, i] = row_of(best[KEY_LANES + i])
            found_scores[q, i] = score_of(best[KEY_LANES + i])
        found_rows[q, num_best:] = -1
        found_scores[q, num_best:] = -np.inf
    return num_scored
