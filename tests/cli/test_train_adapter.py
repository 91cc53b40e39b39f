import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from nestling.cli import main
from nestling.encode import open_encoder
from nestling.train.adapter import METHODS
from nestling.train.adapter.adapter import DEFAULT_SAMPLE_ROWS

WORDS = ("river", "mountain", "guitar", "bread", "engine", "window", "doctor", "planet")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NESTLING_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    lines = [
        {"_id": f"{a}-{b}-{c}", "text": f"{a} near a {b} and no {c}"}
        for a in WORDS
        for b in WORDS
        for c in WORDS[:3]
        if a < b
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


@pytest.fixture
def vectors(tmp_path: Path, nested_vectors: np.ndarray) -> Path:
    """Vectors that are nested from the back."""
    path = tmp_path / "mine.npy"
    np.save(path, nested_vectors[:400, ::-1])
    return path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["train", "adapter", *arguments])


def said(result: Result) -> str:
    return " ".join(result.stderr.replace("│", " ").split())


def test_the_table_the_verdict_and_what_to_do_next(vectors: Path, tmp_path: Path) -> None:
    out = tmp_path / "nested"
    result = run("--fit-on", str(vectors), "--dims", "8,16", "--method", "pca", "--out", str(out))
    assert result.exit_code == 0, result.output
    rows = re.findall(
        r"│ (\w+) +│ +([\d.]+)% │ +([\d.]+)% │ +([\d.]+)% │ +[\d.]+% │ (\w*)", result.stdout
    )
    assert [(name, mark) for name, *_, mark in rows] == [("identity", ""), ("pca", "chosen")]
    assert float(rows[1][1]) > float(rows[0][1]) + 20
    assert [float(row[3]) for row in rows] == [100, 100]
    assert re.search(
        r"As asked for with the method pca: at \d+ dims the first \d+ coordinates now keep [\d.]+% of the ten nearest neighbours, before",
        result.stdout,
    )
    assert "does not say which model made it" in said(result)
    assert f"nestling measure --model nest:{out} --task TASK" in said(result)
    assert f"nestling encode --model nest:{out} --vectors VECTORS --out ADAPTED" in said(result)


