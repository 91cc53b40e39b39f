"""`nestling build`."""

import time
from pathlib import Path
from typing import Any

import click

from nestling.cli.choose_search import choose_for
from nestling.cli.documents import encode_documents, open_documents
from nestling.cli.goals import BUDGET_OPTIONS, budget_options, check_judged, parse_target
from nestling.cli.options import (
    OutputPath,
    bad_rows_option,
    debug_option,
    encoder_options,
    json_option,
    model_option,
    overwrite_option,
    refuse_given,
)
from nestling.cli.plans import plan_options, read_plan
from nestling.cli.terminal import print_json, progress_bars
from nestling.core.sizes import format_bytes
from nestling.data import Corpus
from nestling.encode import open_encoder
from nestling.errors import WriteError
from nestling.search import EngineChoice, Index, Plan, Stage


@click.command(
    name="build",
    epilog="""\b
Examples:
  nestling build --model static:wordllama --corpus builtin --plan plan.json --out index
  nestling build --vectors vectors --corpus articles.jsonl --out index
  nestling build --model static:wordllama --corpus builtin --task builtin --target quality=0.99 --out index
  nestling build --vectors vectors --target recall=0.95 --max-memory 64MB --out index
  nestling build --vectors vectors --out index --stage 64:int8:200 --stage 1024:float16 --engine graph
  nestling build --vectors embeddings.npy --model openai:text-embedding-3-large --out index

A vector file does not say which model made it: --model does, and then text can be searched.
Without --plan the index searches the full width exactly, in one stage.""",
)
@model_option(required=False)
@click.option(
    "--corpus",
    metavar="TASK|FILE",
    help="Documents: encoded by --model, or the texts that --vectors stand for.",
)
@click.option(
    "--vectors",
    type=click.Path(path_type=Path),
    help="Vector folder or vector file that exists already.",
)
@plan_options
@click.option(
    "--out", required=True, type=OutputPath(), metavar="INDEX", help="Index folder to write."
)
@click.option(
    "--target",
    metavar="quality=X|recall=X",
    help="Measure which plan keeps this share of the exact search, and build that one.",
)
@click.option(
    "--task",
    metavar="TASK",
    help="With --target: queries and judgements; without it, documents serve as queries.",
)
@budget_options
@overwrite_option
@encoder_options
@bad_rows_option
@json_option
@debug_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    model: str | None,
    corpus: str | None,
    vectors: Path | None,
    plan_file: Path | None,
    stages: tuple[Stage, ...],
    engine: EngineChoice | None,
    target: str | None,
    task: str | None,
    out: Path,
    overwrite: bool,
    bad_rows: Any,
    as_json: bool,
    base_url: str | None,
    max_tokens: int | None,
    **planning: Any,
) -> None:
    """Build an index: a small head in RAM to filter by, full vectors on disk to rank by."""
    if out.exists() and not overwrite:
        raise WriteError(
            f"{out} exists and is never overwritten silently. Pass --overwrite or another --out."
        )
    encoder: dict[str, Any] = {"base_url": base_url, "max_tokens": max_tokens}
    goal = None if target is None else parse_target(target)
    if goal is None:
        refuse_given(ctx, ("task", "metric", *BUDGET_OPTIONS), "--target")
    elif plan_file is not None or stages or engine is not None:
        raise click.UsageError("--target chooses the plan: leave --plan, --stage and --engine out.")
    else:
        check_judged(goal, task=task, metric=planning["metric"])
    if plan_file is not None:
        Plan.load(plan_file)  # a mistake in a plan should not wait for vectors
    started_s = time.perf_counter()
    with progress_bars() as progress:
        documents: Corpus | None
        made_by = None if model is None else open_encoder(model, **encoder)
        if made_by is not None:
            read_plan(plan_file, stages, engine, space=made_by.fingerprint.space)
        if vectors is not None:
            encoded, documents = open_documents(
                vectors, corpus, made_by=made_by, bad_rows=bad_rows, progress=progress, **encoder
            )
        elif made_by is not None and corpus is not None:
            encoded, documents = encode_documents(
                made_by, corpus, bad_rows=bad_rows, progress=progress
            )
        else:
            raise click.UsageError("give --model and --corpus, or --vectors.")
        plan = read_plan(plan_file, stages, engine, space=encoded.folder.fingerprint.space)
        if goal is not None:
            choice = choose_for(
                goal, encoded.folder, task=task, encoder=made_by, progress=progress, **planning
            )
            plan = choice.plan
        with Index.build(
            out, encoded.folder, documents, plan=plan, overwrite=overwrite, progress=progress
        ) as index:
            report: dict[str, Any] = {
                "out": str(out),
                "num_documents": len(index),
                "num_dropped": len(encoded.dropped_ids),
                "plan": index.plan.describe(),
                "verdict": index.plan.evidence.get("verdict"),
                "head_bytes": index.head_bytes,
                "engine_bytes": index.engine_bytes,
                "full_bytes": index.full_bytes,
                "seconds": round(time.perf_counter() - started_s, 3),
            }
    if as_json:
        print_json(report)
    else:
        click.echo(
            f"{report['num_documents']:,} documents -> {out} in {report['seconds']:.1f} s\n"
            f"plan: {report['plan']}\n"
            f"head and engine in RAM {format_bytes(report['head_bytes'] + report['engine_bytes'])}, "
            f"full vectors on disk {format_bytes(report['full_bytes'])}"
        )
