"""Filters over metadata, compiled to SQL that holds nothing of what the user wrote.

Every condition is 1 or 0 for every row and never NULL, so that `not` finds exactly the other rows.
A field that is missing equals null; values of different types are never equal and have no order.
"""

import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from nestling.search.filter_parser import (
    Chain,
    Comparison,
    Condition,
    Existence,
    Field,
    Membership,
    Negation,
    Value,
    parse_filter,
)

Parameter = str | int

_LARGEST = (1 << 63) - 1
"""Of SQLite's whole numbers."""
_TESTS = {
    "==": "{content} = {operand}",
    "<": "{content} < {operand}",
    "<=": "{content} <= {operand}",
    ">": "{content} > {operand}",
    ">=": "{content} >= {operand}",
    "startswith": "instr({content}, {operand}) = 1",
    "contains": "instr({content}, {operand}) > 0",
    "in": "{content} IN (SELECT value FROM json_each({operand}))",
}


class CompiledFilter(NamedTuple):
    """A condition on a row of the table `documents`.

    Attributes:
        sql: 1 or 0 for every row.
        parameters: Its values and paths, in order.
    """

    sql: str
    parameters: tuple[Parameter, ...]


def compile_filter(expression: str) -> CompiledFilter:
    """Return an expression as a condition of SQL.

    Raises:
        DataError: If it is not in the language, or beyond a limit; the message says where.
    """
    return _compile(parse_filter(expression))


def _compile(condition: Condition) -> CompiledFilter:
    match condition:
        case Chain(word, conditions):
            return _joined("AND" if word == "and" else "OR", map(_compile, conditions))
        case Negation(inner):
            sql, parameters = _compile(inner)
            return CompiledFilter(f"(NOT {sql})", parameters)
        case Existence(field):
            return _exists(field)
        case Membership(field, values):
            return _is_one_of(field, values)
        case Comparison(field, "==", value):
            return _is_one_of(field, (value,))
        case Comparison(field, "contains", value):
            return _contains(field, value)
        case Comparison(field, operator, value):
            return _test(field, operator, value, *_operand(value))


def _exists(field: Field) -> CompiledFilter:
    if field.is_id:
        return CompiledFilter("1", ())
    return CompiledFilter("(json_type(metadata, ?) IS NOT NULL)", (_path(field),))


def _is_one_of(field: Field, values: Sequence[Value]) -> CompiledFilter:
    strings = [value for value in values if isinstance(value, str)]
    constants = [value for value in values if _is_constant(value)]
    numbers = [value for value in values if not isinstance(value, str) and not _is_constant(value)]
    parts = [_equals_constant(field, value) for value in constants]
    for members in (strings, numbers):
        if len(members) == 1:
            parts.append(_test(field, "==", members[0], *_operand(members[0])))
        elif members:
            # One parameter, however long the list is.
            listed = json.dumps(members)
            parts.append(_test(field, "in", members[0], "?", listed))
    return _joined("OR", parts)


def _equals_constant(field: Field, value: Value) -> CompiledFilter:
    if field.is_id:
        return CompiledFilter("0", ())
    # What is missing has no type: it counts as null.
    sql = "(coalesce(json_type(metadata, ?), 'null') = ?)"
    return CompiledFilter(sql, (_path(field), json.dumps(value)))


def _contains(field: Field, value: Value) -> CompiledFilter:
    parts = []
    if isinstance(value, str):
        parts.append(_test(field, "contains", value, "?", value))
    if not field.is_id:
        parts.append(_has_element(field, value))
    return _joined("OR", parts)


def _has_element(field: Field, value: Value) -> CompiledFilter:
    path = _path(field)
    if _is_constant(value):
        is_it = CompiledFilter("type = ?", (json.dumps(value),))
    else:
        operand, parameter = _operand(value)
        is_it = CompiledFilter(f"value = {operand} AND type {_types(value)}", (parameter,))
    # Of what is no list, json_each would give the thing itself, or the values of an object.
    return CompiledFilter(
        "(json_type(metadata, ?) IS 'array' AND EXISTS "  # noqa: S608
        f"(SELECT 1 FROM json_each(metadata, ?) WHERE {is_it.sql}))",
        (path, path, *is_it.parameters),
    )


def _test(
    field: Field, name: str, sample: Value, operand: str, parameter: Parameter
) -> CompiledFilter:
    """Return a test of strings against a string or strings, or of numbers likewise.

    Args:
        field: What is tested.
        name: In `_TESTS`.
        sample: A value of the type that the field must have.
        operand: SQL of the right side.
        parameter: Its value.
    """
    if field.is_id:
        test = _TESTS[name].format(content="doc_id", operand=operand)
        # The column would turn a number into a string, and find that.
        return CompiledFilter(f"({test} AND {int(isinstance(sample, str))})", (parameter,))
    path = _path(field)
    test = _TESTS[name].format(content="json_extract(metadata, ?)", operand=operand)
    # The type last: it is the wrong one less often than the test is false.
    sql = f"coalesce({test} AND json_type(metadata, ?) {_types(sample)}, 0)"
    return CompiledFilter(sql, (path, parameter, path))


def _types(sample: Value) -> str:
    return "= 'text'" if isinstance(sample, str) else "IN ('integer', 'real')"


def _operand(value: Value) -> tuple[str, Parameter]:
    if isinstance(value, str) or (isinstance(value, int) and abs(value) <= _LARGEST):
        return "?", value
    # As it stands in the metadata, so that it is rounded in the same way.
    return "json_extract(?, '$')", json.dumps(value)


def _is_constant(value: Value) -> bool:
    return value is None or isinstance(value, bool)


def _path(field: Field) -> str:
    # The parser lets no quote through.
    return "$" + "".join(f'."{key}"' for key in field.keys)


def _joined(word: str, conditions: Iterable[CompiledFilter]) -> CompiledFilter:
    parts = list(conditions)
    if len(parts) == 1:
        return parts[0]
    sql = f" {word} ".join(part.sql for part in parts)
    return CompiledFilter(
        f"({sql or 0})", tuple(parameter for part in parts for parameter in part.parameters)
    )
