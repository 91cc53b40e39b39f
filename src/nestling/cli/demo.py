"""`nestling demo`."""

import contextlib
import io
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import click

from nestling.cli.app import main
from nestling.cli.options import OutputPath, debug_option, json_option
from nestling.cli.terminal import print_json, talk
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
@json_option
@debug_option
def command(out: Path, as_json: bool) -> None:
    """See it all once: encode, measure, choose, build and search a real corpus.

    The corpus is the documentation of your own Python's standard library; the model is small,
    nested, and comes with nestling. Each step prints the command it runs.
    """
    _make_anew(out)
    steps = [_run(purpose, verb, as_json) for purpose, verb in _journey(out)]
    if as_json:
        print_json({"steps": steps})
    talk(f"\nOpen {out / 'results.html'} and {out / 'plan.html'} in a browser.")


def _journey(out: Path) -> list[tuple[str, str]]:
    vectors, results, plan, index = (
        shlex.quote(str(out / name)) for name in ("vectors", "results.json", "plan.json", "index")
    )
    return [
        (
            "Encode a corpus once, at full width.",
            f"encode --model {MODEL} --corpus builtin --out {vectors}",
        ),
        (
            "Measure every prefix in every number format.",
            f"measure --model {MODEL} --task builtin --out {results}",
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
