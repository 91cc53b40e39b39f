"""A sorted window of scored rows, one number each; importing this module imports numba.

The NumPy twins that judge these loops stand in `tests/search/test_graph.py`.
"""

from typing import Any, no_type_check

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from nestling.core._kernels import _compile

KEY_LANES = 8
"""Keys of the window that move at once. So many places of an array of keys lie before the window, and hold
the greatest number."""

LAST_ROW = np.uint64((1 << 31) - 1)
LOW_32_BITS = np.uint64((1 << 32) - 1)

_SIGN_BIT = np.uint32(1 << 31)
_VISITED_BITS = np.uint64(1)


@_compile()
@no_type_check
def make_key(score: float, row: int) -> int:
    """Return a number that sorts as the score does, the lower row first where scores are equal.

    The lowest bit is free: it marks visited rows.
    """
    # Adding zero turns -0 into 0, which must tie with it.
    bits = np.float32(score + np.float32(0)).view(np.uint32)
    bits = ~bits if bits & _SIGN_BIT else bits | _SIGN_BIT
    return (np.uint64(bits) << np.uint64(32)) | ((LAST_ROW - np.uint64(row)) << _VISITED_BITS)


@_compile()
@no_type_check
def row_of(key: int) -> int:
    """Return the row in a key."""
    return np.int64(LAST_ROW - ((key & LOW_32_BITS) >> _VISITED_BITS))


@_compile()
@no_type_check
def score_of(key: int) -> float:
    """Return the score in a key."""
    bits = np.uint32(key >> np.uint64(32))
    bits = bits ^ _SIGN_BIT if bits & _SIGN_BIT else ~bits
    return np.uint32(bits).view(np.float32)


@no_type_check
def _insert(typing_context: Any, keys: Any, place: Any, key: Any) -> Any:
    """Put a key where it belongs in a descending window, and return where that is.

    All keys from there on move down by one: new[i] = max(old[i], min(old[i - 1], key)), a vector at a
    time, from the end, until a vector starts with a greater key.

    Args:
        typing_context: What numba knows about types.
        keys: Address of the window; a greatest key lies before it.
        place: From here on all keys are smaller, or may be dropped; the keys behind this one's vector
            are left where they are.
        key: Not in the window.
    """

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        keys_at, last, key = arguments
        index, lane = last.type, ir.IntType(32)
        vector = ir.VectorType(ir.IntType(64), KEY_LANES)
        undefined = vector(ir.Undefined)
        one = builder.insert_element(undefined, key, lane(0))
        spread = builder.shuffle_vector(one, undefined, ir.VectorType(lane, KEY_LANES)(None))
        first = builder.inttoptr(keys_at, ir.IntType(64).as_pointer())
        before, loop = builder.block, builder.append_basic_block()
        after = builder.append_basic_block()
        start = builder.and_(last, index(-KEY_LANES))
        builder.branch(loop)

        builder.position_at_end(loop)
        here = builder.phi(index)
        here_at, above_at = (
            builder.bitcast(builder.gep(first, [place]), vector.as_pointer())
            for place in (here, builder.sub(here, index(1)))
        )
        old, above = builder.load(here_at, align=8), builder.load(above_at, align=8)
        is_greater = builder.icmp_unsigned(">", old, spread)
        moved = builder.select(builder.icmp_unsigned("<", above, spread), above, spread)
        new = builder.select(builder.icmp_unsigned(">", old, moved), old, moved)
        builder.store(new, here_at, align=8)
        next_here = builder.sub(here, index(KEY_LANES))
        here.add_incoming(start, before)
        here.add_incoming(next_here, loop)
        is_done = builder.or_(
            builder.extract_element(is_greater, lane(0)),
            builder.icmp_signed("<", next_here, index(0)),
        )
        builder.cbranch(is_done, after, loop)

        builder.position_at_end(after)
        mask = builder.bitcast(is_greater, ir.IntType(KEY_LANES))
        return builder.add(here, builder.zext(builder.ctpop(mask), index))

    return types.intp(types.uintp, types.intp, types.uint64), write


insert = intrinsic(_insert)


@_compile()
@no_type_check
def empty_window(keys: np.ndarray, window: int) -> None:
    """Leave no key in a window."""
    # Whole vectors: what the last one holds behind the window must be smaller than what is in it.
    for i in range(np.uint64(KEY_LANES), np.uint64(KEY_LANES + window + KEY_LANES - 1)):
        keys[i] = 0
