"""Corpora, queries, judgements, labelled texts and images: readers, and the built-in corpus."""

from nestling.data.chunking import Chunking
from nestling.data.corpora import open_queries
from nestling.data.open_pairs import PAIR_FORMS, open_training_pairs
from nestling.data.splits import hold_out
from nestling.data.tasks import TASK_FORMS, open_corpus, open_task
from nestling.data.training_pairs import TrainingPairs
from nestling.data.types import (
    ClassificationTask,
    Corpus,
    Images,
    Inputs,
    PairClassificationTask,
    RetrievalTask,
    SelfTask,
    SimilarityTask,
    Task,
    content_hash,
)
from nestling.data.vectors import Vectors, is_vectors, read_vectors

__all__ = [
    "PAIR_FORMS",
    "TASK_FORMS",
    "Chunking",
    "ClassificationTask",
    "Corpus",
    "Images",
    "Inputs",
    "PairClassificationTask",
    "RetrievalTask",
    "SelfTask",
    "SimilarityTask",
    "Task",
    "TrainingPairs",
    "Vectors",
    "content_hash",
    "hold_out",
    "is_vectors",
    "open_corpus",
    "open_queries",
    "open_task",
    "open_training_pairs",
    "read_vectors",
]
