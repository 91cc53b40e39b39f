"""The compiled scan of packed signs with a query of 8-bit codes; importing this module imports numba.

The query's codes are cut into eight planes of one bit each. What a plane adds to the sum over the set
bits of a row is a count of bits, and one vector register counts all eight planes at once. The NumPy
twin that judges the scan stands in `tests/search/test_signs.py`.
"""

from typing import Any, no_type_check

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic

from nestling.core._kernels import _compile, keep_best

NUM_PLANES = 8
PLANE_WEIGHTS = (1, 2, 4, 8, 16, 32, 64, -128)
"""Two's complement: what a set bit of each plane is worth."""

_BIAS = 1 << 31
_LAST_ROW = (1 << 32) - 1

_WORD = ir.IntType(64)
_PLANES = ir.VectorType(_WORD, NUM_PLANES)


@no_type_check
def _sum_set_codes(typing_context: Any, row: Any, planes: Any, num_words: Any) -> Any:
    """Return the sum of the codes at the set bits of a row.

    Args:
        typing_context: What numba knows about types.
        row: Address of the row's words.
        planes: Address of the query's planes, of shape (words, NUM_PLANES).
        num_words: Words of a row, at least 1.
    """
    return types.int64(types.intp, types.intp, types.intp), _write_sum_set_codes


sum_set_codes = intrinsic(_sum_set_codes)


def _write_sum_set_codes(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    row, planes, num_words = arguments
    row = builder.inttoptr(row, _WORD.as_pointer())
    planes = builder.inttoptr(planes, _PLANES.as_pointer())
    before, loop = builder.block, builder.append_basic_block()
    after = builder.append_basic_block()
    builder.branch(loop)

    builder.position_at_end(loop)
    place = builder.phi(_WORD)
    counts = builder.phi(_PLANES)
    word = builder.load(builder.gep(row, [place]), align=1)
    first = builder.insert_element(_PLANES(ir.Undefined), word, ir.IntType(32)(0))
    lanes = ir.VectorType(ir.IntType(32), NUM_PLANES)([0] * NUM_PLANES)
    words = builder.shuffle_vector(first, _PLANES(ir.Undefined), lanes)
    common = builder.and_(words, builder.load(builder.gep(planes, [place]), align=8))
    count_bits = get_or_insert_function(
        builder.module, ir.FunctionType(_PLANES, [_PLANES]), f"llvm.ctpop.v{NUM_PLANES}i64"
    )
    next_counts = builder.add(counts, builder.call(count_bits, [common]))
    next_place = builder.add(place, _WORD(1))
    place.add_incoming(_WORD(0), before)
    place.add_incoming(next_place, loop)
    counts.add_incoming(_PLANES([0] * NUM_PLANES), before)
    counts.add_incoming(next_counts, loop)
    builder.cbranch(builder.icmp_signed("<", next_place, num_words), loop, after)

    builder.position_at_end(after)
    weighted = builder.mul(next_counts, _PLANES(PLANE_WEIGHTS))
    add_up = get_or_insert_function(
        builder.module,
        ir.FunctionType(_WORD, [_PLANES]),
        f"llvm.vector.reduce.add.v{NUM_PLANES}i64",
    )
    return builder.call(add_up, [weighted])


@_compile()
@no_type_check
def drop_far_ones(keys: np.ndarray, num_keys: int, num_wanted: int, slack: int) -> tuple[int, int]:
    """Keep the keys in reach of the k-th best; return how many these are, and the least sum in reach."""
    keep_best(keys[:num_keys], num_wanted)
    threshold = np.int64(keys[num_wanted - 1] >> np.uint64(32)) - _BIAS - slack
    num_kept = num_wanted
    for i in range(num_wanted, num_keys):
        if np.int64(keys[i] >> np.uint64(32)) - _BIAS >= threshold:
            keys[num_kept] = keys[i]
            num_kept += 1
    return num_kept, threshold


@_compile()
@no_type_check
def scan_signs(
    words: np.ndarray,
    planes: np.ndarray,
    bits: np.ndarray,
    start: int,
    stop: int,
    num_wanted: int,
    slack: int,
) -> np.ndarray:
    """Return the rows whose sums are at most `slack` below the k-th largest, in no order.

    Args:
        words: Packed signs, of shape (rows, words), uint64.
        planes: Of the query, of shape (words, NUM_PLANES), uint64.
        bits: Bitmap of the rows that may be found; none for all.
        start: First row.
        stop: One after the last row.
        num_wanted: k.
        slack: How far two sums may be from the order of the scores.
    """
    keys = np.empty(max(1024, 4 * num_wanted), np.uint64)
    num_keys, threshold = 0, -_BIAS
    num_words = words.shape[1]
    row_at, row_bytes, planes_at = words.ctypes.data, 8 * num_words, planes.ctypes.data
    for row in range(start, stop):
        if len(bits) and not (bits[row >> 3] >> np.uint8(row & 7)) & 1:
            continue
        total = sum_set_codes(row_at + row * row_bytes, planes_at, num_words)
        if total < threshold:
            continue
        keys[num_keys] = (np.uint64(total + _BIAS) << np.uint64(32)) | np.uint64(_LAST_ROW - row)
        num_keys += 1
        if num_keys == len(keys):
            num_keys, threshold = drop_far_ones(keys, num_keys, num_wanted, slack)
            if 2 * num_keys > len(keys):
                longer = np.empty(2 * len(keys), np.uint64)
                longer[:num_keys] = keys[:num_keys]
                keys = longer
    if num_keys > num_wanted:
        num_keys, threshold = drop_far_ones(keys, num_keys, num_wanted, slack)
    rows = np.empty(num_keys, np.int64)
    for i in range(num_keys):
        rows[i] = _LAST_ROW - np.int64(keys[i] & np.uint64(_LAST_ROW))
    return rows
