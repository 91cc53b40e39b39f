"""`nestling choose`."""

from pathlib import Path
from typing import Any

import click

from nestling.cli.choose_search import choose_search
from nestling.cli.goals import BUDGET_OPTIONS, budget_options
from nestling.cli.options import (
    OutputPath,
    debug_option,
    encoder_options,
    json_option,
    model_option,
    refuse_given,
)
from nestling.cli.outputs import refuse_to_overwrite
from nestling.cli.tables import steps_table
from nestling.cli.terminal import print_json, print_table, talk
from nestling.errors import WriteError
from nestling.measure import Results, choose, write_report

SEARCH_OPTIONS = (
    "min_quality",
    "target_recall",
    "task",
    "model",
    "base_url",
    "max_tokens",
    *BUDGET_OPTIONS,
)


@click.command(
    name="choose",
    epilog="""\b
Examples:
  nestling choose results.json --max-loss 0.02 --confidence 0.95 --out plan.json
  nestling choose results.json --max-loss-points 0.01 --metric recall_at_100
  nestling choose --vectors vectors --task builtin --min-quality 0.99 --out plan.json
  nestling choose --index index --target-recall 0.95 --max-memory 64MB --out plan.json
  nestling choose --index index --target-recall 0.95 --report plan.html

From RESULTS.json it certifies a size. From --vectors or --index it measures on this machine how to
search them: width, format, engine and shortlists, for what is to be kept and what it may cost;
--report draws what was measured, whether a plan reaches the goal or not.

Exits with 1 if --out was given and nothing could be certified, or nothing reaches
the goal: no plan is written then.""",
)
@click.argument(
    "results_file", metavar="[RESULTS.json]", required=False, type=click.Path(path_type=Path)
)
@click.option(
    "--vectors",
    type=click.Path(path_type=Path),
    help="Vector folder or file to choose a search plan for.",
)
@click.option(
    "--index",
    "index_folder",
    type=click.Path(path_type=Path),
    metavar="INDEX",
    help="Index to choose another plan for.",
)
@click.option(
    "--min-quality",
    type=click.FloatRange(0, 1, min_open=True),
    help="Share of the metric of --task that the exact search over the full width has.",
)
@click.option(
    "--target-recall",
    type=click.FloatRange(0, 1, min_open=True),
    help="Share of the exact top 10 to find, instead of --min-quality.",
)
@click.option(
    "--task",
    metavar="TASK",
    help="Queries and judgements; without it, documents serve as queries.",
)
@model_option(required=False)
@encoder_options
@budget_options
@click.option(
    "--max-loss",
    type=float,
    help="Tolerated loss as a share of the full-width mean.  [default: 0.02]",
)
@click.option(
    "--max-loss-points", type=float, help="Tolerated loss in points of the metric, 0 to 1."
)
@click.option(
    "--confidence", type=float, default=0.95, show_default=True, help="Of the certificate."
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Order in which queries are looked at, and which of them are drawn.",
)
@click.option(
    "--out",
    type=OutputPath(),
    metavar="PLAN.json",
    help="Plan file; the report on RESULTS.json goes beside it as .html.",
)
@click.option(
    "--report",
    type=OutputPath(),
    metavar="PAGE.html",
    help="Page for people on a search plan: the Pareto front drawn, and every plan measured.",
)
@click.option("--overwrite", is_flag=True, help="Replace what stands at --out and --report.")
@json_option
@debug_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    results_file: Path | None,
    vectors: Path | None,
    index_folder: Path | None,
    out: Path | None,
    report: Path | None,
    overwrite: bool,
    **options: Any,
) -> None:
    """Choose the smallest size whose loss is certified, or how to search, by measurement."""
    sources = [source for source in (results_file, vectors, index_folder) if source is not None]
    if len(sources) != 1:
        raise click.UsageError("give RESULTS.json, --vectors or --index, and one of them only.")
    if out is not None:
        refuse_to_overwrite(out, overwrite, has_report=results_file is not None)
        if out.resolve() == sources[0].resolve():
            raise WriteError(f"`--out` must not be the input itself, got {out}. Name another.")
    if results_file is not None:
        _certify(ctx, results_file, out, **options)
    else:
        choose_search(ctx, vectors, index_folder, out, report, overwrite=overwrite, **options)


def _certify(
    ctx: click.Context,
    results_file: Path,
    out: Path | None,
    *,
    max_loss: float | None,
    max_loss_points: float | None,
    confidence: float,
    metric: str | None,
    seed: int,
    as_json: bool,
    **_: Any,
) -> None:
    if max_loss is not None and max_loss_points is not None:
        raise click.UsageError("give --max-loss or --max-loss-points, not both.")
    refuse_given(ctx, SEARCH_OPTIONS, "--vectors or --index")
    refuse_given(
        ctx, ("report",), "--vectors or --index: the report on RESULTS.json goes beside --out"
    )
    results = Results.load(results_file)
    decision = choose(
        results,
        max_loss=max_loss_points
        if max_loss_points is not None
        else (0.02 if max_loss is None else max_loss),
        relative=max_loss_points is None,
        confidence=confidence,
        metric=metric,
        seed=seed,
    )
    if as_json:
        print_json(decision.to_json())
    else:
        click.echo(decision.verdict)
        click.echo(decision.evidence)
        print_table(steps_table(decision, embed_dim=results.embed_dim))
    if out is None:
        return
    if decision.plan is None:
        talk("no plan was written, since nothing is certified.")
        ctx.exit(1)
    decision.plan.save(out)
    report = out.with_suffix(".html")
    write_report(results, decision, report, overwrite=True)
    talk(f"wrote {out} and {report}")
