"""The filter language: from characters to conditions.

or_chain   = and_chain {"or" and_chain}
and_chain  = term {"and" term}
term       = "not" term | "(" or_chain ")" | condition
condition  = field ("==" | "!=" | "<" | "<=" | ">" | ">=") value
           | field ["not"] "in" "(" value {"," value} ")"
           | "exists" "(" field ")"
           | ("contains" | "startswith") "(" field "," value ")"
field      = key {"." key}          key   = name | string
value      = string | number | "true" | "false" | "null"
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, final

from nestling.errors import DataError

MAX_LENGTH = 100_000
"""Characters of an expression: a list of some thousand ids fits."""
MAX_DEPTH = 10
"""Parentheses and `not` within each other; the stack of SQLite's parser ends at 13."""
MAX_CONDITIONS = 200
"""Comparisons in one expression; a list after `in` is one."""

ORDERS = frozenset({"<", "<=", ">", ">="})
_OPERATORS = ORDERS | {"==", "!="}
_CONSTANTS = {"true": True, "false": False, "null": None}
_WORDS = frozenset({"and", "or", "not", "in", *_CONSTANTS})
_FUNCTIONS = frozenset({"contains", "startswith", "exists"})
_ESCAPES = {"n": "\n", "t": "\t", "\\": "\\", '"': '"', "'": "'"}
_A_VALUE = "a value (a string in quotes, a number, true, false or null)"
_A_FIELD = "the name of a field"
_TOKEN = re.compile(
    r"""(?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
      | (?P<number>-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)
      | (?P<name>[^\W\d]\w*)
      | (?P<sign>[=!<>]=|[<>(),.])
      | (?P<end>\Z)""",
    re.VERBOSE | re.DOTALL,
)
_SPACE = re.compile(r"\s*")

Value = str | int | float | bool | None


@final
@dataclass(frozen=True, slots=True)
class Field:
    """Where a value is: keys within each other in the metadata, or nothing for the document's id."""

    keys: tuple[str, ...]

    @property
    def is_id(self) -> bool:
        """Whether it is the document's id."""
        return not self.keys


@final
@dataclass(frozen=True, slots=True)
class Comparison:
    """A field against a value; `operator` is ==, <, <=, >, >=, contains or startswith."""

    field: Field
    operator: str
    value: Value


@final
@dataclass(frozen=True, slots=True)
class Membership:
    """Whether a field equals one of some values."""

    field: Field
    values: tuple[Value, ...]


@final
@dataclass(frozen=True, slots=True)
class Existence:
    """Whether a field is there."""

    field: Field


@final
@dataclass(frozen=True, slots=True)
class Negation:
    """What is not."""

    condition: "Condition"


@final
@dataclass(frozen=True, slots=True)
class Chain:
    """Two or more conditions joined by `and` or by `or`."""

    word: str
    conditions: tuple["Condition", ...]


Condition = Comparison | Membership | Existence | Negation | Chain


def parse_filter(expression: str) -> Condition:
    """Return what an expression says.

    Raises:
        DataError: If it is not in the language, or beyond a limit; the message says where.
    """
    if len(expression) > MAX_LENGTH:
        raise DataError(
            f"`where` must have at most {MAX_LENGTH:,} characters, got {len(expression):,}. "
            f"Ask for less at once."
        )
    parser = _Parser(expression)
    condition = parser.chain("or")
    parser.expect("", "`and`, `or` or the end")
    return condition


class _Token(NamedTuple):
    kind: str
    text: str
    start: int


