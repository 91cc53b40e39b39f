"""Measure what a cut costs: one encode, then every width in every format in one sweep."""

from collections.abc import Sequence
from pathlib import Path

from nestling.core import BadRowPolicy, Dtype
from nestling.core.progress import Progress, silent
from nestling.data import ClassificationTask, RetrievalTask, SelfTask, Task
from nestling.encode import Encoder
from nestling.errors import DataError
from nestling.measure.classification import run_classification
from nestling.measure.environment import describe_environment
from nestling.measure.nestedness import looks_nested
from nestling.measure.options import Options, Outcome
from nestling.measure.pairs import run_pairs
from nestling.measure.results import Results
from nestling.measure.search_tasks import need_encoder, run_retrieval, run_self
from nestling.measure.table import average_draws, make_rows

FEW_QUERIES = 30
"""Below this, means over queries are hardly worth comparing."""


def measure(
    encoder: Encoder | None,
    task: Task,
    *,
    model: str | None = None,
    dims: Sequence[int] | None = None,
    dtypes: Sequence[Dtype] = (Dtype.FLOAT32, Dtype.INT8, Dtype.BINARY),
    shortlist_size: int = 100,
    cache: Path | None = None,
    seed: int = 0,
    bad_rows: BadRowPolicy = "error",
    baselines: bool = True,
    command: str | None = None,
    progress: Progress = silent,
) -> Results:
    """Measure a task with the vectors of an encoder, cut in every way, each prefix renormalised.

    The inputs are encoded once. Families of rows: "prefix" at every width in every format, the
    full width in float32 (the reference), int8 and binary always among them; "funnel" for each of
    those as the head of a search that is re-scored at full width (tasks that search); and the
    baselines "pca" and "random". Metrics by task, the main one first:

    - retrieval: `ndcg_at_10`, `mrr_at_10`, `recall_at_10`, `recall_at_100`, `map_at_100` as
      trec_eval defines them, `ndcg_at_10_binary` where there are grades, and `overlap_at_10` with
      the reference;
    - self: `overlap_at_10` and `recall_at_10_of_full`, see `run_self`;
    - classification: `accuracy_1nn`, `accuracy_logistic`;
    - STS: `spearman`; pair classification: `average_precision`.

    Args:
        encoder: Makes the vectors; None if the task brings vectors.
        task: What to measure on.
        model: Model URI for the rows; by default the name that the fingerprint gives.
        dims: Ascending widths; the full one is added if it is missing. By default halved from the
            full one down to 8, whether or not the model says where it may be cut.
        dtypes: Number formats of the corpus side; float32 is always measured.
        shortlist_size: Candidates that a funnel re-scores.
        cache: Folder that keeps encoded inputs for the next run, or None.
        seed: Of samples and random draws: the same seed gives the same bits.
        bad_rows: "error" refuses zero, NaN and infinite vectors by id; "drop" leaves them out.
        baselines: False measures the prefixes alone, in the formats asked for: no funnels, PCA or
            random coordinates, and no verdict on nestedness. For the sweeps within a training run.
        command: What was typed, for the record.
        progress: Told about encoding and scoring.

    Raises:
        DimensionError: If `dims` breaks the rules of `check_dims`.
        DataError: If the task cannot be judged: one class, constant gold scores, no encoder.
        VectorError: If vectors cannot be compared and `bad_rows` is "error".
        FingerprintError: If corpus and query vectors are of two spaces.
    """
    if shortlist_size < 1:
        raise DataError(
            f"`shortlist_size` must be at least 1, got {shortlist_size}. The usual one is 100."
        )
    options = Options(
        dims=dims,
        dtypes=[Dtype(dtype) for dtype in dtypes],
        shortlist_size=shortlist_size,
        cache=cache,
        seed=seed,
        bad_rows=bad_rows,
        progress=progress,
        baselines=baselines,
    )
    outcome = _run(encoder, task, options)
    name = outcome.fingerprint.space.model if model is None else model
    embed_dim = outcome.fingerprint.space.embed_dim
    return Results(
        rows=make_rows(average_draws(outcome.measured), model=name, task=task.name),
        main_metric=outcome.main_metric,
        query_ids=list(outcome.query_ids),
        embed_dim=embed_dim,
        fingerprint=outcome.fingerprint,
        corpus_hash=outcome.corpus_hash,
        num_documents=outcome.num_documents,
        looks_nested=looks_nested(
            outcome.measured, metric=outcome.nested_metric, embed_dim=embed_dim
        ),
        environment=describe_environment(seed=seed, command=command),
        notes=[*task.notes, *outcome.notes, *_cautions(outcome, shortlist_size)],
    )


def _cautions(outcome: Outcome, shortlist_size: int) -> list[str]:
    cautions = []
    if 0 < outcome.num_documents <= shortlist_size:
        cautions.append(
            f"the shortlist of {shortlist_size} holds all {outcome.num_documents} documents: funnels lose nothing here"
        )
    if len(outcome.query_ids) < FEW_QUERIES:
        cautions.append(
            f"number of queries: {len(outcome.query_ids)}. So few say little: read the intervals"
        )
    return cautions


def _run(encoder: Encoder | None, task: Task, options: Options) -> Outcome:
    if isinstance(task, SelfTask):
        return run_self(encoder, task, options)
    known_encoder = need_encoder(encoder, task.name)
    # A wrong width should be heard of before the encoding, not after it.
    options.widths(known_encoder.embed_dim)
    if isinstance(task, RetrievalTask):
        return run_retrieval(known_encoder, task, options)
    if isinstance(task, ClassificationTask):
        return run_classification(known_encoder, task, options)
    return run_pairs(known_encoder, task, options)
