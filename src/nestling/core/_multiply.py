"""The product at the bottom of `nested_top_k`, kept in registers; importing it imports numba.

BLAS would do, but for four things: it cannot add to a product, or hand it to the scan, without a
trip through memory; it is slow on the narrow bands of small prefixes; it gives equal rows scores
that differ in the last bits, depending on where in a matrix they stand, so that ties break at
random; and its threads are one setting for the whole process. This kernel runs at the speed of the
processor's multiply-add units, because all of its sums stay in vector registers (Goto and van de
Geijn 2008, doi:10.1145/1356052.1356053), and adds every product of every row and query in one
order, coordinate by coordinate.
"""

from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_HAS_WIDE_REGISTERS = bool(llvmlite.binding.get_host_cpu_features().get("avx512f"))

LANES = 32 if _HAS_WIDE_REGISTERS else 16
"""Rows multiplied at once: two vector registers of AVX-512 or AVX2, four of NEON."""

GROUP = 8 if _HAS_WIDE_REGISTERS else 6
"""Queries multiplied at once: with `LANES`, as many sums as there are registers for."""


@intrinsic
def add_products(
    typing_context: Any, rows: Any, queries: Any, depth: Any, sums: Any, stride: Any
) -> Any:
    """Add the dot products of `LANES` rows and `GROUP` queries to their sums.

    Written for the compiler in its own vector types: loops over scalars would be vectorised in the
    wrong direction and leave the sums in memory.

    Args:
        typing_context: Given by numba.
        rows: Address of float32 coordinates of shape (depth, LANES).
        queries: Address of float32 coordinates of shape (depth, GROUP).
        depth: How many coordinates, at least 1.
        sums: Address of float32 sums of shape (GROUP, LANES).
        stride: From one query's sums to the next one's, in float32 numbers.
    """
    return types.void(*[types.intp] * 5), _write_add_products


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
