"""The built-in corpus: what the Python that runs this says about its own functions and classes.

A document is the first paragraph of a docstring; its query is the qualified name in words. Nothing
is downloaded and nothing is imported: the sources are parsed.
"""

import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

from nestling.core.progress import Progress, silent
from nestling.data import docstrings
from nestling.data.docstrings import Found, harvest
from nestling.data.splits import unit_hash
from nestling.data.types import Corpus, RetrievalTask
from nestling.errors import DataError

SPLIT_ENDS = {"train": 0.6, "validation": 0.7, "test": 1.0}
"""Where each split ends on the scale of `unit_hash`. The test side is large, since a certificate
lives on its queries: about 2,000 of the standard library's 6,500 documents."""

TEST_FOLDERS = ("test", "tests", "idle_test")
FOREIGN_FOLDERS = ("site-packages", "dist-packages")
OWN_PACKAGE = "nestling"
"""Left out of the wide corpus, so that a change of nestling does not change it."""

FILES_PER_BATCH = 64
MOST_WORKERS = 8
SMALLEST_SHARED_JOB = 2000
"""Below this many files, the start of worker processes costs more than it saves."""


class Source(NamedTuple):
    """A file to harvest and the dotted name of its module."""

    module: str
    path: str


class NamedDocument(NamedTuple):
    """A document and the qualified name it belongs to."""

    name: str
    text: str


