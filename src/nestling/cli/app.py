"""The `nestling` command: its verbs, and how errors reach a person."""

import difflib
import importlib
from typing import Any

import click

from nestling import __version__
from nestling.cli.options import DEBUG_KEY
from nestling.errors import NestlingError

VERBS = {
    "demo": "See it all once: encode, measure, choose, build and search a real corpus.",
    "encode": "Encode a corpus into a vector folder that survives kill -9.",
    "measure": "Measure every prefix and number format on a task.",
    "choose": "Choose the smallest size whose loss is certified.",
    "build": "Build a two-tier index.",
    "search": "Search an index.",
    "doctor": "Check this machine and installation.",
}
"""Each verb lives in the module of its name and is loaded when used, so that --help is instant."""

EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130


class VerbGroup(click.Group):
    """Loads a verb when it is called, and turns errors into one line that helps."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order of the journey."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load the module of a verb."""
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"nestling.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb; a mistyped one gets the closest."""
        close = difflib.get_close_matches(args[0], VERBS, n=1)
        if args[0] not in VERBS and close:
            ctx.fail(f"No such verb {args[0]!r}. Did you mean {close[0]!r}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs without loading them."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run a verb; failures become a message and an exit status, with --debug a traceback."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            click.echo(
                "\nInterrupted. Finished blocks of encoded vectors are kept: run the same command to go on.",
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
