"""The public data sets, by the counts that their authors give."""

from pathlib import Path

import numpy as np
import pytest

from nestling.data import (
    ClassificationTask,
    PairClassificationTask,
    RetrievalTask,
    SimilarityTask,
    open_task,
)

pytestmark = pytest.mark.data


@pytest.mark.parametrize(
    ("split", "num_queries", "num_judged"), [("test", 300, 339), ("train", 809, 919)]
)
def test_scifact(nestling_data: Path, split: str, num_queries: int, num_judged: int) -> None:
    task = open_task(f"beir:{nestling_data}/ir_scifact#{split}")
    assert isinstance(task, RetrievalTask)
    assert len(task.corpus) == 5_183
    assert len(task.queries) == num_queries
    assert sum(len(grades) for grades in task.qrels.values()) == num_judged


@pytest.mark.parametrize(
    ("split", "num_pairs"), [("test", 1_379), ("dev", 1_500), ("train", 5_749)]
)
def test_stsb(nestling_data: Path, split: str, num_pairs: int) -> None:
    task = open_task(f"sts:{nestling_data}/stsb/stsb-en-{split}.tsv.gz")
    assert isinstance(task, SimilarityTask)
    assert len(task.left) == len(task.right) == len(task.gold) == num_pairs
    assert (task.gold.min(), task.gold.max()) == (0, 5)


@pytest.mark.parametrize(
    ("name", "num_train", "num_test", "num_labels"),
    [("banking77", 10_003, 3_080, 77), ("clinc150", 15_000, 4_500, 150)],
)
def test_intents(
    nestling_data: Path, name: str, num_train: int, num_test: int, num_labels: int
) -> None:
    task = open_task(f"labels:{nestling_data}/{name}/{name}-test.tsv.gz")
    assert isinstance(task, ClassificationTask)
    assert (len(task.train_inputs), len(task.test_inputs)) == (num_train, num_test)
    assert len(set(task.train_labels)) == len(set(task.test_labels)) == num_labels


def test_snli(nestling_data: Path) -> None:
    task = open_task(f"pairs:{nestling_data}/snli_devtest/snli-test.tsv.gz")
    assert isinstance(task, PairClassificationTask)
    assert len(task.is_match) == 3_368 + 3_237
    assert task.is_match.sum() == 3_368
    assert "3,219 pairs labelled 'neutral' left out" in task.notes


def test_fashion_mnist(nestling_data: Path) -> None:
    task = open_task(f"images:{nestling_data}/fashion_mnist")
    assert isinstance(task, ClassificationTask)
    assert isinstance(task.train_inputs, np.ndarray)
    assert isinstance(task.test_inputs, np.ndarray)
    assert task.train_inputs.shape == (60_000, 28, 28)
    assert task.test_inputs.shape == (10_000, 28, 28)
    counts = np.unique(task.test_labels, return_counts=True)[1]
    assert counts.tolist() == [1_000] * 10
