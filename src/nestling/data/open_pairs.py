"""Open what a text model is trained on, whatever it comes in."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from nestling.core.progress import Progress, silent
from nestling.data.jsonl import read_jsonl
from nestling.data.labels import read_labels
from nestling.data.lines import check_exists, kind_of
from nestling.data.pairs import read_pair_classification
from nestling.data.parquet import read_parquet
from nestling.data.records import Record, check_encodable
from nestling.data.tables import check_num_cells, read_rows
from nestling.data.tasks import FORM_NAMES, form_of, open_task
from nestling.data.training_pairs import (
    TrainingPairs,
    join_pairs,
    make_pairs,
    pairs_of_labels,
    pairs_of_matches,
    pairs_of_retrieval,
)
from nestling.data.types import RetrievalTask
from nestling.errors import DataError

COLUMNS = {
    "anchor": ("anchor", "query", "question", "premise", "sentence1", "text1"),
    "positive": (
        "positive",
        "document",
        "answer",
        "passage",
        "hypothesis",
        "sentence2",
        "text2",
        "text",
    ),
    "negative": ("negative", "hard_negative", "hard negative"),
}
"""Names of columns or fields that are understood, first come first taken."""

PAIR_FORMS = (
    "builtin",
    "builtin:wide",
    "beir:<dir>[#split]",
    "pairs:<file>",
    "labels:<file>",
    "<file.tsv|csv|jsonl|parquet>",
)

Fields = tuple[str, str, str]


def open_training_pairs(uris: Sequence[str] | str, *, progress: Progress = silent) -> TrainingPairs:
    """Read training pairs; several sources are joined.

    - `builtin`, `builtin:wide`, `beir:<dir>`: each query with each relevant document, the train
      split unless `#split` names another.
    - `pairs:<file>`: the pairs that match; those that do not are hard negatives.
    - `labels:<file>`: each text with another of its label; the `-train` file is read.
    - a file with the columns anchor and positive (or query and document, premise and hypothesis
      ...), and perhaps negative; or with two columns that have no header. With a column `label`
      it is read like `pairs:`.

    Raises:
        DataError: If a source is unknown, malformed, or holds no pairs to train on.
        MissingExtraError: If a .parquet file is read without pyarrow.
    """
    named = [uris] if isinstance(uris, str) else list(uris)
    if not named:
        raise DataError(f"`pairs` must name at least one of {', '.join(PAIR_FORMS)}, got none.")
    return join_pairs([_open(uri, progress) for uri in named])


def _open(uri: str, progress: Progress) -> TrainingPairs:
    form = form_of(uri)
    if form not in FORM_NAMES or Path(uri).expanduser().is_file():
        return read_pair_file(Path(uri).expanduser())
    path = Path(uri.removeprefix(form).removeprefix(":")).expanduser()
    if form == "pairs":
        task = read_pair_classification(path, name=uri)
        return pairs_of_matches(
            task.left, task.right, task.is_match.tolist(), source=path.name, notes=task.notes
        )
    if form == "labels":
        labelled = read_labels(path, name=uri)
        texts = [str(text) for text in labelled.train_inputs]
        return pairs_of_labels(texts, labelled.train_labels, source=path.name)
    opened = (
        open_task(uri, split="train", progress=progress) if form in ("builtin", "beir") else None
    )
    if isinstance(opened, RetrievalTask):
        return pairs_of_retrieval(opened)
    raise DataError(
        f"`pairs` must be one of {', '.join(PAIR_FORMS)}, got {uri!r}: a {form}: task has no pairs that "
        f"belong together. Name a file with the columns anchor and positive."
    )


def read_pair_file(path: Path) -> TrainingPairs:
    """Read a file of pairs by its columns; see `open_training_pairs`.

    Raises:
        DataError: If the file is missing, of another kind, malformed, or has no pairs.
    """
    check_exists(path)
    kind = kind_of(path)
    if kind in (".tsv", ".csv"):
        first = next(iter(read_rows(path)), None)
        names = [] if first is None else [cell.strip().lower() for cell in first.cells]
        if "label" in names:
            task = read_pair_classification(path, name=path.name)
            return pairs_of_matches(
                task.left, task.right, task.is_match.tolist(), source=path.name, notes=task.notes
            )
        return _from_table(path, names)
    readers = {".jsonl": read_jsonl, ".parquet": read_parquet}
    if kind not in readers:
        raise DataError(
            f"`pairs` must be one of {', '.join(PAIR_FORMS)}, got {path}. "
            f"Convert it, or end its name in what it is."
        )
    return make_pairs(_fields_of(readers[kind](path), path), source=path.name)


def _from_table(path: Path, names: Sequence[str]) -> TrainingPairs:
    columns = {role: _find(names, known) for role, known in COLUMNS.items()}
    has_names = columns["anchor"] is not None and columns["positive"] is not None
    if not has_names and len(names) != 2:
        raise DataError(
            f"{path} must name the columns anchor and positive in its first line, or have two columns, got "
            f"{', '.join(map(repr, names)) or 'no line'}. Name the columns so, with a tab or comma between."
        )
    # Two columns without names that are known: a first line of two single words names them.
    skip_first = has_names or not any(" " in name for name in names)
    anchor, positive, negative = (
        (columns["anchor"], columns["positive"], columns["negative"]) if has_names else (0, 1, None)
    )

    def rows() -> Iterator[Fields]:
        for position, row in enumerate(read_rows(path)):
            if position == 0 and skip_first:
                continue
            check_num_cells(row, len(names), path)
            cells = [
                "" if place is None else row.cells[place] for place in (anchor, positive, negative)
            ]
            yield _checked(cells, f"line {row.line}", path)

    note = f"took the first line of {path.name} for the names of its columns: {', '.join(names)}"
    return make_pairs(
        rows(), source=path.name, notes=[note] if skip_first and not has_names else []
    )


def _fields_of(records: Iterator[Record], path: Path) -> Iterator[Fields]:
    for record in records:
        values = [_value(record.fields, known) for known in COLUMNS.values()]
        yield _checked(values, record.place, path)


def _value(fields: Mapping[str, object], known: Sequence[str]) -> str:
    found = next((fields[name] for name in known if name in fields), "")
    return found if isinstance(found, str) else ""


def _checked(cells: Sequence[str], place: str, path: Path) -> Fields:
    anchor, positive, negative = (
        check_encodable(cell.strip(), f"{place} of {path}") for cell in cells
    )
    if not anchor or not positive:
        raise DataError(
            f"{place} of {path} must hold an anchor and a positive text, got {list(cells[:2])}. "
            f"Mend or remove it."
        )
    return anchor, positive, negative


def _find(names: Sequence[str], known: Sequence[str]) -> int | None:
    return next((names.index(name) for name in known if name in names), None)
