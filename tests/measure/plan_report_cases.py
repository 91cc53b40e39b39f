"""Made-up choices of a search plan that look like real ones, for the tests of their page."""

from collections.abc import Sequence

from nestling.core import Dtype, Space
from nestling.measure.planner import CostModel, PlanChoice, PlanPoint
from nestling.measure.planner.cost_model import PowerLaw
from nestling.search.plan import EngineChoice, Plan, Stage

NUM_DOCUMENTS = 114_607
EMBED_DIM = 1024
SPACE = Space(
    model="nest:docstrings",
    revision="0f3c9e",
    pooling="mean",
    normalization="l2",
    embed_dim=EMBED_DIM,
)
VERDICT = (
    "graph (degree 32, build_window 80; window 160): 64-d int8, keep 160 -> 1024-d float16 keeps 99.3% of "
    "mrr_at_10 (95% sure: at least 98.8%) and 89.1% of the exact top 10, in 0.29 ms per query and 23.4 MB of "
    "RAM: 144x faster than the exact search over all 1,024 dimensions, in 10.0x less RAM than its vectors take"
)
FAILURE = (
    "no plan keeps at least 99.9% of mrr_at_10 within the budget. Nearest: 64-d int8, keep 640 -> 1024-d "
    "float16 keeps 99.3%, in 0.29 ms and 23.4 MB of RAM."
)


def make_plan(*chain: tuple[int, Dtype, int | None], engine: EngineChoice | None = None) -> Plan:
    """Return a plan of stages (dim, dtype, shortlist size)."""
    return Plan(
        stages=tuple(
            Stage(dim=dim, dtype=dtype, shortlist_size=size) for dim, dtype, size in chain
        ),
        embed_dim=EMBED_DIM,
        space=SPACE,
        evidence={},
        engine=engine or EngineChoice(),
    )


def make_point(
    plan: Plan,
    *,
    quality: float,
    latency_ms: float,
    memory_mb: float,
    recall: float = 0.9,
    build_s: float = 16.2,
    reaches: bool = True,
    fits: bool = True,
) -> PlanPoint:
    """Return a point whose other figures follow from these."""
    return PlanPoint(
        plan=plan,
        quality=quality,
        quality_low=quality - 0.0042,
        recall=recall,
        latency_ms=latency_ms,
        latency_p50_ms=0.96 * latency_ms,
        latency_p99_ms=1.7 * latency_ms,
        memory_bytes=round(memory_mb * 1e6),
        mapped_bytes=NUM_DOCUMENTS * EMBED_DIM * 2,
        build_s=build_s,
        reaches=reaches,
        fits=fits,
    )


def graph(window: int, name: str = "graph") -> EngineChoice:
    """Return a graph with its settings."""
    build = {"degree": 32, "build_window": 80}
    return EngineChoice(name=name, build=build, search={"window": window})


def make_points() -> list[PlanPoint]:
    """Return six plans, fastest first; by number: 1 is below the goal, 2, 3, 5 are on the front."""
    full = (EMBED_DIM, Dtype.FLOAT16, None)
    return [
        make_point(
            make_plan((128, Dtype.INT8, 80), full, engine=graph(80)),
            quality=0.9861,
            latency_ms=0.172,
            memory_mb=30.8,
            recall=0.934,
            reaches=False,
        ),
        make_point(
            make_plan((64, Dtype.INT8, 160), full, engine=graph(160)),
            quality=0.9931,
            latency_ms=0.290,
            memory_mb=23.4,
            recall=0.891,
        ),
        make_point(
            make_plan((128, Dtype.INT8, 160), full, engine=graph(160)),
            quality=0.9952,
            latency_ms=0.305,
            memory_mb=30.8,
            recall=0.964,
        ),
        make_point(
            make_plan((128, Dtype.INT4, 240), full, engine=graph(240, "hnsw")),
            quality=0.9940,
            latency_ms=0.351,
            memory_mb=29.9,
            recall=0.951,
        ),
        make_point(
            make_plan((128, Dtype.ROTATED_BINARY, 640), (256, Dtype.INT8, 120), full),
            quality=0.9948,
            latency_ms=2.13,
            memory_mb=2.3,
            recall=0.942,
            build_s=0.4,
        ),
        make_point(
            make_plan((256, Dtype.INT8, 40), full),
            quality=1.0006,
            latency_ms=6.9,
            memory_mb=29.8,
            recall=0.998,
            build_s=0.2,
            fits=False,
        ),
    ]


def make_choice(
    points: Sequence[PlanPoint] | None = None, *, chosen: int | None = 2, verdict: str = VERDICT
) -> PlanChoice:
    """Return a choice over such points; `chosen` counts from 1, None is a goal that none reaches."""
    points = make_points() if points is None else points
    point = None if chosen is None else points[chosen - 1]
    rows = (NUM_DOCUMENTS // 4, NUM_DOCUMENTS // 2, NUM_DOCUMENTS)
    cost = CostModel(
        head_ms=PowerLaw(factor=0.0043, exponent=0.31),
        later_ms=0.13,
        memory_bytes=PowerLaw(factor=204.0, exponent=1.0),
        build_s=PowerLaw(factor=4e-5, exponent=1.11),
        measured_rows=rows,
    )
    exact = make_plan((EMBED_DIM, Dtype.FLOAT16, None))
    return PlanChoice(
        plan=None if point is None else point.plan,
        verdict=verdict if point is not None else FAILURE,
        chosen=point,
        points=points,
        exact=PlanPoint(
            plan=exact,
            quality=1.0,
            quality_low=1.0,
            recall=1.0,
            latency_ms=41.8,
            latency_p50_ms=41.5,
            latency_p99_ms=44.0,
            memory_bytes=NUM_DOCUMENTS * EMBED_DIM * 2,
            mapped_bytes=NUM_DOCUMENTS * EMBED_DIM * 2,
            build_s=0.1,
            reaches=True,
            fits=True,
        ),
        cost=None if point is None else cost,
        evidence={
            "goal": "at least 99.0% of mrr_at_10",
            "memory_budget_bytes": 64_000_000,
            "latency_budget_ms": 5.0,
            "num_documents": NUM_DOCUMENTS,
            "queries": "4,000 of 41,208 queries of builtin:wide",
            "num_queries_to_choose": 2000,
            "num_queries_to_tell": 2000,
            "exact_quality": 0.37614,
            "metric": "mrr_at_10",
            "engines": ["flat", "graph", "hnsw"],
            "num_threads_to_build": 2,
            "nestling": "0.1.0",
            "numpy": "2.4.6",
            "cpu": "AMD EPYC 9454 48-Core Processor",
            "num_cores": 2,
            "seed": 0,
            "date": "2026-11-23T15:31:07+00:00",
        },
    )
