"""`nestling choose --vectors | --index`: how to search, by measurement."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from jaxtyping import Float

from nestling.cli.documents import find_encoder
from nestling.cli.goals import check_judged, make_budget, read_sample
from nestling.cli.inputs import command_line
from nestling.cli.options import refuse_given
from nestling.cli.outputs import refuse_page
from nestling.cli.tables import plans_table
from nestling.cli.terminal import print_json, print_table, progress_bars, talk
from nestling.core import Fingerprint, check_same_space
from nestling.core.progress import Progress
from nestling.encode import Encoder, VectorFolder, cache_root, open_encoder, open_stored
from nestling.errors import EvidenceError
from nestling.measure import PlanChoice, PlanGoal, plan_search
from nestling.measure.report import write_plan_report
from nestling.search import Index

RESULTS_OPTIONS = ("max_loss", "max_loss_points", "confidence")


def choose_search(
    ctx: click.Context,
    vectors: Path | None,
    index_folder: Path | None,
    out: Path | None,
    report: Path | None,
    *,
    overwrite: bool,
    min_quality: float | None,
    target_recall: float | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Choose a search plan for vectors, or another one for an index, and write it and its page."""
    refuse_given(ctx, RESULTS_OPTIONS, "RESULTS.json; here say --min-quality or --target-recall")
    if (min_quality is None) == (target_recall is None):
        raise click.UsageError("give --min-quality or --target-recall, and one of them only.")
    if report is not None:
        refuse_page(report, overwrite)
    goal = PlanGoal(min_quality=min_quality, min_recall=target_recall)
    check_judged(goal, task=options["task"], metric=options["metric"])
    choice = _plan(vectors, index_folder, goal, **options)
    if as_json:
        print_json(choice.to_json())
    else:
        show_choice(choice)
    if out is not None and choice.plan is not None:
        choice.plan.save(out)
        talk(f"wrote {out}")
    if report is not None:
        budget = make_budget(
            max_memory=options["max_memory"],
            max_latency_ms=options["max_latency_ms"],
            time_budget=options["time_budget"],
        )
        write_plan_report(choice, goal, budget, report, command=command_line(), overwrite=overwrite)
        talk(f"wrote {report}")
    if out is not None and choice.plan is None:
        talk("no plan was written, since none reaches the goal.")
        ctx.exit(1)


def show_choice(choice: PlanChoice) -> None:
    """Print what was chosen, and what was measured."""
    click.echo(choice.verdict)
    print_table(plans_table(choice))
    if choice.cost is not None:
        for times in (3, 10):
            rows = times * choice.cost.measured_rows[-1]
            cost = choice.cost.predict(rows)
            click.echo(
                f"with {rows:,} documents, at the same settings: about {cost.latency_ms:.2f} ms, "
                f"{cost.memory_bytes / 1e6:,.0f} MB of RAM, {cost.build_s:,.0f} s to build"
            )


def choose_for(
    goal: PlanGoal,
    folder: VectorFolder,
    *,
    task: str | None,
    encoder: Encoder | None,
    progress: Progress,
    **planning: Any,
) -> PlanChoice:
    """Choose the plan of an index that is about to be built, and say so.

    Raises:
        EvidenceError: If none reaches the goal.
    """
    if task is not None and encoder is None:
        encoder = find_encoder(None, folder.fingerprint)
    choice = _search_plans(
        goal,
        folder.vectors,
        folder.doc_ids,
        folder.fingerprint,
        task=task,
        encoder=encoder,
        progress=progress,
        **planning,
    )
    if choice.plan is None:
        raise EvidenceError(choice.verdict)
    talk(choice.verdict)
    return choice


def _plan(
    vectors: Path | None,
    index_folder: Path | None,
    goal: PlanGoal,
    *,
    model: str | None,
    task: str | None,
    base_url: str | None,
    max_tokens: int | None,
    **planning: Any,
) -> PlanChoice:
    options: dict[str, Any] = {"base_url": base_url, "max_tokens": max_tokens}
    with progress_bars() as progress:
        made_by = None if model is None else open_encoder(model, **options)
        if index_folder is not None:
            with Index.open(index_folder) as index:
                rows, doc_ids = index.live_vectors()
                fingerprint = index.fingerprint
        elif vectors is not None:
            folder = open_stored(
                vectors, cache=cache_root(), made_by=made_by, bad_rows="error", progress=progress
            ).folder
            rows, doc_ids, fingerprint = folder.vectors, folder.doc_ids, folder.fingerprint
        else:
            raise click.UsageError("give --vectors or --index.")
        if task is not None and made_by is None:
            made_by = find_encoder(None, fingerprint, **options)
        return _search_plans(
            goal,
            rows,
            doc_ids,
            fingerprint,
            task=task,
            encoder=made_by,
            progress=progress,
            **planning,
        )


def _search_plans(
    goal: PlanGoal,
    vectors: Float[np.ndarray, "rows full"],
    doc_ids: Sequence[str],
    fingerprint: Fingerprint,
    *,
    task: str | None,
    encoder: Encoder | None,
    max_memory: int | None,
    max_latency_ms: float | None,
    time_budget: float,
    engines: tuple[str, ...],
    metric: str | None,
    num_queries: int,
    num_threads: int,
    progress: Progress,
    seed: int = 0,
    **_: Any,
) -> PlanChoice:
    if encoder is not None:
        check_same_space(
            fingerprint, encoder.fingerprint, left_name="the vectors", right_name="the model"
        )
    sample = read_sample(
        task,
        vectors,
        doc_ids,
        encoder,
        metric=metric,
        num_queries=num_queries,
        seed=seed,
        progress=progress,
    )
    budget = make_budget(
        max_memory=max_memory, max_latency_ms=max_latency_ms, time_budget=time_budget
    )
    return plan_search(
        vectors,
        fingerprint,
        sample,
        goal,
        budget,
        engines=engines,
        nesting_dims=None if encoder is None else encoder.nesting_dims,
        seed=seed,
        num_threads=num_threads,
        progress=progress,
    )
