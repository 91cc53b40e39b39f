"""`nestling demo`."""

import contextlib
import importlib.util
import io
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from nestling.cli.app import main
from nestling.cli.options import OutputPath, debug_option, json_option
from nestling.cli.terminal import print_json, print_table, progress_bars, talk
from nestling.core import Dtype
from nestling.data import open_task
from nestling.encode import open_encoder
from nestling.errors import MissingExtraError, WriteError
from nestling.measure import Results, measure

DIMS = (8, 16, 32, 64, 128, 256)
QUERIES = (
    "read a file line by line",
    "wait until all threads are done",
    "parse a date from a string",
)
MARKER = ".nestling-demo"


@click.command(
    name="demo",
    epilog="""\b
Example:
  nestling demo --out demo""",
)
@click.option(
    "--out",
    type=OutputPath(),
    default=Path("demo"),
    show_default=True,
    help="Folder for the files; made anew.",
)
@json_option
@debug_option
def command(out: Path, as_json: bool) -> None:
    """See it all once: encode, measure, choose, build and search a real corpus.

    The corpus is the documentation of your own Python's standard library. A nested model is
    trained on it in seconds, beside a rigid one. Each step prints the command it runs.
    """
    if importlib.util.find_spec("torch") is None:
        raise MissingExtraError("torch", "train")
    _make_anew(out)
    steps = [_run(purpose, verb, as_json) for purpose, verb in _training(out)]
    compared = _compare(out)
    if not as_json:
        print_table(_compared_table(compared))
    steps += [_run(purpose, verb, as_json) for purpose, verb in _journey(out)]
    if as_json:
        print_json({"steps": steps, "nested_and_rigid": compared})
    talk(f"\nOpen {out / 'results.html'} and {out / 'plan.html'} in a browser.")


def _training(out: Path) -> list[tuple[str, str]]:
    nest, rigid, results = (
        shlex.quote(str(out / name)) for name in ("nest", "rigid", "results.json")
    )
    dims = ",".join(map(str, DIMS))
    return [
        (
            "Train a model whose every prefix is an embedding.",
            f"train text --pairs builtin --dims {dims} --epochs 16 --out {nest}",
        ),
        (
            "Train a rigid one beside it: the same, at one width only.",
            f"train text --pairs builtin --dims {DIMS[-1]} --epochs 16 --out {rigid}",
        ),
        (
            "Measure every prefix of the nested one in every number format, on queries it never saw.",
            f"measure --model nest:{nest} --task builtin --out {results}",
        ),
    ]


def _compare(out: Path) -> list[dict[str, float]]:
    """Return the prefixes of both models on the test queries, in float32."""
    nested = Results.load(out / "results.json")
    talk("\nThe rigid one, cut at the same widths:")
    with progress_bars() as progress:
        rigid = measure(
            open_encoder(f"nest:{out / 'rigid'}"),
            open_task("builtin"),
            dims=DIMS,
            dtypes=[Dtype.FLOAT32],
            baselines=False,
            progress=progress,
        )
    return [
        {
            "dim": dim,
            **{
                name: results.find(family="prefix", dim=dim, dtype=Dtype.FLOAT32).value
                for name, results in (("nested", nested), ("rigid", rigid))
            },
        }
        for dim in DIMS
    ]


def _compared_table(compared: list[dict[str, float]]) -> Table:
    table = Table(title="ndcg_at_10 of the test queries, float32 prefixes")
    for name in ("width", "nested", "rigid, cut"):
        table.add_column(name, justify="right")
    for row in compared:
        table.add_row(f"{row['dim']}", f"{row['nested']:.4f}", f"{row['rigid']:.4f}")
    return table


def _journey(out: Path) -> list[tuple[str, str]]:
    nest, vectors, results, plan, index = (
        shlex.quote(str(out / name))
        for name in ("nest", "vectors", "results.json", "plan.json", "index")
    )
    return [
        (
            "Encode a corpus once, at full width.",
            f"encode --model nest:{nest} --corpus builtin --out {vectors}",
        ),
        (
            "Choose the smallest size whose loss is certified.",
            f"choose {results} --max-loss 0.05 --out {plan}",
        ),
        (
            "Build the index that the plan describes.",
            f"build --vectors {vectors} --corpus builtin --plan {plan} --out {index}",
        ),
        *(("Search it.", f"search {index} '{query}' --top-k 3") for query in QUERIES),
    ]


def _make_anew(out: Path) -> None:
    # Only a folder that an earlier demo made is ever deleted.
    if out.exists():
        if not (out / MARKER).exists():
            raise WriteError(f"{out} exists and was not made by the demo. Pass another --out.")
        shutil.rmtree(out)
    out.mkdir(parents=True)
    (out / MARKER).touch()


def _run(purpose: str, verb: str, as_json: bool) -> dict[str, Any]:
    talk(f"\n{click.style(purpose, bold=True)}\n$ nestling {verb}")
    arguments = [*shlex.split(verb), *(["--json"] if as_json else [])]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed) if as_json else contextlib.nullcontext():
        status = main(arguments, standalone_mode=False)
    if status:
        # The verb has said what went wrong.
        raise click.exceptions.Exit(status)
    return {"command": f"nestling {verb}", "result": json.loads(printed.getvalue() or "null")}