def read_builtin_corpus(*, is_wide: bool, progress: Progress = silent) -> Corpus:
    """Harvest the standard library, and the installed packages too if `is_wide`.

    Test packages are left out, and files that do not parse. Documents are ordered by qualified
    name; equal ones count once, under a public name if there is one. The result depends on the
    sources alone, not on where they lie.

    Args:
        is_wide: Whether to read site-packages as well.
        progress: Told as files are read.

    Raises:
        DataError: If this Python carries no sources.
    """
    sources = find_sources([Path(sysconfig.get_path("stdlib"))], skip=FOREIGN_FOLDERS)
    version = ".".join(map(str, sys.version_info[:3]))
    notes = [f"docstrings of the standard library of Python {version}"]
    if is_wide:
        folders = sorted({Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")})
        sources += find_sources(folders, skip=(OWN_PACKAGE,))
        notes.append("and of the installed packages: " + ", ".join(list_packages(folders)))
    found = harvest_sources(sources, progress=progress)
    if unparsed := sum(documents is None for documents in found):
        notes.append(f"{unparsed:,} of {len(sources):,} files do not parse and were left out")
    documents = make_unique(
        NamedDocument(f"{source.module}.{name}", text)
        for source, documents in zip(sources, found, strict=True)
        for name, text in documents or ()
    )
    if not documents:
        raise DataError(
            f"`builtin` needs the Python sources of the standard library, got none in "
            f"{sysconfig.get_path('stdlib')}. Use another TASK with this Python."
        )
    return Corpus(
        doc_ids=[document.name for document in documents],
        texts=[document.text for document in documents],
        source=name_builtin(is_wide=is_wide),
        notes=tuple(notes),
    )


def name_builtin(*, is_wide: bool) -> str:
    """Return what the corpus calls its source, which is also the TASK without a split."""
    return "builtin:wide" if is_wide else "builtin"


def make_builtin_task(corpus: Corpus, split: str, *, name: str) -> RetrievalTask:
    """Return one split of the built-in corpus: some queries, all documents.

    A query belongs to the split of its document, and that depends on a hash of the document alone:
    the two widths of the corpus agree on every document they share.

    Raises:
        DataError: If there is no such split.
    """
    if split not in SPLIT_ENDS:
        raise DataError(
            f"`split` of builtin must be one of {', '.join(SPLIT_ENDS)}, got {split!r}. "
            f"Name it as builtin#test."
        )
    chosen = [
        doc_id
        for doc_id, text in zip(corpus.doc_ids, corpus.texts, strict=True)
        if split_of(text) == split
    ]
    note = (
        f"{len(chosen):,} queries of the split {split!r} (by a hash of the document: 60% train, "
        f"10% validation, 30% test), each with one relevant document among all"
    )
    # Some evaluators drop a document whose id equals the query's, so the two are kept apart.
    query_ids = [f"q:{doc_id}" for doc_id in chosen]
    return RetrievalTask(
        name=name,
        corpus=corpus,
        query_ids=query_ids,
        queries=[name_in_words(doc_id.partition("~")[0]) for doc_id in chosen],
        qrels={query_id: {doc_id: 1} for query_id, doc_id in zip(query_ids, chosen, strict=True)},
        notes=(corpus.describe(), note, *corpus.notes),
    )


def split_of(text: str) -> str:
    """Return the split of a document."""
    position = unit_hash(text)
    return next(split for split, end in SPLIT_ENDS.items() if position < end)


def name_in_words(name: str) -> str:
    """Return a qualified name as a person would type it.

    `json.decoder.JSONDecoder.raw_decode` becomes "json decoder JSON decoder raw decode".
    """
    words = re.findall(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*|\d+|[^\W\d_A-Za-z]+", name)
    return " ".join(word if word.isupper() else word.lower() for word in words)


def make_unique(documents: Iterable[NamedDocument]) -> list[NamedDocument]:
    """Return each text once, ordered by name; a name that stands for several gets ~2, ~3, ..."""
    kept: dict[str, NamedDocument] = {}
    for document in sorted(documents, key=lambda document: (_is_private(document), document)):
        kept.setdefault(document.text, document)
    unique = []
    num_seen: dict[str, int] = {}
    for name, text in sorted(kept.values()):
        num_seen[name] = num_seen.get(name, 0) + 1
        unique.append(
            NamedDocument(name if num_seen[name] == 1 else f"{name}~{num_seen[name]}", text)
        )
    return unique


def find_sources(roots: Sequence[Path], *, skip: Sequence[str]) -> list[Source]:
    """Return every module below some folders; test packages are left out.

    Args:
        roots: Folders of top-level modules.
        skip: More folder names not to enter.
    """
    unwanted = {*TEST_FOLDERS, *skip, "__pycache__"}
    sources = []
    for root in roots:
        for parent, folders, names in os.walk(root):
            folders[:] = [name for name in folders if name not in unwanted]
            package = Path(parent).relative_to(root).parts
            for path in (Path(parent, name) for name in names):
                if path.suffix == ".py" and not path.name.startswith("test_"):
                    module = ".".join((*package, path.stem)).removesuffix(".__init__")
                    sources.append(Source(module, str(path)))
    return sources


def list_packages(folders: Sequence[Path]) -> list[str]:
    """Return names and versions of the packages installed in some folders, ordered."""
    found = metadata.distributions(path=[str(folder) for folder in folders])
    return sorted({f"{package.name} {package.version}" for package in found}, key=str.lower)


def harvest_sources(sources: Sequence[Source], *, progress: Progress) -> list[Found | None]:
    """Return `harvest` of every source, in order; a large job is shared among processes."""
    paths = [source.path for source in sources]
    batches = [
        paths[start : start + FILES_PER_BATCH] for start in range(0, len(paths), FILES_PER_BATCH)
    ]
    found: list[Found | None] = []
    with ExitStack() as stack:
        shares_work = len(paths) >= SMALLEST_SHARED_JOB
        for part in _share(batches, stack) if shares_work else map(harvest, batches):
            found += part
            progress("reading docstrings", len(found), len(paths))
    return found


def _share(batches: Sequence[list[str]], stack: ExitStack) -> Iterator[list[Found | None]]:
    """Yield `harvest` of every batch, in order, worked out by processes that `stack` will end."""
    idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
    num_workers = min(MOST_WORKERS, os.cpu_count() or 1)
    for _ in range(num_workers):
        # Plain pipes: `multiprocessing` would import the user's script again in every worker.
        worker = subprocess.Popen(  # noqa: S603  (our own file, run by the running Python)
            [sys.executable, "-I", "-S", docstrings.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        stack.callback(worker.communicate)  # ends it, also one that died over what it was sent
        idle.put(worker)

    def ask(batch: list[str]) -> list[Found | None]:
        worker = idle.get()
        try:
            return _ask_worker(worker, batch)
        finally:
            idle.put(worker)

    yield from stack.enter_context(ThreadPoolExecutor(num_workers)).map(ask, batches)


def _ask_worker(worker: "subprocess.Popen[bytes]", batch: list[str]) -> list[Found | None]:
    """Return a worker's `harvest` of a batch, or do its work if it died."""
    assert worker.stdin is not None  # noqa: S101  (both are pipes)
    assert worker.stdout is not None  # noqa: S101
    try:
        worker.stdin.write(json.dumps(batch).encode() + b"\n")
        worker.stdin.flush()
    except BrokenPipeError:
        return harvest(batch)
    answer = worker.stdout.readline()
    if not answer.endswith(b"\n"):
        return harvest(batch)
    return [
        None if found is None else [(name, text) for name, text in found]
        for found in json.loads(answer)
    ]


def _is_private(document: NamedDocument) -> bool:
    return any(part.startswith("_") for part in document.name.split("."))
