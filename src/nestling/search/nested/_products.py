"""The products of records and weights, written for the compiler in its own vector types.

Sums of integers are exact in any order, so that the lanes of a register are added up as suits the machine.
The callers stand in `_kernels`; importing this module imports numba.
"""

from typing import Any, no_type_check

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from nestling.search.nested.bands import LEVELS, SLOT_WORDS, WORDS

FETCHED_ROWS = 12
"""How many scattered records ahead are fetched while one is multiplied."""

_FEATURES = llvmlite.binding.get_host_cpu_features()
_INT = ir.IntType(32)
_RECORD = ir.VectorType(ir.IntType(16), WORDS)
_SUMS = ir.VectorType(_INT, WORDS // 2)


def _places(numbers: range) -> Any:
    return ir.VectorType(_INT, len(numbers))(list(numbers))


def _declare(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    known = builder.module.globals.get(name)
    return known or ir.Function(builder.module, ir.FunctionType(result, arguments), name)


def _multiply_pairs(builder: Any, left: Any, right: Any) -> Any:
    """Return the sums of two neighbouring products each, as 16 numbers of 32 bits."""
    if _FEATURES.get("avx512bw"):
        name = "llvm.x86.avx512.pmaddw.d.512"
        return builder.call(_declare(builder, name, _SUMS, [_RECORD, _RECORD]), [left, right])
    undefined = _RECORD(ir.Undefined)
    products = []
    for first in (0, 1):
        halves = [
            builder.sext(
                builder.shuffle_vector(words, undefined, _places(range(first, WORDS, 2))), _SUMS
            )
            for words in (left, right)
        ]
        products.append(builder.mul(*halves))
    return builder.add(*products)


def _multiply_record(builder: Any, record: Any, weights: list[Any]) -> Any:
    """Return the sum of all nibbles times their weights."""
    total = None
    for k in range(4):
        nibbles = builder.lshr(record, _RECORD([4 * k] * WORDS)) if k else record
        if k < 3:
            nibbles = builder.and_(nibbles, _RECORD([LEVELS - 1] * WORDS))
        sums = _multiply_pairs(builder, nibbles, weights[k])
        total = sums if total is None else builder.add(total, sums)
    add_up = _declare(builder, f"llvm.vector.reduce.add.v{WORDS // 2}i32", _INT, [_SUMS])
    return builder.call(add_up, [total])


def _load_weights(builder: Any, address: Any) -> list[Any]:
    weights = builder.inttoptr(address, _RECORD.as_pointer())
    return [builder.load(builder.gep(weights, [address.type(k)]), align=2) for k in range(4)]


@no_type_check
def _multiply_records(
    typing_context: Any, records: Any, weights: Any, num_rows: Any, sums: Any, lengths: Any
) -> Any:
    """Write the product of each of some neighbouring records and one query's weights.

    Called from compiled code without the first argument, which numba gives.

    Args:
        typing_context: What numba knows about types.
        records: Address of the first record.
        weights: Address of 128 weights of 16 bits: four for each word, by nibble.
        num_rows: At least 1.
        sums: Address of one 32-bit number per row.
        lengths: Address of as many: the last two words of each record.
    """
    return types.void(*[types.intp] * 5), _write_multiply_records


multiply_records = intrinsic(_multiply_records)


def _write_multiply_records(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    records, weights, num_rows, sums, lengths = arguments
    _write_loop(builder, records, weights, None, num_rows, sums, lengths)
    return context.get_dummy_value()


@no_type_check
def _multiply_scattered(
    typing_context: Any,
    records: Any,
    weights: Any,
    rows: Any,
    num_rows: Any,
    sums: Any,
    lengths: Any,
) -> Any:
    """Do as `multiply_records`, for the records of the rows (64-bit numbers) at the address `rows`.

    `FETCHED_ROWS` more row numbers must stand behind those that count: their records are fetched.
    """
    return types.void(*[types.intp] * 6), _write_multiply_scattered


multiply_scattered = intrinsic(_multiply_scattered)


def _write_multiply_scattered(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    records, weights, rows, num_rows, sums, lengths = arguments
    _write_loop(builder, records, weights, rows, num_rows, sums, lengths)
    return context.get_dummy_value()


def _write_loop(
    builder: Any, records: Any, weights: Any, rows: Any, num_rows: Any, sums: Any, lengths: Any
) -> None:
    index = records.type
    loaded = _load_weights(builder, weights)
    sums, lengths = (builder.inttoptr(each, _INT.as_pointer()) for each in (sums, lengths))
    before, loop, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
    builder.branch(loop)

    builder.position_at_end(loop)
    place = builder.phi(index)
    place.add_incoming(index(0), before)
    row = place
    if rows is not None:
        numbers = builder.inttoptr(rows, index.as_pointer())
        row = builder.load(builder.gep(numbers, [place]))
        later = builder.gep(numbers, [builder.add(place, index(FETCHED_ROWS))])
        _write_fetch(builder, _record_at(builder, records, builder.load(later)))
    address = _record_at(builder, records, row)
    record = builder.load(builder.inttoptr(address, _RECORD.as_pointer()), align=2)
    builder.store(_multiply_record(builder, record, loaded), builder.gep(sums, [place]))
    last_words = builder.add(address, index(2 * SLOT_WORDS))
    pair = builder.load(builder.inttoptr(last_words, _INT.as_pointer()), align=2)
    builder.store(pair, builder.gep(lengths, [place]))
    next_place = builder.add(place, index(1))
    place.add_incoming(next_place, loop)
    builder.cbranch(builder.icmp_signed("<", next_place, num_rows), loop, after)

    builder.position_at_end(after)


def _record_at(builder: Any, records: Any, row: Any) -> Any:
    return builder.add(records, builder.mul(row, row.type(2 * WORDS)))


def _write_fetch(builder: Any, address: Any) -> None:
    pointer = builder.inttoptr(address, ir.IntType(8).as_pointer())
    fetch = _declare(builder, "llvm.prefetch.p0", ir.VoidType(), [pointer.type, _INT, _INT, _INT])
    builder.call(fetch, [pointer, _INT(0), _INT(3), _INT(1)])
