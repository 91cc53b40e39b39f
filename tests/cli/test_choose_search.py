"""`nestling choose --vectors | --index` and `nestling build --target`: plans chosen by measurement."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from nestling.cli import main
from nestling.search import Index, Plan

QUICK = ("--time-budget", "1", "--num-queries", "200")
WORDS = (
    *("river", "mountain", "kitchen", "garage", "station", "library", "market", "harbour"),
    *("guitar", "bread", "engine", "window", "ticket", "planet", "needle", "candle"),
    *("doctor", "garden", "bridge", "winter", "paper", "copper", "tailor", "violin"),
)


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NESTLING_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory, nested_vectors: np.ndarray) -> Path:
    path = tmp_path_factory.mktemp("vectors") / "mine.npy"
    np.save(path, nested_vectors)
    return path


@pytest.fixture(scope="module")
def index(vectors: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("built") / "index"
    assert run("build", "--vectors", vectors, "--out", path).exit_code == 0
    return path


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BEIR folder: 552 documents of two words, and queries that name both the other way round."""
    folder = tmp_path_factory.mktemp("task")
    pairs = [(a, b) for a in WORDS for b in WORDS if a != b]
    documents = [{"_id": f"{a}-{b}", "text": f"a {a} near the {b}"} for a, b in pairs]
    queries = [{"_id": f"q-{a}-{b}", "text": f"the {b} and its {a}"} for a, b in pairs[::9]]
    write_lines(folder / "corpus.jsonl", documents)
    write_lines(folder / "all-but-one.jsonl", documents[1:])
    write_lines(folder / "queries.jsonl", queries)
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\n"
        + "".join(f"{each['_id']}\t{each['_id'][2:]}\t1\n" for each in queries)
    )
    return folder


