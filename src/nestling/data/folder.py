"""A folder of text and Markdown files as a corpus of chunks."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nestling.core.progress import Progress, silent
from nestling.data.chunking import Chunk, Chunking, cut
from nestling.data.lines import decode, kind_of, read_bytes
from nestling.data.markdown import find_sections
from nestling.data.types import Corpus
from nestling.errors import DataError

MARKDOWN_SUFFIXES = (".md", ".markdown")
TEXT_SUFFIXES = (*MARKDOWN_SUFFIXES, ".rst", ".text", ".txt")
SNIPPET_WIDTH = 160
BYTES_SNIFFED = 8192
"""A zero byte this early marks a binary file, whatever its name says."""


def read_text_folder(
    folder: Path, *, chunking: Chunking | None, progress: Progress = silent
) -> Corpus:
    """Read every text and Markdown file below a folder, in the order of their paths.

    Hidden files and folders, links to folders, files of other kinds and binary files are passed
    over; the notes count the latter two.

    Args:
        folder: Where to look.
        chunking: How long a chunk may be; None keeps each section whole.
        progress: Told after every file.

    Raises:
        DataError: If no file holds any text, one is not UTF-8, or a folder cannot be read.
    """
    found = _find_files(folder)
    texts = [path for path in found if kind_of(path) in TEXT_SUFFIXES]
    corpus = _read_texts(
        texts, root=folder, chunking=chunking, skips_binary=True, progress=progress
    )
    others = Counter(path.suffix for path in found if kind_of(path) not in TEXT_SUFFIXES)
    if not others:
        return corpus
    kinds = ", ".join(suffix or "no suffix" for suffix, _ in others.most_common(5))
    note = f"{others.total():,} files of other kinds were passed over ({kinds})"
    return replace(corpus, notes=(*corpus.notes, note))


def read_text_file(path: Path, *, chunking: Chunking | None) -> Corpus:
    """Read one text or Markdown file as a corpus of chunks.

    Raises:
        DataError: If it holds no text or is not UTF-8.
    """
    corpus = _read_texts(
        [path], root=path.parent, chunking=chunking, skips_binary=False, progress=silent
    )
    note = f"{path.name} was read as one text; for one document per line, name it .tsv"
    return replace(corpus, source=str(path), notes=(*corpus.notes, note))


def _read_texts(
    paths: Sequence[Path],
    *,
    root: Path,
    chunking: Chunking | None,
    skips_binary: bool,
    progress: Progress,
) -> Corpus:
    doc_ids: list[str] = []
    texts: list[str] = []
    metadata: list[dict[str, Any]] = []
    binary: list[str] = []
    num_too_long = 0
    for done, path in enumerate(paths, 1):
        name = _name_of(path, root)
        raw = read_bytes(path)
        if skips_binary and b"\0" in raw[:BYTES_SNIFFED]:
            binary.append(name)
            raw = b""
        text = decode(raw, path, 1).removeprefix("\ufeff")
        sections = find_sections(text, is_markdown=kind_of(path) in MARKDOWN_SUFFIXES)
        num_per_heading: Counter[str] = Counter()
        for chunk in cut(text, sections, chunking):
            heading = _anchor(chunk.section.headings[-1] if chunk.section.headings else "")
            doc_ids.append(f"{name}#{heading}:{num_per_heading[heading]}")
            num_per_heading[heading] += 1
            texts.append(text[chunk.span.start : chunk.span.end])
            metadata.append(
                {
                    "path": name,
                    "heading": " > ".join(chunk.section.headings),
                    "snippet": _snippet(text, chunk),
                }
            )
            num_too_long += chunk.is_too_long
        progress("reading files", done, len(paths))
    if not doc_ids:
        raise DataError(
            f"`corpus` must hold text in files named {', '.join(TEXT_SUFFIXES)}, got {root} with "
            f"{len(paths)} such files and no text in them. Name another folder or file."
        )
    notes = [f"{len(texts):,} chunks of {len(paths) - len(binary):,} files"]
    if binary:
        names = ", ".join(binary[:3])
        notes.append(f"{len(binary):,} binary files were passed over ({names})")
    if num_too_long and chunking is not None:
        notes.append(
            f"{num_too_long:,} texts are truncated: a single word is longer than {chunking.max_tokens} tokens"
        )
    return Corpus(
        doc_ids=doc_ids, texts=texts, source=str(root), metadata=metadata, notes=tuple(notes)
    )


def _find_files(folder: Path) -> list[Path]:
    found = []
    for parent, folders, names in os.walk(folder, onerror=_refuse_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(
        (path for path in found if path.is_file()), key=lambda path: _name_of(path, folder)
    )


def _refuse_unreadable(error: OSError) -> None:
    raise DataError(
        f"cannot read the folder {error.filename}: {error.strerror}. Check its permissions."
    ) from error


def _name_of(path: Path, root: Path) -> str:
    # A file name may hold bytes that are not UTF-8; an id must not.
    return os.fsencode(path.relative_to(root).as_posix()).decode("utf-8", "replace")


def _anchor(heading: str) -> str:
    """Return a heading as web pages name it: lower case, hyphens, no punctuation."""
    return re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip())


def _snippet(text: str, chunk: Chunk) -> str:
    """Return the first words below the heading, or the heading where nothing stands below it."""
    start, end = chunk.span
    start = chunk.section.body_start if start < chunk.section.body_start < end else start
    words = " ".join(text[start : min(end, start + 4 * SNIPPET_WIDTH)].split())
    return words if len(words) <= SNIPPET_WIDTH else words[: SNIPPET_WIDTH - 1].rstrip() + "…"
