from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from nestling import data
from nestling.data import (
    TASK_FORMS,
    Chunking,
    ClassificationTask,
    Corpus,
    PairClassificationTask,
    RetrievalTask,
    SelfTask,
    SimilarityTask,
    open_corpus,
    open_task,
    tasks,
)
from nestling.errors import DataError
from tests.data.test_idx import save as save_images

Write = Callable[[str, str | bytes], Path]


def count_words(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) for text in texts]


@pytest.fixture
def no_harvest(builtin_corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Open the built-in corpus without reading it again; record how wide it was asked for."""
    asked: list[bool] = []

    def read(*, is_wide: bool, progress: object) -> Corpus:
        asked.append(is_wide)
        return builtin_corpus

    monkeypatch.setattr(tasks, "read_builtin_corpus", read)
    return asked


@pytest.mark.parametrize(
    ("uri", "split", "name", "is_wide"),
    [
        ("builtin", None, "builtin", False),
        ("builtin", "train", "builtin#train", False),
        ("builtin#validation", "train", "builtin#validation", False),
        ("builtin:wide", None, "builtin:wide", True),
        ("builtin:wide#train", None, "builtin:wide#train", True),
        ("builtin:wide", "train", "builtin:wide#train", True),
    ],
)
def test_builtin(
    no_harvest: list[bool], uri: str, split: str | None, name: str, is_wide: bool
) -> None:
    task = open_task(uri, split=split)
    assert isinstance(task, RetrievalTask)
    assert task.name == name
    assert no_harvest == [is_wide]
    wanted = name.partition("#")[2] or "test"
    assert f"queries of the split {wanted!r}" in task.notes[1]
    assert open_corpus(uri) is task.corpus


def test_documents_of_builtin_that_were_opened_are_not_read_again(
    no_harvest: list[bool], builtin_corpus: Corpus, beir_folder: Path
) -> None:
    for uri in ("builtin", "builtin#train"):
        task = open_task(uri, corpus=builtin_corpus)
        assert isinstance(task, RetrievalTask)
        assert task.corpus is builtin_corpus
    assert no_harvest == []
    open_task("builtin:wide", corpus=builtin_corpus)
    open_task("builtin", corpus=open_corpus(str(beir_folder)))
    assert no_harvest == [True, False]
    other = open_task(f"beir:{beir_folder}", corpus=builtin_corpus)
    assert isinstance(other, RetrievalTask)
    assert len(other.corpus) == 3


def test_beir(beir_folder: Path) -> None:
    (beir_folder / "qrels" / "train.tsv").write_text("q2\td2\t1\n")
    plain = open_task(f"beir:{beir_folder}")
    named = open_task(f"beir:{beir_folder}#train", split="test")
    given = open_task(f"beir:{beir_folder}", split="train")
    for task, query_ids in ((plain, ["q1", "q3"]), (named, ["q2"]), (given, ["q2"])):
        assert isinstance(task, RetrievalTask)
        assert task.query_ids == query_ids
    assert plain.name == f"beir:{beir_folder}"
    assert named.name == given.name == f"beir:{beir_folder}#train"
    assert open_corpus(f"beir:{beir_folder}#train").doc_ids == open_corpus(str(beir_folder)).doc_ids


def test_folder_with_a_hash_sign_in_its_name(beir_folder: Path) -> None:
    folder = beir_folder.rename(beir_folder.with_name("c#sharp"))
    assert open_task(f"beir:{folder}").name == f"beir:{folder}"
    assert open_task(f"beir:{folder}#test").name == f"beir:{folder}#test"


def test_pairs_labels_and_images(write: Write, tmp_path: Path) -> None:
    pairs = write("pairs.tsv", "a\tb\t1\nc\td\t0\n")
    labels = write("labels-test.tsv", "x\ta\ny\tb\n")
    write("labels-train.tsv", "x\ta\ny\tb\n")
    images = tmp_path / "images"
    images.mkdir()
    save_images(images, "train", 4)
    save_images(images, "t10k", 2)
    kinds = {
        f"sts:{pairs}": SimilarityTask,
        f"pairs:{pairs}": PairClassificationTask,
        f"labels:{labels}": ClassificationTask,
        f"images:{images}": ClassificationTask,
    }
    for uri, kind in kinds.items():
        task = open_task(uri, split="train")
        assert isinstance(task, kind)
        assert task.name == uri
        assert task.notes
        form = uri.partition(":")[0]
        with pytest.raises(
            DataError, match=rf"`corpus` must name documents, got '{form}:.*a {form}: task has none"
        ):
            open_corpus(uri)


def test_self_with_texts(write: Write) -> None:
    corpus = write("docs.jsonl", '{"text": "owl"}\n{"text": "lark"}\n')
    queries = write("queries.txt", "bird\n")
    task = open_task(f"self:{corpus}", queries=queries)
    assert isinstance(task, SelfTask)
    assert task.corpus is not None
    assert task.corpus.texts == ["owl", "lark"]
    assert (task.vectors, task.queries, task.query_vectors) == (None, ["bird"], None)
    assert task.notes == (task.corpus.describe(),)
    assert open_corpus(f"self:{corpus}").corpus_hash == task.corpus.corpus_hash
    without = open_task(f"self:{corpus}")
    assert isinstance(without, SelfTask)
    assert (without.queries, without.query_vectors) == (None, None)


def test_self_with_vectors(write: Write, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((3, 2), np.float32))
    np.save(tmp_path / "q.npy", np.ones((1, 2), np.float32))
    folder = write("folder/vectors.json", "{}").parent
    for path in (tmp_path / "a.npy", folder):
        task = open_task(f"self:{path}", queries=str(tmp_path / "q.npy"))
        assert isinstance(task, SelfTask)
        assert (task.corpus, task.vectors) == (None, path)
        assert (task.queries, task.query_vectors) == (None, tmp_path / "q.npy")
    with pytest.raises(DataError, match="a corpus must be texts, got the vectors"):
        open_corpus(f"self:{folder}")


def test_self_with_a_folder_is_chunked(write: Write) -> None:
    folder = write("docs/a.md", "one two three four").parent
    chunking = Chunking(count_tokens=count_words, max_tokens=2, overlap_tokens=0)
    task = open_task(f"self:{folder}", chunking=chunking)
    assert isinstance(task, SelfTask)
    assert task.corpus is not None
    assert task.corpus.texts == ["one two", "three four"]
    assert "2 chunks of 1 files" in task.notes
    assert open_corpus(str(folder), chunking=chunking).texts == task.corpus.texts


def test_home_folder_is_expanded(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("docs.tsv", "owl\nlark\n")
    monkeypatch.setenv("HOME", str(path.parent))
    assert (
        open_corpus("~/docs.tsv").texts == open_corpus("self:~/docs.tsv").texts == ["owl", "lark"]
    )


def test_queries_go_with_self_only(write: Write, beir_folder: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"`queries` go with a self: task only, got them with 'beir:.*Leave --queries out",
    ):
        open_task(f"beir:{beir_folder}", queries=write("q.txt", "x"))


@pytest.mark.parametrize(
    ("uri", "advice"),
    [
        ("bier:data", "Did you mean beir:data?"),
        ("buildin", "Did you mean builtin?"),
        ("builtins:wide", "Did you mean builtin:wide?"),
        ("Labels:x.tsv", "Did you mean labels:x.tsv?"),
        ("image:x", "Did you mean images:x?"),
        ("builtin:", "Write it as builtin[#split] or builtin:wide[#split] or builtin:digits."),
        ("builtin:wild", "Write it as builtin[#split] or builtin:wide[#split] or builtin:digits."),
        ("builtin#", "Write it as builtin[#split] or builtin:wide[#split] or builtin:digits."),
        ("beir:", "Write it as beir:<dir>[#split]."),
        ("beir:x#", "Write it as beir:<dir>[#split]."),
        ("sts", "Write it as sts:<file>."),
        ("", "Name one of these."),
        ("quantum", "Name one of these."),
    ],
)
def test_mistyped_forms_list_all_and_offer_the_closest(uri: str, advice: str) -> None:
    with pytest.raises(DataError) as caught:
        open_task(uri)
    message = str(caught.value)
    assert message == f"`task` must be one of {', '.join(TASK_FORMS)}; got {uri!r}. {advice}"


def test_a_path_for_a_task(write: Write, beir_folder: Path) -> None:
    with pytest.raises(DataError, match=f"Did you mean beir:{beir_folder}"):
        open_task(str(beir_folder))
    path = write("docs.jsonl", "")
    with pytest.raises(DataError, match=f"Did you mean self:{path}"):
        open_task(str(path))


def test_mistyped_corpus() -> None:
    with pytest.raises(DataError, match=r"`task` must be one of .*Did you mean builtin\?"):
        open_corpus("bultin")
    with pytest.raises(DataError, match=r"`path` must exist, got nothing\.jsonl"):
        open_corpus("nothing.jsonl")


@pytest.mark.parametrize("form", ["beir", "sts", "pairs", "labels", "images", "self"])
def test_missing_path(form: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"`path` must exist, got .*nothing"):
        open_task(f"{form}:{tmp_path}/nothing")


def test_missing_queries(write: Write, tmp_path: Path) -> None:
    path = write("docs.tsv", "owl\n")
    with pytest.raises(DataError, match=r"`path` must exist, got .*q\.txt"):
        open_task(f"self:{path}", queries=tmp_path / "q.txt")


def test_what_the_room_offers_exists() -> None:
    assert all(hasattr(data, name) for name in data.__all__)
