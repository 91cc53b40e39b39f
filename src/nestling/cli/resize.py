"""`nestling resize`."""

import time
from pathlib import Path

import click

from nestling.cli.options import debug_option, json_option
from nestling.cli.plans import plan_options, read_plan
from nestling.cli.terminal import print_json, progress_bars
from nestling.core.sizes import format_bytes
from nestling.search import EngineChoice, Index, Stage


@click.command(
    name="resize",
    epilog="""\b
Examples:
  nestling resize index --plan plan.json
  nestling resize index --stage 128:int8:100 --stage 1024:float16 --engine graph:window=100

Only what is derived from the stored full vectors is made again: nothing is encoded, and whoever
searches the index meanwhile goes on with the state it opened.""",
)
@click.argument("index_folder", metavar="INDEX", type=click.Path(path_type=Path))
@plan_options
@json_option
@debug_option
def command(
    index_folder: Path,
    plan_file: Path | None,
    stages: tuple[Stage, ...],
    engine: EngineChoice | None,
    as_json: bool,
) -> None:
    """Give an index other widths, number formats or another engine, without the model."""
    started_s = time.perf_counter()
    with Index.open(index_folder) as index, progress_bars() as progress:
        plan = read_plan(plan_file, stages, engine, space=index.fingerprint.space)
        if plan is None:
            raise click.UsageError("say how to search: --plan, or --stage and --engine.")
        before = index.plan.describe()
        head_bytes = index.head_bytes + index.engine_bytes
        index.resize(plan, progress=progress)
        report = {
            "plan_before": before,
            "plan": index.plan.describe(),
            "ram_bytes_before": head_bytes,
            "ram_bytes": (ram_bytes := index.head_bytes + index.engine_bytes),
            "num_documents": len(index),
            "generation": index.generation,
            "seconds": round(time.perf_counter() - started_s, 3),
        }
    if as_json:
        print_json(report)
    else:
        click.echo(
            f"{before}\n  -> {report['plan']}\n"
            f"head and engine in RAM {format_bytes(head_bytes)} -> "
            f"{format_bytes(ram_bytes)}, {report['seconds']:.1f} s"
        )
