"""`--help` is what scripts and fingers lean on: it changes only on purpose."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from nestling.cli.app import VERBS

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_what_help_prints() -> None:
    spec = importlib.util.spec_from_file_location("make_cli_page", DOCS / "make_cli_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (DOCS / "cli.md").read_text() == module.cli_page(), (
        "run `make docs` and look at the difference"
    )


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_shows_an_example_and_takes_debug(verb: str) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "nestling", verb, "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert f"nestling {verb}" in shown.split("Example")[1]
    assert "--debug" in shown
