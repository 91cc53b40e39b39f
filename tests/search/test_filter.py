import json
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.errors import DataError
from nestling.search.entries import make_entries
from nestling.search.filter import compile_filter
from nestling.search.filter_parser import MAX_CONDITIONS, MAX_DEPTH, MAX_LENGTH

Metadata = dict[str, Any] | None

BOOK = {
    "year": 2021,
    "price": 12.5,
    "lang": "en",
    "tags": ["new", "O'Reilly", 7, True, None, ["deep"]],
    "author": {"name": "Ada", "e-mail": None},
    "draft": False,
    "id": "from the metadata",
    "größe": "weiß",
    "a.b": "dotted",
    "not": 1,
    "contains": "x",
}


def rows_where(expression: str, documents: list[tuple[str, Metadata]]) -> list[int]:
    connection = sqlite3.connect(":memory:")
    connection.execute(
        "CREATE TABLE documents (row INTEGER PRIMARY KEY, doc_id TEXT, metadata TEXT)"
    )
    for row, (doc_id, metadata) in enumerate(documents):
        (entry,) = make_entries([doc_id], None, None if metadata is None else [metadata])
        connection.execute("INSERT INTO documents VALUES (?, ?, ?)", (row, doc_id, entry.metadata))
    condition = compile_filter(expression)
    found = connection.execute(
        f"SELECT row, {condition.sql} FROM documents",  # noqa: S608
        condition.parameters,
    ).fetchall()
    connection.close()
    assert all(value in (0, 1) for _, value in found)
    return [row for row, value in found if value]


def holds(expression: str, metadata: Metadata = BOOK, doc_id: str = "d1") -> bool:
    return rows_where(expression, [(doc_id, metadata)]) == [0]


@pytest.mark.parametrize(
    "expression",
    [
        "year >= 2020",
        "year == 2021.0",
        "year < 2021.5 and year > 2020.5",
        "price == 12.5",
        "price == 1.25e1",
        "price > -3",
        'lang == "en"',
        "lang == 'en'",
        'lang >= "de" and lang < "fr"',
        'lang in ("de", "en")',
        'year in ("2021", 2020, 2021)',
        'lang not in ("de", "fr")',
        "draft == false",
        "draft != true",
        'author.name == "Ada"',
        'author."e-mail" == null',
        'author . name=="Ada"',
        'contains(tags, "new")',
        "contains(tags, 7)",
        "contains(tags, 7.0)",
        "contains(tags, true)",
        "contains(tags, null)",
        "contains(tags, 'O\\'Reilly')",
        'contains(author.name, "d")',
        'contains(lang, "")',
        'startswith(author.name, "Ad")',
        'startswith(lang, "")',
        "exists(author.name)",
        'exists(author."e-mail")',
        "not exists(publisher)",
        "publisher == null",
        'publisher != "Springer"',
        "not (publisher > 3)",
        'größe == "weiß"',
        '"a.b" == "dotted"',
        '"not" == 1',
        'contains == "x"',
        'id == "d1"',
        'id in ("d0", "d1")',
        'startswith(id, "d") and contains(id, "1") and id > "d0" and exists(id)',
        '"id" == "from the metadata"',
        "year == 1 or year == 2 or year == 2021",
        'year == 1 and lang == "en" or draft == false',
        'draft == false or year == 1 and lang == "xx"',
        "not year == 1 and not (year == 2)",
        "not not draft == false",
        "\n\tyear==2021\r\n",
    ],
)
def test_true_of_the_book(expression: str) -> None:
    assert holds(expression)
    assert not holds(f"not ({expression})")


@pytest.mark.parametrize(
    "expression",
    [
        'year == "2021"',
        'lang == "EN"',
        "lang > 3",
        'year > "2"',
        "draft == 0",
        "contains(tags, 1)",
        "contains(tags, 0)",
        'contains(tags, "ne")',
        'contains(tags, "deep")',
        'contains(author, "Ada")',
        "contains(lang, 1)",
        "contains(year, 2021)",
        'startswith(tags, "new")',
        "startswith(year, '20')",
        'tags == "new"',
        "tags == null",
        "author == null",
        "draft == null",
        "lang in (null, true, 3)",
        'tags.name == "Ada"',
        'author.name.first == "A"',
        'tags."0" == "new"',
        "publisher < 3",
        "publisher >= 3",
        'startswith(publisher, "")',
        'contains(publisher, "")',
        "id == 1",
        "id == null",
        "id > 0",
        "id in (1, true)",
        "contains(id, 1)",
        'id == "D1"',
        "a.b == 'dotted'",
        'year == 2020 and exists(lang) or lang == "de"',
    ],
)
def test_false_of_the_book(expression: str) -> None:
    assert not holds(expression)
    assert holds(f"not ({expression})")


