"""Open a TASK: the one word by which a user names what to measure or train on."""

import difflib
from collections.abc import Callable
from pathlib import Path

from nestling.core.progress import Progress, silent
from nestling.data.beir import is_beir_folder, read_beir, read_beir_corpus
from nestling.data.builtin import make_builtin_task, name_builtin, read_builtin_corpus
from nestling.data.chunking import Chunking
from nestling.data.corpora import open_queries, read_corpus
from nestling.data.digits import make_digits_task
from nestling.data.idx import read_image_folder
from nestling.data.labels import read_labels
from nestling.data.lines import check_exists
from nestling.data.pairs import read_pair_classification, read_sts
from nestling.data.types import Corpus, SelfTask, Task
from nestling.data.vectors import is_vectors
from nestling.errors import DataError

TASK_FORMS = (
    "builtin[#split]",
    "builtin:wide[#split]",
    "builtin:digits",
    "beir:<dir>[#split]",
    "sts:<file>",
    "pairs:<file>",
    "labels:<file>",
    "images:<dir>",
    "self:<VECTORS|FILE|folder>",
)
"""What a TASK may look like."""

FORM_NAMES = tuple(form.partition(":")[0].partition("[")[0] for form in TASK_FORMS)
SPLIT_FORMS = ("builtin", "beir")
DEFAULT_SPLIT = "test"


def open_task(
    uri: str,
    *,
    chunking: Chunking | None = None,
    queries: Path | str | None = None,
    split: str | None = None,
    corpus: Corpus | None = None,
    progress: Progress = silent,
) -> Task:
    """Read everything a TASK names.

    Args:
        uri: One of `TASK_FORMS`.
        chunking: How text and Markdown files of a `self:` task are cut; None keeps their sections
            whole.
        queries: For a `self:` task: a file of query texts, or of query vectors.
        split: Which split of `builtin` or `beir:` to take where the TASK names none; test by
            default. Other tasks have one file per split and take no notice.
        corpus: Documents that were opened before. Those of `builtin` are not read again if these are
            they; other tasks take no notice.
        progress: Told as files are read.

    Raises:
        DataError: If the form is unknown, or what it names is missing, malformed or empty.
        MissingExtraError: If a .parquet file is read without pyarrow.
    """
    form, rest, named_split = _parse(uri)
    if queries is not None and form != "self":
        raise DataError(
            f"`queries` go with a self: task only, got them with {uri!r}, which has its own. "
            f"Leave --queries out."
        )
    if (form, rest) == ("builtin", "digits"):
        return make_digits_task(name=uri)
    chosen = named_split or split or DEFAULT_SPLIT
    name = uri if named_split or chosen == DEFAULT_SPLIT else f"{uri}#{chosen}"
    if form == "builtin":
        is_wide = rest == "wide"
        if corpus is None or corpus.source != name_builtin(is_wide=is_wide):
            corpus = read_builtin_corpus(is_wide=is_wide, progress=progress)
        return make_builtin_task(corpus, chosen, name=name)
    path = Path(rest).expanduser()
    if form == "beir":
        return read_beir(path, chosen, name=name)
    if form == "self":
        return _open_self(path, queries, name=uri, chunking=chunking, progress=progress)
    readers: dict[str, Callable[..., Task]] = {
        "sts": read_sts,
        "pairs": read_pair_classification,
        "labels": read_labels,
        "images": read_image_folder,
    }
    return readers[form](path, name=uri)


