"""A user's whole day at the command line, with real files and real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nestling.encode import open_encoder

MODEL = ("--model", "static:wordllama")


def nestling(*args: str | Path, cwd: Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    finished = subprocess.run(
        [sys.executable, "-m", "nestling", *map(str, args)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "NESTLING_CACHE": str(cwd / "cache")},
        check=False,
    )
    assert finished.returncode == expect, finished.stderr
    assert "Traceback" not in finished.stderr
    return finished


def as_json(finished: subprocess.CompletedProcess[str]) -> Any:
    return json.loads(finished.stdout)


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `encode`, `measure`, `choose` and `build` have run on the built-in corpus."""
    folder = tmp_path_factory.mktemp("day")
    nestling("encode", *MODEL, "--corpus", "builtin", "--out", "vectors", cwd=folder)
    nestling("measure", *MODEL, "--task", "builtin", "--out", "results.json", cwd=folder)
    nestling("choose", "results.json", "--max-loss", "0.05", "--out", "plan.json", cwd=folder)
    nestling(
        "build",
        "--vectors",
        "vectors",
        "--corpus",
        "builtin",
        "--plan",
        "plan.json",
        "--out",
        "index",
        cwd=folder,
    )
    return folder


def test_the_plan_is_smaller_than_the_full_width_and_certified(day: Path) -> None:
    plan = json.loads((day / "plan.json").read_text())
    head = plan["stages"][0]
    assert head["dim"] < 256 or head["dtype"] != "float32"
    assert plan["evidence"]["certified"] is True


def test_search_finds_what_a_person_would(day: Path) -> None:
    hits = as_json(
        nestling("search", "index", "decode a JSON document", "--top-k", "5", "--json", cwd=day)
    )["hits"]
    assert len(hits) == 5
    assert any("json" in hit["id"] for hit in hits)
    assert all(hit["text"] for hit in hits)
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)


def test_measure_prints_rows_that_scripts_may_lean_on(day: Path) -> None:
    rows = as_json(
        nestling("measure", *MODEL, "--task", "builtin", "--dims", "16,64,256", "--json", cwd=day)
    )["rows"]
    prefix = [row for row in rows if row["family"] == "prefix" and row["metric"] == "ndcg_at_10"]
    needed = {
        "model",
        "task",
        "family",
        "dim",
        "dtype",
        "metric",
        "value",
        "bytes_per_vector",
        "seconds",
    }
    assert all(needed <= row.keys() for row in rows)
    curve = [row["value"] for row in prefix if row["dtype"] == "float32"]
    assert curve == sorted(curve)
    assert {row["family"] for row in rows} >= {"prefix", "pca", "random", "funnel"}


def test_choose_says_so_when_there_is_not_enough_evidence(day: Path) -> None:
    finished = nestling(
        "choose",
        "results.json",
        "--max-loss",
        "0.0001",
        "--out",
        "never.json",
        "--json",
        cwd=day,
        expect=1,
    )
    decision = as_json(finished)
    assert decision["certified"] is False
    assert decision["plan"] is None
    assert "queries" in decision["verdict"]
    assert not (day / "never.json").exists()


def test_reports_stand_beside_the_files(day: Path) -> None:
    for name in ("results.html", "plan.html"):
        page = (day / name).read_text()
        assert "<svg" in page
        assert len(page) < 1_500_000


def test_nothing_is_overwritten_silently(day: Path) -> None:
    before = (day / "results.json").read_bytes()
    finished = nestling(
        "measure", *MODEL, "--task", "builtin", "--out", "results.json", cwd=day, expect=1
    )
    assert "--overwrite" in finished.stderr
    assert (day / "results.json").read_bytes() == before