def test_the_page_shows_filters_that_can_be_read() -> None:
    page = Path(__file__).parents[2].joinpath("docs", "search_filters.md").read_text()
    shown = [
        expression
        for line in page.splitlines()
        if line.startswith("| `")
        for expression in re.findall("`([^`]+ [^`]+)`", line.split(" | ")[0])
    ]
    assert len(shown) >= 15
    for expression in shown:
        compile_filter(expression)


def test_a_document_without_metadata_has_no_fields() -> None:
    assert holds("year == null and not exists(year) and year != 3 and not year > 3", None)
    assert holds('year not in (1, "a") and not contains(year, "a")', None)


def test_ids_that_look_like_numbers_are_strings() -> None:
    assert holds('id == "5"', doc_id="5")
    assert not holds("id == 5", doc_id="5")
    assert not holds("id in (5, 6)", doc_id="5")
    assert not holds("id >= 5", doc_id="5")


def test_large_and_exact_numbers() -> None:
    assert holds("n == 9223372036854775807", {"n": 2**63 - 1})
    assert not holds("n == 9223372036854775807", {"n": 2**63 - 2})
    assert holds("n == 100000000000000000000 and n > 9223372036854775807", {"n": 10**20})
    assert holds("n == -9223372036854775808", {"n": -(2**63)})
    assert holds("n == 0.30000000000000004 and n != 0.3 and n > 0.3", {"n": 0.1 + 0.2})
    assert holds("n in (1, 0.30000000000000004)", {"n": 0.1 + 0.2})


def test_a_long_list_is_one_parameter() -> None:
    ids = ",".join(f'"d{number}"' for number in range(600))
    assert holds(f"id in ({ids})", doc_id="d599")
    assert not holds(f"id in ({ids})", doc_id="d600")
    assert len(compile_filter(f"id in ({ids})").parameters) == 1


# A twin in Python: trees that hypothesis makes, judged by what a person would say, against the SQL
# of their text.

KEYS = ("a", "b", "a b", "größe", "in", "c.d", "'", "; DROP TABLE documents --")
NOTHING = object()
texts = st.one_of(
    st.sampled_from(
        ["", "a", "ab", "b", "A", "'", '"', "\\", "\n", "é", "e\u0301", "😀", "1", "null"]
    ),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=4),
)
numbers = st.one_of(
    st.integers(-2, 3),
    st.sampled_from([0.0, -0.0, 1.0, 0.5, 1e300, 5e-324, 2**53, 2**53 + 1, 2.0**53, 2**63 - 1]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-(2**63), 2**63 - 1),
)
values = st.one_of(texts, numbers, st.booleans(), st.none())
objects = st.dictionaries(
    st.sampled_from(KEYS),
    st.one_of(
        values,
        st.lists(values, max_size=3),
        st.dictionaries(st.sampled_from(KEYS), values, max_size=2),
    ),
    max_size=4,
)
documents = st.lists(st.tuples(texts, st.none() | objects), min_size=1, max_size=6)
fields = st.just(("id",)) | st.lists(st.sampled_from(KEYS), min_size=1, max_size=2).map(tuple)
ordered = st.sampled_from(["<", "<=", ">", ">="])
conditions = st.recursive(
    st.one_of(
        st.tuples(st.sampled_from(["==", "!="]), fields, values),
        st.tuples(ordered, fields, texts | numbers),
        st.tuples(st.just("contains"), fields, values),
        st.tuples(st.just("startswith"), fields, texts),
        st.tuples(
            st.sampled_from(["in", "not in"]), fields, st.lists(values, min_size=1, max_size=4)
        ),
        st.tuples(st.just("exists"), fields, st.none()),
    ),
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["and", "or"]), inner, inner),
        st.tuples(st.just("not"), inner, st.none()),
    ),
    max_leaves=6,
)


def quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def written_value(value: Any) -> str:
    return quoted(value) if isinstance(value, str) else json.dumps(value)


def written(condition: Any) -> str:
    operator, left, right = condition
    if operator in ("and", "or"):
        return f"({written(left)} {operator} {written(right)})"
    if operator == "not":
        return f"not {written(left)}"
    field = "id" if left == ("id",) else ".".join(map(quoted, left))
    if operator == "exists":
        return f"exists({field})"
    if operator in ("contains", "startswith"):
        return f"{operator}({field}, {written_value(right)})"
    if operator in ("in", "not in"):
        return f"{field} {operator} ({', '.join(map(written_value, right))})"
    return f"{field} {operator} {written_value(right)}"


