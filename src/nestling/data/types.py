"""What a task is made of, once read."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

# The underscore: train and test images of one task need not be equally many.
Images = UInt8[np.ndarray, "_images height width"]
Inputs = Sequence[str] | Images
"""What an encoder takes: texts, or grey images with values 0 to 255."""


def content_hash(text: str) -> str:
    """Return a short hash of a text: equal texts need to be encoded only once."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Documents in a fixed order.

    Attributes:
        doc_ids: Unique ids.
        texts: What the encoder sees: title, a space and the text, stripped, in BEIR's way.
        source: Where they come from, for people.
        metadata: Per document, what a hit shows beside the text (path, heading, title), or None.
        notes: What the reader wants people to know, e.g. how many texts were cut.
    """

    doc_ids: Sequence[str]
    texts: Sequence[str]
    source: str
    metadata: Sequence[Mapping[str, Any]] | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.doc_ids)

    @cached_property
    def corpus_hash(self) -> str:
        """A hash of every id and text in order: equal hashes mean the same corpus."""
        digest = hashlib.blake2b(digest_size=16)
        for doc_id, text in zip(self.doc_ids, self.texts, strict=True):
            digest.update(f"{len(doc_id)}:{doc_id}{len(text)}:{text}".encode())
        return digest.hexdigest()

    def describe(self) -> str:
        """Return size and hash in words: every run shows them."""
        return f"{len(self):,} documents, corpus_hash {self.corpus_hash}"


@dataclass(frozen=True, kw_only=True)
class RetrievalTask:
    """Find the relevant documents of each query.

    Attributes:
        name: The TASK it was opened from.
        corpus: The documents.
        query_ids: One id per query; every one has at least one judgement.
        queries: Their texts.
        qrels: Per query id, the grade of each judged document; 0 is judged not relevant.
        notes: What people should know.
    """

    name: str
    corpus: Corpus
    query_ids: Sequence[str]
    queries: Sequence[str]
    qrels: Mapping[str, Mapping[str, int]]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SimilarityTask:
    """Rank pairs of texts by similarity (STS). `gold` holds the human scores, any scale."""

    name: str
    left: Sequence[str]
    right: Sequence[str]
    gold: Float[np.ndarray, " pairs"]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PairClassificationTask:
    """Tell the pairs that belong together (`is_match`) from those that do not."""

    name: str
    left: Sequence[str]
    right: Sequence[str]
    is_match: Bool[np.ndarray, " pairs"]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ClassificationTask:
    """Label the test inputs, given labelled train inputs."""

    name: str
    train_inputs: Inputs
    train_labels: Sequence[str]
    test_inputs: Inputs
    test_labels: Sequence[str]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SelfTask:
    """No judgements: how much of the full-width ranking does a prefix keep?

    Exactly one of `corpus` and `vectors` is given. `queries` are texts, `query_vectors` a file;
    with neither, queries are rows held out of the corpus.

    Attributes:
        name: The TASK it was opened from.
        corpus: Texts to encode.
        vectors: A vector file or folder that exists already.
        queries: Query texts, or None.
        query_vectors: A file of query vectors, or None.
        notes: What people should know.
    """

    name: str
    corpus: Corpus | None
    vectors: Path | None
    queries: Sequence[str] | None = None
    query_vectors: Path | None = None
    notes: tuple[str, ...] = ()


Task = RetrievalTask | SimilarityTask | PairClassificationTask | ClassificationTask | SelfTask
