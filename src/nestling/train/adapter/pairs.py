"""Pairs that belong together, for the one kind of map that is learned from them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Int64

from nestling.core import normalize
from nestling.core.progress import Progress, silent
from nestling.data import TrainingPairs
from nestling.encode import Encoder, embed
from nestling.encode.vector_map import VectorMap
from nestling.measure.metrics import Judgements
from nestling.train.adapter.neighbours import nearest_others
from nestling.train.adapter.samples import ONE_HELD_OUT_IN

FEWEST_GROUPS = 4
"""Of fewer, none is held out: two are needed to tell apart, and two to fit on."""

MOST_HELD_OUT = 2_000
"""Pairs; of the groups held out no more are encoded."""

PAIR_METRIC = "ndcg_at_10"


@dataclass(frozen=True, kw_only=True)
class HeldOutPairs:
    """Pairs of groups whose pairs no map was fitted on: each anchor seeks the positives of its group among all.

    Attributes:
        anchors: Unit rows.
        positives: Unit rows, each text once.
        judgements: Which positives belong to which anchor.
        own: The positive that each anchor is itself, as texts of one label may be; -2 for none.
    """

    anchors: Float32[np.ndarray, "anchors dim"]
    positives: Float32[np.ndarray, "positives dim"]
    judgements: Judgements
    own: Int64[np.ndarray, " anchors"]

    def values(self, vector_map: VectorMap, dims: tuple[int, ...]) -> dict[int, float]:
        """Return the nDCG@10 of mapped rows at every width."""
        found = nearest_others(
            vector_map(self.anchors), vector_map(self.positives), dims, own=self.own
        )
        return {
            dim: float(self.judgements.evaluate(found[dim])[PAIR_METRIC].mean()) for dim in dims
        }


@dataclass(frozen=True, kw_only=True)
class FitPairs:
    """Vectors of pairs.

    Attributes:
        anchors: Unit rows to fit on.
        positives: Unit rows; row i belongs to anchor i.
        groups: Rows of one group are no negatives of each other.
        held_out: Pairs of other groups (with labels: of other classes); None if there are fewer
            than four groups, or only texts that are their own positives.
        name: Where they come from, for people.
        pairs_hash: Of their texts.
        num_pairs: That were encoded, of both parts.
    """

    anchors: Float32[np.ndarray, "pairs dim"]
    positives: Float32[np.ndarray, "pairs dim"]
    groups: Int64[np.ndarray, " pairs"]
    held_out: HeldOutPairs | None
    name: str
    pairs_hash: str
    num_pairs: int


def encode_pairs(
    encoder: Encoder,
    pairs: TrainingPairs,
    *,
    most: int,
    seed: int,
    cache: Path | None,
    progress: Progress = silent,
) -> FitPairs:
    """Encode anchors as queries and positives as documents, and hold whole groups out.

    One group in five is held out, at least two where there are four; groups of more than a fifth of
    the pairs come last. No map is fitted on a pair of theirs, and at most 2,000 of these are judged.

    Args:
        encoder: Makes the vectors.
        pairs: Texts; hard negatives are not looked at.
        most: Encode at most so many pairs.
        seed: Of the draw of pairs, and of the groups held out.
        cache: As for `embed`.
        progress: Told as texts are encoded.

    Raises:
        EncoderError: If the model fails.
        VectorError: If a text encodes to a zero or non-finite vector.
    """
    generator = np.random.default_rng(seed)
    drawn = pairs
    if len(pairs) > most:
        drawn = pairs.take(np.sort(generator.choice(len(pairs), most, replace=False)))
    is_held = _hold_out(drawn.groups, generator)
    rows = _fitted_and_judged(is_held, generator)
    drawn, is_held = drawn.take(rows), is_held[rows]
    anchors = normalize(
        embed(encoder, drawn.anchors, role="query", cache=cache, progress=progress).vectors
    )
    positives = normalize(
        embed(encoder, drawn.positives, role="document", cache=cache, progress=progress).vectors
    )
    return FitPairs(
        anchors=anchors[~is_held],
        positives=positives[~is_held],
        groups=drawn.groups[~is_held],
        held_out=_judged(drawn, anchors, positives, is_held),
        name=pairs.source,
        pairs_hash=pairs.pairs_hash,
        num_pairs=len(drawn),
    )


def _hold_out(
    groups: Int64[np.ndarray, " pairs"], generator: np.random.Generator
) -> Bool[np.ndarray, " pairs"]:
    numbers, sizes = np.unique(groups, return_counts=True)
    if len(numbers) < FEWEST_GROUPS:
        return np.zeros(len(groups), np.bool_)
    order = generator.permutation(len(numbers))
    # A class that is most of the pairs is what there is to fit on: the smaller go first.
    excess = np.maximum(sizes[order] - len(groups) / ONE_HELD_OUT_IN, 0)
    order = order[np.argsort(excess, kind="stable")]
    num_held = max(2, min(round(len(numbers) / ONE_HELD_OUT_IN), MOST_HELD_OUT))
    return np.isin(groups, numbers[order[:num_held]])


def _fitted_and_judged(
    is_held: Bool[np.ndarray, " pairs"], generator: np.random.Generator
) -> Int64[np.ndarray, " kept"]:
    """Return the pairs to encode: all to fit on, and at most so many of those held out."""
    held = np.flatnonzero(is_held)
    if len(held) > MOST_HELD_OUT:
        held = generator.choice(held, MOST_HELD_OUT, replace=False)
    return np.sort(np.concatenate([np.flatnonzero(~is_held), held]))


def _judged(
    pairs: TrainingPairs,
    anchors: Float32[np.ndarray, "pairs dim"],
    positives: Float32[np.ndarray, "pairs dim"],
    is_held: Bool[np.ndarray, " pairs"],
) -> HeldOutPairs | None:
    rows = np.flatnonzero(is_held).tolist()
    first_rows = {pairs.positives[row]: row for row in reversed(rows)}
    doc_rows = sorted(first_rows.values())
    members: dict[int, list[int]] = {}
    for row in doc_rows:
        members.setdefault(int(pairs.groups[row]), []).append(row)
    relevant = {
        row: [
            doc
            for doc in members[int(pairs.groups[row])]
            if pairs.positives[doc] != pairs.anchors[row]
        ]
        for row in rows
    }
    asked = [row for row in rows if relevant[row]]
    if not asked:
        return None
    places = {pairs.positives[row]: place for place, row in enumerate(doc_rows)}
    return HeldOutPairs(
        anchors=anchors[asked],
        positives=positives[doc_rows],
        judgements=Judgements(
            {str(row): dict.fromkeys(map(str, relevant[row]), 1) for row in asked},
            query_ids=[str(row) for row in asked],
            doc_ids=[str(row) for row in doc_rows],
        ),
        own=np.array([places.get(pairs.anchors[row], -2) for row in asked], dtype=np.int64),
    )
