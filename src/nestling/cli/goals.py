"""Options that say what a search plan must keep and may cost, and the queries it is chosen by."""

import re
from collections.abc import Callable, Sequence

import click
import numpy as np
from jaxtyping import Float

from nestling.cli.inputs import open_task_once
from nestling.cli.options import Decorator
from nestling.cli.terminal import talk
from nestling.core.progress import Progress
from nestling.data import RetrievalTask
from nestling.encode import Encoder
from nestling.measure import PlanBudget, PlanGoal, Sample
from nestling.search import ENGINES, engine_class

METRICS = ("ndcg_at_10", "mrr_at_10", "recall_at_10")
"""Metrics of the first ten results, which is what a plan is chosen by."""

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class SizeParameter(click.ParamType[int]):
    """A number of bytes."""

    name = "SIZE"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Parse "64MB"."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", value)
        if match is None or match[2].upper() not in UNITS:
            self.fail(f"needs a size like 64MB or 1.5GiB, got {value!r}.", param, ctx)
        return round(float(match[1]) * UNITS[match[2].upper()])


class EngineNames(click.ParamType[tuple[str, ...]]):
    """Names of engines, comma-separated."""

    name = "NAME,..."

    def convert(
        self,
        value: str | tuple[str, ...],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[str, ...]:
        """Parse "flat,graph"."""
        if isinstance(value, tuple):
            return value
        names = tuple(value.split(","))
        if unknown := [name for name in names if name not in ENGINES]:
            self.fail(f"knows {', '.join(ENGINES)}, got {unknown[0]!r}.", param, ctx)
        for name in names:
            if name != "flat" and engine_class(name).effort is None:
                self.fail(
                    f"{name!r} is exact, and has no setting that could be chosen. Leave it out, and name "
                    f"it with --stage and --engine.",
                    param,
                    ctx,
                )
        return names


def budget_options(function: Callable[..., None]) -> Callable[..., None]:
    """What a plan may cost, and how it is looked for."""
    options: Sequence[Decorator] = (
        click.option(
            "--max-memory",
            type=SizeParameter(),
            help="RAM for head tier and engine, e.g. 64MB; files that are mapped are reported apart.",
        ),
        click.option(
            "--max-latency-ms",
            type=click.FloatRange(min=0, min_open=True),
            help="Mean time of one query on one thread.",
        ),
        click.option(
            "--time-budget",
            type=click.FloatRange(min=0, min_open=True),
            default=120.0,
            show_default=True,
            metavar="SECONDS",
            help="For building and measuring candidates; what was begun is finished.",
        ),
        click.option(
            "--engines",
            type=EngineNames(),
            default="flat,graph",
            show_default=True,
            help="Engines to try.",
        ),
        click.option("--metric", help="Metric to choose by.  [default: the task's main metric]"),
        click.option(
            "--num-queries",
            type=click.IntRange(min=10),
            default=4000,
            show_default=True,
            help="Queries to use: one half chooses, the other half tells.",
        ),
        click.option(
            "--threads",
            "num_threads",
            type=click.IntRange(min=1),
            default=1,
            show_default=True,
            help="Threads to plan with; latency is that of one.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


BUDGET_OPTIONS = (
    "max_memory",
    "max_latency_ms",
    "time_budget",
    "engines",
    "num_queries",
    "num_threads",
)
"""What `budget_options` add, but for --metric, which has other uses too."""


def make_budget(
    *, max_memory: int | None, max_latency_ms: float | None, time_budget: float
) -> PlanBudget:
    """Return the budget that `budget_options` name."""
    return PlanBudget(memory_bytes=max_memory, latency_ms=max_latency_ms, time_s=time_budget)


def parse_target(target: str) -> PlanGoal:
    """Return the goal of "quality=0.99" or "recall=0.95"."""
    name, _, share = target.partition("=")
    try:
        value = float(share)
    except ValueError:
        value = 0.0
    if name not in ("quality", "recall") or not 0.0 < value <= 1.0:
        raise click.UsageError(
            f"--target must be quality=SHARE or recall=SHARE with a share of at most 1, e.g. "
            f"quality=0.99, got {target!r}."
        )
    return PlanGoal(**{f"min_{name}": value})


def check_judged(goal: PlanGoal, *, task: str | None, metric: str | None) -> None:
    """Refuse what takes judgements where there are none, and metrics of more than ten results.

    Raises:
        click.UsageError: Saying what is missing.
    """
    if task is None and goal.min_quality is not None:
        raise click.UsageError(
            "quality is a share of the metric of --task. Name a task, or ask for recall of the exact search."
        )
    if task is None and metric is not None:
        raise click.UsageError("--metric is one of --task. Name a task, or leave it out.")
    if metric is not None and metric not in METRICS:
        raise click.UsageError(
            f"--metric must be one of the first ten results to choose a search plan by: "
            f"{', '.join(METRICS)}; got {metric!r}."
        )


def read_sample(
    task: str | None,
    vectors: Float[np.ndarray, "rows full"],
    doc_ids: Sequence[str],
    encoder: Encoder | None,
    *,
    metric: str | None,
    num_queries: int,
    seed: int,
    progress: Progress,
) -> Sample:
    """Return queries of a task, encoded; without a task, documents that serve as queries."""
    if task is None:
        return Sample.of_documents(vectors, doc_ids, num_queries=num_queries, seed=seed)
    opened = open_task_once(task, progress=progress)
    if not isinstance(opened, RetrievalTask):
        raise click.UsageError(
            f"--task {task} has no queries to search for. Name a retrieval task, or leave it out: "
            f"then documents serve as queries, and recall of the exact search counts."
        )
    if encoder is None:
        raise click.UsageError(
            "the vectors do not say which model made them. Name it with --model, so that the "
            "queries of --task can be encoded."
        )
    known = set(doc_ids)
    judged = [
        place
        for place, name in enumerate(opened.query_ids)
        if any(grade > 0 and doc_id in known for doc_id, grade in opened.qrels[name].items())
    ]
    if num_missing := len(opened.query_ids) - len(judged):
        talk(f"left out {num_missing:,} queries that no vector is the relevant document of")
    drawn = np.random.default_rng(seed).permutation(judged)[:num_queries]
    places = np.sort(drawn).tolist()
    queries = encoder.encode([opened.queries[place] for place in places], role="query")
    ids = [opened.query_ids[place] for place in places]
    return Sample(
        queries=np.asarray(queries, dtype=np.float32),
        query_ids=ids,
        doc_ids=doc_ids,
        qrels={name: opened.qrels[name] for name in ids},
        metric=metric or METRICS[0],
        source=f"{len(ids):,} of {len(opened.query_ids):,} queries of {opened.name}",
    )
