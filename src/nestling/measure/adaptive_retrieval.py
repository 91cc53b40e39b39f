"""Adaptive and funnel retrieval on labelled vectors, as Kusupati et al. 2022 evaluate them.

A short prefix scans the database for a shortlist, longer ones re-rank it (Section 4.3.1 and Appendix
F, arXiv:2205.13147). A retrieved row is relevant if it has the label of the query. The chain is the
house's own `Stage`s, so what is measured here can be put into a `Plan` and run by an index.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int

from nestling.core import (
    Dtype,
    TopK,
    View,
    check_dims,
    check_nesting_dims,
    nested_top_k,
    rescore,
    top_k,
)
from nestling.core.progress import Progress, silent
from nestling.errors import DataError, DimensionError, VectorError
from nestling.measure.metrics import CUTOFF, overlap
from nestling.search import Plan, Stage

Stages = tuple[Stage, ...]

SHORTLIST_SIZE = 200
"""The paper's K: candidates that a re-rank reads."""

FUNNEL_SIZES = (200, 100, 50, 25, 10)
"""The paper's funnel: candidates before each of its five re-ranks."""

BLOCK_PLACES = 1 << 23
"""Places of a ranking, all widths together, that are held at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalRow:
    """One way to retrieve.

    Attributes:
        kind: "single" for one scan, "adaptive" for a scan and one re-rank, "funnel" for more.
        stages: The chain.
        metrics: By name, the value per query: `accuracy_1nn`, `map_at_10_paper` (divided by 10),
            `map_at_10` (divided by the relevant rows there are, at most 10), `precision_at_10`, and
            `overlap_at_10` with a single scan at the full width.
        multiply_adds: Per query, the scan and every re-rank together.
        full_scan_ratio: Multiply-adds of a scan at the full width over these.
    """

    kind: str
    stages: Stages
    metrics: Mapping[str, Float64[np.ndarray, " queries"]]
    multiply_adds: int
    full_scan_ratio: float

    def mean(self, metric: str) -> float:
        """Return the mean of a metric over the queries."""
        return float(self.metrics[metric].mean())

    def describe(self) -> str:
        """Return the chain in words, e.g. "16-d, keep 200 -> 2048-d"."""
        return " -> ".join(
            f"{stage.dim}-d"
            + ("" if stage.shortlist_size is None else f", keep {stage.shortlist_size}")
            for stage in self.stages
        )


def chain(dims: Sequence[int], shortlist_sizes: Sequence[int]) -> Stages:
    """Return float32 stages: a scan at the first width, then a re-rank at each further one.

    Args:
        dims: Widths, never shrinking.
        shortlist_sizes: Candidates before each re-rank, so one fewer; never growing.

    Raises:
        DimensionError: If the numbers of widths and sizes do not fit. Other rules are those of `Plan`.
    """
    if len(shortlist_sizes) != len(dims) - 1:
        raise DimensionError(
            f"`shortlist_sizes` must be one per re-rank, {len(dims) - 1} for the widths "
            f"{','.join(map(str, dims))}, got {len(shortlist_sizes)}."
        )
    return tuple(
        Stage(dim=dim, dtype=Dtype.FLOAT32, shortlist_size=size)
        for dim, size in zip(dims, [*shortlist_sizes, None], strict=True)
    )


def paper_chains(nesting_dims: Sequence[int]) -> list[Stages]:
    """Return what the paper compares: each width alone, pairs of widths, and a funnel from each width.

    A pair re-ranks 200 candidates. A funnel re-ranks 200, 100, 50, 25 and 10 at the next four widths
    and the full one (fewer, the first of them, where fewer widths are left).

    Args:
        nesting_dims: The widths, the last being the full one.

    Returns:
        Single scans in the order of the widths, then all pairs of a scan and a wider re-rank, then
        the funnels that have at least two re-ranks.
    """
    dims = check_dims(nesting_dims, max(nesting_dims, default=1))
    chains = [chain([dim], []) for dim in dims]
    for place, dim in enumerate(dims):
        chains += [chain([dim, wider], [SHORTLIST_SIZE]) for wider in dims[place + 1 :]]
    for place, dim in enumerate(dims[:-2]):
        hops = [*dims[place + 1 : -1][: len(FUNNEL_SIZES) - 1], dims[-1]]
        chains.append(chain([dim, *hops], FUNNEL_SIZES[: len(hops)]))
    return chains


def multiply_adds(stages: Sequence[Stage], num_rows: int) -> int:
    """Return the multiply-adds per query of an exact scan and its re-ranks.

    Norms, and choosing the best, are not counted.

    Args:
        stages: The chain.
        num_rows: Rows that the first stage scans.
    """
    scan = num_rows * stages[0].dim
    return scan + sum(
        min(num_rows, stage.shortlist_size or 0) * later.dim for stage, later in pairwise(stages)
    )


def measure_adaptive_retrieval(
    database: Float[np.ndarray, "rows full"],
    database_labels: Int[np.ndarray, " database_labels"],
    queries: Float[np.ndarray, "queries query_dim"],
    query_labels: Int[np.ndarray, " query_labels"],
    chains: Sequence[Stages],
    *,
    num_threads: int | None = None,
    progress: Progress = silent,
) -> list[RetrievalRow]:
    """Run every chain, and judge the ten best rows of each query by their labels.

    All chains share one scan. Each prefix of each vector is compared by its own norm at every stage.
    Nothing given is written to, and no chain sees what another left behind.

    Args:
        database: Rows to retrieve, finite; may be memory-mapped. Queries must not be among them.
        database_labels: Class of each row.
        queries: As wide as the database, finite.
        query_labels: Class of each query.
        chains: What to measure, all stages in float32; e.g. `paper_chains`.
        num_threads: As in `nested_top_k`.
        progress: Told the queries done.

    Returns:
        One row per chain, in their order.

    Raises:
        DataError: If there are no queries or no rows, labels do not fit, or no chain is given.
        VectorError: If widths differ, or a value is NaN or infinite.
        DimensionError: If a chain gets narrower, or wider than the vectors.
        FormatError: If shortlists of a chain grow.
    """
    _check(database, database_labels, queries, query_labels, chains)
    full = database.shape[1]
    wide_queries = queries.astype(np.float32, copy=False)
    head_dims = check_nesting_dims(sorted({stages[0].dim for stages in chains}), full)
    deepest = max(CUTOFF, *(stages[0].shortlist_size or 0 for stages in chains))
    # The results of one block of queries stay near 256 MB, whatever the number of queries.
    step = max(1, BLOCK_PLACES // (deepest * len(head_dims)))
    starts = range(0, len(queries), step)
    blocks: list[list[dict[str, Float64[np.ndarray, " queries"]]]] = [[] for _ in chains]
    for start in starts:
        some, labels = wide_queries[start : start + step], query_labels[start : start + step]
        view = View(name="database", queries=some)
        heads = nested_top_k(database, [view], head_dims, deepest, num_threads=num_threads)
        by_dim = heads["database"].by_dim
        num_relevant = _count_relevant(database_labels, labels)
        reference = by_dim[full].rows[:, :CUTOFF]
        for stages, measured in zip(chains, blocks, strict=True):
            found = _run(stages, by_dim[stages[0].dim], database, some)
            is_relevant = (database_labels[found] == labels[:, None]) & (found >= 0)
            metrics = label_metrics(is_relevant, num_relevant)
            measured.append({**metrics, "overlap_at_10": overlap(found, reference)})
        progress("retrieve", min(start + step, len(queries)), len(queries))
    return [
        _row(stages, measured, len(database), full)
        for stages, measured in zip(chains, blocks, strict=True)
    ]


def label_metrics(
    is_relevant: Bool[np.ndarray, "queries k"], num_relevant: Int[np.ndarray, " queries"]
) -> dict[str, Float64[np.ndarray, " queries"]]:
    """Return the metrics of rankings whose rows are relevant or not, per query.

    Args:
        is_relevant: Of each place, best first; places after 10 are not read, and missing ones are
            not relevant.
        num_relevant: Relevant rows in the database, per query.

    Returns:
        `accuracy_1nn`; `map_at_10_paper`, the sum of precision at each relevant place over 10 (as the
        paper's code has it, so a class of fewer than 10 rows never reaches 1); `map_at_10`, the same
        over min(10, relevant rows), 0 where there is none; `precision_at_10`, over 10.
    """
    hits = np.zeros((len(is_relevant), CUTOFF))
    kept = is_relevant[:, :CUTOFF]
    hits[:, : kept.shape[1]] = kept
    summed = (hits * hits.cumsum(axis=1) / np.arange(1, CUTOFF + 1)).sum(axis=1)
    return {
        "accuracy_1nn": hits[:, 0].copy(),
        "map_at_10_paper": summed / CUTOFF,
        "map_at_10": summed / np.clip(num_relevant, 1, CUTOFF),
        "precision_at_10": hits.mean(axis=1),
    }


def _row(
    stages: Stages,
    blocks: list[dict[str, Float64[np.ndarray, " queries"]]],
    num_rows: int,
    embed_dim: int,
) -> RetrievalRow:
    cost = multiply_adds(stages, num_rows)
    return RetrievalRow(
        kind=("single", "adaptive", "funnel")[min(len(stages), 3) - 1],
        stages=stages,
        metrics={name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]},
        multiply_adds=cost,
        full_scan_ratio=num_rows * embed_dim / cost,
    )


def _run(
    stages: Stages,
    head: TopK,
    database: Float[np.ndarray, "rows full"],
    queries: Float32[np.ndarray, "queries full"],
) -> Int[np.ndarray, "queries k"]:
    """Return the rows that a chain ranks best, from the best rows of its scan."""
    found = head.rows[:, : stages[0].shortlist_size or CUTOFF]
    for stage in stages[1:]:
        scores = rescore(queries, database, found, stage.dim)
        found = top_k(scores, stage.shortlist_size or CUTOFF, rows=found).rows
    return found


def _count_relevant(
    database_labels: Int[np.ndarray, " rows"], query_labels: Int[np.ndarray, " queries"]
) -> Int[np.ndarray, " queries"]:
    """Return the rows of each query's class; any number for a class that has none, as nothing is found."""
    classes, counts = np.unique(database_labels, return_counts=True)
    return counts[np.minimum(np.searchsorted(classes, query_labels), len(classes) - 1)]


def _check(
    database: np.ndarray,
    database_labels: np.ndarray,
    queries: np.ndarray,
    query_labels: np.ndarray,
    chains: Sequence[Stages],
) -> None:
    if not chains:
        raise DataError(
            "`chains` must hold at least one chain, got none. Pass `paper_chains(...)`."
        )
    for name, vectors, labels in (
        ("database", database, database_labels),
        ("queries", queries, query_labels),
    ):
        if len(vectors) != len(labels) or not len(vectors):
            raise DataError(
                f"`{name}` must hold at least one vector and one label each, got {len(vectors)} "
                f"vectors and {len(labels)} labels."
            )
        with np.errstate(invalid="ignore"):
            # NaN and infinity survive a sum; a mask of every value would need a quarter of the vectors.
            strange = np.flatnonzero(~np.isfinite(vectors.sum(axis=1, dtype=np.float64)))
        if len(strange):
            raise VectorError(
                f"`{name}` must be finite, got NaN or infinity in {len(strange)} rows, the first "
                f"being {int(strange[0])}. Leave these rows out."
            )
    if database.shape[1] != queries.shape[1]:
        raise VectorError(
            f"`queries` must be as wide as the database, {database.shape[1]}, got "
            f"{queries.shape[1]}. Encode both with one model."
        )
    for stages in chains:
        Plan(stages=tuple(stages), embed_dim=database.shape[1], space=None, evidence={})
        for stage in stages:
            if stage.dtype is not Dtype.FLOAT32:
                raise VectorError(
                    f"`chains` must be in float32, got {stage.describe()!r}. To measure other number "
                    f"formats use `measure`."
                )
