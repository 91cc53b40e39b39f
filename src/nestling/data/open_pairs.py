"""Open what a text model is trained on, whatever it comes in."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

from nestling.core.progress import Progress, silent
from nestling.data.jsonl import read_jsonl
from nestling.data.labels import read_labels
from nestling.data.lines import check_exists, kind_of
from nestling.data.pairs import LABELS, LEFT_OUT, read_pair_classification
from nestling.data.parquet import column_names, read_columns
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
    "label": ("label", "gold_label"),
    "score": ("score",),
}
"""Names of columns or fields that are understood, in any case, first come first taken. A score is
told of, and changes nothing."""

PAIR_FORMS = (
    "builtin",
    "builtin:wide",
    "beir:<dir>[#split]",
    "pairs:<file>",
    "labels:<file>",
    "<file.tsv|csv|jsonl|parquet>",
)

Row = tuple[str, Mapping[str, object]]
"""A place for messages, and what stands there by its role in `COLUMNS`."""


def open_training_pairs(uris: Sequence[str] | str, *, progress: Progress = silent) -> TrainingPairs:
    """Read training pairs; several sources are joined.

    - `builtin`, `builtin:wide`, `beir:<dir>`: each query with each relevant document, the train
      split unless `#split` names another.
    - `pairs:<file>`: the pairs that match; those that do not are hard negatives.
    - `labels:<file>`: each text with another of its label; the `-train` file is read.
    - a file with the columns anchor and positive (or query and document, premise and hypothesis
      ...), and perhaps negative (of which .jsonl and .parquet may list several, each making a pair
      of its own); or with two columns that have no header. A column `label` says as in `pairs:`
      which pairs match.

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
        MissingExtraError: If it is a .parquet file and pyarrow is not installed.
    """
    check_exists(path)
    kind = kind_of(path)
    if kind in (".tsv", ".csv"):
        return _from_table(path)
    readers = {".jsonl": read_jsonl, ".parquet": _read_parquet}
    if kind not in readers:
        raise DataError(
            f"`pairs` must be one of {', '.join(PAIR_FORMS)}, got {path}. "
            f"Convert it, or end its name in what it is."
        )
    return _pairs_of_rows((_row_of(record, path) for record in readers[kind](path)), path)


def _from_table(path: Path) -> TrainingPairs:
    first = next(iter(read_rows(path)), None)
    names = [] if first is None else [cell.strip().lower() for cell in first.cells]
    places = {role: _find(names, known) for role, known in COLUMNS.items()}
    has_names = places["anchor"] is not None and places["positive"] is not None
    if not has_names and "label" in names:
        task = read_pair_classification(path, name=path.name)
        return pairs_of_matches(
            task.left, task.right, task.is_match.tolist(), source=path.name, notes=task.notes
        )
    if not has_names and len(names) != 2:
        raise DataError(
            f"{path} must name the columns anchor and positive in its first line, or have two columns, got "
            f"{', '.join(map(repr, names)) or 'no line'}. Name the columns so, with a tab or comma between."
        )
    if not has_names:
        places = {"anchor": 0, "positive": 1}
    # Two columns without names that are known: a first line of two single words names them.
    skip_first = has_names or not any(" " in name for name in names)

    def rows() -> Iterator[Row]:
        for position, row in enumerate(read_rows(path)):
            if position == 0 and skip_first:
                continue
            check_num_cells(row, len(names), path)
            yield (
                f"line {row.line}",
                {role: row.cells[place] for role, place in places.items() if place is not None},
            )

    note = f"took the first line of {path.name} for the names of its columns: {', '.join(names)}"
    return _pairs_of_rows(rows(), path, notes=[note] if skip_first and not has_names else [])


def _read_parquet(path: Path) -> Iterator[Record]:
    """Read the columns that are understood, lists of negatives among them."""
    known = {name for names in COLUMNS.values() for name in names}
    names = column_names(path)
    columns = [name for name in names if name.strip().lower() in known]
    if not columns:
        raise _missing_fields(str(path), names)
    return read_columns(path, columns)


def _row_of(record: Record, path: Path) -> Row:
    fields = {name.strip().lower(): value for name, value in record.fields.items()}
    names = list(fields)
    found = {role: _find(names, known) for role, known in COLUMNS.items()}
    values = {role: fields[names[place]] for role, place in found.items() if place is not None}
    if "anchor" not in values or "positive" not in values:
        raise _missing_fields(f"{record.place} of {path}", list(record.fields))
    return record.place, values


def _missing_fields(where: str, names: Sequence[str]) -> DataError:
    others = "query and document, premise and hypothesis, text1 and text2"
    return DataError(
        f"{where} must have the fields anchor and positive (or {others}), got "
        f"{', '.join(names) or 'none'}. Name them so."
    )


def _pairs_of_rows(rows: Iterable[Row], path: Path, *, notes: Sequence[str] = ()) -> TrainingPairs:
    """Return the pairs of all rows, which either all have a label or none has."""
    remaining = iter(rows)
    first = next(remaining, None)
    if first is None or "label" not in first[1]:
        return _pairs_of_texts(() if first is None else chain([first], remaining), path, notes)
    return _pairs_of_labelled(chain([first], remaining), path, notes)


def _pairs_of_texts(rows: Iterable[Row], path: Path, notes: Sequence[str]) -> TrainingPairs:
    pairs: list[tuple[str, str, str]] = []
    num_listing, num_more, num_scored = 0, 0, 0
    first_place = None
    for place, values in rows:
        first_place = first_place or place
        if "label" in values:
            raise DataError(
                f"{place} of {path} must have no label, as {first_place} has none. "
                f"Label every pair, or none."
            )
        anchor, positive = _texts_of(values, place, path)
        negatives = _negatives_of(values, place, path)
        pairs += [(anchor, positive, negative) for negative in negatives]
        num_listing += len(negatives) > 1
        num_more += len(negatives) - 1
        num_scored += _has_score(values)
    listing = (
        f"{num_listing:,} rows with several negatives, each of which makes a pair of its own: "
        f"{num_more:,} pairs more"
    )
    told = [*notes, *([listing] if num_listing else []), *_score_notes(num_scored)]
    return make_pairs(pairs, source=path.name, notes=told)


def _pairs_of_labelled(rows: Iterable[Row], path: Path, notes: Sequence[str]) -> TrainingPairs:
    left: list[str] = []
    right: list[str] = []
    is_match: list[bool] = []
    left_out: Counter[str] = Counter()
    num_scored = 0
    first_place = None
    for place, values in rows:
        first_place = first_place or place
        if "label" not in values:
            raise DataError(
                f"{place} of {path} must have a label, as {first_place} has one. "
                f"Label every pair, or none."
            )
        anchor, positive = _texts_of(values, place, path)
        if any(_negatives_of(values, place, path)):
            raise DataError(
                f"{place} of {path} must hold a label or a negative, got both. Leave one of them out."
            )
        label = _label_of(values["label"], place, path)
        if label in LEFT_OUT:
            left_out[label] += 1
            continue
        left.append(anchor)
        right.append(positive)
        is_match.append(LABELS[label])
        num_scored += _has_score(values)
    told = [f"{len(left):,} pairs, {sum(is_match):,} of them match"]
    told += [f"{count:,} pairs labelled {label!r} left out" for label, count in left_out.items()]
    told += _score_notes(num_scored)
    return pairs_of_matches(left, right, is_match, source=path.name, notes=[*notes, *told])


def _texts_of(values: Mapping[str, object], place: str, path: Path) -> tuple[str, str]:
    texts = []
    for role in ("anchor", "positive"):
        value = values[role]
        if not isinstance(value, str):
            raise DataError(
                f"`{role}` in {place} of {path} must be a string, got {value!r}. Mend or remove it."
            )
        texts.append(check_encodable(value.strip(), f"{place} of {path}"))
    if not all(texts):
        raise DataError(
            f"{place} of {path} must hold an anchor and a positive text, got {texts}. "
            f"Mend or remove it."
        )
    return texts[0], texts[1]


def _negatives_of(values: Mapping[str, object], place: str, path: Path) -> list[str]:
    """Return the hard negatives of a row, at least one; "" stands for none."""
    value = values.get("negative")
    several = value if isinstance(value, list) else ["" if value is None else value]
    texts = [text.strip() for text in several if isinstance(text, str)]
    if len(texts) < len(several):
        raise DataError(
            f"`negative` in {place} of {path} must be a string or a list of them, got {value!r}. "
            f"Mend or remove it."
        )
    return [check_encodable(text, f"{place} of {path}") for text in texts if text] or [""]


def _has_score(values: Mapping[str, object]) -> bool:
    return values.get("score") not in (None, "")


def _score_notes(num_scored: int) -> list[str]:
    if not num_scored:
        return []
    return [f"{num_scored:,} rows have a score, which changes nothing: leave out low ones yourself"]


def _label_of(value: object, place: str, path: Path) -> str:
    word = f"{value:.0f}" if isinstance(value, int | float) and value in (0, 1) else value
    folded = word.strip().lower() if isinstance(word, str) else None
    if folded is None or folded not in (*LABELS, *LEFT_OUT):
        raise DataError(
            f"a label must be one of {', '.join((*LABELS, *LEFT_OUT))}, got {value!r} in {place} of {path}. "
            f"Write labels that mean something else in these words."
        )
    return folded


def _find(names: Sequence[str], known: Sequence[str]) -> int | None:
    return next((names.index(name) for name in known if name in names), None)
