import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from nestling.cli import main
from nestling.cli.lazy import LazyGroup

MODULE = "nestling_verb_of_a_test"


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LazyGroup:
    (tmp_path / f"{MODULE}.py").write_text(
        "import click\n\n@click.command()\ndef command():\n    click.echo('it ran')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    return LazyGroup(
        name="tool",
        verbs={
            "weave": ("no.such.module", "Make cloth."),
            "braid": (MODULE, "Make a rope."),
            "ask": ("no.such.module.either", "Find out."),
        },
    )


def test_help_lists_the_verbs_in_their_order_without_loading_them(group: LazyGroup) -> None:
    result = CliRunner().invoke(group, ["--help"])
    assert result.exit_code == 0, result.output
    listed = [line.split() for line in result.stdout.split("Verbs:\n")[1].splitlines()]
    assert listed == [
        ["weave", "Make", "cloth."],
        ["braid", "Make", "a", "rope."],
        ["ask", "Find", "out."],
    ]
    assert MODULE not in sys.modules
    assert group.list_commands(click.Context(group)) == ["weave", "braid", "ask"]


def test_a_verb_is_loaded_when_it_is_used(group: LazyGroup) -> None:
    result = CliRunner().invoke(group, ["braid"])
    assert (result.exit_code, result.stdout) == (0, "it ran\n")
    assert MODULE in sys.modules


def test_a_mistyped_verb_gets_the_closest_and_loads_none(group: LazyGroup) -> None:
    result = CliRunner().invoke(group, ["brad"])
    assert result.exit_code == 2
    assert "No such verb 'brad'. Did you mean 'braid'?" in result.stderr
    assert MODULE not in sys.modules


def test_a_verb_that_is_like_none_is_refused_without_a_guess(group: LazyGroup) -> None:
    result = CliRunner().invoke(group, ["xyzzy"])
    assert result.exit_code == 2
    assert "xyzzy" in result.stderr
    assert "Did you mean" not in result.stderr
    assert group.get_command(click.Context(group), "xyzzy") is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mesure"], "No such verb 'mesure'. Did you mean 'measure'?"),
        (["train", "txt"], "No such verb 'txt'. Did you mean 'text'?"),
    ],
)
def test_the_groups_of_nestling_offer_the_closest_verb(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]])
def test_help_loads_no_verb_and_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys\nfrom nestling.cli import main\n"
        f"main({arguments!r}, standalone_mode=False)\n"
        "heavy = {'torch', 'nestling.measure', 'nestling.train', 'nestling.cli.measure', "
        "'nestling.cli.train_text', 'nestling.cli.train_images'}\n"
        "sys.exit(f'loaded {sorted(heavy & set(sys.modules))}' if heavy & set(sys.modules) else 0)"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert "Verbs:" in finished.stdout