def kind(value: Any) -> str:
    if value is None or value is NOTHING:
        return "null"
    if isinstance(value, bool):
        return "truth"
    return {str: "text", int: "number", float: "number"}.get(type(value), "other")


def same(left: Any, right: Any) -> bool:
    return kind(left) == kind(right) and (kind(left) == "null" or left == right)


def judged(condition: Any, doc_id: str, metadata: Metadata) -> bool:
    operator, left, right = condition
    if operator == "and":
        return judged(left, doc_id, metadata) and judged(right, doc_id, metadata)
    if operator == "or":
        return judged(left, doc_id, metadata) or judged(right, doc_id, metadata)
    if operator == "not":
        return not judged(left, doc_id, metadata)
    value = content(left, doc_id, metadata)
    if operator == "exists":
        return value is not NOTHING
    if operator in ("==", "!="):
        return same(value, right) == (operator == "==")
    if operator in ("in", "not in"):
        return any(same(value, other) for other in right) == (operator == "in")
    if operator == "contains" and isinstance(value, list):
        return any(same(element, right) for element in value)
    if kind(value) != kind(right) or kind(value) not in ("text", "number"):
        return False
    return compared(operator, value, right)


def content(field: tuple[str, ...], doc_id: str, metadata: Metadata) -> Any:
    if field == ("id",):
        return doc_id
    value: Any = metadata
    for key in field:
        value = value.get(key, NOTHING) if isinstance(value, dict) else NOTHING
    return value


def compared(operator: str, left: Any, right: Any) -> bool:
    if operator == "contains":
        return isinstance(left, str) and right in left
    if operator == "startswith":
        return isinstance(left, str) and left.startswith(right)
    return {"<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right}[
        operator
    ]


@given(condition=conditions, documents=documents)
def test_sql_and_python_agree(condition: Any, documents: list[tuple[str, Metadata]]) -> None:
    expected = [
        row
        for row, (doc_id, metadata) in enumerate(documents)
        if judged(condition, doc_id, metadata)
    ]
    assert rows_where(written(condition), documents) == expected


@given(st.text(max_size=30) | st.lists(st.sampled_from(
    ["a", "id", "not", "and", "or", "in", "(", ")", ",", ".", "==", "<", '"x"', "1", "null", "exists", "contains", "'", "\\"]
), max_size=12).map(" ".join))  # fmt: skip
def test_any_text_is_compiled_or_refused(text: str) -> None:
    told = ""
    try:
        sql = compile_filter(text).sql
    except DataError as error:
        told = str(error)
    assert "at character" in told or sqlite3.complete_statement(f"{sql};")


