"""What quality is, and the cheapest setting of an engine that reaches it."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from peers import Peer
from search_data import SearchSet
from search_worker import Worker

TIE = 1e-5
"""A row whose score is this close to the k-th best counts as found; float32 sums differ by less."""


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Exact rows and the score of the last, per query, and what quality is judged by."""

    rows: np.ndarray
    least_scores: np.ndarray
    vectors: np.ndarray
    queries: np.ndarray
    relevant: np.ndarray

    @classmethod
    def of(cls, data: SearchSet, k: int = 10) -> "Truth":
        import faiss

        faiss.omp_set_num_threads(2)
        best: list[tuple[np.ndarray, np.ndarray]] = []
        step = 65_536
        for start in range(0, len(data.vectors), step):
            block = np.ascontiguousarray(data.vectors[start : start + step])
            scores, rows = faiss.knn(data.queries, block, k, faiss.METRIC_INNER_PRODUCT)
            best.append((scores, rows + start))
        scores, rows = (np.concatenate(parts, axis=1) for parts in zip(*best, strict=True))
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return cls(
            rows=np.take_along_axis(rows, order, axis=1),
            least_scores=np.take_along_axis(scores, order, axis=1)[:, -1],
            vectors=data.vectors,
            queries=data.queries,
            relevant=data.relevant,
        )

    def recall(self, rows: np.ndarray) -> float:
        """Return the share of the k best found; equal vectors may stand for each other."""
        k = self.rows.shape[1]
        asked = len(rows)
        is_found = (rows[:, :, None] == self.rows[:asked, None, :]).any(axis=2)
        doubtful = np.nonzero(~is_found & (rows >= 0))
        vectors = np.asarray(self.vectors[rows[doubtful]], dtype=np.float32)
        scores = np.einsum("ij,ij->i", vectors, self.queries[doubtful[0]])
        is_found[doubtful] = scores >= self.least_scores[doubtful[0]] - TIE
        return float(np.minimum(is_found.sum(axis=1), k).mean() / k)

    def mrr(self, rows: np.ndarray) -> float:
        hit = rows == self.relevant[: len(rows), None]
        return float(np.where(hit.any(axis=1), 1 / (hit.argmax(axis=1) + 1), 0).mean())

    @property
    def best_mrr(self) -> float:
        return self.mrr(self.rows)


@dataclass(frozen=True, kw_only=True)
class Target:
    """What an engine must reach: a share of the exact MRR@10, or a recall@10."""

    metric: str
    least: float

    def value(self, truth: Truth, rows: np.ndarray) -> float:
        if self.metric == "recall":
            return truth.recall(rows)
        return truth.mrr(rows) / truth.best_mrr

    def describe(self) -> str:
        if self.metric == "recall":
            return f"recall@10 of {self.least:g}"
        return f"{self.least:.0%} of the exact MRR@10"


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """The cheapest setting that reaches the target."""

    knob: int
    settings: dict[str, int] = field(default_factory=dict)
    quality: float
    seconds: float

    def describe(self, peer: Peer) -> str:
        if peer.is_exact or peer.is_fixed:
            return ""
        more = "".join(f", {name} {value}" for name, value in self.settings.items())
        return f"{peer.knob} {self.knob}{more}"


def tune(
    peer: Peer, worker: Worker, truth: Truth, target: Target, *, num_timed: int = 300
) -> Tuned | None:
    """Bisect the knob for every variant, and take the variant that is fastest, single queries.

    None if the highest knob does not reach the target in any variant.
    """
    found = []
    for variant in peer.variants:
        settings = dict(variant)
        memo: dict[int, float] = {}

        def quality(knob: int, settings: dict[str, int] = settings, memo: dict = memo) -> float:
            if knob not in memo:
                rows = worker.ask("rows", knob=knob, settings=settings)
                memo[knob] = target.value(truth, rows)
            return memo[knob]

        if peer.is_exact or peer.is_fixed:
            knob: int | None = peer.low
        else:
            knob = smallest(quality, target.least, peer.low, peer.high)
        if knob is not None:
            seconds = np.min(
                [
                    worker.ask("single", knob=knob, settings=settings, count=num_timed)[1].mean()
                    for _ in range(2)
                ]
            )
            found.append(
                Tuned(knob=knob, settings=settings, quality=quality(knob), seconds=float(seconds))
            )
    return min(found, key=lambda tuned: tuned.seconds, default=None)


def smallest(quality: Callable[[int], float], least: float, low: int, high: int) -> int | None:
    """Return the smallest knob that reaches a quality, taking the quality to grow with the knob.

    Doubling from below first, so that the dear end is seldom run. The result is exact to 2%.
    """
    below, above = None, low
    while quality(above) < least:
        if above >= high:
            return None
        below, above = above, min(high, above * 2)
    if below is None:
        return above
    while above - below > max(1, above // 50):
        middle = (above + below) // 2
        if quality(middle) < least:
            below = middle
        else:
            above = middle
    return above
