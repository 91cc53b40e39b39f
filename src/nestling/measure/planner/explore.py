"""Choose a plan by measuring: dims x bits x engine x shortlist, on these vectors and this machine.

The full grid is far too dear, so it is walked in two steps. First, without building anything: the
exact ranking of every head tells how long its shortlist must be, and which stages behind it keep
the quality, for the price of one batched scan per head. Then engines are built for the heads that
promise most, until the time is over, and what each engine finds is refined in the same way. What is
reported was measured by running the funnel itself, on queries that had no part in the choice.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from nestling.core import Dtype, Fingerprint
from nestling.core.progress import Progress, silent
from nestling.encode.nesting_dims import find_nesting_dims
from nestling.errors import EvidenceError
from nestling.measure.environment import describe_environment
from nestling.measure.planner.bench import Workbench
from nestling.measure.planner.choice import PlanChoice, PlanPoint, describe_choice
from nestling.measure.planner.examine import TIMED_QUERIES, TIMED_SCANS, Examiner, Trial
from nestling.measure.planner.goal import PlanBudget, PlanGoal
from nestling.measure.planner.heads import Head, candidate_heads, candidate_widths
from nestling.measure.planner.refine import (
    SIZES,
    LineCost,
    Reaches,
    Refinement,
    Shortlists,
    StageKey,
    cheapest,
    followers,
)
from nestling.measure.planner.sample import Judge, Sample
from nestling.measure.planner.timing import Clock, time_engine
from nestling.search.engines import engine_class, full_settings
from nestling.search.engines.base import Engine
from nestling.search.engines.flat import FlatEngine
from nestling.search.plan import EngineChoice
from nestling.search.tier import Tier

LONGEST_SHORTLIST = 640
MOST_MEASURED = 6
"""Plans that are run and measured in full."""
EFFORTS_AFTER_SUCCESS = 2
"""A setting that costs more in the first stage may save more behind it."""
DEFAULT_ENGINES = ("flat", "graph")
FEWEST_TO_FIT = 20_000
"""Documents from which on growth is worth measuring."""


def plan_search(
    vectors: Float[np.ndarray, "rows full"],
    fingerprint: Fingerprint,
    sample: Sample,
    goal: PlanGoal,
    budget: PlanBudget,
    *,
    engines: Sequence[str] = DEFAULT_ENGINES,
    nesting_dims: Sequence[int] | None = None,
    seed: int = 0,
    num_threads: int = 1,
    clock: Clock = time.perf_counter,
    progress: Progress = silent,
) -> PlanChoice:
    """Return the fastest plan that reaches a goal within a budget, with everything that was measured.

    Rankings, and so qualities, are the same in every run with the same seed; which plan is fastest
    depends on the machine and what else it does.

    Args:
        vectors: Full-width rows as an index would store them, float32 or float16; may be mapped.
        fingerprint: What made them.
        sample: Queries and how they are judged. One half chooses, the other half tells.
        goal: What to keep.
        budget: What it may cost. Time to plan is a guide: what was begun is finished.
        engines: Names of the engines to try.
        nesting_dims: Widths the model was trained at; by default those that can be found out from the
            fingerprint, else halvings of the full width.
        seed: Of the halves and the intervals.
        num_threads: Threads for building and for the rankings. Latency is always that of one.
        clock: Counts seconds.
        progress: Counts heads and engines.

    Raises:
        EvidenceError: If there are too few queries, or judgements are asked for that are not there.
        FormatError, MissingExtraError: If an engine is unknown, or not installed.
    """
    planner = _Planner(
        Workbench(vectors, num_threads=num_threads, clock=clock, seed=seed),
        fingerprint,
        sample,
        goal,
        budget,
        engines=engines,
        widths=candidate_widths(vectors.shape[1], nesting_dims or find_nesting_dims(fingerprint)),
        seed=seed,
        progress=progress,
    )
    return planner.choose()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Outlook:
    """A head that would do, if something found its best rows fast."""

    promised_ms: float
    head: Head
    shortlist_size: int


class _Planner:
    def __init__(
        self,
        bench: Workbench,
        fingerprint: Fingerprint,
        sample: Sample,
        goal: PlanGoal,
        budget: PlanBudget,
        *,
        engines: Sequence[str],
        widths: Sequence[int],
        seed: int,
        progress: Progress,
    ) -> None:
        if goal.min_quality is not None and sample.qrels is None:
            raise EvidenceError(
                "`min_quality` is a share of a task metric, but the queries have no judgements. "
                "Name a task that has, or ask for `min_recall` of the exact search."
            )
        self.bench, self.fingerprint, self.goal, self.budget = bench, fingerprint, goal, budget
        self.sample, self.seed, self.progress = sample, seed, progress
        self.engines = {name: engine_class(name) for name in engines}
        self.widths = widths
        self.num_results = sample.num_results
        self.chooser, self.teller = sample.split(seed)
        progress("exact search", 0, 1)
        self.judge = Judge(self.chooser, bench.find_exact(self.chooser.queries, self.num_results))
        self.told = Judge(self.teller, bench.find_exact(self.teller.queries, self.num_results))
        progress("exact search", 1, 1)
        self.reaches = Reaches(min_quality=goal.min_quality, min_recall=goal.min_recall)
        self.began_s = bench.clock()
        embed_dim, stored = bench.stored
        self.middles = [(dim, Dtype.INT8) for dim in widths if 64 <= dim <= embed_dim // 4]
        self.finals = [(embed_dim, stored), (embed_dim, Dtype.INT8)]

    @property
    def _time_left_s(self) -> float:
        return self.budget.time_s - (self.bench.clock() - self.began_s)

    def choose(self) -> PlanChoice:
        trials, outlooks = self._scan_heads()
        trials += self._build_engines(outlooks, trials)
        trials = sorted(trials, key=lambda trial: trial.predicted_ms)[:MOST_MEASURED]
        examiner = Examiner(
            bench=self.bench,
            space=self.fingerprint.space,
            budget=self.budget,
            chooser=self.chooser,
            chooser_judge=self.judge,
            teller=self.teller,
            teller_judge=self.told,
            reaches=self.reaches,
            seed=self.seed,
        )
        measured = []
        for place, trial in enumerate(trials, start=1):
            measured.append((examiner.measure(trial), trial))
            self.progress("measure plans", place, len(trials))
        measured.sort(key=lambda pair: pair[0].latency_ms)
        exact = examiner.measure_exact()
        points = [point for point, _ in measured]
        good = [(point, trial) for point, trial in measured if point.reaches and point.fits]
        evidence = self._evidence()
        if not good:
            verdict = self._explain_failure(points, outlooks)
            return PlanChoice(
                plan=None,
                verdict=verdict,
                chosen=None,
                points=points,
                exact=exact,
                evidence=evidence,
            )
        chosen, trial = good[0]
        metric = self.sample.metric if self.sample.qrels is not None else "recall@10"
        verdict = describe_choice(chosen, exact, metric=metric)
        has_time = self._time_left_s > trial.build_s and len(self.bench) >= FEWEST_TO_FIT
        cost = examiner.fit_cost(trial, chosen) if has_time else None
        choice = PlanChoice(
            plan=chosen.plan,
            verdict=verdict,
            chosen=chosen,
            points=points,
            exact=exact,
            cost=cost,
            evidence=evidence,
        )
        written = choice.to_json()
        del written["plan"]
        plan = replace(chosen.plan, evidence=json.loads(json.dumps(written)))
        return replace(choice, plan=plan)

    def _scan_heads(self) -> tuple[list[Trial], list[_Outlook]]:
        """Learn from the exact ranking of every head what it would take behind it."""
        trials: list[Trial] = []
        outlooks: list[_Outlook] = []
        heads = candidate_heads(self.widths)
        for place, head in enumerate(heads, start=1):
            tier = self.bench.head_tier(head.key)
            if self.budget.memory_bytes is None or tier.num_bytes <= self.budget.memory_bytes:
                trial, outlook = self._scan_head(head, tier)
                trials += [] if trial is None else [trial]
                outlooks += [] if outlook is None else [outlook]
            self.progress("scan heads", place, len(heads))
        return trials, sorted(outlooks, key=lambda outlook: outlook.promised_ms)

    def _scan_head(self, head: Head, tier: Tier) -> tuple[Trial | None, _Outlook | None]:
        flat = FlatEngine.build(tier, self.bench.vectors, settings={})
        longest = min(LONGEST_SHORTLIST, len(self.bench))
        rows = flat.search(
            self.chooser.queries, longest, settings={}, num_threads=self.bench.num_threads
        ).best.rows
        shortlists = self._shortlists(head.key, rows)
        trial = outlook = None
        if "flat" in self.engines:
            scan_ms = time_engine(
                flat,
                self.chooser.queries[:TIMED_SCANS],
                longest,
                settings={},
                clock=self.bench.clock,
            ).mean_ms
            if scanned := self._cheapest(shortlists, head.key, lambda size: scan_ms):
                trial = Trial(
                    predicted_ms=scanned[0],
                    head=head,
                    refinement=scanned[1],
                    choice=EngineChoice(),
                    engine=flat,
                    build_s=0.0,
                )
        if found := self._cheapest(shortlists, head.key, lambda size: _guess_ms(head, size)):
            size = found[1].shortlist_size or self.num_results
            outlook = _Outlook(promised_ms=found[0], head=head, shortlist_size=size)
        return trial, outlook

    def _build_engines(self, outlooks: Sequence[_Outlook], trials: Sequence[Trial]) -> list[Trial]:
        """Build engines for the heads that promise most, until the time is over."""
        built: list[Trial] = []
        best_ms = min((trial.predicted_ms for trial in trials), default=np.inf)
        pairs = [
            (outlook, name)
            for outlook in outlooks
            for name, engine in self.engines.items()
            if not engine.is_exact and outlook.head.dtype in engine.formats
        ]
        for place, (outlook, name) in enumerate(pairs, start=1):
            # A head that is promised to be slower than what was found need not be built.
            is_over = self._time_left_s <= 0 and place > 1
            if is_over or outlook.promised_ms > 2 * best_ms:
                break
            trial = self._try_engine(outlook, name, 2 * best_ms)
            if trial is not None:
                built.append(trial)
                best_ms = min(best_ms, trial.predicted_ms)
            self.progress("build engines", place, len(pairs))
        else:
            return built
        self.progress("build engines", len(pairs), len(pairs))
        return built

    def _try_engine(self, outlook: _Outlook, name: str, slowest_ms: float) -> Trial | None:
        kind = self.engines[name]
        head, key = outlook.head, outlook.head.key
        tier = self.bench.head_tier(key)
        build = full_settings(name, {}, kind.build_settings)
        began_s = self.bench.clock()
        engine = kind.build(
            tier,
            self.bench.vectors,
            settings=build,
            num_threads=self.bench.num_threads,
            progress=self.progress,
        )
        build_s = self.bench.clock() - began_s
        memory = tier.num_bytes + engine.num_bytes
        if self.budget.memory_bytes is not None and memory > self.budget.memory_bytes:
            return None
        best: Trial | None = None
        num_found = 0
        for effort in self._efforts(kind, outlook):
            search = full_settings(name, {kind.effort or "": effort}, kind.search_settings)
            longest = effort if kind.effort == "window" else LONGEST_SHORTLIST
            rows = engine.search(
                self.chooser.queries,
                min(longest, len(self.bench)),
                settings=search,
                num_threads=self.bench.num_threads,
            ).best.rows
            head_ms = time_engine(
                engine,
                self.chooser.queries[:TIMED_QUERIES],
                longest,
                settings=search,
                clock=self.bench.clock,
            ).mean_ms
            if head_ms >= min(slowest_ms, np.inf if best is None else best.predicted_ms):
                break
            found = self._cheapest(
                self._shortlists(key, rows),
                key,
                lambda size, ms=head_ms: ms,
            )
            num_found += found is not None
            if found is not None and (best is None or found[0] < best.predicted_ms):
                best = Trial(
                    predicted_ms=found[0],
                    head=head,
                    refinement=found[1],
                    choice=EngineChoice(name=name, build=build, search=search),
                    engine=engine,
                    build_s=build_s,
                )
            if num_found > EFFORTS_AFTER_SUCCESS:
                break
        return best

    def _efforts(self, kind: type[Engine], outlook: _Outlook) -> list[int]:
        """Return settings of a query to try, the cheapest first."""
        setting = kind.search_settings[kind.effort or ""]
        if kind.effort == "window":
            enough = [size for size in SIZES if size >= outlook.shortlist_size]
            tried = enough
        else:
            tried = [2**power for power in range(12)]
        return [value for value in tried if setting.low <= value <= setting.high]

    def _shortlists(self, head: StageKey, rows: np.ndarray) -> Shortlists:
        pairs = followers(head, middles=self.middles, finals=self.finals)
        keys = {key for pair in pairs for key in pair if key is not None}
        return Shortlists(
            rows, {key: self.bench.scores(key, self.chooser.queries, rows) for key in keys}
        )

    def _cheapest(
        self, shortlists: Shortlists, head: StageKey, head_ms: Any
    ) -> tuple[float, Refinement] | None:
        costs: dict[StageKey, LineCost] = {
            key: self.bench.rescoring_cost(key, self.chooser.queries)
            for key in (*self.middles, *self.finals)
        }
        return cheapest(
            shortlists,
            head,
            self.judge,
            num_results=self.num_results,
            reaches=self.reaches,
            middles=self.middles,
            finals=self.finals,
            head_ms=head_ms,
            costs=costs,
        )

    def _evidence(self) -> dict[str, Any]:
        return {
            "goal": self.goal.describe(self.sample.metric),
            "memory_budget_bytes": self.budget.memory_bytes,
            "latency_budget_ms": self.budget.latency_ms,
            "num_documents": len(self.bench),
            "queries": self.sample.source,
            "num_queries_to_choose": len(self.chooser),
            "num_queries_to_tell": len(self.teller),
            "exact_quality": float(self.told.exact_quality().mean()),
            "metric": self.sample.metric if self.sample.qrels is not None else "recall_at_10",
            "widths": list(self.widths),
            "engines": list(self.engines),
            "num_threads_to_build": self.bench.num_threads,
            **describe_environment(seed=self.seed, command=None),
        }

    def _explain_failure(self, points: Sequence[PlanPoint], outlooks: Sequence[_Outlook]) -> str:
        goal = self.goal.describe(self.sample.metric)
        if not outlooks and not points:
            return (
                f"no head of these vectors keeps {goal}, whatever shortlist of up to "
                f"{LONGEST_SHORTLIST} is re-scored behind it within the memory budget. Allow more "
                f"memory, or ask for less."
            )
        if not points:
            return f"nothing that keeps {goal} fits into the memory budget. Allow more, or ask for less."
        near = min(points, key=lambda point: (not point.reaches, point.latency_ms))
        return (
            f"no plan keeps {goal} within the budget. Nearest: {near.plan.describe()} keeps "
            f"{near.quality:.1%}, in {near.latency_ms:.2f} ms and {near.memory_bytes / 1e6:,.1f} MB of RAM."
        )


def _guess_ms(head: Head, size: int) -> float:
    """Return a guess at what a graph takes, only to decide what is built first."""
    return 0.0006 * size * (1.0 + head.dim / 256)
