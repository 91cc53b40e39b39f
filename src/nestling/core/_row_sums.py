"""The compiled loops of `row_sums`; importing this module imports numba."""

from typing import Any, no_type_check

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from nestling.core._kernels import _compile

LANES = 8
"""Words multiplied at once: their products fill one vector register of AVX-512."""

CHAINS = 4
"""Sums added up side by side, so that no addition waits for the one before."""


@no_type_check
def _sum_words(typing_context: Any, words: Any, factors: Any, num_blocks: Any) -> Any:
    """Return the sum of the products of words and factors.

    Written for the compiler in its own vector types: it does not turn the plain loop into vectors that
    keep up with memory. Called from compiled code without the first argument, which numba gives.

    Args:
        typing_context: What numba knows about types.
        words: Address of 32-bit words, which need not be aligned.
        factors: Address of 64-bit factors.
        num_blocks: How many times `CHAINS` x `LANES` of them there are, at least 1.
    """
    return types.uint64(*[types.uintp] * 3), _write_sum_words


sum_words = intrinsic(_sum_words)


def _write_sum_words(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    words, factors, num_blocks = arguments
    index = words.type
    narrow, wide = (ir.VectorType(ir.IntType(bits), LANES) for bits in (32, 64))

    def vectors_at(base: Any, place: Any, kind: Any, size: int) -> list[Any]:
        first = builder.add(base, builder.mul(place, index(size * LANES * CHAINS)))
        addresses = (builder.add(first, index(size * LANES * chain)) for chain in range(CHAINS))
        return [
            builder.load(builder.inttoptr(address, kind.as_pointer()), align=1)
            for address in addresses
        ]

    before, loop = builder.block, builder.append_basic_block()
    after = builder.append_basic_block()
    builder.branch(loop)

    builder.position_at_end(loop)
    place = builder.phi(index)
    totals = [builder.phi(wide) for _ in range(CHAINS)]
    loaded = vectors_at(words, place, narrow, 4), vectors_at(factors, place, wide, 8)
    for total, word, factor in zip(totals, *loaded, strict=True):
        total.add_incoming(wide([0] * LANES), before)
        product = builder.mul(builder.zext(word, wide), factor)
        total.add_incoming(builder.add(total, product), loop)
    next_place = builder.add(place, index(1))
    place.add_incoming(index(0), before)
    place.add_incoming(next_place, loop)
    builder.cbranch(builder.icmp_unsigned("<", next_place, num_blocks), loop, after)

    builder.position_at_end(after)
    ends = [total.incomings[1][0] for total in totals]
    while len(ends) > 1:
        ends = [builder.add(left, right) for left, right in zip(ends[::2], ends[1::2], strict=True)]
    sums = [builder.extract_element(ends[0], ir.IntType(32)(lane)) for lane in range(LANES)]
    while len(sums) > 1:
        sums = [builder.add(left, right) for left, right in zip(sums[::2], sums[1::2], strict=True)]
    return sums[0]


@_compile()
@no_type_check
def sum_row(rows: np.ndarray, row: int, factors: np.ndarray, total: int) -> int:
    """Return the sum of one row, added to `total`."""
    num_bytes = np.uint64(rows.shape[1])
    num_blocks = num_bytes // np.uint64(4 * LANES * CHAINS)
    if num_blocks > 0:
        address = np.uint64(rows.ctypes.data) + np.uint64(row) * num_bytes
        total += sum_words(address, np.uint64(factors.ctypes.data), num_blocks)
    for j in range(np.uint64(4 * LANES * CHAINS) * num_blocks, num_bytes):
        part = np.uint64(rows[row, j]) << (np.uint64(8) * (j & np.uint64(3)))
        total += part * factors[j >> np.uint64(2)]
    return total


@_compile()
@no_type_check
def sum_rows(rows: np.ndarray, factors: np.ndarray, first: int, sums: np.ndarray) -> None:
    """Write the sum of every row."""
    for i in range(len(rows)):
        sums[i] = sum_row(rows, i, factors, first)


@_compile()
@no_type_check
def check_rows(
    rows: np.ndarray,
    sums: np.ndarray,
    seen: np.ndarray,
    wanted: np.ndarray,
    factors: np.ndarray,
    first: int,
) -> int:
    """Return the first wanted row that differs from its sum, or -1; mark the sound ones."""
    for i in range(len(wanted)):
        row = wanted[i]
        if row >= 0 and seen[row] == 0:
            if sum_row(rows, row, factors, first) != sums[row]:
                return row
            seen[row] = 1
    return -1


@_compile()
@no_type_check
def check_span(
    rows: np.ndarray,
    sums: np.ndarray,
    seen: np.ndarray,
    start: int,
    stop: int,
    factors: np.ndarray,
    first: int,
) -> int:
    """Return the first row from `start` to `stop` - 1 that differs from its sum, or -1."""
    for row in range(start, stop):
        if seen[row] == 0:
            if sum_row(rows, row, factors, first) != sums[row]:
                return row
            seen[row] = 1
    return -1
