"""`nestling build --target`: what planning takes from the model and the documents that it has in hand."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from nestling.cli import main
from nestling.core.progress import Progress
from nestling.data import Corpus, tasks
from nestling.data.builtin import name_builtin

QUICK = ("--time-budget", "1", "--engines", "flat")
WORDS = ("river", "mountain", "kitchen", "garage", "station", "library", "market", "harbour")


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NESTLING_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def harvests(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """A small built-in corpus of either width; how wide it was, every time that it is read."""
    read: list[bool] = []

    def harvest(*, is_wide: bool, progress: Progress) -> Corpus:
        read.append(is_wide)
        names = [f"{a}.{b}.{c}" for a in WORDS for b in WORDS for c in WORDS]
        return Corpus(
            doc_ids=names,
            texts=[f"Go from the {' to the '.join(name.split('.'))}." for name in names],
            source=name_builtin(is_wide=is_wide),
        )

    monkeypatch.setattr(tasks, "read_builtin_corpus", harvest)
    return read


def as_json(*arguments: object) -> Any:
    result = CliRunner().invoke(main, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def evidence_of(index: Path) -> Any:
    return json.loads((index / "index.json").read_text())["plan"]["evidence"]["evidence"]


MODEL = ("--model", "static:wordllama")


@pytest.mark.parametrize(
    ("corpus", "task", "wanted"),
    [
        ("builtin", "builtin", [False]),
        ("builtin:wide", "builtin:wide#train", [True]),
        ("builtin:wide", "builtin", [True, False]),
    ],
)
def test_the_builtin_corpus_is_read_once_if_the_task_is_of_the_same(
    corpus: str, task: str, wanted: list[bool], harvests: list[bool], tmp_path: Path
) -> None:
    target = ("--task", task, "--target", "quality=0.5", *QUICK)
    report = as_json("build", *MODEL, "--corpus", corpus, *target, "--out", tmp_path / "index")
    assert report["num_documents"] == len(WORDS) ** 3
    assert harvests == wanted
    assert evidence_of(tmp_path / "index")["queries"].endswith(f"queries of {task}")


def test_texts_of_vectors_are_read_once_too(harvests: list[bool], tmp_path: Path) -> None:
    as_json("encode", *MODEL, "--corpus", "builtin", "--out", tmp_path / "vectors")
    harvests.clear()
    vectors = ("--vectors", tmp_path / "vectors", "--corpus", "builtin")
    target = ("--task", "builtin", "--target", "quality=0.5", *QUICK)
    as_json("build", *vectors, *target, "--out", tmp_path / "index")
    assert harvests == [False]


def test_heads_are_tried_at_the_widths_of_the_model(harvests: list[bool], tmp_path: Path) -> None:
    index = tmp_path / "index"
    recall = ("--target", "recall=0.5", *QUICK)
    as_json("build", *MODEL, "--corpus", "builtin", *recall, "--out", index)
    assert evidence_of(index)["widths"] == [64, 128, 256]
    again = as_json("choose", "--index", index, "--target-recall", "0.5", *QUICK)
    assert again["evidence"]["widths"] == [64, 128, 256]
