"""BEIR folders: corpus.jsonl, queries.jsonl, qrels/<split>.tsv, each plain or gz."""

from collections.abc import Collection
from pathlib import Path

from nestling.data.jsonl import read_jsonl
from nestling.data.lines import check_exists
from nestling.data.records import build_corpus, build_texts
from nestling.data.tables import Row, read_rows
from nestling.data.types import Corpus, RetrievalTask
from nestling.errors import DataError

Qrels = dict[str, dict[str, int]]


def is_beir_folder(path: Path) -> bool:
    """Return whether a path is a folder that holds a BEIR corpus."""
    return path.is_dir() and _plain_or_gz(path / "corpus.jsonl").exists()


def read_beir_corpus(folder: Path) -> Corpus:
    """Read the documents of a BEIR folder; judgements are not needed.

    Raises:
        DataError: If the corpus is missing, empty, or malformed.
    """
    path = _file_in(folder, "corpus.jsonl")
    return build_corpus(read_jsonl(path), path)


def read_beir(folder: Path, split: str, *, name: str) -> RetrievalTask:
    """Read one split of a BEIR folder.

    Queries come in the order of queries.jsonl. Those that the split does not judge are not used;
    those whose judgements are all 0 have nothing to be found and are left out with a note.

    Args:
        folder: The folder.
        split: Which of qrels/<split>.tsv[.gz] to read.
        name: What to call the task.

    Raises:
        DataError: If a file is missing or malformed, or judgements name unknown ids.
    """
    corpus = read_beir_corpus(folder)
    queries_path = _file_in(folder, "queries.jsonl")
    query_ids, texts = build_texts(read_jsonl(queries_path), queries_path, kind="query")
    qrels_path = _qrels_path(folder, split)
    qrels = read_qrels(qrels_path)
    _check_known(qrels, set(query_ids), what="queries", source=qrels_path, where=queries_path)
    documents = {doc_id for grades in qrels.values() for doc_id in grades}
    _check_known(
        documents, set(corpus.doc_ids), what="documents", source=qrels_path, where=corpus.source
    )
    used = {query_id for query_id, grades in qrels.items() if any(grades.values())}
    if not used:
        raise DataError(
            f"{qrels_path} must judge at least one document relevant, got none. "
            f"Grades above 0 mean relevant."
        )
    notes = [corpus.describe(), f"{len(used):,} judged queries of the split {split!r}"]
    if len(used) < len(qrels):
        notes.append(
            f"{len(qrels) - len(used):,} queries without a relevant document were left out"
        )
    kept = [pair for pair in zip(query_ids, texts, strict=True) if pair[0] in used]
    return RetrievalTask(
        name=name,
        corpus=corpus,
        query_ids=[query_id for query_id, _ in kept],
        queries=[text for _, text in kept],
        qrels={query_id: qrels[query_id] for query_id, _ in kept},
        notes=(*notes, *corpus.notes),
    )


def read_qrels(path: Path) -> Qrels:
    """Read judgements: query id, document id and grade per line, tabs between, header optional.

    Raises:
        DataError: If a line has other than three cells, a grade is not a whole number from 0 up, or
            two lines judge the same pair differently.
    """
    qrels: Qrels = {}
    for position, row in enumerate(read_rows(path)):
        if len(row.cells) != 3:
            raise DataError(
                f"line {row.line} of {path} must hold query id, document id and grade with tabs between, "
                f"got {len(row.cells)} cells: {row.cells}."
            )
        query_id, doc_id, grade = (cell.strip() for cell in row.cells)
        if position == 0 and grade.lower() == "score":
            continue
        grades = qrels.setdefault(query_id, {})
        value = _parse_grade(grade, row, path)
        if grades.setdefault(doc_id, value) != value:
            raise DataError(
                f"line {row.line} of {path} grades document {doc_id!r} for query {query_id!r} as {value}, "
                f"an earlier line as {grades[doc_id]}. Keep one of them."
            )
    if not qrels:
        raise DataError(
            f"{path} must hold at least one judgement, got none. Name a split that has some."
        )
    return qrels


def _parse_grade(grade: str, row: Row, path: Path) -> int:
    if not (grade.isascii() and grade.isdigit()):
        raise DataError(
            f"a grade must be a whole number from 0 up, got {grade!r} in line {row.line} of {path}. "
            f"0 means judged not relevant."
        )
    return int(grade)


def _check_known(
    named: Collection[str],
    known: set[str],
    *,
    what: str,
    source: Path,
    where: Path | str,
) -> None:
    unknown = sorted(set(named) - known)
    if unknown:
        raise DataError(
            f"{source} must name only {what} that exist, got {len(unknown)} that are not in {where}: "
            f"{', '.join(map(repr, unknown[:5]))}. Check that the files belong together."
        )


def _plain_or_gz(path: Path) -> Path:
    packed = path.with_name(path.name + ".gz")
    return packed if packed.exists() and not path.exists() else path


def _file_in(folder: Path, name: str) -> Path:
    check_exists(folder)
    path = _plain_or_gz(folder / name)
    if not path.exists():
        raise DataError(
            f"a BEIR folder must hold {name} or {name}.gz, got {folder} without it. "
            f"Its layout: corpus.jsonl, queries.jsonl, qrels/test.tsv."
        )
    return path


def _qrels_path(folder: Path, split: str) -> Path:
    path = _plain_or_gz(folder / "qrels" / f"{split}.tsv")
    if not path.exists():
        there = sorted({entry.name.split(".tsv")[0] for entry in (folder / "qrels").glob("*.tsv*")})
        raise DataError(
            f"`split` must be one of {', '.join(map(repr, there)) or 'none (no qrels/*.tsv)'} in {folder}, "
            f"got {split!r}. Name it as beir:{folder}#{there[0] if there else 'test'}."
        )
    return path
