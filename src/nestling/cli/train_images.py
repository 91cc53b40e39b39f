"""`nestling train images`."""

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from nestling.cli.inputs import command_line
from nestling.cli.options import (
    LOOP_CHOICES,
    FloatList,
    IntList,
    OutputPath,
    debug_option,
    json_option,
    loop_options,
    overwrite_option,
)
from nestling.cli.terminal import print_json, print_table, progress_bars, talk
from nestling.core import default_nesting_dims
from nestling.data import ClassificationTask, open_task
from nestling.errors import DataError, MissingExtraError

DEFAULT_EMBED_DIM = 128


@click.command(
    name="images",
    epilog="""\b
TASK is one of:
  builtin:digits    scikit-learn's images of handwritten digits
  images:DIR        IDX files, as MNIST and its relatives come

\b
Examples:
  nestling train images --images builtin:digits --dims 2,4,8,16,32 --out digits
  nestling train images --images images:./fashion_mnist --embed-dim 128 --boost 4 --out fashion
  nestling measure --model nest:fashion --task images:./fashion_mnist

Run the same command again after a crash or a kill: it goes on from the last checkpoint.""",
)
@click.option("--images", "task", required=True, metavar="TASK", help="Labelled images; see below.")
@click.option("--out", required=True, type=OutputPath(), metavar="NESTDIR", help="Model folder.")
@click.option(
    "--dims",
    type=IntList(),
    help="Widths the model can be cut at.  [default: halving --embed-dim down to 8]",
)
@click.option(
    "--embed-dim",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"Full width.  [default: the last of --dims, or {DEFAULT_EMBED_DIM}]",
)
@click.option(
    "--head",
    type=click.Choice(["tied", "untied"]),
    default="tied",
    show_default=True,
    help="One weight matrix for all widths, or one for each.",
)
@click.option(
    "--dim-weights", type=FloatList(), help="Weight of each width in the loss.  [default: 1]"
)
@click.option(
    "--boost",
    type=click.FloatRange(min=0, min_open=True),
    metavar="X",
    help="Weight of the shortest width, the others having 1.",
)
@click.option("--epochs", type=click.IntRange(min=1), default=25, show_default=True)
@click.option(
    "--batch-size",
    type=click.IntRange(min=2),
    default=128,
    show_default=True,
    help="Images per step.",
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(min=0, min_open=True),
    default=0.008,
    show_default=True,
    help="Peak of the schedule.",
)
@click.option(
    "--validate",
    "validation_share",
    type=click.FloatRange(0, 0.9),
    default=0.1,
    show_default=True,
    metavar="SHARE",
    help="Train images held out; 0 for none.",
)
@loop_options
@overwrite_option
@json_option
@debug_option
def command(
    task: str,
    out: Path,
    dims: tuple[int, ...] | None,
    embed_dim: int | None,
    head: str,
    dim_weights: tuple[float, ...] | None,
    boost: float | None,
    overwrite: bool,
    as_json: bool,
    **choices: Any,
) -> None:
    """Train an image model whose every prefix is an embedding, and can label."""
    if importlib.util.find_spec("torch") is None:
        raise MissingExtraError("torch", "train")
    if dim_weights is not None and boost is not None:
        raise click.UsageError("--dim-weights and --boost say the same: give one of them.")
    full = embed_dim or (dims[-1] if dims else DEFAULT_EMBED_DIM)
    opened = open_images(task)
    for note in opened.notes:
        talk(note)
    report = _train(
        opened,
        out,
        dims=dims or default_nesting_dims(full),
        embed_dim=full,
        tied=head == "tied",
        dim_weights=dim_weights,
        boost=boost,
        overwrite=overwrite,
        **choices,
    )
    if as_json:
        print_json({"out": str(out), "task": task, **report.to_json()})
        return
    print_table(_table(report, title=f"{out} on {report.num_test:,} test images of {task}"))
    for cascade in report.cascades:
        click.echo(_describe(cascade))
    talk(f"wrote {out}; every number format: nestling measure --model nest:{out} --task {task}")


def open_images(task: str) -> ClassificationTask:
    """Open a task of labelled images.

    Raises:
        DataError: If it is a task of another kind.
    """
    opened = open_task(task)
    if not isinstance(opened, ClassificationTask):
        raise DataError(
            f"`images` must be a task of labelled images, got {task!r}. Name images:<dir> or builtin:digits."
        )
    return opened


def _train(
    task: ClassificationTask,
    out: Path,
    *,
    dims: tuple[int, ...],
    embed_dim: int,
    tied: bool,
    dim_weights: tuple[float, ...] | None,
    boost: float | None,
    overwrite: bool,
    **choices: Any,
) -> Any:
    from nestling.train.image_report import report_images
    from nestling.train.images import IMAGE_OPTIONS, ImageRecipe, split_images, train_images
    from nestling.train.losses import boosted_weights

    recipe = ImageRecipe(
        nesting_dims=dims,
        embed_dim=embed_dim,
        tied=tied,
        dim_weights=dim_weights,
        batch_size=choices["batch_size"],
        validation_share=choices["validation_share"],
    )
    if boost is not None:
        boosted = boosted_weights(recipe.nesting_dims, boost=boost)
        recipe = dataclasses.replace(recipe, dim_weights=boosted)
    options = dataclasses.replace(
        IMAGE_OPTIONS,
        num_epochs=choices["epochs"],
        **{name: choices[name] for name in LOOP_CHOICES},
    )
    with progress_bars() as progress:
        train_images(
            task,
            recipe,
            out=out,
            options=options,
            overwrite=overwrite,
            command=command_line(),
            progress=progress,
            warn=talk,
        )
        split = split_images(task, validation_share=recipe.validation_share)
        return report_images(out, split, progress=progress)


def _table(report: Any, *, title: str) -> Table:
    table = Table(title=title)
    for name in (
        "width",
        "accuracy by head",
        "1-NN accuracy",
        "% of full (head)",
        "% of full (1-NN)",
    ):
        table.add_column(name, justify="right")
    full = report.widths[-1]
    for each in report.widths:
        table.add_row(
            str(each.dim),
            f"{each.accuracy_head:.4f}",
            f"{each.accuracy_1nn:.4f}",
            _share(each.accuracy_head, full.accuracy_head),
            _share(each.accuracy_1nn, full.accuracy_1nn),
        )
    return table


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _describe(cascade: Any) -> str:
    outcome = cascade.outcome
    equal = (
        "no single width is as accurate"
        if cascade.equal_dim is None
        else f"the smallest single width as accurate is {cascade.equal_dim}"
    )
    return (
        f"cascade, {cascade.rule} thresholds from {cascade.num_fitted:,} validation images: accuracy "
        f"{outcome.accuracy:.4f} at {outcome.mean_dim:.1f} dims on average, {outcome.mean_cumulative_dim:.1f} "
        f"with all widths tried; {equal}"
    )
