"""Run a plan: scan the head tier, then re-score ever fewer rows at ever greater width."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32

from nestling.core import Dtype, Space, TopK, rescore, top_k
from nestling.core.fingerprint import Fingerprint, check_same_space
from nestling.errors import DimensionError, FormatError
from nestling.search.engines.base import Engine
from nestling.search.plan import Plan, Stage


def exact_plan(space: Space, dtype: Dtype) -> Plan:
    """Return the plan of an index that was given none: one exact stage over the full width."""
    stage = Stage(dim=space.embed_dim, dtype=dtype)
    return Plan(stages=(stage,), embed_dim=space.embed_dim, space=space, evidence={})


def check_plan(plan: Plan, fingerprint: Fingerprint) -> None:
    """Refuse a plan that was made for other vectors, or that an index cannot run.

    Raises:
        DimensionError: If the plan is for another full width.
        FingerprintError: If its evidence was measured in another space.
        FormatError: If a stage behind the first asks for codes.
    """
    if plan.embed_dim != fingerprint.space.embed_dim:
        raise DimensionError(
            f"`plan` must be for vectors of width {fingerprint.space.embed_dim}, got one for "
            f"{plan.embed_dim}. Measure and choose on these vectors."
        )
    if plan.space is not None:
        measured = Fingerprint(space=plan.space, encoder={})
        check_same_space(measured, fingerprint, left_name="the plan", right_name="the vectors")
    for stage in plan.stages[1:]:
        if stage.dtype not in (Dtype.FLOAT32, Dtype.FLOAT16):
            raise FormatError(
                f"`stages` behind the first re-score the stored full vectors: float32 or float16, "
                f"got {stage.describe()!r}. Only the head may hold codes."
            )


def run_funnel(
    stages: Sequence[Stage],
    engine: Engine,
    vectors: Float[np.ndarray, "rows full"],
    queries: Float32[np.ndarray, "queries full"],
    num_results: int,
) -> TopK:
    """Return the best rows per query, with the cosines of the last stage.

    Args:
        stages: Of the plan. A shortlist shorter than what is asked for is widened to it.
        engine: Over the head tier, the first stage.
        vectors: Full vectors that later stages read, whatever float format they are stored in.
        queries: One per row, full width.
        num_results: How many to return per query.
    """
    sizes = [max(stage.shortlist_size or 1, num_results) for stage in stages]
    found = engine.search(queries, sizes[0])
    for stage, size in zip(stages[1:], sizes[1:], strict=True):
        scores = rescore(queries, vectors, found.rows, stage.dim)
        found = top_k(scores, size, rows=found.rows)
    return found
