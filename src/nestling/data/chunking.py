"""Cut a text into pieces that an encoder reads whole.

A chunk is a slice of the file, from the start of a sentence to the end of one. It never crosses a
heading. It is filled up to the token limit, but ends at a paragraph rather than inside one where
that leaves it at least half full. The next chunk of the section begins with the last sentences of
the one before, as many as fit the overlap.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from nestling.data.markdown import Block, Section
from nestling.errors import DataError

LINE_END = re.compile(r"\n")
SENTENCE_END = re.compile(
    r"""(?<![.!?…])[.!?…]++["')\]”\u2019»]*+(?=\s)"""
    r"|[。\uff01\uff1f]++[」』”\u2019\uff09]*+"  # these need no space behind them
    r"|\n(?=\s*(?:(?:[-*+]|\d+[.)])\s|\||>))"
)
"""The end of a sentence, or of the line before a list item, a table row or a quoted line."""

SPACE = re.compile(r"\s")
UNSPACED_LETTER = re.compile(r"(?=[\u0e00-\U0010ffff])[^\W\d_]")
"""Scripts written without spaces between words (Thai, Lao, Khmer, kana, Han) lie above U+0E00."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunking:
    """How long a chunk may be, in the words of the encoder that will read it.

    Attributes:
        count_tokens: Length of each text in tokens, as the encoder counts them.
        max_tokens: The longest text the encoder reads whole, special tokens included.
        overlap_tokens: The most that a chunk repeats of the one before, in whole sentences.
    """

    count_tokens: Callable[[Sequence[str]], list[int]]
    max_tokens: int
    overlap_tokens: int

    def __post_init__(self) -> None:
        if not 0 <= self.overlap_tokens < self.max_tokens:
            raise DataError(
                f"`overlap_tokens` must lie in [0, {self.max_tokens}), below `max_tokens`, got "
                f"{self.overlap_tokens}. An eighth of `max_tokens` is a good start."
            )


class Span(NamedTuple):
    """A slice of a text."""

    start: int
    end: int


class Chunk(NamedTuple):
    """A piece of a text.

    Attributes:
        span: Where it lies.
        section: What it was cut from.
        is_too_long: It is one word of more tokens than the limit; the encoder reads its beginning.
    """

    span: Span
    section: Section
    is_too_long: bool


class _Atom(NamedTuple):
    """What is not cut further: a sentence or a piece of one."""

    span: Span
    num_tokens: int
    opens_block: bool


class _Pack(NamedTuple):
    """A run of atoms: `first` to `stop`, of which those from `fresh` are in no chunk before."""

    first: int
    fresh: int
    stop: int


def cut(text: str, sections: Sequence[Section], chunking: Chunking | None) -> list[Chunk]:
    """Return the chunks of a text in order.

    Every word lies in a chunk. No chunk is longer than the limit, but for a single word that is by
    itself; a run of text without any space counts as one word, unless its script uses none.

    Args:
        text: A whole file.
        sections: Its sections.
        chunking: The limit, or None to keep each section whole.

    Raises:
        DataError: If the limit leaves no room beside the special tokens.
    """
    wholes = [Span(section.blocks[0].start, section.blocks[-1].end) for section in sections]
    if chunking is None or not wholes:
        return [
            Chunk(whole, section, False) for whole, section in zip(wholes, sections, strict=True)
        ]
    num_special = chunking.count_tokens([""])[0]
    if num_special >= chunking.max_tokens:
        raise DataError(
            f"`max_tokens` must leave room for text beside {num_special} special tokens, got "
            f"{chunking.max_tokens}. Pass at least {num_special + 16}."
        )
    chunks = []
    counts = chunking.count_tokens([text[whole.start : whole.end] for whole in wholes])
    for section, whole, num_tokens in zip(sections, wholes, counts, strict=True):
        if num_tokens <= chunking.max_tokens:
            chunks.append(Chunk(whole, section, False))
            continue
        chunks += [
            Chunk(span, section, num_tokens > chunking.max_tokens)
            for span, num_tokens in _cut_section(text, section, chunking, num_special)
        ]
    return chunks


def _cut_section(
    text: str, section: Section, chunking: Chunking, num_special: int
) -> list[tuple[Span, int]]:
    """Return the spans of a section that is over the limit, and their token counts."""
    atoms = _find_atoms(text, section, chunking)
    packs = list(_pack(atoms, chunking, num_special))
    spans = [Span(atoms[pack.first].span.start, atoms[pack.stop - 1].span.end) for pack in packs]
    # Tokens of a whole are not always the sum over its parts, so the result is counted again.
    counts = chunking.count_tokens([text[span.start : span.end] for span in spans])
    fitted: list[tuple[Span, int]] = []
    had_room = True
    for pack, span, num_tokens in zip(packs, spans, counts, strict=True):
        has_room = num_tokens <= chunking.max_tokens
        if has_room and had_room:
            fitted.append((span, num_tokens))
        else:  # without the overlap, also behind a chunk that had to be cut
            fresh = Span(atoms[pack.fresh].span.start, span.end)
            fitted += _shrink_to_fit(text, [fresh], chunking)
        had_room = has_room
    return fitted


def _find_atoms(text: str, section: Section, chunking: Chunking) -> list[_Atom]:
    block_starts = {block.start for block in section.blocks}
    sentences = [span for block in section.blocks for span in _split_block(text, block)]
    return [
        _Atom(span, num_tokens, span.start in block_starts)
        for span, num_tokens in _shrink_to_fit(text, sentences, chunking)
    ]


def _split_block(text: str, block: Block) -> Iterator[Span]:
    """Yield the sentences of a paragraph, or the lines of a code block."""
    ends = LINE_END if block.is_code else SENTENCE_END
    start = block.start
    for match in ends.finditer(text, block.start, block.end):
        span = _trim(text, start, match.end())
        if span.start < span.end:
            yield span
        start = match.end()
    span = _trim(text, start, block.end)
    if span.start < span.end:
        yield span


def _trim(text: str, start: int, end: int) -> Span:
    piece = text[start:end]
    return Span(
        start + len(piece) - len(piece.lstrip()),
        max(start, end - len(piece) + len(piece.rstrip())),
    )


def _pack(atoms: Sequence[_Atom], chunking: Chunking, num_special: int) -> Iterator[_Pack]:
    """Yield the atoms of each chunk of a section, going by the sum of their tokens."""
    totals = [0, *accumulate(max(1, atom.num_tokens - num_special) for atom in atoms)]
    room = chunking.max_tokens - num_special
    first = fresh = 0
    while fresh < len(atoms):
        stop = max(fresh + 1, bisect_right(totals, totals[first] + room) - 1)
        if stop < len(atoms):
            half_full = totals[first] + room / 2
            stop = next(
                (
                    end
                    for end in range(stop, fresh, -1)
                    if atoms[end].opens_block and totals[end] >= half_full
                ),
                stop,
            )
        yield _Pack(first, fresh, stop)
        previous, first, fresh = first, stop, stop
        while (
            fresh < len(atoms)
            and first - 1 > previous
            and totals[fresh] - totals[first - 1] <= chunking.overlap_tokens
            and totals[fresh + 1] - totals[first - 1] <= room
        ):
            first -= 1


def _shrink_to_fit(text: str, spans: Sequence[Span], chunking: Chunking) -> list[tuple[Span, int]]:
    """Halve each span that is over the limit until it fits or is one word; return token counts."""
    counts = chunking.count_tokens([text[span.start : span.end] for span in spans])
    fitted: list[tuple[Span, int]] = []
    for span, num_tokens in zip(spans, counts, strict=True):
        halves = _halve(text, span) if num_tokens > chunking.max_tokens else []
        fitted += _shrink_to_fit(text, halves, chunking) if halves else [(span, num_tokens)]
    return fitted


def _halve(text: str, span: Span) -> list[Span]:
    """Return both halves, cut between words as near to the middle as can be; [] for one word."""
    for boundary in (SPACE, UNSPACED_LETTER):
        if boundary.search(text, span.start + 1, span.end):
            place = next(at for at in _from_the_middle(span) if boundary.match(text, at))
            return [_trim(text, span.start, place), _trim(text, place, span.end)]
    return []


def _from_the_middle(span: Span) -> Iterator[int]:
    """Yield every place inside a span, nearest to the middle first."""
    middle = (span.start + span.end) // 2
    for offset in range(span.end - span.start):
        for place in (middle - offset, middle + offset + 1):
            if span.start < place < span.end:
                yield place
