"""`nestling demo`."""

import shlex
import shutil
from pathlib import Path

import click

from nestling.cli.app import main
from nestling.cli.options import OutputPath, debug_option
from nestling.cli.terminal import talk
from nestling.errors import WriteError

MODEL = "static:wordllama"
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
@debug_option
def command(out: Path) -> None:
    """See it all once: encode, measure, choose, build and search a real corpus.

    The corpus is the documentation of your own Python's standard library; the model is small,
    nested, and comes with nestling. Each step prints the command it runs.
    """
    _make_anew(out)
    vectors, results, plan, index = (
        out / "vectors",
        out / "results.json",
        out / "plan.json",
        out / "index",
    )
    _run(
        "Encode a corpus once, at full width.",
        f"encode --model {MODEL} --corpus builtin --out {vectors}",
    )
    _run(
        "Measure every prefix in every number format.",
        f"measure --model {MODEL} --task builtin --out {results}",
    )
    _run(
        "Choose the smallest size whose loss is certified.",
        f"choose {results} --max-loss 0.05 --out {plan}",
    )
    _run(
        "Build the index that the plan describes.",
        f"build --vectors {vectors} --corpus builtin --plan {plan} --out {index}",
    )
    for query in QUERIES:
        _run("Search it.", f"search {index} '{query}' --top-k 3")
    talk(f"\nOpen {results.with_suffix('.html')} and {plan.with_suffix('.html')} in a browser.")


def _make_anew(out: Path) -> None:
    # Only a folder that an earlier demo made is ever deleted.
    if out.exists():
        if not (out / MARKER).exists():
            raise WriteError(f"{out} exists and was not made by the demo. Pass another --out.")
        shutil.rmtree(out)
    out.mkdir(parents=True)
    (out / MARKER).touch()


def _run(purpose: str, command_line: str) -> None:
    talk(f"\n{click.style(purpose, bold=True)}\n$ nestling {command_line}")
    main(shlex.split(command_line), standalone_mode=False)
