"""`nestling train text`."""

import dataclasses
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import click
from rich.table import Table

from nestling.cli.inputs import command_line
from nestling.cli.options import (
    LOOP_CHOICES,
    DtypeList,
    FloatList,
    IntList,
    OutputPath,
    debug_option,
    json_option,
    loop_options,
    overwrite_option,
    spread_out_option,
)
from nestling.cli.terminal import print_json, print_table, progress_bars, sparkline, talk
from nestling.core import default_nesting_dims
from nestling.data import TrainingPairs, open_training_pairs
from nestling.errors import MissingExtraError

DEFAULT_EMBED_DIM = 256
STARTS: dict[str, Literal["scratch", "wordllama"]] = {
    "static": "scratch",
    "static:wordllama": "wordllama",
}


@click.command(
    name="text",
    epilog="""\b
PAIRS is one of, and may be given several times:
  builtin[:wide]    names of functions and their docstrings
  beir:DIR[#split]  queries and their relevant documents, the train split
  pairs:FILE        pairs that match; those that do not are hard negatives
  labels:FILE       texts of one label belong together
  FILE              .tsv, .csv, .jsonl or .parquet with the columns anchor and positive
                    (or query and document, premise and hypothesis), perhaps negative or label

\b
Examples:
  nestling train text --pairs builtin --dims 8,16,32,64,128,256 --out nest
  nestling train text --pairs my-pairs.tsv --model static --embed-dim 1024 --out nest
  nestling train text --pairs beir:./scifact --model st:./all-MiniLM-L6-v2 --out nest
  nestling measure --model nest:nest --task builtin

Run the same command again after a crash or a kill: it goes on from the last checkpoint.""",
)
@click.option(
    "--pairs", required=True, multiple=True, metavar="PAIRS", help="What to train on; see below."
)
@click.option("--out", required=True, type=OutputPath(), metavar="NESTDIR", help="Model folder.")
@click.option(
    "--model",
    default="static",
    show_default=True,
    metavar="MODEL",
    help="What to start from: static (a table of token vectors from scratch), static:wordllama, or "
    "st:PATH_OR_HUB_ID.",
)
@click.option(
    "--embed-dim",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"Full width of a static model.  [default: the last of --dims, or {DEFAULT_EMBED_DIM}]",
)
@click.option(
    "--dims",
    type=IntList(),
    help="Widths the model can be cut at; one alone trains a rigid model.  [default: halving down to 8]",
)
@click.option(
    "--dim-weights", type=FloatList(), help="Weight of each width in the loss.  [default: 1]"
)
@click.option(
    "--dims-per-step",
    type=click.IntRange(min=1),
    metavar="N",
    help="Look at N of the widths per step, the full one always.  [default: all]",
)
@click.option(
    "--epochs", type=click.IntRange(min=1), help="[default: 8 for static models, 1 for st:]"
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=2),
    help="Pairs per step; each is told from the others.  [default: 1024 or an eighth of the pairs for static, 64 for st:]",
)
@click.option(
    "--mini-batch-size",
    type=click.IntRange(min=1),
    metavar="N",
    help="Embed N rows of a batch at a time, twice, to save memory; st: only.",
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(min=0, min_open=True),
    help="Peak of the schedule.  [default: 0.02 for static, 2e-5 for st:]",
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0, min_open=True),
    default=0.05,
    show_default=True,
    help="Cosines are divided by it.",
)
@click.option("--symmetric", is_flag=True, help="Also tell the anchors of each positive apart.")
@click.option(
    "--self-distillation",
    "self_distillation_weight",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    metavar="X",
    help="Weight of teaching each prefix the ranking of the full width.",
)
@click.option(
    "--quantize",
    type=DtypeList(),
    help="Formats that documents are trained in besides float: int8, int4, binary, rotated-binary.",
)
@click.option(
    "--quantize-weight",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    metavar="X",
    help="How much each of these formats counts beside float.",
)
@spread_out_option
@click.option(
    "--validate",
    "validation_share",
    type=click.FloatRange(0, 0.9),
    default=0.05,
    show_default=True,
    metavar="SHARE",
    help="Pairs held out and measured after each epoch; 0 for none.",
)
@loop_options
@overwrite_option
@json_option
@debug_option
def command(pairs: tuple[str, ...], out: Path, model: str, as_json: bool, **choices: Any) -> None:
    """Train a text model whose every prefix is an embedding."""
    if importlib.util.find_spec("torch") is None:
        raise MissingExtraError("torch", "train")
    given = {name: value for name, value in choices.items() if value is not None}
    with progress_bars() as progress:
        opened = open_training_pairs(pairs, progress=progress)
        for note in (opened.describe(), *opened.notes):
            talk(note)
        trainer = _train_transformer if model.startswith("st:") else _train_static
        record = trainer(model, opened, out=out, given=given, progress=progress)
    values = record.kept_epoch.validation_by_dim or {}
    if as_json:
        print_json({"out": str(out), "model": f"nest:{out}", "record": record.to_json()})
    elif values:
        print_table(_table(values, title=f"{out}: ndcg_at_10 on the pairs held out"))
    talk(
        f"wrote {out} after {record.num_steps:,} steps in {record.seconds:,.1f} s; "
        f"on a task: nestling measure --model nest:{out} --task TASK"
    )


