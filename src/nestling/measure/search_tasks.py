"""Retrieval with judgements, and `self:` tasks, which have none."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from nestling.core import Fingerprint, check_same_space
from nestling.data import RetrievalTask, SelfTask, hold_out
from nestling.encode import AdaptedEncoder, Encoder
from nestling.errors import DataError
from nestling.measure.cuts import clipping_notes
from nestling.measure.embed import Side, check_comparable, read_side
from nestling.measure.metrics import CUTOFF, DEPTH, Judgements, overlap
from nestling.measure.options import Options, Outcome
from nestling.measure.ranking import Judge, Reference, Rows, measure_search
from nestling.measure.table import PerQuery


def run_retrieval(encoder: Encoder, task: RetrievalTask, options: Options) -> Outcome:
    """Encode documents and queries, search with every cut, and judge by the qrels."""
    corpus = options.encode(encoder, task.corpus.texts, task.corpus.doc_ids, name="documents")
    queries = options.encode(encoder, task.queries, task.query_ids, name="queries", role="query")
    judgements = Judgements(task.qrels, query_ids=queries.ids, doc_ids=corpus.ids)

    def judge(rows: Rows, reference: Reference) -> Mapping[str, PerQuery]:
        values = judgements.evaluate(rows)
        return {**values, "overlap_at_10": overlap(rows[:, :CUTOFF], reference)}

    return _search(
        corpus,
        queries,
        judge,
        options,
        main_metric="ndcg_at_10",
        corpus_hash=task.corpus.corpus_hash,
        notes=corpus.notes,
    )


def run_self(encoder: Encoder | None, task: SelfTask, options: Options) -> Outcome:
    """Search with every cut, and judge by the ranking of the full width in float32.

    Two shares of its top 10 are counted: `overlap_at_10` is what the top 10 of the cut holds of
    them, which is what a user of the cut alone sees; `recall_at_10_of_full` is what the top 100 of
    the cut holds of them, which is the best that a funnel with a shortlist of 100 can come to.

    Vectors are measured as they are. A vector folder says what made it, which must be the encoder
    if one is given; a plain file is taken at its word.

    Raises:
        DataError: If texts are to be encoded and there is no encoder.
        FingerprintError: If queries and corpus are of two spaces, or the vectors of another than
            the encoder's.
    """
    if task.vectors is not None:
        found = _read(task.vectors, encoder, options, name="documents")
        corpus_hash = found.corpus_hash
    elif task.corpus is not None:
        known_encoder = need_encoder(encoder, task.name)
        found = options.encode(
            known_encoder, task.corpus.texts, task.corpus.doc_ids, name="documents"
        )
        corpus_hash = task.corpus.corpus_hash
    else:
        raise DataError(f"`task` {task.name!r} must name a corpus or vectors, got neither.")
    corpus, queries = _find_queries(encoder, task, found, options)
    check_comparable(corpus, queries)

    def judge(rows: Rows, reference: Reference) -> Mapping[str, PerQuery]:
        return {
            "overlap_at_10": overlap(rows[:, :CUTOFF], reference),
            "recall_at_10_of_full": overlap(rows[:, :DEPTH], reference),
        }

    return _search(
        corpus,
        queries,
        judge,
        options,
        main_metric="overlap_at_10",
        corpus_hash=corpus_hash,
        notes=found.notes,
    )


def need_encoder(encoder: Encoder | None, name: str) -> Encoder:
    """Return the encoder.

    Raises:
        DataError: If there is none.
    """
    if encoder is None:
        raise DataError(
            f"`encoder` must be given for {name}, which holds texts or images, got None. "
            f"Name a --model to encode them with."
        )
    return encoder


def _read(path: Path, encoder: Encoder | None, options: Options, *, name: str) -> Side:
    """Read vectors, which are not to be reported under the name of a model that did not make them."""
    found = read_side(path, name=name, bad_rows=options.bad_rows)
    if encoder is not None and found.has_known_space:
        _check_made_by(encoder, found.fingerprint, folder=path)
    return found


def _check_made_by(encoder: Encoder, made_by: Fingerprint, *, folder: Path) -> None:
    advice = (
        "Leave the model out to measure the vectors as they are, or name the one that made them."
    )
    if isinstance(encoder, AdaptedEncoder) and made_by.space == encoder.parent.space:
        advice = (
            f"Map the vectors first: nestling encode --model {shlex.quote(encoder.uri)} --vectors "
            f"{shlex.quote(str(folder))} --out ADAPTED, and measure those."
        )
    check_same_space(
        made_by,
        encoder.fingerprint,
        left_name=f"the folder {folder}",
        right_name="the model named",
        advice=advice,
    )


def _search(
    corpus: Side,
    queries: Side,
    judge: Judge,
    options: Options,
    *,
    main_metric: str,
    corpus_hash: str,
    notes: Sequence[str],
) -> Outcome:
    cuts = options.cuts(corpus.vectors)
    measured = measure_search(
        corpus.vectors,
        np.asarray(queries.vectors, dtype=np.float32),
        cuts,
        judge=judge,
        shortlist_size=options.shortlist_size,
        funnels=options.baselines,
        progress=options.progress,
    )
    return Outcome(
        measured=measured,
        main_metric=main_metric,
        nested_metric="overlap_at_10",
        query_ids=queries.ids,
        fingerprint=corpus.fingerprint,
        corpus_hash=corpus_hash,
        num_documents=len(corpus.ids),
        notes=[*notes, *queries.notes, *clipping_notes(cuts)],
    )


def _find_queries(
    encoder: Encoder | None, task: SelfTask, found: Side, options: Options
) -> tuple[Side, Side]:
    """Return corpus and queries: those given, or documents held out of the corpus."""
    if task.query_vectors is not None:
        return found, _read(task.query_vectors, encoder, options, name="queries")
    if task.queries is not None:
        known_encoder = need_encoder(encoder, f"the queries of {task.name}")
        ids = [str(number) for number in range(len(task.queries))]
        return found, options.encode(known_encoder, task.queries, ids, name="queries", role="query")
    held = hold_out(len(found.ids), found.ids)
    rest = np.setdiff1d(np.arange(len(found.ids)), held)
    note = f"{len(held):,} documents, held out of the corpus, are the queries"
    return found.take(rest, name="documents"), found.take(held, name="queries", note=note)
