"""`nestling choose`."""

from pathlib import Path

import click

from nestling.cli.options import OutputPath, debug_option, json_option, overwrite_option
from nestling.cli.outputs import refuse_to_overwrite
from nestling.cli.tables import steps_table
from nestling.cli.terminal import print_json, print_table, talk
from nestling.errors import WriteError
from nestling.measure import Results, choose, write_report


@click.command(
    name="choose",
    epilog="""\b
Examples:
  nestling choose results.json --max-loss 0.02 --confidence 0.95 --out plan.json
  nestling choose results.json --max-loss-points 0.01 --metric recall_at_100

Exits with 1 if --out was given and nothing could be certified: no plan is written then.""",
)
@click.argument("results_file", metavar="RESULTS.json", type=click.Path(path_type=Path))
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
@click.option("--metric", help="Metric to choose by.  [default: the task's main metric]")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Order in which queries are looked at.",
)
@click.option(
    "--out",
    type=OutputPath(),
    metavar="PLAN.json",
    help="Plan file; the report goes beside it as .html.",
)
@overwrite_option
@json_option
@debug_option
@click.pass_context
def command(
    ctx: click.Context,
    results_file: Path,
    max_loss: float | None,
    max_loss_points: float | None,
    confidence: float,
    metric: str | None,
    seed: int,
    out: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Choose the smallest size whose loss is certified."""
    if max_loss is not None and max_loss_points is not None:
        raise click.UsageError("give --max-loss or --max-loss-points, not both.")
    if out is not None:
        refuse_to_overwrite(out, overwrite)
        if out.resolve() == results_file.resolve():
            raise WriteError(
                f"`--out` must not be the results file itself, got {out}. Name another."
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
