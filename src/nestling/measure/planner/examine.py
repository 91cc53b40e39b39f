"""Run a plan as an index would, and say what it does, what it costs, and what more rows would cost."""

from dataclasses import dataclass
from typing import final

from nestling.core import Space
from nestling.measure.intervals import bootstrap_loss_intervals
from nestling.measure.planner.bench import Workbench
from nestling.measure.planner.choice import PlanPoint
from nestling.measure.planner.cost_model import CostModel, PowerLaw
from nestling.measure.planner.goal import PlanBudget
from nestling.measure.planner.heads import Head
from nestling.measure.planner.refine import Reaches, Refinement, share_kept
from nestling.measure.planner.sample import Judge, Sample
from nestling.measure.planner.timing import time_engine, time_queries
from nestling.search.engines import full_settings
from nestling.search.engines.base import Engine
from nestling.search.plan import EngineChoice, Plan, Stage

TIMED_QUERIES = 200
TIMED_SCANS = 20
"""Queries that an exact scan is timed with."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """A plan that promises to reach the goal.

    Attributes:
        predicted_ms: Measured time of its head, and predicted time of what follows.
        head: Its first stage.
        refinement: What follows.
        choice: Engine and settings.
        engine: Made for the head.
        build_s: Time to make it.
    """

    predicted_ms: float
    head: Head
    refinement: Refinement
    choice: EngineChoice
    engine: Engine
    build_s: float


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Examiner:
    """Measures plans on queries that had no part in finding them.

    Attributes:
        bench: The vectors.
        space: What makes their scores comparable.
        budget: What a plan may cost.
        chooser: Queries that plans were found by.
        chooser_judge: Judge of them.
        teller: Queries that tell.
        teller_judge: Judge of them.
        reaches: Whether a ranking reaches the goal.
        seed: Of the intervals.
    """

    bench: Workbench
    space: Space
    budget: PlanBudget
    chooser: Sample
    chooser_judge: Judge
    teller: Sample
    teller_judge: Judge
    reaches: Reaches
    seed: int

    def measure(self, trial: Trial) -> PlanPoint:
        """Run a plan and measure it."""
        head = trial.head.key
        plan = Plan(
            stages=trial.refinement.stages(head),
            embed_dim=self.bench.stored[0],
            space=self.space,
            evidence={},
            engine=trial.choice,
        )
        funnel = self.bench.funnel(plan, trial.engine)
        k, threads = self.chooser.num_results, self.bench.num_threads
        chooser = funnel.run(self.chooser.queries, num_results=k, num_threads=threads).best.rows
        teller = funnel.run(self.teller.queries, num_results=k, num_threads=threads).best.rows
        latency = time_queries(
            lambda query: funnel.run(query, num_results=k),
            self.teller.queries[:TIMED_QUERIES],
            clock=self.bench.clock,
        )
        exact, found = self.teller_judge.exact_quality(), self.teller_judge.quality(teller)
        interval = bootstrap_loss_intervals(
            exact, found[None], relative=True, confidence=0.9, seed=self.seed
        )
        memory = self.bench.head_tier(head).num_bytes + trial.engine.num_bytes
        limits = ((self.budget.memory_bytes, memory), (self.budget.latency_ms, latency.mean_ms))
        return PlanPoint(
            plan=plan,
            quality=share_kept(exact, found),
            quality_low=1.0 - float(interval[0, 1]),
            recall=float(self.teller_judge.recall(teller).mean()),
            latency_ms=latency.mean_ms,
            latency_p50_ms=latency.p50_ms,
            latency_p99_ms=latency.p99_ms,
            memory_bytes=memory,
            mapped_bytes=self.bench.mapped_bytes(plan),
            build_s=self.bench.derived_s(head) + trial.build_s,
            reaches=self.reaches(self.chooser_judge, chooser),
            fits=all(limit is None or value <= limit for limit, value in limits),
        )

    def measure_exact(self) -> PlanPoint:
        """Measure the exact search over the full width."""
        embed_dim, dtype = self.bench.stored
        exact = self.bench.exact
        latency = time_engine(
            exact,
            self.teller.queries[:TIMED_SCANS],
            self.chooser.num_results,
            settings={},
            clock=self.bench.clock,
        )
        return PlanPoint(
            plan=Plan(
                stages=(Stage(dim=embed_dim, dtype=dtype),),
                embed_dim=embed_dim,
                space=self.space,
                evidence={},
            ),
            quality=1.0,
            quality_low=1.0,
            recall=1.0,
            latency_ms=latency.mean_ms,
            latency_p50_ms=latency.p50_ms,
            latency_p99_ms=latency.p99_ms,
            memory_bytes=self.bench.head_tier((embed_dim, dtype)).num_bytes,
            mapped_bytes=self.bench.vectors.nbytes,
            build_s=self.bench.derived_s(self.bench.stored),
            reaches=True,
            fits=True,
        )

    def fit_cost(self, trial: Trial, chosen: PlanPoint) -> CostModel:
        """Fit growth by building the head on a quarter and on half of the rows, too."""
        num_rows = len(self.bench)
        head = trial.head.key
        kind = type(trial.engine)
        sizes, head_ms, memory, build_s = [], [], [], []
        for size in (num_rows // 4, num_rows // 2, num_rows):
            part = Workbench(
                self.bench.vectors[:size],
                num_threads=self.bench.num_threads,
                clock=self.bench.clock,
            )
            tier, engine, seconds = self.bench.head_tier(head), trial.engine, trial.build_s
            if size < num_rows:
                tier = part.head_tier(head)
                began_s = self.bench.clock()
                engine = kind.build(
                    tier,
                    part.vectors,
                    settings=full_settings(trial.choice.name, {}, kind.build_settings),
                    num_threads=self.bench.num_threads,
                )
                seconds = self.bench.clock() - began_s
            found = time_engine(
                engine,
                self.teller.queries[:TIMED_QUERIES],
                trial.refinement.shortlist_size or self.chooser.num_results,
                settings=trial.choice.search,
                clock=self.bench.clock,
            )
            sizes.append(size)
            head_ms.append(found.mean_ms)
            memory.append(float(tier.num_bytes + engine.num_bytes))
            build_s.append((self.bench if size == num_rows else part).derived_s(head) + seconds)
        return CostModel(
            head_ms=PowerLaw.fit(sizes, head_ms),
            later_ms=max(0.0, chosen.latency_ms - head_ms[-1]),
            memory_bytes=PowerLaw.fit(sizes, memory),
            build_s=PowerLaw.fit(sizes, build_s),
            measured_rows=tuple(sizes),
        )
