"""The `nestling` command: its verbs, and how errors reach a person."""

from typing import Any

import click

from nestling import __version__
from nestling.cli.lazy import LazyGroup
from nestling.cli.options import DEBUG_KEY
from nestling.errors import NestlingError

VERBS = {
    "demo": "See it all once: train, measure, choose, build and search a real corpus.",
    "train": "Train a model whose every prefix is an embedding.",
    "encode": "Encode a corpus into a vector folder that survives kill -9.",
    "measure": "Measure every prefix and number format on a task.",
    "choose": "Choose the smallest size whose loss is certified, or how to search.",
    "build": "Build an index: short prefixes to filter, long ones to rank.",
    "search": "Search an index.",
    "add": "Add documents to an index, or replace them.",
    "delete": "Delete documents from an index.",
    "resize": "Give an index other widths, formats or engines, without the model.",
    "compact": "Write an index anew without deleted documents.",
    "verify": "Compare every byte of an index with its checksums.",
    "backup": "Copy one consistent state of an index.",
    "doctor": "Check this machine and installation.",
}
"""Each verb lives in the module of its name and is loaded when used, so that --help is instant."""

EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130


class VerbGroup(LazyGroup):
    """Turns errors into one line that helps."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a verb; failures become a message and an exit status, with --debug a traceback."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            click.echo(
                "\nInterrupted. Finished blocks of vectors and checkpoints of models in training are kept: run "
                "the same command to go on. Documents that `add` has counted are in the index, and with "
                "--upsert it adds the others. Anything else is as it was, and starts anew.",
                err=True,
            )
            ctx.exit(EXIT_INTERRUPTED)
        except Exception as error:
            if ctx.meta.get(DEBUG_KEY):
                raise
            known = isinstance(error, NestlingError)
            click.echo(
                f"error: {error}" if known else f"error: {type(error).__name__}: {error}", err=True
            )
            if not known:
                click.echo("This was not expected. See where it happened with --debug.", err=True)
            ctx.exit(EXIT_FAILURE)


@click.group(
    cls=VerbGroup,
    verbs={verb: (f"nestling.cli.{verb}", line) for verb, line in VERBS.items()},
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
The journey, on the docstrings of your own Python:
  nestling measure --model static:wordllama --task builtin --out results.json
  nestling choose results.json --max-loss 0.05 --out plan.json
  nestling build --model static:wordllama --corpus builtin --plan plan.json --out index
  nestling search index "read a file line by line"

Results go to stdout, talk and progress bars to stderr. Every verb takes --json and --debug.""",
)
@click.version_option(__version__, prog_name="nestling")
def main() -> None:
    """Embeddings that can be cut anywhere, and the evidence for where to cut them."""
