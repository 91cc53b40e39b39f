"""Open a corpus or a list of queries, whatever file it comes in."""

from pathlib import Path

from nestling.core.progress import Progress, silent
from nestling.data.beir import is_beir_folder, read_beir_corpus
from nestling.data.chunking import Chunking
from nestling.data.folder import TEXT_SUFFIXES, read_text_file, read_text_folder
from nestling.data.jsonl import read_jsonl
from nestling.data.lines import check_exists, kind_of, read_lines
from nestling.data.parquet import read_parquet
from nestling.data.records import build_corpus, build_texts
from nestling.data.tables import read_table
from nestling.data.types import Corpus
from nestling.data.vectors import is_vectors
from nestling.errors import DataError

RECORD_READERS = {
    ".jsonl": read_jsonl,
    ".csv": read_table,
    ".tsv": read_table,
    ".parquet": read_parquet,
}
"""One reader per kind of file that holds one document per record."""


def read_corpus(
    path: Path, *, chunking: Chunking | None = None, progress: Progress = silent
) -> Corpus:
    """Read the documents of a file or folder, by its kind.

    Args:
        path: A .jsonl, .csv or .tsv file (plain or gz), a .parquet file, a text or Markdown file, a
            BEIR folder, or a folder of text and Markdown files.
        chunking: How text and Markdown files are cut; None keeps their sections whole.
        progress: Told as the files of a folder are read.

    Raises:
        DataError: If the path is missing, of another kind, malformed, or holds no document.
        MissingExtraError: If a .parquet file is read without pyarrow.
    """
    check_exists(path)
    if is_vectors(path):
        raise DataError(
            f"a corpus must be texts, got the vectors {path}. Pass vectors with --vectors, or as the task "
            f"self:{path}."
        )
    if path.is_dir():
        if is_beir_folder(path):
            return read_beir_corpus(path)
        return read_text_folder(path, chunking=chunking, progress=progress)
    kind = kind_of(path)
    if kind in RECORD_READERS:
        return build_corpus(RECORD_READERS[kind](path), path)
    if kind in TEXT_SUFFIXES:
        return read_text_file(path, chunking=chunking)
    raise _unknown_kind("a corpus", path)


def open_queries(path: Path | str) -> list[str]:
    """Read query texts: a .txt file with one per line, or any file of records with `text`.

    Raises:
        DataError: If the path is missing, of another kind, malformed, or holds no query.
        MissingExtraError: If a .parquet file is read without pyarrow.
    """
    path = Path(path).expanduser()
    check_exists(path)
    kind = kind_of(path)
    if kind in RECORD_READERS:
        return build_texts(RECORD_READERS[kind](path), path, kind="query").texts
    if kind != ".txt":
        raise _unknown_kind("queries", path)
    queries = [line.strip() for line in read_lines(path) if line.strip()]
    if not queries:
        raise DataError(f"{path} must hold at least one query, got none. Write one per line.")
    return queries


def _unknown_kind(what: str, path: Path) -> DataError:
    kinds = [*RECORD_READERS, *(TEXT_SUFFIXES if what == "a corpus" else [".txt"])]
    return DataError(
        f"{what} must be in a file named {', '.join(kinds)}, got {path}. "
        f"Convert it, or end its name in what it is."
    )
