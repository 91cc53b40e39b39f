import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from nestling.cli import main
from nestling.encode import open_encoder

QUICK = ["--images", "builtin:digits", "--epochs", "1"]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["train", "images", *arguments])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    out = tmp_path_factory.mktemp("cli") / "digits"
    return out, run(*QUICK, "--dims", "2,4,8", "--boost", "3", "--out", str(out))


def test_the_table_and_the_cascades(trained: tuple[Path, Result]) -> None:
    out, result = trained
    assert result.exit_code == 0, result.stderr
    rows = re.findall(r"│ +(\d+) │ +(0\.\d{4}) │ +(0\.\d{4}) │ +[\d.]+% │", result.stdout)
    assert [int(dim) for dim, _, _ in rows] == [2, 4, 8]
    said = " ".join(result.stdout.split())  # a long path breaks the title into lines
    assert "370 test images of builtin:digits" in said
    for rule in ("greedy", "joint"):
        assert re.search(
            rf"cascade, {rule} thresholds from \d+ validation images: accuracy 0\.\d+ at [\d.]+ dims "
            rf"on average, [\d.]+ with all widths tried; ",
            result.stdout,
        )
    assert "1,427 train and 370 test images" in result.stderr
    assert f"nestling measure --model nest:{out} --task builtin:digits" in result.stderr


def test_the_folder(trained: tuple[Path, Result]) -> None:
    out, _ = trained
    encoder = open_encoder(f"nest:{out}")
    assert (encoder.embed_dim, encoder.nesting_dims) == (8, (2, 4, 8))
    training = json.loads((out / "nestling.json").read_text())["training"]
    assert training["settings"]["dim_weights"] == [3.0, 1.0, 1.0]
    assert training["settings"]["tied"]
    assert training["options"]["num_epochs"] == 1


def test_a_finished_folder_is_refused(trained: tuple[Path, Result]) -> None:
    out, _ = trained
    result = run(*QUICK, "--dims", "2,4,8", "--out", str(out))
    assert result.exit_code == 1
    assert "holds a finished model and is never overwritten silently" in result.stderr


def test_json(tmp_path: Path) -> None:
    out = tmp_path / "digits"
    choices = ["--embed-dim", "16", "--head", "untied", "--dim-weights", "4,1", "--seed", "1"]
    stopping = ["--early-stop-dim", "8", "--patience", "1", "--validate", "0.2"]
    result = run(*QUICK, *choices, *stopping, "--out", str(out), "--json")
    assert result.exit_code == 0, result.stderr
    printed = json.loads(result.stdout)
    assert printed["out"] == str(out)
    assert [row["dim"] for row in printed["rows"]] == [8, 16]
    assert set(printed["rows"][0]) == {"dim", "accuracy_head", "accuracy_1nn"}
    assert [each["rule"] for each in printed["cascades"]] == ["greedy", "joint"]
    training = json.loads((out / "nestling.json").read_text())["training"]
    assert not training["settings"]["tied"]
    assert training["settings"]["dim_weights"] == [4.0, 1.0]
    assert training["options"]["early_stop_dim"] == 8
    assert training["options"]["seed"] == 1


def test_nothing_held_out(tmp_path: Path) -> None:
    result = run(*QUICK, "--dims", "4", "--validate", "0", "--out", str(tmp_path / "digits"))
    assert result.exit_code == 0, result.stderr
    assert "cascade" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--images", "builtin:digits"], 2, "Missing option '--out'"),
        ([*QUICK, "--out", "x", "--dim-weights", "1", "--boost", "2"], 2, "say the same: give one"),
        ([*QUICK, "--out", "x", "--dim-weights", "a"], 2, "needs numbers separated by commas"),
        ([*QUICK, "--out", "x", "--dims", "8,4"], 1, "`dims` must ascend"),
        ([*QUICK, "--out", "x", "--dims", "8,16", "--embed-dim", "12"], 1, "must lie in [1, 12]"),
        (
            [*QUICK, "--out", "x", "--dims", "4,8", "--dim-weights", "1"],
            1,
            "`dim_weights` must be one per nesting dim, got 1",
        ),
        (
            [*QUICK, "--out", "x", "--dims", "4,8", "--early-stop-dim", "5"],
            1,
            "early_stop_dim",
        ),
        (["--images", "images:nowhere", "--out", "x"], 1, "`path` must exist, got nowhere"),
        (["--images", "sts:x.tsv", "--out", "x"], 1, "`path` must exist, got x.tsv"),
    ],
)
def test_bad_input(
    arguments: list[str], status: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == status, result.output
    assert message in " ".join(result.stderr.split())


def test_a_task_of_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pairs.tsv").write_text("a\tb\t1\nc\td\t2\n")
    result = run("--images", "sts:pairs.tsv", "--out", "x")
    assert result.exit_code == 1
    assert "`images` must be a task of labelled images, got 'sts:pairs.tsv'" in result.stderr
    Path("labels.tsv").write_text("".join(f"{'xy'[n % 2]}\tword {n}\n" for n in range(40)))
    result = run("--images", "labels:labels.tsv", "--out", "x")
    assert result.exit_code == 1
    assert "`task` must hold images, got texts in 'labels:labels.tsv'" in result.stderr


def test_without_torch_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec

    def find(name: str, *rest: Any) -> Any:
        return None if name == "torch" else found(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    result = run("--images", "images:nowhere", "--out", "x")
    assert result.exit_code == 1
    assert "pip install 'nestling[train]'" in result.stderr
