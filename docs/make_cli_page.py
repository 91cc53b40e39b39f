"""Write docs/cli.md from `--help`; the test suite checks that the page is up to date."""

import sys
from collections.abc import Iterator
from pathlib import Path

import click
from click.testing import CliRunner

from nestling.cli import main

PAGE = Path(__file__).parent / "cli.md"


def cli_page() -> str:
    """Return the page: the help of the command and of every verb."""
    parts = [
        "# The command line\n\nWritten by `make docs` from `nestling --help`; do not edit.\n",
        _section(main, []),
        *(_section(main, path) for path in _paths(main, [])),
    ]
    return "\n".join(parts)


def _paths(group: click.Group, above: list[str]) -> Iterator[list[str]]:
    """Yield every verb, a group before its own verbs."""
    context = click.Context(group)
    for verb in group.list_commands(context):
        yield [*above, verb]
        command = group.get_command(context, verb)
        if isinstance(command, click.Group):
            yield from _paths(command, [*above, verb])


def _section(command: click.Command, verb: list[str]) -> str:
    result = CliRunner().invoke(
        command, [*verb, "--help"], prog_name="nestling", terminal_width=100
    )
    if result.exit_code != 0:
        raise SystemExit(result.output)
    # click pads its columns; trailing blanks would not survive an editor.
    text = "\n".join(line.rstrip() for line in result.output.splitlines())
    return f"## {' '.join(['nestling', *verb])}\n\n```text\n{text}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(cli_page())
    sys.stdout.write(f"wrote {PAGE}\n")
