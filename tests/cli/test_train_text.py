import hashlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from nestling.cli import main
from nestling.encode import open_encoder

TYPED = ["--pairs", "builtin", "--dims", "8,32", "--epochs", "6", "--seed", "3"]
WAIT_S = 60


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["train", "text", *arguments])


def start(out: Path, *more: str) -> subprocess.Popen[str]:
    """Start a real command in a process of its own; one thread, as bits depend on their number."""
    return subprocess.Popen(
        [sys.executable, "-m", "nestling", "train", "text", *TYPED, "--out", str(out), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    stdout, stderr = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, stderr
    printed: dict[str, Any] = json.loads(stdout)
    return printed


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def wait_for(is_there: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not is_there():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A model of the built-in corpus that nothing disturbed, and what --json printed."""
    out = tmp_path_factory.mktemp("cli") / "nest"
    return out, finish(start(out, "--json"))


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    path = tmp_path / "pairs.tsv"
    lines = [f"call number {row}\treturn the number {row} of them" for row in range(60)]
    path.write_text("\n".join(["anchor\tpositive", *lines]) + "\n")
    return str(path)


def test_json_says_what_was_written(trained: tuple[Path, dict[str, Any]]) -> None:
    out, printed = trained
    assert set(printed) == {"out", "model", "record"}
    assert (printed["out"], printed["model"]) == (str(out), f"nest:{out}")
    assert len(printed["record"]["epochs"]) == 6
    stored = json.loads((out / "nestling.json").read_text())["training"]
    assert stored == printed["record"]
    assert stored["settings"]["pairs"] == "builtin#train"
    assert stored["options"]["seed"] == 3
    assert open_encoder(printed["model"]).nesting_dims == (8, 32)


def test_a_run_killed_in_the_middle_goes_on_to_the_same_bytes(
    trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "nest"
    process = start(out, "--json")
    wait_for(lambda: any(out.glob("checkpoints/[!.]*/*.safetensors")), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (out / "nestling.json").exists()
    resumed = finish(start(out, "--json"))
    undisturbed, printed = trained
    assert (resumed["record"]["num_resumes"], printed["record"]["num_resumes"]) == (1, 0)
    for name in ("model.safetensors", "tokenizer.json"):
        assert sha256(out / name) == sha256(undisturbed / name)
    assert open_encoder(f"nest:{out}").fingerprint.space == (
        open_encoder(f"nest:{undisturbed}").fingerprint.space
    )
    assert not (out / "checkpoints").exists()


def test_the_table_shows_every_width(pairs: str, tmp_path: Path) -> None:
    out = tmp_path / "nest"
    chosen = ["--embed-dim", "16", "--validate", "0.2", "--epochs", "1", "--symmetric"]
    result = run("--pairs", pairs, *chosen, "--out", str(out))
    assert result.exit_code == 0, result.stderr
    rows = re.findall(r"│ +(\d+) │ +(\d\.\d{4}) │ +[\d.]+% │ +(\d+) │", result.stdout)
    assert [(int(dim), int(size)) for dim, _, size in rows] == [(8, 32), (16, 64)]
    assert "60 pairs from pairs.tsv, pairs_hash" in result.stderr
    assert f"nestling measure --model nest:{out} --task TASK" in " ".join(result.stderr.split())


def test_codes_and_spread_reach_the_training(pairs: str, tmp_path: Path) -> None:
    out = tmp_path / "nest"
    chosen = ["--dims", "8,16", "--epochs", "1", "--quantize", "int8,binary", "--spread-out", "0.5"]
    result = run("--pairs", pairs, *chosen, "--quantize-weight", "2", "--out", str(out))
    assert result.exit_code == 0, result.stderr
    settings = json.loads((out / "nestling.json").read_text())["training"]["settings"]
    assert settings["quantize"] == ["int8", "binary"]
    assert (settings["quantize_weight"], settings["spread_out_weight"]) == (2.0, 0.5)


def test_nothing_held_out_shows_no_table(pairs: str, tmp_path: Path) -> None:
    small = ["--dims", "8", "--epochs", "1", "--validate", "0"]
    result = run("--pairs", pairs, *small, "--out", str(tmp_path / "nest"))
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    assert "nestling measure --model nest:" in result.stderr


def test_a_finished_model_is_refused_and_left_as_it_is(
    trained: tuple[Path, dict[str, Any]],
) -> None:
    out, _ = trained
    before = sha256(out / "model.safetensors")
    result = run(*TYPED, "--out", str(out))
    assert result.exit_code == 1
    assert "holds a finished model and is never overwritten silently" in result.stderr
    assert sha256(out / "model.safetensors") == before


def test_a_folder_of_something_else_and_a_file_are_refused(pairs: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    for name, message in (("mine", "which holds letter.txt"), ("pairs.tsv", "got the file")):
        result = run("--pairs", pairs, "--epochs", "1", "--out", str(tmp_path / name))
        assert result.exit_code == 1
        assert message in " ".join(result.stderr.split())
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "Missing option '--out'"),
        (["--model", "bert", "--out", "x"], 2, "must be static, static:wordllama or st:PATH"),
        (["--model", "static:glove", "--out", "x"], 2, "to be trained, got static:glove"),
        (
            ["--model", "st:nowhere", "--embed-dim", "64", "--out", "x"],
            2,
            "--embed-dim belongs to static models; st:nowhere has a width of its own",
        ),
        (
            ["--mini-batch-size", "8", "--out", "x"],
            2,
            "--mini-batch-size saves the memory of st: models; a static model needs none",
        ),
        (["--quantize", "int3", "--out", "x"], 2, "knows float32, float16, int8, int4"),
        (["--quantize", "float16", "--out", "x"], 1, "`quantize` must be among int8, int4, binary"),
        (["--quantize-weight", "0", "--out", "x"], 2, "0.0 is not in the range"),
        (["--spread-out", "-1", "--out", "x"], 2, "-1.0 is not in the range"),
        (["--dims", "8,b", "--out", "x"], 2, "needs whole numbers separated by commas"),
        (["--validate", "0.95", "--out", "x"], 2, "0.95 is not in the range"),
        (["--dims", "16,8", "--out", "x"], 1, "`dims` must ascend"),
        (["--dims", "8,64", "--embed-dim", "32", "--out", "x"], 1, "must lie in [1, 32]"),
        (["--dims", "8,16", "--dim-weights", "1", "--out", "x"], 1, "one per nesting dim, got 1"),
        (["--dims", "8,16", "--early-stop-dim", "9", "--out", "x"], 1, "early_stop_dim"),
    ],
)
def test_bad_input_leaves_nothing_behind(
    pairs: str,
    arguments: list[str],
    status: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("--pairs", pairs, *arguments)
    assert result.exit_code == status, result.output
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert not Path("x").exists()


def test_pairs_that_are_not_there_are_refused(tmp_path: Path) -> None:
    result = run("--pairs", "nowhere.tsv", "--out", str(tmp_path / "x"))
    assert result.exit_code == 1
    assert "must exist, got nowhere.tsv" in result.stderr


def test_without_torch_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = importlib.util.find_spec

    def find(name: str, *rest: Any) -> Any:
        return None if name == "torch" else found(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    result = run("--pairs", "nowhere.tsv", "--out", str(tmp_path / "x"))
    assert result.exit_code == 1
    assert "pip install 'nestling[train]'" in result.stderr
