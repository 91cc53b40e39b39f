"""The compiled loops that give rows their neighbours; importing this module imports numba.

A stored row is widened into a query, with which any other row is scored: no decoded copy of the rows is
made. The NumPy twins that judge these loops stand in `tests/search/test_graph.py`.
"""

from typing import Any, no_type_check

import numpy as np
from numba import types
from numba.extending import intrinsic

from nestling.core._kernels import _compile
from nestling.search._row_kernels import (
    BLOCK_BYTES,
    BLOCK_DIMS,
    FLOAT16,
    FLOAT32,
    INDEX,
    INT4,
    INT8,
    LANES,
    READERS,
    SIGNS,
    SINGLES,
    Layout,
    load_byte,
    load_single,
    score_row,
    store_byte,
)
from nestling.search.graph._walk_kernels import Graph, Query, Room, slot_of, walk
from nestling.search.graph._window_kernels import KEY_LANES, make_key, row_of, score_of


def _make_widen(kind: int) -> Any:
    @no_type_check
    def widen(typing_context: Any, row: Any, numbers: Any, num_blocks: Any) -> Any:
        """Write the codes of blocks of a row as float32 numbers; all but the count are addresses."""

        def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            row, numbers, num_blocks = arguments
            before = builder.block
            head, body, after = (builder.append_basic_block() for _ in range(3))
            builder.branch(head)
            builder.position_at_end(head)
            block = builder.phi(INDEX)
            block.add_incoming(INDEX(0), before)
            builder.cbranch(builder.icmp_unsigned("<", block, num_blocks), body, after)
            builder.position_at_end(body)
            row_at = builder.add(row, builder.mul(block, INDEX(int(BLOCK_BYTES[kind]))))
            place = builder.add(numbers, builder.mul(block, INDEX(4 * int(BLOCK_DIMS[kind]))))
            for part, values in enumerate(READERS[kind](builder, row_at)):
                part_at = builder.add(place, INDEX(4 * LANES * part))
                pointer = builder.inttoptr(part_at, SINGLES.as_pointer())
                builder.store(values, pointer, align=4)
            block.add_incoming(builder.add(block, INDEX(1)), body)
            builder.branch(head)
            builder.position_at_end(after)
            return context.get_dummy_value()

        return types.void(types.uintp, types.uintp, types.uintp), write

    return intrinsic(widen)


_widen_float32 = _make_widen(FLOAT32)
_widen_float16 = _make_widen(FLOAT16)
_widen_int8 = _make_widen(INT8)
_widen_int4 = _make_widen(INT4)
_widen_signs = _make_widen(SIGNS)


@_compile()
@no_type_check
def _widen(kind: int, row: int, numbers: int, num_blocks: int) -> None:
    if kind == FLOAT32:
        _widen_float32(row, numbers, num_blocks)
    elif kind == FLOAT16:
        _widen_float16(row, numbers, num_blocks)
    elif kind == INT8:
        _widen_int8(row, numbers, num_blocks)
    elif kind == INT4:
        _widen_int4(row, numbers, num_blocks)
    else:
        _widen_signs(row, numbers, num_blocks)


@_compile()
@no_type_check
def query_of_row(
    layout: Layout, norms: int, weights: np.ndarray, row: int, numbers: np.ndarray, tail: np.ndarray
) -> Query:
    """Return a stored row as a query: its score with another row is their cosine.

    Args:
        layout: Where and how rows lie.
        norms: Address of the norms of all rows, or 0.
        weights: Float32, in the order of `lay_out`: what a product of two rows' codes is multiplied with
            in each dimension; 0 behind the last.
        row: Which row.
        numbers: Float32, as long as `weights`; overwritten, and what the query points at.
        tail: Uint8, one block, zeros where a row has no bytes in its last block; overwritten.
    """
    kind = layout.kind
    address = np.uint64(layout.address) + np.uint64(row) * np.uint64(layout.stride)
    num_blocks = np.uint64(layout.num_bytes) // np.uint64(BLOCK_BYTES[kind])
    numbers_at, tail_at = np.uint64(numbers.ctypes.data), np.uint64(tail.ctypes.data)
    _widen(kind, address, numbers_at, num_blocks)
    done = num_blocks * np.uint64(BLOCK_BYTES[kind])
    num_left = np.uint64(layout.num_bytes) - done
    if num_left > 0:
        for i in range(num_left):
            store_byte(tail_at + i, load_byte(address + done + i))
        place = np.uint64(4) * num_blocks * np.uint64(BLOCK_DIMS[kind])
        _widen(kind, tail_at, numbers_at + place, np.uint64(1))
    factor = np.float32(1)
    if norms != 0:
        factor /= load_single(norms + np.uint64(4) * np.uint64(row))
    constant = np.float32(0)
    if kind == SIGNS:
        # A sign is twice its bit, less one: here in the query, and in the rows by `lay_out`'s rule.
        for j in range(np.uint64(len(weights))):
            value = (np.float32(2) * numbers[j] - np.float32(1)) * weights[j]
            constant -= value
            numbers[j] = np.float32(2) * value
    else:
        for j in range(np.uint64(len(weights))):
            numbers[j] *= weights[j] * factor
    return Query(numbers_at, constant, num_blocks, tail_at)


@_compile()
@no_type_check
def _score(graph: Graph, query: Query, row: int) -> float:
    return score_row(
        graph.layout,
        graph.norms,
        row,
        query.address,
        query.constant,
        query.num_blocks,
        query.tail,
    )


