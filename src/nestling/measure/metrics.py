"""Metrics over whole matrices of results: a value per query, without a loop over candidates."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from nestling.errors import DataError

CUTOFF = 10
"""Depth of the metrics a choice is made by."""

DEPTH = 100
"""Depth of recall and MAP: how many results of each query are kept."""

_DISCOUNTS = 1.0 / np.log2(np.arange(2, CUTOFF + 2))


class Judgements:
    """The relevance judgements of a retrieval task, laid out for look-ups by row.

    Attributes:
        num_relevant: Documents with a grade of at least 1, per query.
        has_grades: Whether any grade is above 1, so that graded and binary gains differ.
    """

    def __init__(
        self,
        qrels: Mapping[str, Mapping[str, int]],
        *,
        query_ids: Sequence[str],
        doc_ids: Sequence[str],
    ) -> None:
        """Lay out judgements.

        Args:
            qrels: Per query id, the grade of each judged document; grades below 1 gain nothing.
            query_ids: Which queries, in the order of the rankings to be judged.
            doc_ids: Ids of the corpus rows. A judged document that is not among them cannot be
                found, and counts in the ideal ranking and in recall all the same.
        """
        rows_by_id = {doc_id: row for row, doc_id in enumerate(doc_ids)}
        self._num_docs = len(doc_ids)
        self._ideal = np.zeros((len(query_ids), CUTOFF))
        self.num_relevant = np.zeros(len(query_ids), dtype=np.int64)
        keys, grades = [], []
        for query, query_id in enumerate(query_ids):
            relevant = {name: grade for name, grade in qrels[query_id].items() if grade > 0}
            best = sorted(relevant.values(), reverse=True)[:CUTOFF]
            self._ideal[query, : len(best)] = best
            self.num_relevant[query] = len(relevant)
            for name, grade in relevant.items():
                if name in rows_by_id:
                    keys.append(query * self._num_docs + rows_by_id[name])
                    grades.append(grade)
        order = np.argsort(keys)
        self._keys = np.array(keys, dtype=np.int64)[order]
        self._grades = np.array(grades, dtype=np.float64)[order]
        self.has_grades = bool((self._ideal > 1).any())

    def grades(self, rows: Int[np.ndarray, "queries k"]) -> Float64[np.ndarray, "queries k"]:
        """Return the grade of each result; 0 where it is not judged or the place is empty (-1)."""
        if len(self._keys) == 0:
            return np.zeros(rows.shape)
        wanted = np.arange(len(rows))[:, None] * self._num_docs + rows
        place = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        is_judged = (self._keys[place] == wanted) & (rows >= 0)
        return np.where(is_judged, self._grades[place], 0.0)

    def evaluate(
        self, rows: Int[np.ndarray, "queries k"]
    ) -> dict[str, Float64[np.ndarray, " queries"]]:
        """Return every retrieval metric of a ranking, per query, as trec_eval defines them.

        nDCG takes the grade itself as the gain (linear) and the ideal ranking of all judged
        documents; `ndcg_at_10_binary`, with a gain of 1, is there only if some grade is above 1.
        Recall and average precision divide by all relevant documents. A query without a relevant
        document scores 0.

        Args:
            rows: Corpus rows, best first; -1 marks an empty place. Places after 100 are not read.
        """
        grades = self.grades(rows[:, :DEPTH])
        is_relevant = (grades > 0).astype(np.float64)
        metrics = {"ndcg_at_10": _ndcg(grades, self._ideal)}
        if self.has_grades:
            binary_ideal = (self._ideal > 0).astype(np.float64)
            metrics["ndcg_at_10_binary"] = _ndcg(is_relevant, binary_ideal)
        ranks = np.arange(1, is_relevant.shape[1] + 1)
        found = np.cumsum(is_relevant, axis=1)
        precision_at_hits = (is_relevant * found / ranks).sum(axis=1)
        metrics["mrr_at_10"] = (is_relevant / ranks)[:, :CUTOFF].max(axis=1)
        metrics["recall_at_10"] = _share(found[:, :CUTOFF][:, -1], self.num_relevant)
        metrics["recall_at_100"] = _share(found[:, -1], self.num_relevant)
        metrics["map_at_100"] = _share(precision_at_hits, self.num_relevant)
        return metrics


def overlap(
    rows: Int[np.ndarray, "queries k"], reference: Int[np.ndarray, "queries kept"]
) -> Float64[np.ndarray, " queries"]:
    """Return the share of the reference results that are anywhere in `rows`, per query.

    Args:
        rows: Results to judge; their order does not matter.
        reference: Results to be found; -1 marks an empty place, which is not counted.
    """
    is_wanted = reference >= 0
    found = (reference[:, :, None] == rows[:, None, :]).any(axis=2) & is_wanted
    return _share(found.sum(axis=1), is_wanted.sum(axis=1))


def check_gold(gold: Float[np.ndarray, " pairs"]) -> None:
    """Refuse human scores that are all equal: there is nothing to rank.

    Raises:
        DataError: If there are fewer than two different scores.
    """
    different = set(gold.tolist())
    if len(different) < 2:
        raise DataError(
            f"`gold` must hold at least two different scores to rank {len(gold)} pairs by, got "
            f"{sorted(different)}. Check the score column of the file."
        )


def check_matches(is_match: Bool[np.ndarray, " pairs"]) -> None:
    """Refuse pairs that all match, or of which none does.

    Raises:
        DataError: If pairs of one kind are missing.
    """
    if is_match.all() or not is_match.any():
        raise DataError(
            f"`is_match` must hold pairs that match and pairs that do not, got {int(is_match.sum())} "
            f"matching of {len(is_match)}. Check the label column of the file."
        )


def spearman(gold: Float[np.ndarray, " pairs"], scores: Float[np.ndarray, " pairs"]) -> float:
    """Return Spearman's rank correlation of scores with human judgements, as SciPy computes it.

    Scores that are all equal rank nothing and get 0 (SciPy says NaN). At width 1, where every
    cosine is -1 or 1, this can happen.

    Raises:
        DataError: If the gold scores are all equal, so that there is nothing to rank.
    """
    from scipy.stats import spearmanr

    check_gold(gold)
    if (scores == scores[0]).all():
        return 0.0
    return float(spearmanr(gold, scores).statistic)


def average_precision(
    is_match: Bool[np.ndarray, " pairs"], scores: Float[np.ndarray, " pairs"]
) -> float:
    """Return average precision over all pairs, as scikit-learn computes it.

    Raises:
        DataError: If all pairs match, or none does.
    """
    from sklearn.metrics import average_precision_score

    check_matches(is_match)
    return float(average_precision_score(is_match, scores))


def _ndcg(
    gains: Float64[np.ndarray, "queries k"], ideal: Float64[np.ndarray, "queries cutoff"]
) -> Float64[np.ndarray, " queries"]:
    gains = gains[:, :CUTOFF]
    return _share(gains @ _DISCOUNTS[: gains.shape[1]], ideal @ _DISCOUNTS)


def _share(part: np.ndarray, whole: np.ndarray) -> Float64[np.ndarray, " queries"]:
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
