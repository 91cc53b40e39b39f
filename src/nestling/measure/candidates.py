"""Which measured rows a choice is made from, in which order, and whether they can carry one."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from nestling.core import Dtype
from nestling.errors import EvidenceError
from nestling.measure.results import Results, Row

FAMILIES = ("prefix", "funnel")
"""What is decided; baselines are measured for comparison only."""

SIGNS = (Dtype.BINARY, Dtype.ROTATED_BINARY)
"""Formats that are tested in a chain of their own."""

MIN_QUERIES = 10
"""Fewer can certify nothing below a loss of a quarter."""

ROUNDING = 1e-9
"""A mean of ratios such as nDCG may leave [0, 1] in its last digits; by this much it is let in."""


def find_candidates(results: Results, reference: Row) -> list[Row]:
    """Return the rows that may be chosen: cuts and funnels, the uncut float32 left out.

    Args:
        results: What was measured.
        reference: Row of the full width in float32, in the metric to choose by.

    Raises:
        EvidenceError: If there is none, or the rows cannot carry a certificate: no values per query,
            fewer than 10 queries, nothing to lose, or rows that contradict each other.
    """
    uncut = (results.embed_dim, Dtype.FLOAT32)
    candidates = [
        row
        for row in results.rows
        if row.family in FAMILIES
        and row.metric == reference.metric
        and (row.dim, row.dtype) != uncut
    ]
    if not candidates:
        raise EvidenceError(
            f"`results` must hold a cut to choose, got only the full width for {reference.metric!r}. "
            f"Measure again with e.g. --dims 16,64,256 --dtypes float32,int8."
        )
    _check_rows(results, reference, candidates)
    _check_values(reference, candidates)
    return candidates


def split_into_chains(candidates: Sequence[Row]) -> list[list[Row]]:
    """Return the chains of one family, each in the order of testing; empty ones are left out.

    The first to fail ends its chain, so each chain should go from safer to riskier; and its order
    must not depend on a measured value, or nothing is certified. It is fixed by width, bytes and
    name of the format alone.

    float32, float16, int8 and int4 form one chain, by width and then bytes, descending: fewer bits
    at one width are expected to lose less than the next narrower width does. Sign bits are not, so
    they would end that chain where narrower cuts in other formats hold. Binary and rotated binary
    form a chain each: at equal widths and bytes, which of them loses less differs from model to
    model.
    """
    formats = list(Dtype)
    ordered = sorted(
        candidates,
        key=lambda row: (-row.dim, -row.bytes_per_vector, formats.index(row.dtype)),
    )
    chains: dict[Dtype | None, list[Row]] = {None: [], **{dtype: [] for dtype in SIGNS}}
    for row in ordered:
        chains[row.dtype if row.dtype in SIGNS else None].append(row)
    return [chain for chain in chains.values() if chain]


def values_per_query(rows: Sequence[Row]) -> Float64[np.ndarray, "rows queries"]:
    """Return the values of rows that `find_candidates` let through, within [0, 1] but for misuse."""
    values = np.array([row.per_query for row in rows], dtype=np.float64)
    nearest = values.clip(0.0, 1.0)
    return np.where(np.abs(values - nearest) < ROUNDING, nearest, values)


def _check_rows(results: Results, reference: Row, candidates: Sequence[Row]) -> None:
    num_queries = len(results.query_ids)
    seen: set[tuple[str, int, Dtype]] = set()
    for row in (reference, *candidates):
        name = f"{row.family} {row.dim}-d {row.dtype}"
        if row.per_query is None:
            raise EvidenceError(_explain_no_values(results, reference.metric))
        if (row.model, row.task) != (reference.model, reference.task):
            raise EvidenceError(
                f"`results` must hold one model and one task, got {reference.model} on "
                f"{reference.task} and {row.model} on {row.task}. Choose from one at a time."
            )
        if (row.family, row.dim, row.dtype) in seen:
            raise EvidenceError(
                f"`results` must hold one row per candidate, got {name} twice for {row.metric!r}. "
                f"Choose from the results of one run of `nestling measure`."
            )
        seen.add((row.family, row.dim, row.dtype))
        if len(row.per_query) != num_queries:
            raise EvidenceError(
                f"`results` must hold one value per query, got {len(row.per_query):,} in {name} for "
                f"{num_queries:,} queries. The file was changed or cut short: measure again."
            )
        if row.family == "funnel" and row.shortlist_size is None:
            raise EvidenceError(
                f"`shortlist_size` must be given for a funnel, got none in {name}. Measure again."
            )
    if num_queries < MIN_QUERIES:
        raise EvidenceError(
            f"`results` must hold at least {MIN_QUERIES} queries to choose by, got {num_queries}. "
            f"Measure a task with more: a loss of 2 points at 95% takes at least 150."
        )


def _check_values(reference: Row, candidates: Sequence[Row]) -> None:
    values = values_per_query([reference, *candidates])
    first = values[0, 0]
    if not values[0].any():
        raise EvidenceError(
            f"`{reference.metric}` of the full width is 0 for every query, so there is nothing to "
            f"lose. Check that the model fits the task and that the judgements name its documents."
        )
    if (values == first).all():
        raise EvidenceError(
            f"`{reference.metric}` is {first:g} for every query and every cut, so it cannot tell "
            f"sizes apart. Choose by a stricter metric, or measure a harder task."
        )


def _explain_no_values(results: Results, metric: str) -> str:
    usable = sorted({row.metric for row in results.rows if row.per_query is not None})
    advice = (
        f"Choose by a metric that has: {', '.join(usable)}."
        if usable
        else "Read the curve in the report, or choose on a task that is scored query by query: "
        "retrieval, classification or self:."
    )
    return (
        f"`{metric}` is one number for the whole task and has no value per query, so a loss cannot "
        f"be certified. {advice}"
    )