def test_texts_are_encoded_by_the_model_and_json_says_what_was_written(
    texts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "nested"
    chosen = ["--dims", "8", "--method", "pca", "--max-tokens", "9", "--json"]
    result = run("--model", "static:wordllama", "--fit-on", str(texts), *chosen, "--out", str(out))
    assert result.exit_code == 0, result.output
    printed: dict[str, Any] = json.loads(result.stdout)
    assert set(printed) == {"out", "model", "record"}
    assert (printed["out"], printed["model"]) == (str(out), f"nest:{out}")
    stored = json.loads((out / "nestling.json").read_text())["training"]
    assert stored == printed["record"]
    assert stored["fitted_on"] == str(texts)
    encoder = open_encoder(printed["model"])
    assert encoder.max_tokens == 9
    assert encoder.encode(["a river"], role="query").shape == (1, 256)
    again = run("--model", "static:wordllama", "--fit-on", str(texts), *chosen, "--out", str(out))
    assert again.exit_code == 1
    assert "holds a finished model and is never overwritten silently" in said(again)


def test_pairs_give_a_table_of_their_own(texts: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.tsv"
    lines = [f"{a} or {b}\tthe {a} of a {b}" for a in WORDS for b in WORDS if a < b]
    pairs.write_text("\n".join(["anchor\tpositive", *lines]) + "\n")
    chosen = ["--method", "supervised", "--pairs", str(pairs), "--dims", "8"]
    result = run(
        "--model", "static:wordllama", "--fit-on", str(texts), *chosen, "--out", str(tmp_path / "x")
    )
    assert result.exit_code == 0, result.output
    assert "ndcg_at_10 on held-out groups of pairs.tsv" in " ".join(result.stdout.split())
    assert len(re.findall(r"│ supervised +│", result.stdout)) == 2


def test_few_groups_of_pairs_are_said_to_be_too_few(texts: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("anchor\tpositive\na river\ta bridge\nbread\ta baker\na horse\ta rider\n")
    chosen = ["--method", "pca", "--pairs", str(pairs), "--dims", "8"]
    result = run(
        "--model", "static:wordllama", "--fit-on", str(texts), *chosen, "--out", str(tmp_path / "x")
    )
    assert result.exit_code == 0, result.output
    assert "holding pairs out takes at least 4 groups, and texts that differ" in said(result)


def test_shortfalls_stand_in_the_tables_that_are_judged(vectors: Path, tmp_path: Path) -> None:
    chosen = ["--dims", "8", "--method", "pca", "--quantize", "int8,binary"]
    result = run("--fit-on", str(vectors), *chosen, "--out", str(tmp_path / "x"))
    assert result.exit_code == 0, result.output
    plain, *coded = result.stdout.split("ten nearest neighbours kept in ")[1:]
    assert "shortfall" not in plain
    assert len(coded) == 2
    for table in coded:
        words = " ".join(re.sub("[│┃]", " ", table).split())
        assert "shortfall over int8, binary" in words


def test_ctrl_c_leaves_no_folder_and_promises_no_checkpoint(
    vectors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nestling.train.adapter.adapter.choose", interrupted)
    out = tmp_path / "x"
    result = run("--fit-on", str(vectors), "--dims", "8", "--method", "pca", "--out", str(out))
    assert result.exit_code == 130
    assert "Anything else is as it was, and starts anew" in said(result)
    assert not out.exists()


def test_help_names_every_method_and_the_size_of_the_sample() -> None:
    shown = run("--help").stdout
    assert f"[default: {DEFAULT_SAMPLE_ROWS:,}]" in " ".join(shown.split())
    assert all(re.search(rf"^  +{method} ", shown, re.M) for method in METHODS)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "Missing option '--fit-on'"),
        (["--fit-on", "builtin"], 2, "--fit-on builtin holds no vectors: name a --model"),
        (["--fit-on", "nope.npy"], 1, "`path` must exist, got nope.npy. Did you mean mine.npy?"),
        (["--fit-on", "self:nope.npy"], 1, "`path` must exist, got nope.npy"),
        (
            ["--fit-on", "{v}", "--base-url", "http://x"],
            2,
            "--base-url and --max-tokens belong to a --model, and none is named",
        ),
        (
            ["--fit-on", "{v}", "--max-tokens", "5"],
            2,
            "--base-url and --max-tokens belong to a --model, and none is named",
        ),
        (
            ["--fit-on", "{v}", "--dims", "8", "--method", "banded"],
            1,
            "`method` banded needs at least two widths below the full one",
        ),
        (["--fit-on", "{v}", "--method", "magic"], 2, "'magic' is not one of"),
        (["--fit-on", "{v}", "--dims", "8,128"], 1, "must lie in [1, 64]"),
        (["--fit-on", "{v}", "--dims", "64"], 1, "must name a width below the full one, 64"),
        (["--fit-on", "{v}", "--dims", "8", "--quantize", "float16"], 1, "must be among int8"),
        (["--fit-on", "{v}", "--dims", "8", "--sample-rows", "20"], 1, "must be at least 58"),
        (
            ["--fit-on", "{v}", "--dims", "8", "--pairs", "builtin"],
            2,
            "--pairs hold texts: name a --model",
        ),
        (
            ["--fit-on", "{v}", "--dims", "8", "--method", "supervised"],
            1,
            "`pairs` must be given to learn a supervised rotation",
        ),
        (
            ["--model", "static:wordllama", "--fit-on", "{v}"],
            1,
            "which are 256 wide, got 64",
        ),
        (
            ["--model", "static:wordllama", "--fit-on", "nowhere.jsonl"],
            1,
            "nowhere.jsonl",
        ),
        (
            ["--model", "static:wordllama", "--fit-on", "sts:x"],
            1,
            "must name documents",
        ),
    ],
)
def test_bad_input_leaves_nothing_behind(
    vectors: Path,
    arguments: list[str],
    status: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*(part.replace("{v}", str(vectors)) for part in arguments), "--out", "x")
    assert result.exit_code == status, result.output
    assert message in said(result)
    assert not Path("x").exists()


def test_bad_rows_are_named_or_left_out(tmp_path: Path, nested_vectors: np.ndarray) -> None:
    rows = nested_vectors[:200].copy()
    rows[5] = 0
    np.save(tmp_path / "holed.npy", rows)
    holed = ["--fit-on", str(tmp_path / "holed.npy"), "--dims", "8", "--method", "pca"]
    refused = run(*holed, "--out", str(tmp_path / "x"))
    assert refused.exit_code == 1
    assert "'5'" in refused.stderr
    result = run(*holed, "--bad-rows", "drop", "--out", str(tmp_path / "x"))
    assert result.exit_code == 0, result.output
    assert "left out 1 zero, NaN or infinite rows" in said(result)


def test_without_torch_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = importlib.util.find_spec

    def find(name: str, *rest: Any) -> Any:
        return None if name == "torch" else found(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    result = run("--fit-on", "mine.npy", "--out", str(tmp_path / "x"))
    assert result.exit_code == 1
    assert "pip install 'nestling[train]'" in result.stderr
