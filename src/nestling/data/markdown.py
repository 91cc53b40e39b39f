"""Where the headings, paragraphs and code blocks of a text lie.

Everything is a span of the text, so that what is cut from it later is a piece of the file as it
stands. This reads the block structure that matters for cutting (CommonMark 0.31.2, sections 4.2,
4.3 and 4.5, and YAML front matter), not the whole language.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

LINE = re.compile(r"[^\n]*\n|[^\n]+\Z")
ATX_HEADING = re.compile(r" {0,3}(#{1,6})(?=[ \t]|$)")
SETEXT_UNDERLINE = re.compile(r" {0,3}(=+|-+)[ \t]*$")
NOT_A_TITLE = re.compile(r"\s*(?:[-*+]\s|\d+[.)]\s|>|\|)")
"""A list item, a quotation or a table row: dashes below it are a rule, not an underline."""
FENCE = re.compile(r"\s*(`{3,}(?=[^`]*$)|~{3,})")
FRONT_MATTER = re.compile(r"---[ \t]*\r?\n[\w-]+[ \t]*:.*?\n---[ \t]*$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A paragraph, a heading or a code block, without the blank lines around it."""

    start: int
    end: int
    is_code: bool = False


@dataclass(kw_only=True)
class Section:
    """A heading and what stands below it up to the next heading.

    Attributes:
        headings: The titles from the outermost down to this one; empty before the first heading.
        blocks: In order; the heading lines come first. At least one, once reading is done.
        body_start: Where the heading lines end.
    """

    headings: tuple[str, ...]
    blocks: list[Block] = field(default_factory=list)
    body_start: int = 0

    @property
    def has_body(self) -> bool:
        """Whether anything stands below the heading."""
        return any(block.start >= self.body_start for block in self.blocks)


def find_sections(text: str, *, is_markdown: bool) -> list[Section]:
    """Return the sections of a text in order; a heading with nothing below it joins the next one.

    Args:
        text: A whole file.
        is_markdown: Whether `#` and underlines make headings and fences make code; otherwise the
            text is one section of paragraphs.
    """
    reader = _Reader(text)
    if is_markdown:
        reader.read_markdown()
    else:
        reader.read_paragraphs()
    return _join_bare_headings(reader.sections)


def _join_bare_headings(sections: list[Section]) -> list[Section]:
    joined: list[Section] = []
    waiting: list[Block] = []
    for section in sections:
        if section.has_body or section is sections[-1]:
            section.blocks = waiting + section.blocks
            waiting = []
            joined.append(section)
        else:
            waiting += section.blocks
    return [section for section in joined if section.blocks]


class _Reader:
    """Line by line: an open block, and the titles above it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sections = [Section(headings=())]
        self.titles: list[tuple[int, str]] = []
        self.block_start = 0
        self.block_end = 0
        self.num_block_lines = 0

    def read_paragraphs(self) -> None:
        for start, line in self._lines(0):
            self._read_paragraph_line(start, line)
        self._close_block()

    def read_markdown(self) -> None:
        front_matter = FRONT_MATTER.match(self.text)
        if front_matter:
            self.sections[0].blocks.append(Block(*front_matter.span()))
        fence = ""
        for start, line in self._lines(front_matter.end() if front_matter else 0):
            if fence:
                self._extend_block(start, line)
                if _closes(fence, line):
                    self._close_block(is_code=True)
                    fence = ""
            elif opening := FENCE.match(line.rstrip()):
                self._close_block()
                fence = opening[1]
                self._extend_block(start, line)
            else:
                self._read_plain_line(start, line)
        self._close_block(is_code=bool(fence))

    def _lines(self, start: int) -> Iterator[tuple[int, str]]:
        for match in LINE.finditer(self.text, start):
            yield match.start(), match.group()

    def _read_plain_line(self, start: int, line: str) -> None:
        bare = line.rstrip()
        open_block = self.text[self.block_start : self.block_end]
        if heading := ATX_HEADING.match(bare):
            self._close_block()
            title = _without_closing_hashes(bare[heading.end() :].strip())
            self._open_section(len(heading[1]), title, Block(start, start + len(bare)))
        elif (
            self.num_block_lines == 1
            and (underline := SETEXT_UNDERLINE.match(bare))
            and not NOT_A_TITLE.match(open_block)
        ):
            self.num_block_lines = 0
            level = 1 if underline[1].startswith("=") else 2
            self._open_section(
                level, open_block.strip(), Block(self.block_start, start + len(bare))
            )
        else:
            self._read_paragraph_line(start, line)

    def _read_paragraph_line(self, start: int, line: str) -> None:
        if line.strip():
            self._extend_block(start, line)
        else:
            self._close_block()

    def _extend_block(self, start: int, line: str) -> None:
        if self.num_block_lines == 0:
            self.block_start = start
        self.block_end = start + len(line.rstrip())
        self.num_block_lines += 1

    def _close_block(self, *, is_code: bool = False) -> None:
        if self.num_block_lines:
            self.sections[-1].blocks.append(Block(self.block_start, self.block_end, is_code))
        self.num_block_lines = 0

    def _open_section(self, level: int, title: str, block: Block) -> None:
        self.titles = [(above, name) for above, name in self.titles if above < level]
        self.titles.append((level, title))
        headings = tuple(name for _, name in self.titles if name)
        self.sections.append(Section(headings=headings, blocks=[block], body_start=block.end))


def _closes(fence: str, line: str) -> bool:
    stripped = line.strip()
    return len(stripped) >= len(fence) and set(stripped) == {fence[0]}


def _without_closing_hashes(title: str) -> str:
    bare = title.rstrip("#")
    return bare.rstrip() if not bare or bare[-1] in " \t" else title
