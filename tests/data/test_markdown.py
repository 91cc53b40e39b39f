import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.data.markdown import Section, find_sections


def outline(text: str, *, is_markdown: bool = True) -> list[tuple[tuple[str, ...], list[str]]]:
    """Titles and block texts of each section."""
    return [
        (section.headings, [text[block.start : block.end] for block in section.blocks])
        for section in find_sections(text, is_markdown=is_markdown)
    ]


def test_headings_nest_and_paragraphs_split_at_blank_lines() -> None:
    text = "before\n\n# One\n\na\nb\n\nc\n## Two ##\nd\n# Three\ne\n"
    assert outline(text) == [
        ((), ["before"]),
        (("One",), ["# One", "a\nb", "c"]),
        (("One", "Two"), ["## Two ##", "d"]),
        (("Three",), ["# Three", "e"]),
    ]


@pytest.mark.parametrize(
    ("line", "title"),
    [
        ("# a", "a"),
        ("   ###### a", "a"),
        ("## a ##", "a"),
        ("## a#", "a#"),
        ("# C#", "C#"),
        ("# #1 rule", "#1 rule"),
        ("#\ta", "a"),
    ],
)
def test_atx_titles(line: str, title: str) -> None:
    assert outline(f"{line}\nbody") == [((title,), [line.rstrip(), "body"])]


@pytest.mark.parametrize("line", ["#hashtag", "####### seven", "    # indented", "\\# escaped"])
def test_not_a_heading(line: str) -> None:
    assert [headings for headings, _ in outline(f"{line}\nbody")] == [()]


def test_underlined_titles() -> None:
    text = "One\n===\na\n\nTwo\n---\nb\n"
    assert outline(text) == [
        (("One",), ["One\n===", "a"]),
        (("One", "Two"), ["Two\n---", "b"]),
    ]


@pytest.mark.parametrize("above", ["", "- item", "1. item", "> quote", "| a |", "two\nlines"])
def test_dashes_below_anything_else_are_a_rule(above: str) -> None:
    assert [headings for headings, _ in outline(f"{above}\n---\nbody")] == [()]


@pytest.mark.parametrize(
    ("fence", "inside"),
    [
        ("```", "# no"),
        ("~~~", "# no\n```\n# no"),
        ("````python", "```\n# no\n```"),
        ("  ```", "\n\n# no\n"),
    ],
)
def test_code_fences_hide_headings(fence: str, inside: str) -> None:
    closing = fence.strip().rstrip("python")
    text = f"# Yes\n{fence}\n{inside}\n{closing}\n# Also\nx"
    sections = outline(text)
    assert [headings for headings, _ in sections] == [("Yes",), ("Also",)]
    assert sections[0][1][1].strip() == f"{fence}\n{inside}\n{closing}".strip()
    assert find_sections(text, is_markdown=True)[0].blocks[1].is_code


def test_inline_backticks_open_no_fence() -> None:
    assert [headings for headings, _ in outline("```code```\n# Yes\nx")] == [(), ("Yes",)]


def test_unclosed_fence_runs_to_the_end() -> None:
    assert outline("# Yes\n```\n# no\n\nx") == [(("Yes",), ["# Yes", "```\n# no\n\nx"])]


def test_front_matter_is_a_block_and_a_lone_rule_is_not() -> None:
    assert outline("---\ntitle: Owls\n---\n# One\nx") == [
        ((), ["---\ntitle: Owls\n---"]),
        (("One",), ["# One", "x"]),
    ]
    assert [headings for headings, _ in outline("---\n\n# One\nx\n\n---\ny")] == [(), ("One",)]


def test_heading_without_body_joins_the_next_section() -> None:
    assert outline("# One\n\n## Two\n\nbody\n\n## Three\n") == [
        (("One", "Two"), ["# One", "## Two", "body"]),
        (("One", "Three"), ["## Three"]),
    ]


def test_plain_text_has_no_headings() -> None:
    assert outline("# not a title\n\nbody\n", is_markdown=False) == [
        ((), ["# not a title", "body"])
    ]


@pytest.mark.parametrize("text", ["", "\n \n\t\n"])
def test_nothing(text: str) -> None:
    assert outline(text) == outline(text, is_markdown=False) == []


def test_windows_line_ends() -> None:
    assert outline("One\r\n===\r\na\r\n\r\n```\r\n# no\r\n```\r\n# Two\r\nb") == [
        (("One",), ["One\r\n===", "a", "```\r\n# no\r\n```"]),
        (("Two",), ["# Two", "b"]),
    ]


LINES = st.sampled_from(
    ["", "# A", "## B", "words here", "===", "---", "```", "~~~", "- item", "    code", "k: v", "#"]
)


@given(st.lists(LINES, max_size=15), st.booleans())
def test_blocks_lie_in_order_and_leave_out_only_blank_space(
    lines: list[str], is_markdown: bool
) -> None:
    text = "\n".join(lines)
    sections: list[Section] = find_sections(text, is_markdown=is_markdown)
    position = 0
    for block in (block for section in sections for block in section.blocks):
        assert block.start >= position
        assert not text[position : block.start].strip()
        assert text[block.start : block.end].strip()
        position = block.end
    assert not text[position:].strip()
    assert all(section.blocks for section in sections)
