"""`nestling train adapter`."""

import importlib.util
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from nestling.cli.inputs import chunking_for, command_line
from nestling.cli.options import (
    DtypeList,
    IntList,
    OutputPath,
    bad_rows_option,
    debug_option,
    encoder_options,
    json_option,
    model_option,
    overwrite_option,
    spread_out_option,
)
from nestling.cli.terminal import print_json, print_table, progress_bars, talk
from nestling.core import Dtype, default_nesting_dims
from nestling.core.progress import Progress
from nestling.data import open_corpus, open_training_pairs
from nestling.data.lines import check_exists
from nestling.data.tasks import FORM_NAMES, form_of
from nestling.data.vectors import is_vectors
from nestling.encode import Encoder, cache_root, open_encoder
from nestling.errors import MissingExtraError

METHODS = (
    "auto",
    "identity",
    "pca",
    "rotation",
    "banded",
    "variance",
    "random",
    "supervised",
    "residual",
)


@click.command(
    name="adapter",
    epilog="""\b
Examples:
  nestling train adapter --model st:./all-MiniLM-L6-v2 --fit-on docs/ --dims 16,32,64 --out nested
  nestling train adapter --fit-on vectors --dims 32,64,128 --quantize binary --out nested
  nestling train adapter --model openai:text-embedding-3-small --base-url https://api.openai.com/v1 \\
      --fit-on articles.jsonl --out nested
  nestling encode --model nest:nested --vectors vectors --out nested-vectors

Nothing is learned from labels or queries, unless --pairs gives some; of a task only the documents
are used.

\b
Methods, all in one table:
  identity   the vectors as they are
  pca        uncentred PCA
  rotation   learned, from the PCA
  banded     learned, within the bands between some of the widths, whose prefixes keep their scores
  variance   coordinates by their variance
  random     a rotation by chance
  supervised learned from --pairs
  residual   a perceptron; full-width scores change
auto takes the one of the first four that falls least short of the best at any width.""",
)
@model_option(required=False)
@click.option(
    "--fit-on",
    required=True,
    metavar="TASK|FILE|VECTORS",
    help="Documents, or vectors that exist already; these need no --model.",
)
@click.option("--dims", type=IntList(), help="Widths to cut at.  [default: halving down to 8]")
@click.option("--out", required=True, type=OutputPath(), metavar="NESTDIR", help="Adapter folder.")
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default="auto",
    show_default=True,
    help="Kind of map; see below.",
)
@click.option(
    "--pairs",
    multiple=True,
    metavar="PAIRS",
    help="Pairs or labels for a supervised map, as of nestling train text; it is chosen by name only.",
)
@click.option(
    "--sample-rows",
    type=click.IntRange(min=1),
    metavar="N",
    help="Fit on at most N distinct vectors; a fifth of them is held out.  [default: 20,000]",
)
@click.option(
    "--quantize",
    "dtypes",
    type=DtypeList(),
    default=(),
    help="Fit for prefixes stored as int8, int4, binary or rotated-binary.",
)
@spread_out_option
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Same seed and number of threads, same adapter.",
)
@encoder_options
@bad_rows_option
@overwrite_option
@json_option
@debug_option
def command(
    model: str | None,
    fit_on: str,
    dims: tuple[int, ...] | None,
    out: Path,
    pairs: tuple[str, ...],
    base_url: str | None,
    max_tokens: int | None,
    bad_rows: Any,
    overwrite: bool,
    as_json: bool,
    sample_rows: int | None,
    **recipe: Any,
) -> None:
    """Fit a map after which every prefix of frozen vectors says more, without labels."""
    if importlib.util.find_spec("torch") is None:
        raise MissingExtraError("torch", "train")
    from nestling.train.adapter import AdapterRecipe, train_adapter
    from nestling.train.adapter.adapter import DEFAULT_SAMPLE_ROWS

    if model is None and (base_url is not None or max_tokens is not None):
        raise click.UsageError(
            "--base-url and --max-tokens belong to a --model, and none is named. Leave them out, or name it."
        )
    most = sample_rows or DEFAULT_SAMPLE_ROWS
    with progress_bars() as progress:
        encoder = None
        if model is not None:
            encoder = open_encoder(model, base_url=base_url, max_tokens=max_tokens)
        drawn = {"seed": recipe["seed"], "progress": progress}
        source = _open_source(encoder, fit_on, sample_rows=most, bad_rows=bad_rows, **drawn)
        record = train_adapter(
            source,
            AdapterRecipe(
                nesting_dims=dims or default_nesting_dims(source.vectors.shape[1]),
                sample_rows=most,
                **recipe,
            ),
            out=out,
            pairs=_open_pairs(encoder, pairs, most=most, **drawn) if pairs else None,
            overwrite=overwrite,
            bad_rows=bad_rows,
            command=command_line(),
            progress=progress,
            warn=talk,
        )
    if as_json:
        print_json({"out": str(out), "model": f"nest:{out}", "record": record.to_json()})
    else:
        for dtype in record.dtypes:
            print_table(_table(record, dtype))
        if record.table[0].on_pairs is not None:
            print_table(_pairs_table(record))
        click.echo(record.verdict)
    _talk_about(record, out)