def _train_static(
    model: str, pairs: TrainingPairs, *, out: Path, given: Mapping[str, Any], progress: Any
) -> Any:
    from nestling.train.static_text import STATIC_OPTIONS, StaticRecipe, train_static_text

    if model not in STARTS:
        raise click.UsageError(
            f"--model must be static, static:wordllama or st:PATH_OR_HUB_ID to be trained, got {model}."
        )
    if "mini_batch_size" in given:
        raise click.UsageError(
            "--mini-batch-size saves the memory of st: models; a static model needs none. Leave it out."
        )
    dims = given.get("dims")
    full = given.get("embed_dim") or (dims[-1] if dims else DEFAULT_EMBED_DIM)
    recipe = StaticRecipe(
        embed_dim=full,
        nesting_dims=dims or default_nesting_dims(full),
        start=STARTS[model],
        **_chosen(
            given,
            "dim_weights",
            "batch_size",
            "temperature",
            "symmetric",
            "self_distillation_weight",
            "dims_per_step",
            "quantize",
            "quantize_weight",
            "spread_out_weight",
        ),
    )
    return train_static_text(
        pairs,
        recipe,
        out=out,
        options=_options(STATIC_OPTIONS, given),
        validation_share=given["validation_share"],
        overwrite=given["overwrite"],
        command=command_line(),
        progress=progress,
        warn=talk,
    )


def _train_transformer(
    model: str, pairs: TrainingPairs, *, out: Path, given: Mapping[str, Any], progress: Any
) -> Any:
    from nestling.train.sentence_transformers import (
        TRANSFORMER_OPTIONS,
        train_sentence_transformer,
    )

    if "embed_dim" in given:
        raise click.UsageError(
            f"--embed-dim belongs to static models; {model} has a width of its own. Leave it out."
        )
    kept, validation = pairs.hold_out(given["validation_share"])
    return train_sentence_transformer(
        model,
        kept,
        out=out,
        options=_options(TRANSFORMER_OPTIONS, given),
        validation=validation,
        command=command_line(),
        progress=progress,
        warn=talk,
        **_chosen(
            given,
            "dims",
            "dim_weights",
            "batch_size",
            "temperature",
            "symmetric",
            "self_distillation_weight",
            "dims_per_step",
            "quantize",
            "quantize_weight",
            "spread_out_weight",
            "mini_batch_size",
            "overwrite",
        ),
    )


def _options(defaults: Any, given: Mapping[str, Any]) -> Any:
    chosen = _chosen(given, *LOOP_CHOICES)
    if "epochs" in given:
        chosen["num_epochs"] = given["epochs"]
    return dataclasses.replace(defaults, **chosen)


def _chosen(given: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: given[name] for name in names if name in given}


def _table(values: Mapping[int, float], *, title: str) -> Table:
    table = Table(title=title, caption=sparkline(list(values.values())))
    for name in ("width", "ndcg_at_10", "% of full", "bytes in float32"):
        table.add_column(name, justify="right")
    full = values[max(values)]
    for dim, value in sorted(values.items()):
        share = f"{value / full:.1%}" if full else "-"
        table.add_row(str(dim), f"{value:.4f}", share, f"{4 * dim:,}")
    return table
