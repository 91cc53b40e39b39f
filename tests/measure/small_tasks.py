"""Small tasks on real words, and an encoder that returns the rows it was given."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from nestling.core import Fingerprint, Space
from nestling.data import (
    ClassificationTask,
    Corpus,
    PairClassificationTask,
    RetrievalTask,
    SelfTask,
    SimilarityTask,
)

WORDS = [
    "river",
    "mountain",
    "engine",
    "violin",
    "harvest",
    "winter",
    "justice",
    "planet",
    "garden",
    "market",
    "doctor",
    "soldier",
    "window",
    "bridge",
    "forest",
    "pepper",
    "thunder",
    "letter",
    "camera",
    "desert",
    "ocean",
    "ladder",
    "mirror",
    "needle",
    "orange",
    "pencil",
    "rabbit",
    "saddle",
    "temple",
    "turtle",
    "valley",
    "wallet",
    "yellow",
    "zebra",
    "anchor",
    "basket",
    "candle",
    "dragon",
]


def sentences(num: int, *, seed: int, length: int = 6) -> list[str]:
    """Distinct sentences of random words."""
    generator = np.random.default_rng(seed)
    return [
        " ".join(generator.choice(WORDS, length, replace=False)) + f" {number}"
        for number in range(num)
    ]


def retrieval_task(num_docs: int = 300, num_queries: int = 40) -> RetrievalTask:
    """Queries are words of their relevant documents; grades are 0, 1 and 2."""
    texts = sentences(num_docs, seed=0)
    generator = np.random.default_rng(1)
    queries, qrels = [], {}
    for number in range(num_queries):
        relevant = generator.choice(num_docs, 12, replace=False)
        queries.append(" ".join(texts[relevant[0]].split()[:3]))
        grades = [2, *generator.integers(0, 3, 11)]
        qrels[f"q{number}"] = {
            f"d{row}": int(grade) for row, grade in zip(relevant, grades, strict=True)
        }
    return RetrievalTask(
        name="tiny",
        corpus=corpus(texts),
        query_ids=list(qrels),
        queries=queries,
        qrels=qrels,
        notes=("made for a test",),
    )


def corpus(texts: Sequence[str]) -> Corpus:
    """Documents d0, d1, ..."""
    return Corpus(doc_ids=[f"d{row}" for row in range(len(texts))], texts=texts, source="a test")


def sts_task(num_pairs: int = 60) -> SimilarityTask:
    """The more words two sentences share, the higher the score."""
    left = sentences(num_pairs, seed=2)
    generator = np.random.default_rng(3)
    kept = generator.integers(0, 6, num_pairs)
    others = sentences(num_pairs, seed=4)
    right = [
        " ".join(a.split()[:count] + b.split()[count:])
        for a, b, count in zip(left, others, kept, strict=True)
    ]
    return SimilarityTask(name="sts", left=left, right=right, gold=kept.astype(np.float64))


def pair_task(num_pairs: int = 60) -> PairClassificationTask:
    """Pairs that share at least three words match."""
    task = sts_task(num_pairs)
    return PairClassificationTask(
        name="pairs", left=task.left, right=task.right, is_match=task.gold >= 3
    )


def classification_task(num_train: int = 120, num_test: int = 40) -> ClassificationTask:
    """The label is the first word, one of four."""
    texts = sentences(num_train + num_test, seed=5)
    labels = [WORDS[number % 4] for number in range(len(texts))]
    inputs = [f"{label} {label} {text}" for label, text in zip(labels, texts, strict=True)]
    return ClassificationTask(
        name="labels",
        train_inputs=inputs[:num_train],
        train_labels=labels[:num_train],
        test_inputs=inputs[num_train:],
        test_labels=labels[num_train:],
    )


def self_task(num_docs: int = 300, **fields: Any) -> SelfTask:
    """Texts without judgements."""
    return SelfTask(
        name="self:tiny", corpus=corpus(sentences(num_docs, seed=6)), vectors=None, **fields
    )


class TableEncoder:
    """Looks texts up in a table of vectors; its tokens are words."""

    nesting_dims = None

    def __init__(
        self, table: dict[str, np.ndarray], *, max_tokens: int | None = None, space: str = "table"
    ) -> None:
        self.table = table
        self.embed_dim = len(next(iter(table.values())))
        self.max_tokens = max_tokens
        self.num_encoded = 0
        self.fingerprint = Fingerprint(
            space=Space(
                model=space,
                revision="1",
                pooling="none",
                normalization="l2",
                embed_dim=self.embed_dim,
            ),
            encoder={},
        )

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    def encode(self, inputs: Any, *, role: str, ids: Sequence[str] | None = None) -> np.ndarray:
        self.num_encoded += len(inputs)
        return np.array([self.table[text] for text in inputs], dtype=np.float32)
