"""STS and pair classification: score pairs with every cut at every width."""

import time
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float32

from nestling.core import nested_pair_cosines
from nestling.data import PairClassificationTask, SimilarityTask
from nestling.encode import Encoder
from nestling.measure.cuts import Cut, clipping_notes
from nestling.measure.embed import hash_inputs
from nestling.measure.metrics import average_precision, check_gold, check_matches, spearman
from nestling.measure.options import Options, Outcome
from nestling.measure.table import Measured

Side = Float32[np.ndarray, "pairs embed_dim"]
Judge = Callable[[Float32[np.ndarray, " pairs"]], float]


def run_pairs(
    encoder: Encoder, task: SimilarityTask | PairClassificationTask, options: Options
) -> Outcome:
    """Encode both sides as documents, score the pairs with every cut, and judge the scores.

    Raises:
        DataError: If the gold scores or the labels are all equal.
    """
    # Before the encoding and not after it, where the metrics look once more.
    if isinstance(task, SimilarityTask):
        check_gold(task.gold)
    else:
        check_matches(task.is_match)
    num_pairs = len(task.left)
    ids = [f"{side} {pair}" for side in ("left", "right") for pair in range(num_pairs)]
    inputs = [*task.left, *task.right]
    texts = options.encode(encoder, inputs, ids, name="texts")
    row_of = np.full(2 * num_pairs, -1)
    row_of[texts.kept] = np.arange(len(texts.kept))
    rows = row_of.reshape(2, num_pairs)
    whole = np.flatnonzero((rows >= 0).all(axis=0))

    def judge(scores: np.ndarray) -> float:
        if isinstance(task, SimilarityTask):
            return spearman(task.gold[whole], scores)
        return average_precision(task.is_match[whole], scores)

    metric = "spearman" if isinstance(task, SimilarityTask) else "average_precision"
    left, right = (texts.vectors[side] for side in rows[:, whole])
    cuts = options.cuts(texts.vectors)
    return Outcome(
        measured=measure_pairs(left, right, cuts, metric=metric, judge=judge),
        main_metric=metric,
        nested_metric=metric,
        query_ids=[str(pair) for pair in whole],
        fingerprint=texts.fingerprint,
        corpus_hash=hash_inputs(inputs, ids),
        num_documents=0,
        notes=[*texts.notes, *clipping_notes(cuts)],
    )


def measure_pairs(
    left: Side, right: Side, cuts: Sequence[Cut], *, metric: str, judge: Judge
) -> list[Measured]:
    """Score the pairs with every cut, and put one number on the cosines of all pairs.

    As in search, one side stays float32 (`left`, the query) and the other is coded (`right`, the
    document).

    Args:
        left: Left vectors.
        right: Right vectors.
        cuts: What `make_cuts` returned.
        metric: Name of what `judge` returns.
        judge: From the cosines of all pairs to one number.

    Returns:
        What was measured, random draws one by one.
    """
    measured = []
    for cut in cuts:
        started_s = time.perf_counter()
        cosines = nested_pair_cosines(cut.query_side(left), cut.corpus_side(right), cut.dims)
        seconds = time.perf_counter() - started_s
        measured += [
            Measured(
                family=cut.family,
                dim=dim,
                dtype=cut.dtype,
                draw=cut.draw,
                metrics={metric: judge(cosines[:, column])},
                seconds=seconds,
            )
            for column, dim in enumerate(cut.dims)
        ]
    return measured
