"""Pairs of texts that belong together: what a text model is trained on."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int64

from nestling.data.splits import unit_hash
from nestling.data.types import Corpus, RetrievalTask
from nestling.errors import DataError

Rows = Int64[np.ndarray, " rows"]

LARGE_SHARE = 0.05
"""A group with more than this share of the pairs is worth telling people about."""


@dataclass(frozen=True, kw_only=True)
class TrainingPairs:
    """An anchor (a query, a premise) and a positive (its document, what it entails) per row.

    Attributes:
        anchors: Texts.
        positives: The text that belongs to each anchor.
        negatives: A text that looks alike and does not belong, "" where a row has none; None if no
            row has one.
        groups: Rows of one group are never negatives of each other: an equal text on either side
            links them, directly or by way of others, or they share their label.
        source: Where they come from, for people.
        notes: What people should know.
        has_label: Rows whose group is a label, any two texts of which belong together; None if no
            row's is.
    """

    anchors: Sequence[str]
    positives: Sequence[str]
    negatives: Sequence[str] | None
    groups: Int64[np.ndarray, " pairs"]
    source: str
    notes: tuple[str, ...] = ()
    has_label: Bool[np.ndarray, " pairs"] | None = None

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

    @cached_property
    def negative_groups(self) -> Int64[np.ndarray, " pairs"]:
        """The group of the positive or anchor that each hard negative equals; -1 where it equals none.

        For the rows of that group it is no negative.
        """
        if self.negatives is None:
            return np.full(len(self), -1, dtype=np.int64)
        known: dict[str, int] = {}
        for texts in (self.positives, self.anchors):
            for text, group in zip(texts, self.groups.tolist(), strict=True):
                known.setdefault(text, group)
        return np.array([known.get(text, -1) for text in self.negatives], dtype=np.int64)

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
            has_label=None if self.has_label is None else self.has_label[rows],
        )

    def hold_out(
        self, share: float, *, most: int = 2000
    ) -> tuple["TrainingPairs", RetrievalTask | None]:
        """Split off pairs for validation, by a hash of their texts.

        Of pairs, whole groups leave, so that neither anchors nor positives cross over; one that
        holds more than `share` of the pairs stays. Of labels, single texts leave, and with them the
        pairs they stand in.

        Args:
            share: Of the groups, or of the labelled texts, that leave, about.
            most: At most so many validation queries.

        Returns:
            The pairs that stay, and a task: each held-out anchor seeks its own positives among all
            that were held out; half of the labelled texts seek those of their label among the other
            half. Of a pair and its mirror image one counts. Anchors that are documents themselves are
            no queries. None where fewer than two groups would leave or stay.
        """
        if share <= 0:
            return self, None
        has_label = np.zeros(len(self), np.bool_) if self.has_label is None else self.has_label
        plain, labelled = np.flatnonzero(~has_label), np.flatnonzero(has_label)
        held_rows = plain[np.isin(self.groups[plain], self._choose_groups(plain, share, most))]
        held_texts = self._choose_texts(labelled, share, most)
        leaves = np.concatenate([held_rows, self._rows_with(held_texts, labelled)])
        kept = self.take(np.setdiff1d(np.arange(len(self)), leaves))
        relevant, documents = self._seek_label(labelled, held_texts)
        held = [(self.anchors[row], self.positives[row]) for row in held_rows.tolist()]
        mirrored = {(positive, anchor) for anchor, positive in held if anchor < positive}
        for anchor, positive in held:
            if (anchor, positive) not in mirrored:
                relevant.setdefault(anchor, []).append(positive)
                documents.append(positive)
        task = _task(relevant, documents, most=most, source=self.source)
        if task is None or len(np.unique(kept.groups)) < 2:
            return self, None
        return kept, task

    def _choose_groups(self, rows: Rows, share: float, most: int) -> list[int]:
        """Return the groups of some rows that leave: the smallest hashes of their first text."""
        texts: dict[int, str] = {}
        for row, group in zip(rows.tolist(), self.groups[rows].tolist(), strict=True):
            texts[group] = min(texts.get(group, self.positives[row]), self.positives[row])
        numbers, sizes = np.unique(self.groups[rows], return_counts=True)
        small = numbers[sizes <= max(1, share * len(rows))].tolist()
        num_held = min(round(share * len(numbers)), most)
        held = sorted(small, key=lambda group: (unit_hash(texts[group]), texts[group]))[:num_held]
        return held if len(held) > 1 else []

    def _choose_texts(self, rows: Rows, share: float, most: int) -> list[str]:
        """Return the texts of some rows that leave: those of the smallest hashes."""
        texts = {text for row in rows.tolist() for text in (self.anchors[row], self.positives[row])}
        num_held = min(round(share * len(texts)), 2 * most)
        return sorted(texts, key=lambda text: (unit_hash(text), text))[:num_held]

    def _rows_with(self, texts: Sequence[str], rows: Rows) -> Int64[np.ndarray, " found"]:
        wanted = set(texts)
        found = [row for row in rows.tolist() if {self.anchors[row], self.positives[row]} & wanted]
        return np.array(found, dtype=np.int64)

    def _seek_label(
        self, rows: Rows, held: Sequence[str]
    ) -> tuple[dict[str, list[str]], list[str]]:
        """Split held-out texts into queries, with the documents of their label, and documents."""
        places = {text: place for place, text in enumerate(held)}
        members: dict[int, set[int]] = {}
        for row in rows.tolist():
            both = (self.anchors[row], self.positives[row])
            found = {places[text] for text in both if text in places}
            members.setdefault(int(self.groups[row]), set()).update(found)
        is_query: dict[int, bool] = {}
        relevant: dict[int, list[str]] = {}
        for group in map(sorted, members.values()):
            # A text of two labels keeps the part it was given first.
            for number, place in enumerate(group):
                is_query.setdefault(place, number % 2 == 1)
            documents = [held[place] for place in group if not is_query[place]]
            for place in group:
                if is_query[place] and documents:
                    relevant.setdefault(place, []).extend(documents)
        queries = {held[place]: relevant[place] for place in sorted(relevant)}
        return queries, [held[place] for place in sorted(is_query) if not is_query[place]]


def _task(
    relevant: dict[str, list[str]], documents: Sequence[str], *, most: int, source: str
) -> RetrievalTask | None:
    texts = list(dict.fromkeys(documents))
    doc_ids = {text: str(number) for number, text in enumerate(texts)}
    # A query that is a document finds itself first, whatever the model.
    queries = [query for query in relevant if query not in doc_ids][:most]
    if not queries or len(texts) < 2:
        return None
    return RetrievalTask(
        name=f"held out of {source}",
        corpus=Corpus(doc_ids=list(doc_ids.values()), texts=texts, source=source),
        query_ids=[f"q{number}" for number in range(len(queries))],
        queries=queries,
        qrels={
            f"q{number}": {doc_ids[text]: 1 for text in relevant[query]}
            for number, query in enumerate(queries)
        },
    )


def make_pairs(
    rows: Iterable[tuple[str, str, str]],
    *,
    source: str,
    notes: Sequence[str] = (),
    groups: Sequence[int] | None = None,
) -> TrainingPairs:
    """Return pairs from rows of anchor, positive and negative ("" for none).

    Groups that are given are labels; without them, a text that stands in several rows links them,
    whether as anchor or as positive: it would else be a negative of itself.

    Raises:
        DataError: If there are fewer than two pairs, or all are in one group.
    """
    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    anchors, positives, negatives = (list(column) for column in columns)
    if groups is None:
        chosen = _link(*_number(anchors, positives))
    else:
        chosen = np.array(groups, dtype=np.int64)
    if len(np.unique(chosen)) < 2:
        raise DataError(
            f"`pairs` must hold at least two pairs that share no text, got {len(anchors)} "
            f"pairs in {source}. The positives of other pairs are what an anchor is told apart from."
        )
    return TrainingPairs(
        anchors=anchors,
        positives=positives,
        negatives=negatives if any(negatives) else None,
        groups=chosen,
        source=source,
        notes=(*notes, *(_crowd_notes(chosen) if groups is None else ())),
        has_label=None if groups is None else np.ones(len(anchors), np.bool_),
    )


def join_pairs(parts: Sequence[TrainingPairs]) -> TrainingPairs:
    """Return several sources as one.

    Equal texts link pairs of different sources; labels stay apart from everything else.
    """
    if len(parts) == 1:
        return parts[0]
    anchors = [text for part in parts for text in part.anchors]
    positives = [text for part in parts for text in part.positives]
    sizes = [int(part.groups.max()) + 1 for part in parts]
    starts = np.cumsum([0, *sizes[:-1]])
    own = np.concatenate([part.groups + start for part, start in zip(parts, starts, strict=True)])
    has_label = np.concatenate(
        [
            np.zeros(len(part), np.bool_) if part.has_label is None else part.has_label
            for part in parts
        ]
    )
    # A labelled row gets a number of its own in the place of those of its texts, and links nothing.
    alone = np.arange(len(own)) + 2 * len(own)
    columns = [np.where(has_label, alone, numbers) for numbers in _number(anchors, positives)]
    groups = _link(*columns, own + 3 * len(own))
    with_negatives = any(part.negatives is not None for part in parts)
    return TrainingPairs(
        anchors=anchors,
        positives=positives,
        negatives=[text for part in parts for text in part.negatives or [""] * len(part)]
        if with_negatives
        else None,
        groups=groups,
        source=" + ".join(part.source for part in parts),
        notes=(*(note for part in parts for note in part.notes), *_crowd_notes(groups[~has_label])),
        has_label=has_label if has_label.any() else None,
    )


def _number(*columns: Sequence[str]) -> list[Int64[np.ndarray, " texts"]]:
    """Number the different texts of all columns, from 0, in the order of their first appearance."""
    numbers: dict[str, int] = {}
    return [
        np.array([numbers.setdefault(text, len(numbers)) for text in texts], dtype=np.int64)
        for texts in columns
    ]


def _link(*columns: Int64[np.ndarray, " rows"]) -> Int64[np.ndarray, " rows"]:
    """Number the connected components of rows that are linked by equal values, in whichever column.

    The graph has a node for each row, and for each value one that its rows hang on.
    """
    # Here and not above: SciPy's graphs take a quarter of a second to import.
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    num_rows = len(columns[0])
    values = np.concatenate(columns) + num_rows
    rows = np.tile(np.arange(num_rows), len(columns))
    num_nodes = int(values.max(initial=num_rows)) + 1
    edges = csr_array((np.ones(len(rows), np.bool_), (rows, values)), shape=(num_nodes,) * 2)
    # Components are numbered by their first node, and the rows come first.
    return connected_components(edges, directed=False)[1][:num_rows].astype(np.int64)


def _crowd_notes(groups: Int64[np.ndarray, " pairs"]) -> list[str]:
    largest = int(np.bincount(groups).max(initial=0))
    if largest <= max(1, LARGE_SHARE * len(groups)):
        return []
    note = (
        f"the largest group of pairs linked by equal texts holds {largest:,} of "
        f"{len(groups):,}: they are not told from each other, and teach the less the more they are"
    )
    return [note]


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
    """Return the matching pairs; the first other pair of a left text gives its hard negative.

    Those that serve no match, being a second one or the only pair of their left text, are counted
    in the notes.
    """
    against: dict[str, str] = {}
    for anchor, other, match in zip(left, right, is_match, strict=True):
        if not match:
            against.setdefault(anchor, other)
    rows = [
        (anchor, other, against.get(anchor, ""))
        for anchor, other, match in zip(left, right, is_match, strict=True)
        if match
    ]
    num_used = len(against.keys() & {anchor for anchor, _, _ in rows})
    num_unused = len(is_match) - len(rows) - num_used
    unused = (
        f"{num_unused:,} pairs that do not match left out: their first text has a hard negative already, "
        f"or no match"
    )
    return make_pairs(rows, source=source, notes=[*notes, unused] if num_unused else notes)
