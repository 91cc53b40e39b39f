"""Made-up results and decisions that look like real ones, for the tests of the report."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from nestling.core import Dtype, Fingerprint, Space, bytes_per_vector
from nestling.measure.decision import Decision, Step
from nestling.measure.results import Results, Row
from nestling.search.plan import Plan, Stage

DIMS = (8, 16, 32, 64, 128, 256)
SPACE = Space(
    model="static:wordllama",
    revision="0f3c9e",
    pooling="mean",
    normalization="l2",
    embed_dim=256,
)
_NOISE = {
    Dtype.FLOAT32: 0.0,
    Dtype.FLOAT16: 0.001,
    Dtype.INT8: 0.004,
    Dtype.INT4: 0.02,
    Dtype.BINARY: 0.07,
    Dtype.ROTATED_BINARY: 0.06,
}


def make_results(
    *,
    task: str = "builtin",
    metrics: Sequence[str] = ("ndcg_at_10", "mrr_at_10", "recall_at_100"),
    num_queries: int = 300,
    dims: Sequence[int] = DIMS,
    dtypes: Sequence[Dtype] = tuple(Dtype),
    has_per_query: bool = True,
    looks_nested: bool | None = True,
) -> Results:
    """Return results whose values rise with width and fall with coarser number formats."""
    generator = np.random.default_rng(0)
    difficulty = generator.beta(1.2, 0.9, size=num_queries)
    embed_dim = max(dims)
    gained = generator.exponential(0.08, size=num_queries)
    rows = []
    for family, family_dtypes, short in (
        ("prefix", dtypes, 1.0),
        ("funnel", dtypes[:3], 0.12),
        ("pca", dtypes[:1], 0.8 if looks_nested else 0.4),
        ("random", dtypes[:1], 1.9 if looks_nested else 1.0),
    ):
        for dtype in family_dtypes:
            for dim in dims:
                missing = short * (np.log2(embed_dim / dim) / 5) ** 1.8 + _NOISE[dtype]
                lost = gained * missing * 6 * (generator.random(num_queries) < 0.25 + missing)
                per_query = np.clip(difficulty - lost, 0.0, 1.0).round(4)
                for number, metric in enumerate(metrics):
                    values = per_query ** (1 / (1 + number))
                    rows.append(
                        Row(
                            model="static:wordllama",
                            task=task,
                            family=family,
                            dim=dim,
                            dtype=dtype,
                            metric=metric,
                            value=float(values.mean()),
                            per_query=tuple(values.tolist()) if has_per_query else None,
                            bytes_per_vector=bytes_per_vector(dtype, dim),
                            seconds=0.31,
                            shortlist_size=100 if family == "funnel" else None,
                        )
                    )
    return Results(
        rows=rows,
        main_metric=metrics[0],
        query_ids=[f"query-{number}" for number in range(num_queries)] if has_per_query else [],
        embed_dim=embed_dim,
        fingerprint=Fingerprint(
            space=replace(SPACE, embed_dim=embed_dim), encoder={"backend": "static"}
        ),
        corpus_hash="5c0f8f8f6ee1c2b6d2b7a2f1c3a4d5e6",
        num_documents=11_204 if has_per_query else 0,
        looks_nested=looks_nested,
        environment={
            "nestling": "0.1.0",
            "python": "3.11.9",
            "numpy": "2.4.6",
            "system": "Linux-6.1.0-x86_64-with-glibc2.36",
            "cpu": "AMD EPYC 9454 48-Core Processor",
            "num_cores": 2,
            "seed": 0,
            "date": "2026-11-23T15:31:07+00:00",
            "command": f"nestling measure --model static:wordllama --task {task} --out results.json",
        },
        notes=["3 of 11,204 texts were cut at 512 tokens."],
    )


def make_step(
    results: Results,
    family: str,
    dim: int,
    dtype: Dtype,
    *,
    passed: bool,
    queries_needed: int | None = None,
) -> Step:
    """Return a tested step whose figures agree with the results."""
    row, full = results.find(family=family, dim=dim, dtype=dtype), results.reference()
    loss = full.value - row.value
    relative = loss / full.value
    return Step(
        family=family,
        dim=dim,
        dtype=dtype,
        bytes_per_vector=row.bytes_per_vector,
        value=row.value,
        kept=1 - relative,
        loss=loss,
        loss_bound=relative + 0.008,
        interval=(relative - 0.004, relative + 0.004),
        passed=passed,
        queries_needed=queries_needed,
    )


def make_decision(
    results: Results, *, certified: bool = True, max_loss: float = 0.02, floor: float = 0.00999
) -> Decision:
    """Return a decision over such results: a 64-d int8 funnel, or nothing."""
    full = results.reference()
    evidence = (
        f"{len(results.query_ids)} queries of builtin (test), paired betting bound, fixed sequence, "
        f"95% confidence, 2026-11-23."
    )
    failed = make_step(results, "prefix", 256, Dtype.INT8, passed=False, queries_needed=900)
    passed = (
        make_step(results, "prefix", 256, Dtype.INT8, passed=True),
        make_step(results, "prefix", 128, Dtype.INT8, passed=True),
        make_step(results, "prefix", 64, Dtype.INT8, passed=False),
        make_step(results, "funnel", 128, Dtype.INT8, passed=True),
        make_step(results, "funnel", 64, Dtype.INT8, passed=True),
        make_step(results, "funnel", 32, Dtype.INT8, passed=False, queries_needed=900),
    )
    plan = Plan(
        stages=(
            Stage(dim=64, dtype=Dtype.INT8, shortlist_size=100),
            Stage(dim=results.embed_dim, dtype=Dtype.FLOAT32),
        ),
        embed_dim=results.embed_dim,
        space=results.fingerprint.space,
        evidence={"metric": results.main_metric, "max_loss": max_loss, "confidence": 0.95},
    )
    return Decision(
        verdict="Scan 64 dimensions in int8 and re-score the best 100 at full width: nDCG@10 loses at "
        "most 2% with 95% confidence, in 68 bytes per vector instead of 1,024."
        if certified
        else "Not enough queries to say: no smaller size can be certified at 2% loss with 95% "
        "confidence. About 900 queries are needed; there are 300.",
        evidence=evidence,
        certified=certified,
        plan=plan if certified else None,
        task=results.rows[0].task,
        model=results.rows[0].model,
        metric=results.main_metric,
        max_loss=max_loss,
        is_relative=True,
        confidence=0.95,
        num_queries=len(results.query_ids),
        floor=floor,
        full_value=full.value,
        steps=passed if certified else (failed,),
        cut=passed[1] if certified else None,
        funnel=passed[4] if certified else None,
        queries_needed=None if certified else 900,
    )