def write_lines(path: Path, lines: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def said(result: Result) -> str:
    return " ".join(result.stderr.split())


def test_a_plan_for_an_index_is_written_and_fits_resize(index: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    recall = ("--target-recall", "0.9", "--engines", "flat")
    result = run("choose", "--index", index, *recall, *QUICK, "--out", out)
    assert result.exit_code == 0, result.output
    plan = Plan.load(out)
    verdict, evidence = plan.evidence["verdict"], plan.evidence["evidence"]
    assert result.stdout.startswith(verdict)
    assert verdict.startswith(f"{plan.describe()} keeps")
    assert "│ chosen" in result.stdout
    assert "│ exact" in result.stdout
    assert evidence["goal"] == "at least 90.0% of recall@10 of the exact search"
    assert evidence["queries"] == "200 documents of the corpus, each without itself"
    assert (evidence["num_queries_to_choose"], evidence["num_queries_to_tell"]) == (100, 100)
    assert f"wrote {out}" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]

    refused = run("choose", "--index", index, *recall, "--out", out)
    assert refused.exit_code == 1
    assert "plan.json exists and is never overwritten silently. Pass --overwrite" in said(refused)
    resized = run("resize", index, "--plan", out)
    assert resized.exit_code == 0, resized.output
    assert Index.open(index).plan == plan


def test_json_has_the_choice_the_front_and_what_was_measured(vectors: Path) -> None:
    limits = ("--max-memory", "100KB", "--engines", "flat")
    result = run(
        *("choose", "--vectors", vectors, "--target-recall", "0.8", *limits, *QUICK, "--json")
    )
    assert result.exit_code == 0, result.output
    choice = json.loads(result.stdout)
    assert set(choice) >= {"verdict", "plan", "chosen", "exact", "front", "points", "evidence"}
    assert choice["chosen"]["memory_bytes"] <= 100_000
    assert choice["plan"]["engine"]["name"] == "flat"
    assert choice["evidence"]["memory_budget_bytes"] == 100_000
    assert choice["front"]


def test_without_a_plan_that_fits_none_is_written(vectors: Path, tmp_path: Path) -> None:
    goal = ("--target-recall", "0.9", "--max-memory", "1KB")
    result = run("choose", "--vectors", vectors, *goal, *QUICK, "--out", tmp_path / "plan.json")
    assert result.exit_code == 1
    assert "Allow more memory, or ask for less." in result.stdout
    assert "no plan was written, since none reaches the goal." in result.stderr
    assert run("choose", "--vectors", vectors, *goal, *QUICK).exit_code == 0
    budget = ("--target", "recall=0.9", "--max-memory", "1KB", *QUICK)
    built = run("build", "--vectors", vectors, *budget, "--out", tmp_path / "index")
    assert (built.exit_code, built.stdout) == (1, "")
    assert "error: no head of these vectors keeps at least 90.0% of recall@10" in said(built)
    assert list(tmp_path.iterdir()) == []


def test_build_chooses_by_the_queries_of_a_task(task: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    corpus = ("--corpus", task / "all-but-one.jsonl", "--task", f"beir:{task}")
    model = ("--model", "static:wordllama", *corpus)
    target = ("--target", "quality=0.9", "--metric", "mrr_at_10", *QUICK)
    built = run("build", *model, *target, "--engines", "flat,graph", "--out", out, "--json")
    assert built.exit_code == 0, built.output
    report = json.loads(built.stdout)
    plan = Index.open(out).plan
    assert report["plan"] == plan.describe()
    assert report["verdict"] == plan.evidence["verdict"]
    assert "% of mrr_at_10 (95% sure: at least" in report["verdict"]
    assert plan.evidence["evidence"]["queries"] == f"61 of 62 queries of beir:{task}"
    assert "left out 1 queries that no vector is the relevant document of" in built.stderr

    # The index says which model made it, so that the queries of a task can be encoded.
    again = run(
        *("choose", "--index", out, "--min-quality", "0.9", "--task", f"beir:{task}", *QUICK),
        *("--engines", "flat", "--json"),
    )
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["evidence"]["metric"] == "ndcg_at_10"


def test_a_page_is_drawn_whether_or_not_a_plan_reaches_the_goal(
    vectors: Path, tmp_path: Path
) -> None:
    page, goal = tmp_path / "plan.html", ("--target-recall", "0.9", "--engines", "flat", *QUICK)
    result = run("choose", "--vectors", vectors, *goal, "--report", page)
    assert result.exit_code == 0, result.output
    assert f"wrote {page}" in result.stderr
    html = page.read_text("utf-8")
    verdict = result.stdout.splitlines()[0]
    assert verdict.partition(" keeps ")[2].partition(" (")[0] in html
    assert "chosen: 1" in html
    assert "<dd>1 s</dd>" in html
    assert [path.name for path in tmp_path.iterdir()] == ["plan.html"]

    again = run("choose", "--vectors", vectors, *goal, "--report", page)
    assert again.exit_code == 1
    assert "plan.html exists and is never overwritten silently. Pass --overwrite or anot" in said(
        again
    )
    assert page.read_text("utf-8") == html
    both = ("--out", tmp_path / "plan.json", "--report", page, "--overwrite")
    failed = run("choose", "--vectors", vectors, *goal, "--max-memory", "1KB", *both)
    assert failed.exit_code == 1
    assert "no plan was written" in failed.stderr
    assert "No head of these vectors keeps at least 90.0%" in page.read_text("utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["plan.html"]
    named = run("choose", "--vectors", vectors, *goal, "--report", tmp_path / "plan.json")
    assert named.exit_code == 1
    assert "`--report` must end in .html, got" in said(named)


def test_vectors_without_a_model_answer_no_task(vectors: Path, task: Path) -> None:
    quality = ("--min-quality", "0.9", "--task", f"beir:{task}")
    nameless = run("choose", "--vectors", vectors, *quality)
    assert nameless.exit_code == 2, nameless.output
    assert "the vectors do not say which model made them. Name it with --model" in said(nameless)
    other = run("choose", "--vectors", vectors, *quality, "--model", "static:wordllama")
    assert other.exit_code == 1
    assert "must be as wide as those of wordllama" in said(other)


SEARCH = ("choose", "--index", "INDEX")
BUILD = ("build", "--vectors", "VECTORS", "--out", "never")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("choose",), "give RESULTS.json, --vectors or --index, and one of them only."),
        ((*SEARCH, "--vectors", "VECTORS"), "and one of them only."),
        (SEARCH, "give --min-quality or --target-recall, and one of them only."),
        ((*SEARCH, "--min-quality", "0.9", "--target-recall", "0.9"), "and one of them only."),
        ((*SEARCH, "--target-recall", "1.5"), "1.5 is not in the range 0<x<=1."),
        ((*SEARCH, "--min-quality", "0.9"), "quality is a share of the metric of --task."),
        ((*SEARCH, "--target-recall", "0.9", "--metric", "x"), "--metric is one of --task."),
        (
            (*SEARCH, "--target-recall", "0.9", "--task", "builtin", "--metric", "map_at_100"),
            "ndcg_at_10, mrr_at_10, recall_at_10; got 'map_at_100'.",
        ),
        (
            (*SEARCH, "--target-recall", "0.9", "--max-loss", "0.1"),
            "--max-loss needs RESULTS.json; here say --min-quality or --target-recall.",
        ),
        ((*SEARCH, "--target-recall", "0.9", "--confidence", "0.9"), "--confidence needs RESULTS"),
        ((*SEARCH, "--target-recall", "0.9", "--engines", "x"), "knows flat, nested, graph"),
        ((*SEARCH, "--target-recall", "0.9", "--engines", "signs"), "'signs' is exact, and has no"),
        ((*SEARCH, "--target-recall", "0.9", "--max-memory", "9XB"), "a size like 64MB or 1.5GiB"),
        ((*SEARCH, "--target-recall", "0.9", "--num-queries", "9"), "9 is not in the range x>=10"),
        (("choose", "r.json", "--max-memory", "1MB"), "--max-memory needs --vectors or --index."),
        (("choose", "r.json", "--task", "builtin"), "--task needs --vectors or --index."),
        (
            ("choose", "r.json", "--report", "r.html"),
            "--report needs --vectors or --index: the report on RESULTS.json goes beside --out.",
        ),
        (("choose", "r.json", "--min-quality", "0.9"), "--min-quality needs --vectors or --index."),
        ((*BUILD, "--max-memory", "1MB"), "--max-memory needs --target."),
        ((*BUILD, "--task", "builtin"), "--task needs --target."),
        ((*BUILD, "--target", "0.9"), "quality=SHARE or recall=SHARE"),
        ((*BUILD, "--target", "recall=1.5"), "with a share of at most 1"),
        ((*BUILD, "--target", "quality=0.9"), "quality is a share of the metric of --task."),
        ((*BUILD, "--target", "recall=0.9", "--engine", "graph"), "leave --plan, --stage and --en"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_options_that_do_not_go_together_are_refused(
    arguments: tuple[str, ...], message: str, index: Path, vectors: Path
) -> None:
    paths = {"INDEX": index, "VECTORS": vectors}
    refused = run(*(paths.get(argument, argument) for argument in arguments))
    assert refused.exit_code == 2, refused.output
    assert message in said(refused)
    assert refused.stdout == ""


def test_queries_of_a_task_must_be_queries(index: Path, tmp_path: Path) -> None:
    sts = tmp_path / "sts.tsv"
    sts.write_text("score\tsentence1\tsentence2\n3.0\ta\tb\n1.0\tc\td\n")
    refused = run("choose", "--index", index, "--target-recall", "0.9", "--task", f"sts:{sts}")
    assert refused.exit_code == 2
    assert "has no queries to search for. Name a retrieval task" in said(refused)


@pytest.mark.parametrize(
    ("size", "num_bytes"), [("64MB", 64 * 10**6), ("1.5GiB", 3 * 2**29), ("4096", 4096)]
)
def test_sizes(size: str, num_bytes: int) -> None:
    from nestling.cli.goals import SizeParameter

    assert SizeParameter().convert(size, None, None) == num_bytes
