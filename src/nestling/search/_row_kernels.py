"""The score of one row, read where it lies; importing this module imports numba.

Rows are read in the format they are stored in, and widened in registers: what a score costs is bytes,
and an unpacked copy of a row would be written and read once more. Every (row, query) pair is summed up
alone and in one order. The NumPy twins that judge it stand in `tests/search/test_rescore.py`.

numba keeps compiled code for as long as the file of the outermost function stays as it was: whoever
changes this module removes what is kept of the modules that call it (`__pycache__/*.nb?`).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, no_type_check

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from nestling.core._kernels import _compile

FLOAT32, FLOAT16, INT8, INT4, SIGNS = range(5)
"""How the coordinates of a row are stored."""

LANES = 16
"""Numbers multiplied at once: one vector register of AVX-512, two of AVX2, four of NEON."""

CHAINS = 4
"""Sums added up side by side, so that no addition waits for the one before."""

LONG_ROW_BYTES = 2048
"""Of rows longer than this, only the first part is fetched: the processor sees by itself how they go on,
and too many lines asked for at once hold up those that are waited for."""

FIRST_BYTES = 1024
"""That first part."""

LINE_BYTES = 64

BLOCK_BYTES = np.array([4 * LANES, 2 * LANES, LANES, LANES, LANES // 8])
BLOCK_DIMS = np.array([LANES, LANES, LANES, 2 * LANES, LANES])

TAIL_BYTES = 4 * LANES

_FEATURES = llvmlite.binding.get_host_cpu_features()
_WIDENS_HALVES = bool(_FEATURES.get("f16c") or _FEATURES.get("fullfp16") or _FEATURES.get("neon"))


class Layout(NamedTuple):
    """Where and how the rows of a tier lie.

    Attributes:
        kind: How coordinates are stored.
        address: Of the first row.
        stride: From one row to the next, in bytes.
        num_bytes: Of a row.
        num_rows: How many there are.
        takes_norms: Whether rows are of any length, so that their norms are taken on the way; of
            float rows only.
    """

    kind: int
    address: int
    stride: int
    num_bytes: int
    num_rows: int
    takes_norms: bool


INDEX = ir.IntType(64)
SINGLES = ir.VectorType(ir.FloatType(), LANES)
_ZEROS = SINGLES([0.0] * LANES)


def _load(builder: Any, address: Any, kind: Any) -> Any:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=1)


def _repeated(bits: int, value: int) -> Any:
    return ir.VectorType(ir.IntType(bits), LANES)([value] * LANES)


def _read_float32(builder: Any, row: Any) -> list[Any]:
    return [_load(builder, row, SINGLES)]


def _read_float16(builder: Any, row: Any, widens: bool = _WIDENS_HALVES) -> list[Any]:
    if widens:
        halves = _load(builder, row, ir.VectorType(ir.HalfType(), LANES))
        return [builder.fpext(halves, SINGLES)]
    # As `unpack.widen_float16` does; without an instruction for it, the compiler would call a function.
    halves = _load(builder, row, ir.VectorType(ir.IntType(16), LANES))
    bits = builder.shl(
        builder.sext(halves, ir.VectorType(ir.IntType(32), LANES)), _repeated(32, 13)
    )
    bits = builder.and_(bits, _repeated(32, 0x8FFFE000))
    return [builder.fmul(builder.bitcast(bits, SINGLES), SINGLES([2.0**112] * LANES))]


def _read_int8(builder: Any, row: Any) -> list[Any]:
    codes = _load(builder, row, ir.VectorType(ir.IntType(8), LANES))
    return [builder.sitofp(builder.sext(codes, ir.VectorType(ir.IntType(32), LANES)), SINGLES)]


def _read_int4(builder: Any, row: Any) -> list[Any]:
    packed = _load(builder, row, ir.VectorType(ir.IntType(8), LANES))
    four = _repeated(8, 4)
    wide = ir.VectorType(ir.IntType(32), LANES)
    halves = builder.ashr(builder.shl(packed, four), four), builder.ashr(packed, four)
    return [builder.sitofp(builder.sext(half, wide), SINGLES) for half in halves]


def _read_signs(builder: Any, row: Any) -> list[Any]:
    """Return 1 where a bit is set and 0 elsewhere, in the order of the bits."""
    bits = _load(builder, row, ir.IntType(LANES))
    mask = builder.bitcast(bits, ir.VectorType(ir.IntType(1), LANES))
    return [builder.select(mask, SINGLES([1.0] * LANES), _ZEROS)]


READERS: tuple[Callable[[Any, Any], list[Any]], ...] = (
    _read_float32,
    _read_float16,
    _read_int8,
    _read_int4,
    _read_signs,
)


def _add_blocks(
    builder: Any, arguments: Any, sums: list[Any], *, kind: int, num_chains: int, squares: bool
) -> list[Any]:
    """Write a loop over blocks of a row and its query; return the sums after it.

    Args:
        builder: Of the code around it.
        arguments: Row address, query address, first block, and one after the last; the number of
            blocks is a multiple of `num_chains`.
        sums: Vectors that products are added to, `num_chains` of them; behind these as many for
            squares, if there are any.
        kind: How the row is stored.
        num_chains: Blocks per turn.
        squares: Whether to add up squares.
    """
    row, query, start, stop = arguments
    row_step, query_step = int(BLOCK_BYTES[kind]), 4 * int(BLOCK_DIMS[kind])
    before = builder.block
    head, body, after = (builder.append_basic_block() for _ in range(3))
    builder.branch(head)

    builder.position_at_end(head)
    place = builder.phi(INDEX)
    place.add_incoming(start, before)
    totals = [builder.phi(SINGLES) for _ in sums]
    for total, value in zip(totals, sums, strict=True):
        total.add_incoming(value, before)
    builder.cbranch(builder.icmp_unsigned("<", place, stop), body, after)

    builder.position_at_end(body)
    results = list(totals)
    for chain in range(num_chains):
        block = builder.add(place, INDEX(chain))
        row_at = builder.add(row, builder.mul(block, INDEX(row_step)))
        query_at = builder.add(query, builder.mul(block, INDEX(query_step)))
        for part, values in enumerate(READERS[kind](builder, row_at)):
            part_at = builder.add(query_at, INDEX(4 * LANES * part))
            weights = _load(builder, part_at, SINGLES)
            results[chain] = _multiply_add(builder, values, weights, results[chain])
            if squares:
                place_of = num_chains + chain
                results[place_of] = _multiply_add(builder, values, values, results[place_of])
    place.add_incoming(builder.add(place, INDEX(num_chains)), body)
    for total, result in zip(totals, results, strict=True):
        total.add_incoming(result, body)
    builder.branch(head)

    builder.position_at_end(after)
    return totals


def _multiply_add(builder: Any, left: Any, right: Any, total: Any) -> Any:
    # "contract" lets one instruction multiply and add.
    product = builder.fmul(left, right, flags=["contract"])
    return builder.fadd(product, total, flags=["contract"])


def _add_up(builder: Any, vectors: list[Any]) -> Any:
    while len(vectors) > 1:
        vectors = [
            builder.fadd(left, right)
            for left, right in zip(vectors[::2], vectors[1::2], strict=True)
        ]
    width, total = LANES, vectors[0]
    lane = ir.IntType(32)
    while width > 1:
        width //= 2
        numbers = ir.VectorType(lane, width)
        low, high = (
            builder.shuffle_vector(total, total, numbers(list(range(first, first + width))))
            for first in (0, width)
        )
        total = builder.fadd(low, high)
    return builder.extract_element(total, lane(0))


def _dot_blocks(kind: int, squares: bool, typing_context: Any, *_: Any) -> Any:
    """Return the dot product of a row and a query, and the square of the row.

    Written for the compiler in its own vector types: addresses of a row and of a query (laid out by
    `lay_out`), and a number of blocks.
    """

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        row, query, num_blocks = arguments
        whole = builder.and_(num_blocks, INDEX(-CHAINS))
        sums = [_ZEROS] * (2 * CHAINS if squares else CHAINS)
        add = partial(_add_blocks, kind=kind, squares=squares)
        sums = add(builder, (row, query, INDEX(0), whole), sums, num_chains=CHAINS)
        firsts = [0, CHAINS] if squares else [0]
        rest = add(
            builder, (row, query, whole, num_blocks), [sums[i] for i in firsts], num_chains=1
        )
        for first, total in zip(firsts, rest, strict=True):
            sums[first] = total
        dot = _add_up(builder, sums[:CHAINS])
        square = _add_up(builder, sums[CHAINS:]) if squares else ir.FloatType()(0.0)
        return context.make_tuple(builder, signature.return_type, [dot, square])

    pair = types.UniTuple(types.float32, 2)
    return pair(types.uintp, types.uintp, types.uintp), write


def _make_dot(kind: int, *, squares: bool = False) -> Any:
    @no_type_check
    def dot(typing_context: Any, row: Any, query: Any, num_blocks: Any) -> Any:
        return _dot_blocks(kind, squares, typing_context)

    return intrinsic(dot)


dot_float32 = _make_dot(FLOAT32)
dot_float16 = _make_dot(FLOAT16)
dot_int8 = _make_dot(INT8)
dot_int4 = _make_dot(INT4)
dot_signs = _make_dot(SIGNS)
dot_and_square_float32 = _make_dot(FLOAT32, squares=True)
dot_and_square_float16 = _make_dot(FLOAT16, squares=True)


@no_type_check
def _fetch_line(typing_context: Any, address: Any) -> Any:
    """Ask for the cache line at an address, without waiting for it."""

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        name = "llvm.prefetch.p0i8"
        function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        read, keep, data = number(0), number(3), number(1)
        builder.call(function, [builder.inttoptr(arguments[0], pointer), read, keep, data])
        return context.get_dummy_value()

    return types.void(types.uintp), write


fetch_line = intrinsic(_fetch_line)


@no_type_check
def _load_byte(typing_context: Any, address: Any) -> Any:
    """Return the byte at an address."""

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _load(builder, arguments[0], ir.IntType(8))

    return types.uint8(types.uintp), write


load_byte = intrinsic(_load_byte)


@no_type_check
def _load_single(typing_context: Any, address: Any) -> Any:
    """Return the float32 number at an address."""

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _load(builder, arguments[0], ir.FloatType())

    return types.float32(types.uintp), write


load_single = intrinsic(_load_single)


@no_type_check
def _store_byte(typing_context: Any, address: Any, value: Any) -> Any:
    """Write the byte at an address."""

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, value = arguments
        builder.store(value, builder.inttoptr(address, ir.IntType(8).as_pointer()))
        return context.get_dummy_value()

    return types.void(types.uintp, types.uint8), write


store_byte = intrinsic(_store_byte)


@_compile()
@no_type_check
def dot_row(kind: int, squares: bool, row: int, query: int, num_blocks: int) -> tuple[float, float]:
    """Return the dot product of a row and a query, and the square of the row or 0."""
    if kind == FLOAT32:
        if squares:
            return dot_and_square_float32(row, query, num_blocks)
        return dot_float32(row, query, num_blocks)
    if kind == FLOAT16:
        if squares:
            return dot_and_square_float16(row, query, num_blocks)
        return dot_float16(row, query, num_blocks)
    if kind == INT8:
        return dot_int8(row, query, num_blocks)
    if kind == INT4:
        return dot_int4(row, query, num_blocks)
    return dot_signs(row, query, num_blocks)


@_compile()
@no_type_check
def lay_out(kind: int, folded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return folded queries as the rows of a kind are multiplied with them.

    Args:
        kind: How rows are stored.
        folded: What to multiply unpacked codes with, of shape (queries, dim).

    Returns:
        The queries, padded with zeros to one block more than are full, and what to add to the
        products of each.
    """
    num_queries, dim = folded.shape
    block = BLOCK_DIMS[kind]
    laid_out = np.zeros((num_queries, (dim // block + 1) * block), np.float32)
    constants = np.zeros(num_queries, np.float32)
    for q in range(num_queries):
        constant = np.float32(0)
        for j in range(np.uint64(dim)):
            place, value = j, folded[q, j]
            if kind == INT4:
                # A block holds the low halves of its bytes, then the high ones.
                half = np.uint64(LANES) * (j & np.uint64(1))
                first = j & ~np.uint64(2 * LANES - 1)
                place = first + half + ((j >> np.uint64(1)) & np.uint64(LANES - 1))
            elif kind == SIGNS:
                # The first sign is the highest bit of its byte. A sign is twice its bit, less one.
                place = j ^ np.uint64(7)
                constant -= value
                value *= np.float32(2)
            laid_out[q, place] = value
        constants[q] = constant
    return laid_out, constants


@_compile()
@no_type_check
def fetch_row(layout: Layout, norms: int, row: int) -> None:
    """Ask for the cache lines of a row, and for its norm."""
    if norms != 0:
        fetch_line(norms + np.uint64(4) * np.uint64(row))
    address = np.uint64(layout.address) + np.uint64(row) * np.uint64(layout.stride)
    is_long = layout.num_bytes > LONG_ROW_BYTES
    stop = address + np.uint64(FIRST_BYTES if is_long else layout.num_bytes)
    line = address & ~np.uint64(LINE_BYTES - 1)
    while line < stop:
        fetch_line(line)
        line += np.uint64(LINE_BYTES)


@_compile()
@no_type_check
def score_row(
    layout: Layout, norms: int, row: int, query: int, constant: float, num_blocks: int, tail: int
) -> float:
    """Return the score of one row.

    Addresses, and no arrays: counting the references to these costs more than the call.

    Args:
        layout: Where and how rows lie.
        norms: Address of the norms of all rows; 0 if they are 1, or taken on the way.
        row: Which row.
        query: Address of a query from `lay_out`.
        constant: What to add to its products.
        num_blocks: Full blocks of a row.
        tail: Address of room for a block: zeros where a row has no bytes in its last block.
    """
    kind = layout.kind
    address = np.uint64(layout.address) + np.uint64(row) * np.uint64(layout.stride)
    dot, square = dot_row(kind, layout.takes_norms, address, query, num_blocks)
    done = num_blocks * np.uint64(BLOCK_BYTES[kind])
    num_left = np.uint64(layout.num_bytes) - done
    if num_left > 0:
        for i in range(num_left):
            store_byte(tail + i, load_byte(address + done + i))
        query += np.uint64(4) * num_blocks * np.uint64(BLOCK_DIMS[kind])
        rest = dot_row(kind, layout.takes_norms, tail, query, np.uint64(1))
        dot, square = dot + rest[0], square + rest[1]
    score = dot + constant
    if layout.takes_norms:
        score = score / np.sqrt(square) if square > 0 else np.float32(0)
    elif norms != 0:
        score = score / load_single(norms + np.uint64(4) * np.uint64(row))
    return score


@_compile()
@no_type_check
def address_of(norms: np.ndarray) -> int:
    """Return where norms lie; 0 if there are none."""
    return np.uint64(norms.ctypes.data) if len(norms) > 0 else np.uint64(0)
