import os
import shutil
import sysconfig
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from nestling.core.progress import silent
from nestling.data import builtin, docstrings
from nestling.data.builtin import (
    NamedDocument,
    find_sources,
    harvest_sources,
    make_builtin_task,
    make_unique,
    name_in_words,
    read_builtin_corpus,
    split_of,
)
from nestling.data.docstrings import SHORTEST_DOCUMENT
from nestling.data.types import Corpus
from nestling.errors import DataError

Write = Callable[[str, str | bytes], Path]


def module(*names: str, about: str = "") -> str:
    """A source that defines functions with long enough docstrings of their own."""
    return "".join(
        f'def {name}():\n    """Do what the function {name} {about} is there for."""\n'
        for name in names
    )


def text_of(name: str, about: str = "") -> str:
    return " ".join(f"Do what the function {name} {about} is there for.".split())


@pytest.fixture
def python(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small Python installation: a standard library and two installed packages."""
    write("lib/json/__init__.py", module("dumps", "_hidden"))
    write("lib/json/decoder.py", 'class JSONDecoder:\n    "Turn JSON text into Python values."\n')
    write("lib/broken.py", "def f(:\n")
    write("lib/test/support.py", module("not_this"))
    write("lib/json/tests/a.py", module("nor_this"))
    write("lib/test_lone.py", module("nor_that"))
    write("lib/site-packages/numpy/linalg.py", module("norm", "dumps"))
    write("lib/site-packages/nestling/data.py", module("own"))
    write("lib/site-packages/numpy-2.4.6.dist-info/METADATA", "Name: numpy\nVersion: 2.4.6\n")
    write("lib/site-packages/Click-8.1.dist-info/METADATA", "Name: click\nVersion: 8.1\n")
    places = {name: str(tmp_path / "lib" / "site-packages") for name in ("purelib", "platlib")}
    places["stdlib"] = str(tmp_path / "lib")
    monkeypatch.setattr(sysconfig, "get_path", places.__getitem__)
    return tmp_path / "lib"


def test_documents_of_the_standard_library(python: Path) -> None:
    steps: list[tuple[int, int]] = []
    corpus = read_builtin_corpus(
        is_wide=False, progress=lambda _, done, total: steps.append((done, total))
    )
    assert corpus.doc_ids == ["json._hidden", "json.decoder.JSONDecoder", "json.dumps"]
    assert corpus.texts[1:] == ["Turn JSON text into Python values.", text_of("dumps")]
    assert corpus.source == "builtin"
    assert corpus.notes[0].startswith("docstrings of the standard library of Python 3.")
    assert corpus.notes[1] == "1 of 3 files do not parse and were left out"
    assert steps == [(3, 3)]


def test_the_wide_corpus_adds_packages_and_names_them(python: Path) -> None:
    corpus = read_builtin_corpus(is_wide=True)
    assert corpus.doc_ids == [
        "json._hidden",
        "json.decoder.JSONDecoder",
        "json.dumps",
        "numpy.linalg.norm",
    ]
    assert corpus.source == "builtin:wide"
    assert "and of the installed packages: click 8.1, numpy 2.4.6" in corpus.notes


def test_the_place_of_the_sources_does_not_matter(
    python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = read_builtin_corpus(is_wide=True)
    elsewhere = tmp_path / "elsewhere" / "deeper"
    shutil.copytree(python, elsewhere)
    places = {name: str(elsewhere / "site-packages") for name in ("purelib", "platlib")}
    places["stdlib"] = str(elsewhere)
    monkeypatch.setattr(sysconfig, "get_path", places.__getitem__)
    walk = os.walk

    def walk_backwards(root: str) -> object:
        for parent, folders, names in walk(root):
            folders.sort(reverse=True)
            yield parent, folders, names[::-1]

    monkeypatch.setattr(os, "walk", walk_backwards)
    assert read_builtin_corpus(is_wide=True).corpus_hash == here.corpus_hash


def test_python_without_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(
        DataError, match=r"`builtin` needs the Python sources of the standard library, got none in"
    ):
        read_builtin_corpus(is_wide=False)


def test_equal_texts_count_once_under_a_public_name() -> None:
    found = [
        NamedDocument("_a.f", "same"),
        NamedDocument("z.f", "same"),
        NamedDocument("b._f", "same"),
        NamedDocument("a.g", "second"),
        NamedDocument("a.g", "first"),
        NamedDocument("a.g", "third"),
    ]
    assert make_unique(found) == [
        ("a.g", "first"),
        ("a.g~2", "second"),
        ("a.g~3", "third"),
        ("z.f", "same"),
    ]
    assert make_unique(reversed(found)) == make_unique(found)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("json.decoder.JSONDecoder.raw_decode", "json decoder JSON decoder raw decode"),
        ("http.server.HTTPServer", "http server HTTP server"),
        ("base64.b64encode", "base64 b64 encode"),
        ("uuid.UUID.__init__", "uuid UUID init"),
        ("io.IOBase.readLines2", "io IO base read lines2"),
        ("x.Größe_2", "x gr öß e 2"),
        ("codecs.UTF8Decoder", "codecs UTF8 decoder"),
    ],
)
def test_name_in_words(name: str, words: str) -> None:
    assert name_in_words(name) == words


def test_a_task_asks_for_the_documents_of_its_split(builtin_corpus: Corpus) -> None:
    task = make_builtin_task(builtin_corpus, "test", name="builtin")
    assert task.corpus is builtin_corpus
    texts = dict(zip(builtin_corpus.doc_ids, builtin_corpus.texts, strict=True))
    assert len(set(task.query_ids)) == len(task.query_ids) == len(task.queries)
    for query_id, query in zip(task.query_ids, task.queries, strict=True):
        ((doc_id, grade),) = task.qrels[query_id].items()
        assert grade == 1
        assert split_of(texts[doc_id]) == "test"
        assert query == name_in_words(doc_id.partition("~")[0])
    assert task.notes[0] == builtin_corpus.describe()
    assert f"{len(task.queries):,} queries of the split 'test'" in task.notes[1]
    assert task.notes[2:] == builtin_corpus.notes


def test_splits_share_out_all_documents(builtin_corpus: Corpus) -> None:
    names = ("train", "validation", "test")
    tasks = {split: make_builtin_task(builtin_corpus, split, name="x") for split in names}
    asked = Counter(query_id for task in tasks.values() for query_id in task.query_ids)
    assert len(asked) == asked.total() == len(builtin_corpus)
    shares = {split: len(task.queries) / len(builtin_corpus) for split, task in tasks.items()}
    assert shares == pytest.approx({"train": 0.6, "validation": 0.1, "test": 0.3}, abs=0.02)


def test_unknown_split(builtin_corpus: Corpus) -> None:
    with pytest.raises(
        DataError,
        match=r"`split` of builtin must be one of train, validation, test, got 'dev'\. Name it as builtin#test",
    ):
        make_builtin_task(builtin_corpus, "dev", name="x")


def test_the_real_corpus(builtin_corpus: Corpus) -> None:
    assert 4_000 < len(builtin_corpus) < 10_000
    assert len(set(builtin_corpus.texts)) == len(set(builtin_corpus.doc_ids)) == len(builtin_corpus)
    assert min(map(len, builtin_corpus.texts)) >= SHORTEST_DOCUMENT
    assert all(" ".join(text.split()) == text for text in builtin_corpus.texts)
    assert list(builtin_corpus.doc_ids) == sorted(builtin_corpus.doc_ids)
    assert "json.decoder.JSONDecoder.raw_decode" in builtin_corpus.doc_ids
    parts = {part for doc_id in builtin_corpus.doc_ids for part in doc_id.split(".")}
    assert not parts & {"tests", "idle_test", "site-packages"}
    assert read_builtin_corpus(is_wide=False).corpus_hash == builtin_corpus.corpus_hash


def test_worker_processes_find_what_one_process_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = find_sources([Path(docstrings.__file__).parents[1]], skip=())
    sources += find_sources([Path(os.__file__).parent / "email"], skip=())
    alone = harvest_sources(sources, progress=silent)
    monkeypatch.setattr(builtin, "SMALLEST_SHARED_JOB", 1)
    monkeypatch.setattr(builtin, "FILES_PER_BATCH", 3)
    steps: list[int] = []
    shared = harvest_sources(sources, progress=lambda _, done, total: steps.append(done))
    assert shared == alone
    assert any(shared)
    assert steps == sorted(steps)
    assert steps[-1] == len(sources)


@pytest.mark.parametrize("script", ["", "input(); print(end='[')"])
def test_a_worker_that_dies_loses_nothing(
    write: Write, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    sources = find_sources([Path(os.__file__).parent / "json"], skip=())
    alone = harvest_sources(sources, progress=silent)
    monkeypatch.setattr(builtin, "SMALLEST_SHARED_JOB", 1)
    monkeypatch.setattr(builtin, "FILES_PER_BATCH", 1)
    monkeypatch.setattr(docstrings, "__file__", str(write("dies.py", script)))
    assert harvest_sources(sources, progress=silent) == alone