def open_corpus(
    uri: str, *, chunking: Chunking | None = None, progress: Progress = silent
) -> Corpus:
    """Read the documents of a TASK, or of a file or folder named by its path.

    Args:
        uri: `builtin`, `builtin:wide`, `beir:<dir>`, `self:<FILE|folder>`, or a path as
            `read_corpus` takes it.
        chunking: How text and Markdown files are cut; None keeps their sections whole.
        progress: Told as files are read.

    Raises:
        DataError: If the TASK has no documents, or what is named is missing, malformed or empty.
        MissingExtraError: If a .parquet file is read without pyarrow.
    """
    if not _looks_like_task(uri):
        return read_corpus(Path(uri).expanduser(), chunking=chunking, progress=progress)
    form, rest, _ = _parse(uri)
    path = Path(rest).expanduser()
    if form == "builtin" and rest != "digits":
        return read_builtin_corpus(is_wide=rest == "wide", progress=progress)
    if form == "beir":
        return read_beir_corpus(path)
    if form == "self":
        return read_corpus(path, chunking=chunking, progress=progress)
    kind = uri if form == "builtin" else f"{form}:"
    raise DataError(
        f"`corpus` must name documents, got {uri!r}: a {kind} task has none. "
        f"Name builtin, beir:<dir>, or a file or folder of texts."
    )


def _open_self(
    path: Path,
    queries: Path | str | None,
    *,
    name: str,
    chunking: Chunking | None,
    progress: Progress,
) -> SelfTask:
    check_exists(path)
    query_path = None if queries is None else Path(queries).expanduser()
    if query_path is not None:
        check_exists(query_path)
    asks_vectors = query_path is not None and is_vectors(query_path)
    texts = open_queries(query_path) if query_path is not None and not asks_vectors else None
    holds_vectors = is_vectors(path)
    corpus = None if holds_vectors else read_corpus(path, chunking=chunking, progress=progress)
    return SelfTask(
        name=name,
        corpus=corpus,
        vectors=path if holds_vectors else None,
        queries=texts,
        query_vectors=query_path if asks_vectors else None,
        notes=() if corpus is None else (corpus.describe(), *corpus.notes),
    )


def _looks_like_task(uri: str) -> bool:
    """Return whether a string is a TASK, perhaps a mistyped one, rather than a path."""
    head = form_of(uri)
    if head in FORM_NAMES:
        return True
    is_close = difflib.get_close_matches(head, FORM_NAMES, n=1, cutoff=0.7)
    return not Path(uri).expanduser().exists() and bool(is_close)


def form_of(uri: str) -> str:
    """Return what stands before the first colon or #: the form, if it is a TASK."""
    return uri.partition(":")[0].partition("#")[0]


def _parse(uri: str) -> tuple[str, str, str | None]:
    """Return form, what follows it, and the split it names.

    Raises:
        DataError: If the form is unknown; the message lists all and offers the closest.
    """
    form = form_of(uri)
    rest, split = _take_split(uri.removeprefix(form), has_split=form in SPLIT_FORMS)
    is_whole = rest in ("", ":wide", ":digits") if form == "builtin" else len(rest) > 1
    has_fitting_split = split is None or (split != "" and rest != ":digits")
    if form in FORM_NAMES and is_whole and has_fitting_split:
        return form, rest.removeprefix(":"), split
    raise DataError(
        f"`task` must be one of {', '.join(TASK_FORMS)}; got {uri!r}. {_advise(uri, form, rest)}"
    )


def _take_split(rest: str, *, has_split: bool) -> tuple[str, str | None]:
    """Cut `#split` off the end, unless it is part of the name of a folder that exists."""
    if not has_split or "#" not in rest or Path(rest.removeprefix(":")).expanduser().is_dir():
        return rest, None
    before, _, split = rest.rpartition("#")
    return before, split


def _advise(uri: str, form: str, rest: str) -> str:
    path = Path(uri).expanduser()
    if uri and path.exists():
        return f"Did you mean {'beir' if is_beir_folder(path) else 'self'}:{uri}?"
    if form in FORM_NAMES:
        written = [known for known in TASK_FORMS if known.startswith(form)]
        return f"Write it as {' or '.join(written)}."
    closest = difflib.get_close_matches(form.lower(), FORM_NAMES, n=1)
    return f"Did you mean {closest[0]}{rest}?" if closest else "Name one of these."