@_compile()
@no_type_check
def choose_neighbours(
    graph: Graph,
    weights: np.ndarray,
    keys: np.ndarray,
    numbers: np.ndarray,
    tail: np.ndarray,
    chosen: np.ndarray,
) -> int:
    """Choose neighbours of a row among others, the nearest first; return how many.

    One that is nearer to another already chosen than to the row itself is left out: it is reached by way
    of that one (Malkov and Yashunin 2016, arXiv:1603.09320, algorithm 4).

    Args:
        graph: Where rows lie.
        weights: As in `query_of_row`.
        keys: Of the others, descending; scores are cosines with the row.
        numbers: As in `query_of_row`.
        tail: As in `query_of_row`.
        chosen: Written: int32, the first places.
    """
    count = 0
    for i in range(len(keys)):
        row, distance = row_of(keys[i]), np.float32(1) - score_of(keys[i])
        query = query_of_row(graph.layout, graph.norms, weights, row, numbers, tail)
        is_wanted = True
        for j in range(np.uint64(count)):
            if np.float32(1) - _score(graph, query, chosen[j]) < distance:
                is_wanted = False
                break
        if is_wanted:
            chosen[np.uint64(count)] = row
            count += 1
            if count == len(chosen):
                break
    return count


@_compile()
@no_type_check
def link_rows(
    graph: Graph,
    weights: np.ndarray,
    rows: np.ndarray,
    window: int,
    room: Room,
    numbers: np.ndarray,
    tail: np.ndarray,
    links: np.ndarray,
) -> None:
    """Give new rows their neighbours; they are nobody's neighbours yet.

    Args:
        graph: The lists of `rows` are written, and no others.
        weights: As in `query_of_row`.
        rows: Int32: the new rows.
        window: Near rows to choose from.
        room: Overwritten.
        numbers: As in `query_of_row`.
        tail: As in `query_of_row`.
        links: Written: int64 of shape (rows, degree): the neighbour in the upper half, the new row in the
            lower one; -1 where there are fewer neighbours.
    """
    for i in range(len(rows)):
        row = rows[i]
        query = query_of_row(graph.layout, graph.norms, weights, row, numbers, tail)
        size, _ = walk(graph, query, window, room)
        chosen = graph.neighbours[slot_of(graph, row)]
        keys = room.keys[KEY_LANES : KEY_LANES + size]
        count = choose_neighbours(graph, weights, keys, numbers, tail, chosen)
        chosen[count:] = row
        for j in range(count):
            links[i, j] = np.int64(chosen[j]) << 32 | np.int64(row)
        links[i, count:] = -1


@_compile()
@no_type_check
def link_back(
    graph: Graph,
    weights: np.ndarray,
    links: np.ndarray,
    starts: np.ndarray,
    room: Room,
    numbers: np.ndarray,
    tail: np.ndarray,
) -> None:
    """Add new rows to the lists of their neighbours, and choose anew where a list overflows.

    Args:
        graph: The lists of the neighbours are written, and no others.
        weights: As in `query_of_row`.
        links: As `link_rows` wrote them, ascending, without -1.
        starts: Where the links of each neighbour start, and where the last one's end.
        room: Overwritten. Its window has a place for each neighbour and new row of the longest list.
        numbers: As in `query_of_row`.
        tail: As in `query_of_row`.
    """
    degree = graph.neighbours.shape[1]
    for group in range(len(starts) - 1):
        start, stop = starts[group], starts[group + 1]
        row = np.int32(links[start] >> 32)
        near = graph.neighbours[slot_of(graph, row)]
        count = 0
        while count < degree and near[count] != row:
            count += 1
        if count + stop - start <= degree:
            for i in range(start, stop):
                near[count + i - start] = np.int32(links[i])
            continue
        query = query_of_row(graph.layout, graph.norms, weights, row, numbers, tail)
        keys = room.keys[KEY_LANES : KEY_LANES + count + stop - start]
        for i in range(count):
            keys[i] = make_key(_score(graph, query, near[i]), near[i])
        for i in range(start, stop):
            other = np.int32(links[i])
            keys[count + i - start] = make_key(_score(graph, query, other), other)
        keys[:] = np.sort(keys)[::-1]
        count = choose_neighbours(graph, weights, keys, numbers, tail, near)
        near[count:] = row


@_compile()
@no_type_check
def add_entries(
    graph: Graph, rows: np.ndarray, seen: np.ndarray, open_rows: np.ndarray, added: np.ndarray
) -> int:
    """Find rows that make all others reachable when they join the entries; return how many.

    Args:
        graph: Where to look.
        rows: Int32: all rows that have a slot.
        seen: Uint64, one bit per row, all zero; overwritten.
        open_rows: Int32, as long as `rows`; overwritten.
        added: Written: int32, as long as `rows`, the first places.
    """
    num_added = 0
    for i in range(len(graph.entries) + len(rows)):
        row = np.int32(rows[i - len(graph.entries)])
        if i < len(graph.entries):
            row = np.int32(graph.entries[i])
        word, bit = np.uint64(row) >> np.uint64(6), np.uint64(1) << np.uint64(row & 63)
        if seen[word] & bit:
            continue
        if i >= len(graph.entries):
            added[num_added] = row
            num_added += 1
        seen[word] |= bit
        open_rows[0], num_open = row, 1
        while num_open > 0:
            num_open -= 1
            for near in graph.neighbours[slot_of(graph, open_rows[num_open])]:
                word, bit = np.uint64(near) >> np.uint64(6), np.uint64(1) << np.uint64(near & 63)
                if not seen[word] & bit:
                    seen[word] |= bit
                    open_rows[num_open] = near
                    num_open += 1
    return num_added