ATTACKS = [
    "1=1",
    "x' OR '1'='1",
    '"; DROP TABLE documents; --',
    "'); DELETE FROM documents; --",
    'x" == 1) OR 1=1 --',
    "$.secret",
    "\")]' || (SELECT text FROM texts) || '",
    "?1 :a @b $c",
    "%_*?[a]",
    "\u02bc OR 1=1",
    "/* */ UNION SELECT 1",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_a_user_writes_is_in_the_sql(attack: str) -> None:
    documents: list[tuple[str, Metadata]] = [("d0", {"a": "x"}), (attack, {"a": attack})]
    plain = compile_filter('a == "x" or contains(a, "x") or a in ("x", "y") or id == "x"')
    value = quoted(attack)
    hostile = compile_filter(
        f"a == {value} or contains(a, {value}) or a in ({value}, {value}) or id == {value}"
    )
    assert hostile.sql == plain.sql
    assert rows_where(f"a == {value} and id == {value}", documents) == [1]


@pytest.mark.parametrize("attack", [attack for attack in ATTACKS if '"' not in attack])
def test_nothing_a_user_writes_is_in_a_path(attack: str) -> None:
    documents: list[tuple[str, Metadata]] = [("d0", {"a": 1}), ("d1", {attack: 1})]
    assert rows_where(f'"{attack}" == 1', documents) == [1]
    assert compile_filter(f'"{attack}" == 1').sql == compile_filter("a == 1").sql


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_by_itself_is_refused(attack: str) -> None:
    with pytest.raises(DataError, match="at character"):
        compile_filter(attack)


@pytest.mark.parametrize(
    ("expression", "character", "expected", "got"),
    [
        ("", 1, "a condition, such as `year >= 2020`", "the end"),
        ("   ", 4, "a condition, such as `year >= 2020`", "the end"),
        ("year", 5, "==, !=, <, <=, >, >=, in or not in", "the end"),
        ("year = 3", 6, "a name, a value or an operator", "`= 3`"),
        ("lang == en", 9, "a value (a string in quotes, a number, true, false or null)", "`en`"),
        ("a == 1 AND b == 2", 8, "`and`, `or` or the end", "`AND b == 2`"),
        ("a == 1 b", 8, "`and`, `or` or the end", "`b`"),
        ("(a == 1", 8, "`and`, `or` or `)`", "the end"),
        ("a == 1)", 7, "`and`, `or` or the end", "`)`"),
        ("a == 1 and", 11, "a condition, such as `year >= 2020`", "the end"),
        ("not", 4, "a condition, such as `year >= 2020`", "the end"),
        ("2020 <= year", 1, "a condition, such as `year >= 2020`", "`2020 <= year`"),
        ("in == 1", 1, "a condition, such as `year >= 2020`", "`in == 1`"),
        ("a in b", 6, "`(` and a list of values", "`b`"),
        ("a in ()", 7, "a value (a string in quotes, a number, true, false or null)", "`)`"),
        ("a in (1", 8, "`,` or `)`", "the end"),
        ("a not == 1", 7, "`in`", "`== 1`"),
        ("a < true", 5, "a string or a number, as nothing else has an order", "`true`"),
        ("a >= null", 6, "a string or a number, as nothing else has an order", "`null`"),
        ("startswith(a, 1)", 15, "a string in quotes", "`1)`"),
        ("contains(a)", 11, "`,` and a value", "`)`"),
        ("exists(a, 1)", 9, "`)`", "`, 1)`"),
        ("exists()", 8, "the name of a field", "`)`"),
        ("a.1 == 2", 3, "a key", "`1 == 2`"),
        ("a == 1e999", 6, "a number below 1.8e308", "`1e999`"),
        ('a == "x', 6, "a closing quote", '`"x`'),
        (r'a == "x\q"', 8, r"""one of \", \', \\, \n and \t""", r'`\q"`'),
        ('"" == 1', 1, 'a key that is not empty and has no ", \\ or control character', '`"" == 1`'),
        ('"a\\"b" == 1', 1, 'a key that is not empty and has no ", \\ or control', '`"a\\"b" == 1`'),
        ("a == \0", 6, "Unicode without NUL", r"`\x00`"),
        ("a == '\ud800'", 7, "Unicode without NUL", r"`\ud800'`"),
        ("id.x == 1", 3, 'no `.`, as `id` is the id of the document; write "id"', "`.x == 1`"),
        ("a == --1", 6, "a name, a value or an operator", "`--1`"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(expression: str, character: int, expected: str, got: str) -> None:
    with pytest.raises(DataError) as caught:
        compile_filter(expression)
    message = str(caught.value)
    assert message.startswith('`where` must be a filter such as `year >= 2020 and lang == "en"`: ')
    assert f"at character {character} it must have {expected}" in message
    assert f", got {got}. " in message
    assert message.endswith("docs/search_filters.md describes the language.")
    message.encode()


def test_limits() -> None:
    longest = 'a == "' + "x" * (MAX_LENGTH - 7) + '"'
    compile_filter(longest)
    with pytest.raises(
        DataError, match="`where` must have at most 100,000 characters, got 100,001"
    ):
        compile_filter(longest + " ")
    most = " or ".join(["a == 1"] * MAX_CONDITIONS)
    assert holds(most, {"a": 1})
    with pytest.raises(DataError, match="at most 200 comparisons"):
        compile_filter(most + " or a == 1")
    for opening, closing in (("(", ")"), ("not ", ""), ("not (", ")")):
        levels = MAX_DEPTH // (2 if opening == "not (" else 1)
        deepest = opening * levels + "a == 1" + closing * levels
        assert holds(deepest, {"a": 1}) or holds(deepest, {"a": 2})
        with pytest.raises(DataError, match="at most 10 parentheses and `not` within each other"):
            compile_filter(f"({deepest})")
    with pytest.raises(DataError, match="at most 10 parentheses"):
        compile_filter("(" * (MAX_LENGTH // 2))


def test_the_deepest_filter_runs() -> None:
    # What fills the stack of SQLite's parser fastest, and most comparisons at the end of it.
    rest = " and ".join(["a in (1, 2)"] * (MAX_CONDITIONS - 2 * MAX_DEPTH))
    for _ in range(MAX_DEPTH):
        rest = f"b == 1 or a == 1 and ({rest})"
    assert holds(rest, {"a": 1})
    assert not holds(rest, {"a": 3})