def test_queries_of_another_space_are_refused(day: Path, tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((20, 256)).astype(np.float32)
    np.save(tmp_path / "other.npy", vectors)
    nestling("build", "--vectors", "other.npy", "--out", "index", cwd=tmp_path)
    finished = nestling("search", "index", "hello", *MODEL, cwd=tmp_path, expect=1)
    assert "two spaces" in finished.stderr
    assert "wordllama" in finished.stderr


def test_vectors_without_judgements(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((3000, 32)) / np.sqrt(np.arange(1, 33))
    np.save(tmp_path / "mine.npy", vectors.astype(np.float32))
    nestling("measure", "--task", "self:mine.npy", "--out", "results.json", cwd=tmp_path)
    decision = as_json(
        nestling("choose", "results.json", "--max-loss", "0.3", "--json", cwd=tmp_path)
    )
    assert "full-width ranking" in decision["verdict"]
    assert "quality" not in decision["verdict"]


def test_a_folder_of_markdown(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "tea.md").write_text(
        "# Tea\n\nGreen tea wants water at eighty degrees.\n\n## Black\n\nBoiling water.\n"
    )
    (notes / "bread.md").write_text("# Bread\n\nRye bread needs a sourdough and a long rest.\n")
    nestling("build", *MODEL, "--corpus", "notes", "--out", "index", cwd=tmp_path)
    hits = as_json(
        nestling("search", "index", "how hot for green tea", "--top-k", "1", "--json", cwd=tmp_path)
    )["hits"]
    assert hits[0]["id"].startswith("tea.md#")
    assert hits[0]["metadata"]["path"] == "tea.md"
    shown = nestling(
        "search", "index", "how hot for green tea", "--top-k", "1", cwd=tmp_path
    ).stdout
    assert hits[0]["metadata"]["heading"] in shown
    assert "eighty degrees" in shown


@pytest.mark.parametrize(
    ("args", "status", "says"),
    [
        (("measure", *MODEL, "--task", "builtin", "--dims", "8,4"), 1, "must ascend"),
        (("measure", *MODEL, "--task", "builtin", "--dims", "8,999"), 1, "[1, 256]"),
        (("measure", *MODEL, "--task", "builtin", "--dims", "x"), 2, "8,16,32"),
        (("measure", *MODEL, "--task", "beir:/nowhere"), 1, "/nowhere"),
        (("measure", "--model", "word2vec:x", "--task", "builtin"), 1, "static"),
        (("measure", "--task", "builtin"), 2, "--model"),
        (("choose", "missing.json"), 1, "missing.json"),
        (("search", "missing", "hello"), 1, "missing"),
        (("build", "--out", "index"), 2, "--vectors"),
        (("encode", *MODEL, "--corpus", "builtin"), 2, "--out"),
    ],
    ids=lambda value: " ".join(value[:1] + value[-2:]) if isinstance(value, tuple) else None,
)
def test_mistakes_get_one_helpful_line(
    args: tuple[str, ...], status: int, says: str, tmp_path: Path
) -> None:
    assert says in nestling(*args, cwd=tmp_path, expect=status).stderr


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "nestling", "choose", "missing.json", "--debug"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert finished.returncode == 1
    assert "Traceback" in finished.stderr


def test_ctrl_c_leaves_a_folder_that_resumes(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    with corpus.open("w") as file:
        for row in range(120_000):
            file.write(
                json.dumps(
                    {"id": str(row), "text": f"sentence number {row} about topic {row % 97}"}
                )
                + "\n"
            )
    command = [
        sys.executable,
        "-m",
        "nestling",
        "encode",
        *MODEL,
        "--corpus",
        str(corpus),
        "--out",
        "vectors",
    ]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline_s = time.monotonic() + 60
    blocks = tmp_path / "vectors" / "blocks.jsonl"
    while not (blocks.exists() and blocks.stat().st_size) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, talk = process.communicate(timeout=60)
    assert process.returncode == 130, talk
    assert "same command" in talk
    assert "Traceback" not in talk
    finished = subprocess.run(
        [*command, "--json"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert json.loads(finished.stdout)["num_documents"] == 120_000


def test_vectors_of_a_model_that_is_named_answer_text(tmp_path: Path) -> None:
    texts = ["green tea wants hot water", "rye bread needs a long rest", "salt keeps fish"]
    (tmp_path / "texts.jsonl").write_text(
        "".join(json.dumps({"id": str(row), "text": text}) + "\n" for row, text in enumerate(texts))
    )
    np.save(tmp_path / "mine.npy", open_encoder("static:wordllama").encode(texts, role="document"))
    nestling(
        "build",
        "--vectors",
        "mine.npy",
        *MODEL,
        "--corpus",
        "texts.jsonl",
        "--out",
        "index",
        cwd=tmp_path,
    )
    hits = as_json(
        nestling("search", "index", "baking a loaf", "--top-k", "1", "--json", cwd=tmp_path)
    )
    assert hits["hits"][0]["text"] == texts[1]


def test_a_folder_of_texts_is_cut_for_the_index_as_it_was_when_encoded(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "long.md").write_text(
        "# One\n\n" + "\n\n".join(f"Paragraph {n} is about tea." for n in range(60))
    )
    nestling(
        "encode",
        *MODEL,
        "--corpus",
        "notes",
        "--max-tokens",
        "40",
        "--out",
        "vectors",
        cwd=tmp_path,
    )
    finished = nestling(
        "build",
        "--vectors",
        "vectors",
        "--corpus",
        "notes",
        "--out",
        "index",
        "--json",
        cwd=tmp_path,
    )
    assert as_json(finished)["num_documents"] > 5
    nestling("search", "index", "tea", cwd=tmp_path)
