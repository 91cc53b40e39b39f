"""The queries that a plan is chosen by, and how their results are judged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np
from jaxtyping import Float32, Float64, Int, Int64

from nestling.errors import EvidenceError
from nestling.measure.metrics import CUTOFF, Judgements, overlap

FEWEST_QUERIES = 10
"""Half of them choose, half of them tell: fewer say nothing."""


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """Some queries; a class of its own so that it can be cut in two.

    Attributes:
        queries: Full-width rows.
        query_ids: One per query.
        doc_ids: Ids of the corpus rows.
        qrels: Judgements, or None if there are none: then only recall of the exact search counts.
        metric: Which metric of the judgements counts, e.g. "ndcg_at_10".
        own_rows: For documents that serve as queries, the corpus row of each; it does not count as a
            result. None otherwise.
        source: Where the queries come from, in words.
        texts: Of the queries, or None where they have none.
        columns: Label of every query per column, e.g. {"length": ["short", "long", ...]}.
    """

    queries: Float32[np.ndarray, "queries full"]
    query_ids: Sequence[str]
    doc_ids: Sequence[str]
    qrels: Mapping[str, Mapping[str, int]] | None = None
    metric: str = "ndcg_at_10"
    own_rows: Int64[np.ndarray, " queries"] | None = None
    source: str
    texts: Sequence[str] | None = None
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.queries)

    @classmethod
    def of_documents(
        cls,
        vectors: np.ndarray,
        doc_ids: Sequence[str],
        *,
        num_queries: int = 1000,
        seed: int = 0,
    ) -> "Sample":
        """Return documents that serve as queries, drawn without replacement."""
        drawn = np.random.default_rng(seed).permutation(len(vectors))[:num_queries]
        rows = np.sort(drawn).astype(np.int64)
        return cls(
            queries=np.asarray(vectors[rows], dtype=np.float32),
            query_ids=[doc_ids[row] for row in rows.tolist()],
            doc_ids=doc_ids,
            own_rows=rows,
            source=f"{len(rows):,} documents of the corpus, each without itself",
        )

    @property
    def num_results(self) -> int:
        """How many results to ask for, so that `CUTOFF` are left without the query itself."""
        return CUTOFF if self.own_rows is None else CUTOFF + 1

    def take(self, places: Int[np.ndarray, " taken"]) -> "Sample":
        """Return some of the queries."""
        ids = [self.query_ids[place] for place in places.tolist()]
        return Sample(
            queries=self.queries[places],
            query_ids=ids,
            doc_ids=self.doc_ids,
            qrels=None if self.qrels is None else {name: self.qrels[name] for name in ids},
            metric=self.metric,
            own_rows=None if self.own_rows is None else self.own_rows[places],
            source=self.source,
            texts=None if self.texts is None else [self.texts[place] for place in places.tolist()],
            columns={
                name: [labels[place] for place in places.tolist()]
                for name, labels in self.columns.items()
            },
        )

    def split(self, seed: int) -> tuple["Sample", "Sample"]:
        """Return two halves drawn at random: one to choose by, one to tell by.

        Raises:
            EvidenceError: If there are too few queries.
        """
        if len(self) < FEWEST_QUERIES:
            raise EvidenceError(
                f"a plan must be chosen by at least {FEWEST_QUERIES} queries, got {len(self)}. "
                f"Give more queries, or let documents serve as queries."
            )
        order = np.random.default_rng(seed).permutation(len(self))
        half = (len(self) + 1) // 2
        return self.take(np.sort(order[:half])), self.take(np.sort(order[half:]))

    def drop_own(self, rows: Int[np.ndarray, "queries k"]) -> Int[np.ndarray, "queries kept"]:
        """Return the first `CUTOFF` results that are not the query itself."""
        if self.own_rows is None:
            return rows[:, :CUTOFF]
        order = np.argsort(rows == self.own_rows[:, None], axis=1, kind="stable")
        return np.take_along_axis(rows, order, axis=1)[:, :CUTOFF]


@final
class Judge:
    """Values per query of a ranking, for one sample."""

    def __init__(self, sample: Sample, exact: Int64[np.ndarray, "queries k"]) -> None:
        """Lay out the judgements.

        Args:
            sample: The queries.
            exact: `sample.num_results` rows of the exact full-width search, best first.
        """
        self._sample = sample
        self._exact = sample.drop_own(exact)
        self._judgements = None
        if sample.qrels is not None:
            self._judgements = Judgements(
                sample.qrels, query_ids=sample.query_ids, doc_ids=sample.doc_ids
            )

    def recall(self, rows: Int[np.ndarray, "queries k"]) -> Float64[np.ndarray, " queries"]:
        """Return the share of the exact top 10 among the top 10, per query."""
        return overlap(self._sample.drop_own(rows), self._exact)

    def quality(self, rows: Int[np.ndarray, "queries k"]) -> Float64[np.ndarray, " queries"]:
        """Return the task metric per query; without judgements, the recall."""
        if self._judgements is None:
            return self.recall(rows)
        return self._judgements.evaluate(self._sample.drop_own(rows))[self._sample.metric]

    def exact_quality(self) -> Float64[np.ndarray, " queries"]:
        """Return the task metric of the exact search, per query."""
        if self._judgements is None:
            return np.ones(len(self._sample))
        return self._judgements.evaluate(self._exact)[self._sample.metric]