class _Parser:
    """Reads from left to right, one token ahead."""

    def __init__(self, expression: str) -> None:
        self._expression = expression
        self._depth = 0
        self._num_conditions = 0
        self._position = 0
        if bad := re.search("[\0\ud800-\udfff]", expression):
            raise self._error("Unicode without NUL", bad.start())
        self._next = self._scan()

    def chain(self, word: str) -> Condition:
        """Read terms joined by `or`, each of them terms joined by `and`."""
        conditions = [self.chain("and") if word == "or" else self._term()]
        while self._take(word):
            conditions.append(self.chain("and") if word == "or" else self._term())
        return conditions[0] if len(conditions) == 1 else Chain(word, tuple(conditions))

    def expect(self, text: str, expected: str) -> None:
        """Go past a token, or refuse what is there instead."""
        if not self._take(text):
            raise self._error(expected)

    def _term(self) -> Condition:
        start = self._next.start
        if self._take("not"):
            return Negation(self._deeper(self._term, start))
        if self._take("("):
            condition = self._deeper(lambda: self.chain("or"), start)
            self.expect(")", "`and`, `or` or `)`")
            return condition
        self._num_conditions += 1
        if self._num_conditions > MAX_CONDITIONS:
            raise self._error(f"at most {MAX_CONDITIONS} comparisons (`in` takes a list)")
        return self._condition()

    def _deeper(self, read: Callable[[], Condition], start: int) -> Condition:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error(f"at most {MAX_DEPTH} parentheses and `not` within each other", start)
        condition = read()
        self._depth -= 1
        return condition

    def _condition(self) -> Condition:
        first = self._next
        keys = [self._key("a condition, such as `year >= 2020`")]
        if first.kind == "name" and first.text in _FUNCTIONS and self._take("("):
            return self._function(first.text)
        field = self._rest_of_field(first, keys)
        if self._take("not"):
            self.expect("in", "`in`")
            return Negation(self._membership(field))
        if self._take("in"):
            return self._membership(field)
        return self._comparison(field)

    def _comparison(self, field: Field) -> Condition:
        operator = self._next.text
        if self._next.kind != "sign" or operator not in _OPERATORS:
            raise self._error("==, !=, <, <=, >, >=, in or not in")
        self._advance()
        start = self._next.start
        value = self._value()
        if operator in ORDERS and (value is None or isinstance(value, bool)):
            raise self._error("a string or a number, as nothing else has an order", start)
        if operator == "!=":
            return Negation(Comparison(field, "==", value))
        return Comparison(field, operator, value)

    def _membership(self, field: Field) -> Condition:
        self.expect("(", "`(` and a list of values")
        values = [self._value()]
        while self._take(","):
            values.append(self._value())
        self.expect(")", "`,` or `)`")
        return Membership(field, tuple(values))

    def _function(self, name: str) -> Condition:
        first = self._next
        field = self._rest_of_field(first, [self._key(_A_FIELD)])
        if name == "exists":
            self.expect(")", "`)`")
            return Existence(field)
        self.expect(",", "`,` and a value")
        start = self._next.start
        value = self._value()
        if name == "startswith" and not isinstance(value, str):
            raise self._error("a string in quotes", start)
        self.expect(")", "`)`")
        return Comparison(field, name, value)

    def _rest_of_field(self, first: _Token, keys: list[str]) -> Field:
        while self._take("."):
            keys.append(self._key("a key"))
        if first.text == "id":
            if len(keys) > 1:
                raise self._error(
                    'no `.`, as `id` is the id of the document; write "id" for a key',
                    first.start + 2,
                )
            return Field(())
        return Field(tuple(keys))

    def _key(self, expected: str) -> str:
        token = self._next
        if token.kind == "string":
            key = self._unquoted(token)
            # SQLite's paths have no way to write these.
            if not key or re.search(r'["\\\x00-\x1f]', key):
                raise self._error('a key that is not empty and has no ", \\ or control character')
        elif token.kind == "name" and token.text not in _WORDS:
            key = token.text
        else:
            raise self._error(expected)
        self._advance()
        return key

    def _value(self) -> Value:
        token = self._next
        value: Value
        if token.kind == "string":
            value = self._unquoted(token)
        elif token.kind == "number":
            value = self._number(token)
        elif token.kind == "name" and token.text in _CONSTANTS:
            value = _CONSTANTS[token.text]
        else:
            raise self._error(_A_VALUE)
        self._advance()
        return value

    def _number(self, token: _Token) -> int | float:
        value = float(token.text)
        if not math.isfinite(value):
            raise self._error("a number below 1.8e308")
        # The first test is for lengths that `int` refuses.
        is_whole = len(token.text) < 400 and re.fullmatch("-?[0-9]+", token.text)
        return int(token.text) if is_whole else value

    def _unquoted(self, token: _Token) -> str:
        def unescape(found: re.Match[str]) -> str:
            if found[1] not in _ESCAPES:
                at = token.start + 1 + found.start()
                raise self._error("one of \\\", \\', \\\\, \\n and \\t", at)
            return _ESCAPES[found[1]]

        return re.sub(r"\\(.)", unescape, token.text[1:-1], flags=re.DOTALL)

    def _take(self, text: str) -> bool:
        if self._next.kind == "string" or self._next.text != text:
            return False
        self._advance()
        return True

    def _advance(self) -> None:
        self._next = self._scan()

    def _scan(self) -> _Token:
        space = _SPACE.match(self._expression, self._position)
        start = self._position if space is None else space.end()
        found = _TOKEN.match(self._expression, start)
        if found is None:
            is_string = self._expression[start] in "\"'"
            raise self._error(
                "a closing quote" if is_string else "a name, a value or an operator", start
            )
        self._position = found.end()
        return _Token(str(found.lastgroup), found.group(), start)

    def _error(self, expected: str, start: int | None = None) -> DataError:
        start = self._next.start if start is None else start
        rest = "".join(
            character if character.isprintable() else ascii(character)[1:-1]
            for character in self._expression[start : start + 20]
        )
        return DataError(
            f'`where` must be a filter such as `year >= 2020 and lang == "en"`: at character '
            f"{start + 1} it must have {expected}, got {f'`{rest}`' if rest else 'the end'}. "
            f"docs/search_filters.md describes the language."
        )
