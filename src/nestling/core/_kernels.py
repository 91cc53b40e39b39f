"""The compiled inner loops of `nested_top_k`; importing this module imports numba.

The product is not left to BLAS, for four reasons: BLAS cannot hand its sums to the scan, or go on
adding to them, without a trip through memory; it is slow on the narrow bands of small prefixes; it
gives equal rows scores that differ in the last bits, depending on where in a matrix they stand, so
that ties would break at random; and its threads are one setting for the whole process. Here the
sums stay in vector registers (Goto and van de Geijn 2008, doi:10.1145/1356052.1356053), and each
is added up in one order, coordinate by coordinate.

All of it is one module because numba keeps compiled code for as long as the file of the outermost
function stays as it was, whatever happens to the files of the functions called from it. The NumPy
twins that judge these loops stand in `tests/core/test_kernels.py`.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar, no_type_check

import llvmlite.binding
import numpy as np
from jaxtyping import Float32
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from nestling.core._candidates import LOW_32_BITS, SIGN_BIT, Best, Queries

_HAS_WIDE_REGISTERS = bool(llvmlite.binding.get_host_cpu_features().get("avx512f"))

LANES = 32 if _HAS_WIDE_REGISTERS else 16
"""Rows multiplied at once: two vector registers of AVX-512 or AVX2, four of NEON."""

GROUP = 8 if _HAS_WIDE_REGISTERS else 6
"""Queries multiplied at once: with `LANES`, as many sums as there are registers for."""

BLOCK = 64
"""Scores that are compared with a threshold together; the rows of a tile are a multiple of it."""

# Coordinates turned over at a time: one cache line of each row.
_TURNED = 16
# Sums of products may be reordered (vector lanes); NaN and infinity keep their meaning.
_REORDER = frozenset({"reassoc", "contract", "nsz"})

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _compile(*, fastmath: frozenset[str] = frozenset()) -> Callable[[_Function], _Function]:
    def compile_function(function: _Function) -> _Function:
        options = {"nogil": True, "error_model": "numpy", "fastmath": set(fastmath) or False}
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:
            # Neither the package's folder nor a home can be written (a locked-down container):
            # the machine code cannot be kept, so every process compiles it once.
            return njit(**options)(function)

    return compile_function


@_compile()
@no_type_check
def invert_norms(squares: np.ndarray) -> None:
    """Turn squared norms of shape (widths, tile) into one over the norm, 0 staying 0."""
    for w in range(len(squares)):
        row = squares[w]
        for i in range(len(row)):
            row[i] = np.float32(1) / np.sqrt(row[i]) if row[i] > 0 else np.float32(0)


@_compile(fastmath=_REORDER)
@no_type_check
def dot_band(left: np.ndarray, right: np.ndarray, start: int, stop: int) -> float:
    """Return the dot product of coordinates `start` to `stop`."""
    dot = np.float32(0)
    # Unsigned numbers cannot count from the end, which a signed index would be checked for.
    for j in range(np.uint64(start), np.uint64(stop)):
        dot += left[j] * right[j]
    return dot


@no_type_check
def _add_products(
    typing_context: Any, rows: Any, queries: Any, depth: Any, sums: Any, stride: Any
) -> Any:
    """Add the dot products of `LANES` rows and `GROUP` queries to their sums.

    Written for the compiler in its own vector types: loops over scalars would be vectorised in the
    wrong direction and leave the sums in memory. Called from compiled code without the first
    argument, which numba gives.

    Args:
        typing_context: What numba knows about types.
        rows: Address of float32 coordinates of shape (depth, LANES).
        queries: Address of float32 coordinates of shape (depth, GROUP).
        depth: How many coordinates, at least 1.
        sums: Address of float32 sums of shape (GROUP, LANES).
        stride: From one query's sums to the next one's, in float32 numbers.
    """
    return types.void(*[types.intp] * 5), _write_add_products


add_products = intrinsic(_add_products)


def _write_add_products(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    single, index = ir.FloatType(), arguments[0].type
    vector = ir.VectorType(single, LANES)
    rows, queries, sums = (
        builder.inttoptr(arguments[place], single.as_pointer()) for place in (0, 1, 3)
    )
    depth, stride = arguments[2], arguments[4]

    def vector_at(address: Any, offset: Any) -> Any:
        return builder.bitcast(builder.gep(address, [offset]), vector.as_pointer())

    before, loop = builder.block, builder.append_basic_block()
    after = builder.append_basic_block()
    builder.branch(loop)

    builder.position_at_end(loop)
    k = builder.phi(index)
    totals = [builder.phi(vector) for _ in range(GROUP)]
    row_vector = builder.load(vector_at(rows, builder.mul(k, index(LANES))), align=4)
    query_place = builder.mul(k, index(GROUP))
    for j, total in enumerate(totals):
        query_at = builder.gep(queries, [builder.add(query_place, index(j))])
        query_vector = _repeat(builder, builder.load(query_at, align=4), vector)
        # "contract" lets one instruction multiply and add.
        product = builder.fmul(row_vector, query_vector, flags=["contract"])
        total.add_incoming(vector([0.0] * LANES), before)
        total.add_incoming(builder.fadd(total, product, flags=["contract"]), loop)
    next_k = builder.add(k, index(1))
    k.add_incoming(index(0), before)
    k.add_incoming(next_k, loop)
    builder.cbranch(builder.icmp_signed("<", next_k, depth), loop, after)

    builder.position_at_end(after)
    for j, total in enumerate(totals):
        sum_at = vector_at(sums, builder.mul(stride, index(j)))
        final = total.incomings[1][0]
        builder.store(builder.fadd(builder.load(sum_at, align=4), final), sum_at, align=4)
    return context.get_dummy_value()


def _repeat(builder: Any, value: Any, vector: Any) -> Any:
    undefined = vector(ir.Undefined)
    lane = ir.IntType(32)
    first = builder.insert_element(undefined, value, lane(0))
    return builder.shuffle_vector(first, undefined, ir.VectorType(lane, LANES)([0] * LANES))


@_compile()
@no_type_check
def turn_rows(rows: np.ndarray, panels: np.ndarray) -> None:
    """Lay `rows` out as the product reads them.

    Args:
        rows: Float32, of shape (n, full).
        panels: Written: of shape (tile / LANES, widest, LANES). Places of rows beyond n keep what
            they held.
    """
    widest = panels.shape[1]
    for first in range(0, len(rows), LANES):
        panel = panels[first // LANES]
        for start in range(0, widest, _TURNED):
            for i in range(first, min(first + LANES, len(rows))):
                row, lane = rows[i], np.uint64(i - first)
                for k in range(np.uint64(start), np.uint64(min(start + _TURNED, widest))):
                    panel[k, lane] = row[k]


@_compile()
@no_type_check
def pack_rows(rows: np.ndarray, widths: np.ndarray, panels: np.ndarray, norms: np.ndarray) -> None:
    """Lay `rows` out as the product reads them, and take the prefix norms on the way.

    Args:
        rows: Float32, of shape (n, full).
        widths: Ascending prefix widths.
        panels: Written, as by `turn_rows`.
        norms: Written: one over the prefix norms, of shape (widths, tile), the first n places.
    """
    for i in range(len(rows)):
        row = rows[i]
        square, start = np.float32(0), 0
        for w in range(len(widths)):
            square += dot_band(row, row, start, widths[w])
            norms[w, i] = square
            start = widths[w]
    invert_norms(norms[:, : len(rows)])
    turn_rows(rows, panels)


def group_vectors(
    vectors: Float32[np.ndarray, "vectors full"],
) -> Float32[np.ndarray, "groups full group"]:
    """Lay queries, or the columns of a matrix, out as the product reads them, zero-padded."""
    num_groups = math.ceil(len(vectors) / GROUP)
    padded = np.zeros((num_groups * GROUP, vectors.shape[1]), np.float32)
    padded[: len(vectors)] = vectors
    grouped = padded.reshape(num_groups, GROUP, vectors.shape[1])
    return np.ascontiguousarray(grouped.transpose(0, 2, 1))


@_compile()
@no_type_check
def multiply_group(
    panels: np.ndarray,
    num_panels: int,
    query_panels: np.ndarray,
    group: int,
    start: int,
    stop: int,
    dots: np.ndarray,
) -> None:
    """Add the products of coordinates `start` to `stop` to `dots`.

    Args:
        panels: Rows, of shape (tile / LANES, widest, LANES).
        num_panels: How many of these are in use.
        query_panels: Queries, of shape (groups, widest, GROUP).
        group: Which group of queries.
        start: First coordinate.
        stop: One after the last coordinate.
        dots: Updated: of shape (GROUP, tile).
    """
    widest, tile = panels.shape[1], dots.shape[1]
    query_place = (group * widest + start) * GROUP
    for p in range(num_panels):
        # Addresses, and no slices: counting the references to a slice costs more than the call.
        add_products(
            panels.ctypes.data + 4 * LANES * (p * widest + start),
            query_panels.ctypes.data + 4 * query_place,
            stop - start,
            dots.ctypes.data + 4 * LANES * p,
            tile,
        )


@_compile(fastmath=_REORDER)
@no_type_check
def dot_and_square_band(
    left: np.ndarray, right: np.ndarray, start: int, stop: int
) -> tuple[float, float]:
    """Return the dot product and the square of `left`, reading it from memory only once."""
    dot, square = np.float32(0), np.float32(0)
    for j in range(np.uint64(start), np.uint64(stop)):
        dot += left[j] * right[j]
        square += left[j] * left[j]
    return dot, square


@_compile()
@no_type_check
def dot_rows(
    rows: np.ndarray, queries: np.ndarray, widths: np.ndarray, dots: np.ndarray, norms: np.ndarray
) -> None:
    """Take all nested dot products and norms in one reading of `rows`.

    Args:
        rows: Float32, of shape (n, full).
        queries: Float32, of shape (queries, full), at least one.
        widths: Ascending prefix widths.
        dots: Written: of shape (widths, queries, tile), the first n places of a tile.
        norms: Written: one over the prefix norms, of shape (widths, tile), likewise.
    """
    for i in range(len(rows)):
        row = rows[i]
        query = queries[0]
        dot, square, start = np.float32(0), np.float32(0), 0
        for w in range(len(widths)):
            dot_added, square_added = dot_and_square_band(row, query, start, widths[w])
            dot += dot_added
            square += square_added
            dots[w, 0, i] = dot
            norms[w, i] = square
            start = widths[w]
        for q in range(1, len(queries)):
            query = queries[q]
            dot, start = np.float32(0), 0
            for w in range(len(widths)):
                dot += dot_band(row, query, start, widths[w])
                dots[w, q, i] = dot
                start = widths[w]
    invert_norms(norms[:, : len(rows)])


@_compile()
@no_type_check
def make_key(score: float, row: int) -> int:
    """Return the key of a candidate."""
    bits = np.float32(score).view(np.uint32)
    bits = ~bits if bits & SIGN_BIT else bits | SIGN_BIT
    return (np.uint64(bits) << np.uint64(32)) | np.uint64(LOW_32_BITS - row)


@_compile()
@no_type_check
def score_of_key(key: int) -> float:
    """Return the score in a key."""
    bits = np.uint32(key >> np.uint64(32))
    bits = bits ^ SIGN_BIT if bits & SIGN_BIT else ~bits
    return np.uint32(bits).view(np.float32)


@_compile()
@no_type_check
def keep_best(keys: np.ndarray, num_kept: int) -> None:
    """Move the `num_kept` largest keys to the front, the smallest of them last (Hoare 1961)."""
    low, high = 0, len(keys) - 1
    while low < high:
        pivot = keys[(low + high) >> 1]
        i, j = low, high
        while i <= j:
            while keys[i] > pivot:
                i += 1
            while keys[j] < pivot:
                j -= 1
            if i <= j:
                keys[i], keys[j] = keys[j], keys[i]
                i += 1
                j -= 1
        if num_kept - 1 <= j:
            high = j
        elif num_kept - 1 >= i:
            low = i
        else:
            return


@_compile()
@no_type_check
def scan_scores(
    dots: np.ndarray,
    norms: np.ndarray,
    query_norms: np.ndarray,
    first_query: int,
    first_row: int,
    num_rows: int,
    best: Best,
    w: int,
    num_kept: int,
) -> None:
    """Offer the scores of some queries with one tile to their best-so-far lists.

    Args:
        dots: Dot products, of shape (queries or more, tile).
        norms: One over the prefix norms of the tile's rows, of shape (widths, tile).
        query_norms: One over the prefix norms of all queries, of shape (widths, all queries).
        first_query: Which query the first of `dots` belongs to.
        first_row: Corpus row of the first column. Rows must come in ascending order from call to
            call: a later row that only equals the threshold has lost the tie.
        num_rows: Columns that count; the rest is padding.
        best: Updated.
        w: Which width.
        num_kept: Candidates kept when a list is full.
    """
    num_queries = min(len(dots), query_norms.shape[1] - first_query)
    for i in range(np.uint64(num_queries)):
        q = first_query + i
        threshold = best.thresholds[w, q]
        query_norm = query_norms[w, q]
        for start in range(np.uint64(0), np.uint64(num_rows), np.uint64(BLOCK)):
            num_above = np.int32(0)
            for j in range(start, start + np.uint64(BLOCK)):
                num_above += np.int32(dots[i, j] * norms[w, j] * query_norm > threshold)
            if num_above > 0:
                stop = min(start + np.uint64(BLOCK), np.uint64(num_rows))
                count = best.counts[w, q]
                for j in range(start, stop):
                    # Adding zero turns -0 into 0, which must tie with it.
                    score = dots[i, j] * norms[w, j] * query_norm + np.float32(0)
                    if score > threshold:
                        best.keys[w, q, count] = make_key(score, first_row + j)
                        count += 1
                        if count == best.keys.shape[2]:
                            keep_best(best.keys[w, q], num_kept)
                            count = num_kept
                            threshold = score_of_key(best.keys[w, q, num_kept - 1])
                best.counts[w, q] = count
                best.thresholds[w, q] = threshold


@_compile()
@no_type_check
def score_many(
    chunk: np.ndarray,
    first_row: int,
    tile: int,
    queries: Queries,
    widths: np.ndarray,
    best: Best,
    num_kept: int,
) -> None:
    """Score every row of `chunk` at every width, tile by tile, and update `best`.

    The rows of a tile stay in the second-level cache while every group of queries meets them; the
    scores of one group never leave the first.

    Args:
        chunk: Float32, read-only, of shape (rows, full).
        first_row: Corpus row of the first row of `chunk`.
        tile: Rows per tile, a multiple of `BLOCK`.
        queries: The queries.
        widths: Ascending prefix widths.
        best: Updated.
        num_kept: Candidates kept when a list is full.
    """
    panels = np.zeros((tile // LANES, widths[-1], LANES), np.float32)
    norms = np.zeros((len(widths), tile), np.float32)
    dots = np.empty((GROUP, tile), np.float32)
    for tile_start in range(0, len(chunk), tile):
        rows = chunk[tile_start : tile_start + tile]
        row = first_row + tile_start
        pack_rows(rows, widths, panels, norms)
        num_panels = (len(rows) + LANES - 1) // LANES
        for group in range(len(queries.panels)):
            dots[:] = 0
            start = 0
            for w in range(len(widths)):
                multiply_group(panels, num_panels, queries.panels, group, start, widths[w], dots)
                start = widths[w]
                first_query = group * GROUP
                scan_scores(
                    dots, norms, queries.norms, first_query, row, len(rows), best, w, num_kept
                )


@_compile()
@no_type_check
def score_few(
    chunk: np.ndarray,
    first_row: int,
    tile: int,
    queries: Queries,
    widths: np.ndarray,
    best: Best,
    num_kept: int,
) -> None:
    """Do the same as `score_many` in one plain reading of `chunk`, for a handful of queries."""
    num_queries = queries.norms.shape[1]
    dots = np.zeros((len(widths), num_queries, tile), np.float32)
    norms = np.zeros((len(widths), tile), np.float32)
    for tile_start in range(0, len(chunk), tile):
        rows = chunk[tile_start : tile_start + tile]
        dot_rows(rows, queries.rows, widths, dots, norms)
        row = first_row + tile_start
        for w in range(len(widths)):
            scan_scores(dots[w], norms, queries.norms, 0, row, len(rows), best, w, num_kept)


@_compile()
@no_type_check
def multiply_rows(rows: np.ndarray, columns: np.ndarray, products: np.ndarray) -> None:
    """Write the product of some rows and a matrix.

    Args:
        rows: Float32, read-only, of shape (n, full).
        columns: The matrix, its columns laid out by `group_vectors`.
        products: Written: of shape (n, groups * GROUP).
    """
    panels = np.zeros((BLOCK // LANES, rows.shape[1], LANES), np.float32)
    dots = np.empty((GROUP, BLOCK), np.float32)
    for first in range(0, len(rows), BLOCK):
        tile = rows[first : first + BLOCK]
        turn_rows(tile, panels)
        for group in range(len(columns)):
            dots[:] = 0
            multiply_group(panels, len(panels), columns, group, 0, rows.shape[1], dots)
            for i in range(len(tile)):
                for j in range(GROUP):
                    products[first + i, group * GROUP + j] = dots[j, i]
