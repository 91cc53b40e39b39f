"""Pairs of texts that belong together: what a text model is trained on."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Int64

from nestling.data.splits import unit_hash
from nestling.data.types import Corpus, RetrievalTask
from nestling.errors import DataError

Rows = Int64[np.ndarray, " rows"]


@dataclass(frozen=True, kw_only=True)
class TrainingPairs:
    """An anchor (a query, a premise) and a positive (its document, what it entails) per row.

    Attributes:
        anchors: Texts.
        positives: The text that belongs to each anchor.
        negatives: A text that looks alike and does not belong, "" where a row has none; None if no
            row has one.
        groups: Rows of one group are never negatives of each other: they share their positive, or
            their label.
        source: Where they come from, for people.
        notes: What people should know.
    """

    anchors: Sequence[str]
    positives: Sequence[str]
    negatives: Sequence[str] | None
    groups: Int64[np.ndarray, " pairs"]
    source: str
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.anchors)

    @cached_property
    def pairs_hash(self) -> str:
        """A hash of every text in order: equal hashes mean the same training data."""
        digest = hashlib.blake2b(digest_size=16)
        columns = (self.anchors, self.positives, self.negatives or ())
        for number, column in enumerate(columns):
            for text in column:
                digest.update(f"{number}:{len(text)}:{text}".encode())
        digest.update(np.ascontiguousarray(self.groups).tobytes())
        return digest.hexdigest()

    def describe(self) -> str:
        """Return size and hash in words."""
        hard = sum(map(bool, self.negatives or ()))
        with_hard = f", {hard:,} with a hard negative" if hard else ""
        return f"{len(self):,} pairs{with_hard} from {self.source}, pairs_hash {self.pairs_hash}"

    def take(self, rows: Rows) -> "TrainingPairs":
        """Return some of the pairs."""
        return replace(
            self,
            anchors=[self.anchors[row] for row in rows],
            positives=[self.positives[row] for row in rows],
            negatives=None if self.negatives is None else [self.negatives[row] for row in rows],
            groups=self.groups[rows],
        )

    def hold_out(
        self, share: float, *, most: int = 2000
    ) -> tuple["TrainingPairs", RetrievalTask | None]:
        """Split off pairs for validation, whole groups at a time, by a hash of their positives.

        Args:
            share: Of the groups that leave, about.
            most: At most so many validation queries.

        Returns:
            The pairs that stay, and a task: find the positive of each held-out anchor among all
            held-out positives. None where fewer than two groups would leave or stay.
        """
        if share <= 0:
            return self, None
        first = {int(group): row for row, group in reversed(list(enumerate(self.groups)))}
        hashes = {group: unit_hash(self.positives[row]) for group, row in first.items()}
        num_held = min(round(share * len(first)), most)
        held_groups = sorted(hashes, key=lambda group: (hashes[group], group))[:num_held]
        is_held = np.isin(self.groups, np.array(held_groups, dtype=np.int64))
        if min(num_held, len(first) - num_held) < 2:
            return self, None
        return self.take(np.flatnonzero(~is_held)), self.take(np.flatnonzero(is_held)).as_task(most)

    def as_task(self, most: int) -> RetrievalTask:
        """Return the retrieval task of these pairs: each anchor seeks the positives of its group."""
        documents = list(dict.fromkeys(self.positives))
        doc_ids = {text: str(number) for number, text in enumerate(documents)}
        relevant: dict[int, dict[str, int]] = {}
        for positive, group in zip(self.positives, self.groups, strict=True):
            relevant.setdefault(int(group), {})[doc_ids[positive]] = 1
        rows = range(min(len(self), most))
        return RetrievalTask(
            name=f"held out of {self.source}",
            corpus=Corpus(doc_ids=list(doc_ids.values()), texts=documents, source=self.source),
            query_ids=[f"q{row}" for row in rows],
            queries=[self.anchors[row] for row in rows],
            qrels={f"q{row}": relevant[int(self.groups[row])] for row in rows},
        )


def make_pairs(
    rows: Iterable[tuple[str, str, str]],
    *,
    source: str,
    notes: Sequence[str] = (),
    groups: Sequence[int] | None = None,
) -> TrainingPairs:
    """Return pairs from rows of anchor, positive and negative ("" for none).

    Equal positives form a group unless groups are given.

    Raises:
        DataError: If there are fewer than two pairs, or all have the same positive.
    """
    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    anchors, positives, negatives = (list(column) for column in columns)
    numbers: dict[str, int] = {}
    own = [numbers.setdefault(text, len(numbers)) for text in positives]
    chosen = np.array(own if groups is None else groups, dtype=np.int64)
    if len(np.unique(chosen)) < 2:
        raise DataError(
            f"`pairs` must hold at least two pairs with different positives, got {len(anchors)} pairs in "
            f"{source}. The other positives of a batch are what an anchor is told apart from."
        )
    return TrainingPairs(
        anchors=anchors,
        positives=positives,
        negatives=negatives if any(negatives) else None,
        groups=chosen,
        source=source,
        notes=tuple(notes),
    )


def join_pairs(parts: Sequence[TrainingPairs]) -> TrainingPairs:
    """Return several sources as one; groups of different sources stay apart."""
    if len(parts) == 1:
        return parts[0]
    groups, start = [], 0
    for part in parts:
        groups.append(part.groups + start)
        start += int(part.groups.max()) + 1
    with_negatives = any(part.negatives is not None for part in parts)
    return TrainingPairs(
        anchors=[text for part in parts for text in part.anchors],
        positives=[text for part in parts for text in part.positives],
        negatives=[text for part in parts for text in part.negatives or [""] * len(part)]
        if with_negatives
        else None,
        groups=np.concatenate(groups),
        source=" + ".join(part.source for part in parts),
        notes=tuple(note for part in parts for note in part.notes),
    )


def pairs_of_retrieval(task: RetrievalTask) -> TrainingPairs:
    """Return one pair per query and relevant document."""
    texts = dict(zip(task.corpus.doc_ids, task.corpus.texts, strict=True))
    rows = (
        (query, texts[doc_id], "")
        for query_id, query in zip(task.query_ids, task.queries, strict=True)
        for doc_id, grade in task.qrels[query_id].items()
        if grade > 0
    )
    return make_pairs(rows, source=task.name, notes=task.notes)


def pairs_of_labels(texts: Sequence[str], labels: Sequence[str], *, source: str) -> TrainingPairs:
    """Return each text with the next one of its label, in an order by hash; a label is a group.

    Raises:
        DataError: If fewer than two labels have two texts or more.
    """
    members: dict[str, list[str]] = {}
    for text, label in zip(texts, labels, strict=True):
        members.setdefault(label, []).append(text)
    rows: list[tuple[str, str, str]] = []
    groups: list[int] = []
    for number, label in enumerate(sorted(members)):
        ordered = sorted(dict.fromkeys(members[label]), key=unit_hash)
        if len(ordered) > 1:
            rows += [
                (text, ordered[(place + 1) % len(ordered)], "")
                for place, text in enumerate(ordered)
            ]
            groups += [number] * len(ordered)
    note = f"{len(rows):,} texts, each paired with another of its label ({len(members):,} labels)"
    return make_pairs(rows, source=source, groups=groups, notes=[note])


def pairs_of_matches(
    left: Sequence[str],
    right: Sequence[str],
    is_match: Sequence[bool],
    *,
    source: str,
    notes: Sequence[str] = (),
) -> TrainingPairs:
    """Return the matching pairs; a pair that does not match is a hard negative of its left text."""
    against: dict[str, str] = {}
    for anchor, other, match in zip(left, right, is_match, strict=True):
        if not match:
            against.setdefault(anchor, other)
    rows = (
        (anchor, other, against.get(anchor, ""))
        for anchor, other, match in zip(left, right, is_match, strict=True)
        if match
    )
    return make_pairs(rows, source=source, notes=notes)