def _open_source(
    encoder: Encoder | None,
    fit_on: str,
    *,
    sample_rows: int,
    seed: int,
    bad_rows: Any,
    progress: Progress,
) -> Any:
    from nestling.train.adapter import encode_source, read_source

    name = fit_on.removeprefix("self:")
    path = Path(name).expanduser()
    if path.exists() and is_vectors(path):
        return read_source(path, made_by=encoder)
    if encoder is None:
        if form_of(name) not in FORM_NAMES:
            check_exists(path)
        raise click.UsageError(
            f"--fit-on {fit_on} holds no vectors: name a --model to encode it with."
        )
    corpus = open_corpus(fit_on, chunking=chunking_for(encoder), progress=progress)
    for note in (f"{corpus.source}: {corpus.describe()}", *corpus.notes):
        talk(note)
    return encode_source(
        encoder,
        corpus,
        sample_rows=sample_rows,
        seed=seed,
        cache=cache_root(),
        bad_rows=bad_rows,
        progress=progress,
    )


def _open_pairs(
    encoder: Encoder | None,
    sources: tuple[str, ...],
    *,
    most: int,
    seed: int,
    progress: Progress,
) -> Any:
    from nestling.train.adapter import encode_pairs

    if encoder is None:
        raise click.UsageError("--pairs hold texts: name a --model to encode them with.")
    opened = open_training_pairs(sources, progress=progress)
    for note in (opened.describe(), *opened.notes):
        talk(note)
    pairs = encode_pairs(
        encoder, opened, most=most, seed=seed, cache=cache_root(), progress=progress
    )
    if pairs.held_out is None:
        talk(
            "no map is measured on pairs: holding pairs out takes at least 4 groups, and texts that differ"
        )
    return pairs


def _table(record: Any, dtype: Dtype) -> Table:
    table = Table(
        title=f"ten nearest neighbours kept in {dtype}, of those at full width",
        caption=f"on {record.num_held_out:,} held-out vectors",
    )
    table.add_column("map")
    for dim in record.nesting_dims:
        table.add_column(str(dim), justify="right")
    is_judged = dtype in record.judged_dtypes
    if is_judged:
        table.caption = f"{table.caption}; shortfall: the most below the best lossless map"
        table.add_column(record.shortfall_title, justify="right")
    table.add_column("")
    for line in record.table:
        values = [f"{line.values[dtype][dim]:.1%}" for dim in record.nesting_dims]
        mark = "chosen" if line.name == record.winner else ""
        shortfall = [f"{line.shortfall:.1%}"] if is_judged else []
        table.add_row(line.name, *values, *shortfall, mark)
    return table


def _pairs_table(record: Any) -> Table:
    table = Table(title=f"ndcg_at_10 on held-out groups of {record.pairs}")
    table.add_column("map")
    for dim in record.nesting_dims:
        table.add_column(str(dim), justify="right")
    for line in record.table:
        table.add_row(line.name, *(f"{line.on_pairs[dim]:.4f}" for dim in record.nesting_dims))
    return table


def _talk_about(record: Any, out: Path) -> None:
    for cut in record.below:
        talk(
            f"at {cut.dim} dims in {cut.dtype} it keeps {cut.difference:.1%} less than {cut.baseline} "
            f"(95% interval {cut.low:.1%} to {cut.high:.1%})"
        )
    talk(
        f"wrote {out} ({record.winner}) after {record.seconds:,.1f} s, fitted on {record.num_fit_rows:,} vectors\n"
        f"  on a task:              nestling measure --model nest:{out} --task TASK\n"
        f"  vectors you have:       nestling encode --model nest:{out} --vectors VECTORS --out ADAPTED"
    )
