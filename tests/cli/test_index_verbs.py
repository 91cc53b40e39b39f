"""The life of an index at the command line: build, add, delete, search, resize, compact, verify, backup."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from nestling.cli import main
from nestling.core import Dtype
from nestling.encode import open_encoder
from nestling.errors import MissingExtraError
from nestling.search import ENGINES, Index, engine_class

MODEL = ("--model", "static:wordllama")
STAGES = ("--stage", "64:int8:40", "--stage", "256:float32")
PLACES = ("river", "mountain", "kitchen", "garage", "station", "library", "market", "harbour")
THINGS = ("guitar", "bread", "engine", "window", "ticket", "planet", "needle", "candle")

HOLDER = """
import sys
from pathlib import Path
from nestling.core.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NESTLING_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """192 documents with metadata."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    lines = [
        {
            "id": f"{place}-{thing}-{year}",
            "text": f"a {thing} at the {place} in {year}",
            "year": year,
            "place": place,
        }
        for place in PLACES
        for thing in THINGS
        for year in (1999, 2010, 2020)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def built(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("built") / "index"
    result = run("build", *MODEL, "--corpus", corpus, *STAGES, "--engine", "flat", "--out", path)
    assert result.exit_code == 0, result.output
    return path


@pytest.fixture
def index(built: Path, tmp_path: Path) -> Path:
    """An index of one's own."""
    return Path(shutil.copytree(built, tmp_path / "index"))


def run(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)


def as_json(*arguments: object, stdin: str | None = None) -> Any:
    result = run(*arguments, "--json", stdin=stdin)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def found(index: Path, query: str, *options: object) -> list[str]:
    return [hit["id"] for hit in as_json("search", index, query, *options)["hits"]]


def said(result: Result) -> str:
    return " ".join(result.stderr.split())


def write(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize(
    ("stages", "engine", "described"),
    [
        (STAGES, "flat", "64-d int8, keep 40 -> 256-d float32"),
        (STAGES, "graph", "graph: 64-d int8, keep 40 -> 256-d float32"),
        (
            ("--stage", "64:int4:90", "--stage", "128:int8:40", "--stage", "256:float32"),
            "graph:degree=16",
            "graph (degree 16): 64-d int4, keep 90 -> 128-d int8, keep 40 -> 256-d float32",
        ),
        (STAGES, "hnsw:degree=8", "hnsw (degree 8): 64-d int8, keep 40 -> 256-d float32"),
        (STAGES, "ivf:lists=4,probes=4", "ivf (lists 4; probes 4): 64-d int8, keep 40 -> 256"),
        (("--stage", "256:rotated-binary"), "signs", "signs: 256-d rotated-binary"),
        (("--stage", "256:float32"), "nested", "nested: 256-d float32"),
    ],
)
def test_every_engine_is_built_and_finds_what_a_person_would(
    stages: tuple[str, ...], engine: str, described: str, corpus: Path, tmp_path: Path
) -> None:
    built = as_json(
        "build", *MODEL, "--corpus", corpus, *stages, "--engine", engine, "--out", tmp_path / "i"
    )
    assert built["num_documents"] == 192
    assert built["plan"].startswith(described)
    assert built["head_bytes"] + built["engine_bytes"] > 0
    assert built["full_bytes"] == 192 * 256 * 4
    hits = found(tmp_path / "i", "bread in the kitchen", "--top-k", 3)
    assert all(hit.startswith("kitchen-bread-") for hit in hits)


def test_pages_join(index: Path) -> None:
    whole = found(index, "a ticket", "--top-k", 60)
    pages = [found(index, "a ticket", "--top-k", 20, "--offset", start) for start in (0, 20, 40)]
    assert [hit for page in pages for hit in page] == whole
    assert len(set(whole)) == 60
    shown = run("search", index, "a ticket", "--top-k", 2, "--offset", 20).stdout
    assert re.match(rf" 21\. 0\.\d+  {pages[1][0]}\n", shown)


def test_a_filter_leaves_only_what_passes_and_still_fills_the_page(index: Path) -> None:
    options = ("--top-k", 24, "--where", 'place == "harbour" and year >= 2010')
    hits = as_json("search", index, "bread in the kitchen", *options)["hits"]
    assert len(hits) == 16
    assert {hit["metadata"]["place"] for hit in hits} == {"harbour"}
    assert {hit["metadata"]["year"] for hit in hits} == {2010, 2020}
    nothing = run("search", index, "bread", "--where", "year > 2020")
    assert (nothing.exit_code, nothing.stdout) == (0, "")
    assert "0 of 192 documents by 64-d int8, keep 40 -> 256-d float32" in nothing.stderr


def test_a_filter_that_is_none_is_refused_with_the_place(index: Path) -> None:
    refused = run("search", index, "bread", "--where", "year >=")
    assert refused.exit_code == 1
    assert "error: `where` must be a filter such as" in said(refused)
    assert "at character 8 it must have a value" in said(refused)


def test_explain_says_what_each_stage_did(index: Path) -> None:
    trace = as_json("search", index, "bread", "--explain")["trace"]
    assert [(stage["dim"], stage["dtype"], stage["num_scored"]) for stage in trace["stages"]] == [
        (64, "int8", 192),
        (256, "float32", 40),
    ]
    assert trace["stages"][1]["bytes_read"] == 40 * 256 * 4
    assert trace["certificate"] is None
    shown = run("search", index, "bread", "--explain").stdout
    assert "what the search did (generation 1)" in shown
    assert re.search(r"256-d float32 │ re-scoring │ +40 │ +40,960 │", shown)
    assert "trace" not in as_json("search", index, "bread")


def test_the_nested_engine_shows_its_certificate(index: Path) -> None:
    assert run("resize", index, "--stage", "256:float32", "--engine", "nested").exit_code == 0
    certificate = as_json("search", index, "bread", "--explain")["trace"]["certificate"]
    assert certificate
    assert json.dumps(certificate) in run("search", index, "bread", "--explain").stdout


def test_documents_are_added_once_and_replaced_when_asked(index: Path, tmp_path: Path) -> None:
    tea = {"id": "tea", "text": "green tea wants hot water", "year": 2024}
    new = write(tmp_path / "new.jsonl", tea, {"id": "salt", "text": "salt keeps fish"})
    report = as_json("add", index, "--corpus", new)
    assert (report["num_added"], report["num_new"], report["num_documents"]) == (2, 2, 194)
    assert report["generation"] == 2
    assert found(index, "brewing tea", "--top-k", 1) == ["tea"]

    again = run("add", index, "--corpus", new)
    assert again.exit_code == 1
    assert "`doc_ids` must be new to" in said(again)
    assert "got 2 known: 'tea', 'salt'." in said(again)

    changed = write(tmp_path / "changed.jsonl", {**tea, "text": "rye bread rests", "year": 2025})
    told = run("add", index, "--corpus", changed, "--upsert")
    assert re.match(r"added 1 documents, 0 of them new, in .* s; 194 in all \(gen", told.stdout)
    assert found(index, "rye bread that rests", "--top-k", 1) == ["tea"]
    assert found(index, "x", "--where", "year == 2024") == []


def test_vectors_are_added_with_their_texts_and_must_fit_them(index: Path, tmp_path: Path) -> None:
    new = write(tmp_path / "new.jsonl", {"id": "0", "text": "green tea"})
    vectors = open_encoder("static:wordllama").encode(["green tea"], role="document")
    np.save(tmp_path / "new.npy", vectors)
    nameless = run("add", index, "--vectors", tmp_path / "new.npy")
    assert nameless.exit_code == 2
    assert "new.npy does not say which model made it. Name it with --model" in said(nameless)
    added = as_json("add", index, "--vectors", tmp_path / "new.npy", *MODEL, "--corpus", new)
    assert added["num_documents"] == 193
    (hit,) = as_json("search", index, "tea", "--top-k", 1)["hits"]
    assert (hit["id"], hit["text"]) == ("0", "green tea")

    folder = tmp_path / "vectors"
    assert run("encode", *MODEL, "--corpus", new, "--out", folder).exit_code == 0
    other = write(tmp_path / "other.jsonl", {"id": "other", "text": "x"})
    missing = run("add", index, "--vectors", folder, "--corpus", other, "--upsert")
    assert missing.exit_code == 1
    assert "`corpus` must hold every document of `vectors`, got 1 missing: '0'" in said(missing)
    changed = write(tmp_path / "changed.jsonl", {"id": "0", "text": "black tea"})
    refused = run("add", index, "--vectors", folder, "--corpus", changed, "--upsert")
    assert refused.exit_code == 1
    assert "must be those that were encoded" in said(refused)


def test_vectors_of_a_file_take_more_of_the_same(tmp_path: Path, nested_vectors: Any) -> None:
    np.savez(tmp_path / "a.npz", vectors=nested_vectors[:50], ids=[f"a{n}" for n in range(50)])
    np.savez(tmp_path / "b.npz", vectors=nested_vectors[50:60], ids=[f"b{n}" for n in range(10)])
    index, more = tmp_path / "index", ("--vectors", tmp_path / "b.npz")
    as_json("build", "--vectors", tmp_path / "a.npz", "--out", index)
    refused = run("add", index, *more, *MODEL)
    assert refused.exit_code == 1, refused.output
    added = as_json("add", index, *more, "--model", f"vectors:{tmp_path / 'a.npz'}")
    assert added["num_documents"] == 60


def test_documents_of_another_model_are_refused(index: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "other.npy", np.random.default_rng(0).standard_normal((3, 256)))
    options = ("--vectors", tmp_path / "other.npy", "--model", f"vectors:{tmp_path / 'other.npy'}")
    refused = run("add", index, *options)
    assert refused.exit_code == 1
    assert "vectors of two spaces cannot be compared: index" in said(refused)
    assert len(Index.open(index)) == 192


def test_deleted_documents_are_gone_and_all_or_none(index: Path, tmp_path: Path) -> None:
    first = "kitchen-bread-1999"
    refused = run("delete", index, first, "nobody")
    assert refused.exit_code == 1
    assert "got 1 unknown: 'nobody'. Leave them out; nothing was deleted." in said(refused)
    assert first in found(index, "bread in the kitchen", "--top-k", 3)

    told = run("delete", index, first)
    assert re.match(r"deleted 1 of 192 documents in .* s \(generation 2\)", told.stdout)
    gone = tmp_path / "gone.txt"
    gone.write_text("kitchen-bread-2010\r\n\nkitchen-bread-2020\n")
    report = as_json("delete", index, "--ids-from", gone)
    assert (report["num_deleted"], report["num_documents"]) == (2, 189)
    assert (
        as_json("delete", index, "--ids-from", "-", stdin="river-bread-1999\n")["generation"] == 4
    )
    assert not [hit for hit in found(index, "bread in the kitchen") if "kitchen-bread" in hit]


def heavy_modules_after(*arguments: object) -> set[str]:
    """Return what takes long to load, and a verb loads in a process of its own."""
    program = (
        "import sys\nfrom nestling.cli import main\n"
        f"main({[str(argument) for argument in arguments]!r}, standalone_mode=False)\n"
        "print(*sorted({'faiss', 'numba', 'scipy'} & set(sys.modules)), file=sys.stderr)"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return set(finished.stderr.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("engine", "stages"),
    [
        ("flat", STAGES),
        ("graph", STAGES),
        ("nested", ("--stage", "256:float32")),
        ("signs", ("--stage", "256:rotated-binary")),
    ],
)
def test_a_verb_that_scores_nothing_loads_nothing_compiled(
    engine: str, stages: tuple[str, ...], index: Path, tmp_path: Path
) -> None:
    as_json("resize", index, *stages, "--engine", engine)
    assert heavy_modules_after("delete", index, "river-bread-1999") == set()
    assert heavy_modules_after("backup", index, "--out", tmp_path / "copy") == set()
    assert heavy_modules_after("search", index, "bread at the river") >= {"numba"}
    assert found(index, "bread at the river")


def test_compact_frees_what_was_deleted_and_says_when_there_is_nothing_to_do(index: Path) -> None:
    as_json("delete", index, *(f"{place}-bread-1999" for place in PLACES))
    before = found(index, "bread in the kitchen", "--top-k", 50)
    report = as_json("compact", index)
    assert (report["is_changed"], report["num_dropped"]) == (True, 8)
    assert report["full_bytes_before"] - report["full_bytes"] == 8 * 256 * 4
    assert found(index, "bread in the kitchen", "--top-k", 50) == before
    assert as_json("compact", index)["is_changed"] is False
    assert run("compact", index).stdout.startswith("nothing to do: no dead rows, and the engine")


def test_resize_changes_the_plan_and_encodes_nothing(index: Path, tmp_path: Path) -> None:
    report = as_json("resize", index, "--stage", "128:int8", "--engine", "graph:degree=8")
    assert report["plan_before"] == "64-d int8, keep 40 -> 256-d float32"
    assert report["plan"] == "graph (degree 8): 128-d int8"
    assert report["ram_bytes"] > report["ram_bytes_before"]
    index_object = Index.open(index)
    assert index_object.nesting_dims == (64, 128, 256)
    index_object.plan.save(tmp_path / "plan.json")
    run("resize", index, "--stage", "32:int8:50", "--stage", "256:float32")
    told = run("resize", index, "--plan", tmp_path / "plan.json")
    assert told.stdout.startswith(
        "32-d int8, keep 50 -> 256-d float32\n  -> graph (degree 8): 128-d int8\n"
    )
    hits = found(index, "bread in the kitchen", "--top-k", 3)
    assert all(hit.startswith("kitchen-bread-") for hit in hits)


def test_verify_and_search_name_a_flipped_byte(index: Path) -> None:
    report = as_json("verify", index)
    assert (report["verified"], report["num_documents"], report["generation"]) == (True, 192, 1)
    assert run("verify", index).stdout.startswith(f"{index}: all 192 documents are as they were")
    (vectors,) = index.glob("rows-*/vectors.bin")
    content = bytearray(vectors.read_bytes())
    content[5 * 1024] ^= 1
    vectors.write_bytes(content)
    damaged = run("verify", index, "--json")
    assert (damaged.exit_code, damaged.stdout) == (1, "")
    assert "rows-1/vectors.bin. Restore the file from a copy" in said(damaged)
    (codes,) = index.glob("tier-*/codes.bin")
    codes.write_bytes(bytes(64) + codes.read_bytes()[64:])
    both = run("verify", index)
    assert both.exit_code == 1
    assert "rows-1/vectors.bin, tier-1-64-int8/codes.bin. Restore" in said(both)
    searched = run("search", index, "bread")
    assert searched.exit_code == 1
    assert f"{codes} is damaged" in said(searched)


def test_a_backup_is_an_index_like_any_other(index: Path, tmp_path: Path) -> None:
    as_json("delete", index, "river-bread-1999")
    report = as_json("backup", index, "--out", tmp_path / "copy")
    assert (report["num_documents"], report["generation"]) == (191, 2)
    assert found(tmp_path / "copy", "bread") == found(index, "bread")
    assert as_json("verify", tmp_path / "copy")["verified"] is True
    refused = run("backup", index, "--out", tmp_path / "copy")
    assert refused.exit_code == 1
    assert "copy exists and is never overwritten. Name another --out." in said(refused)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("search", "INDEX", " "), 2, "QUERY must not be empty."),
        (("search", "INDEX", "x", "--top-k", "0"), 2, "0 is not in the range x>=1."),
        (("search", "INDEX", "x", "--offset", "-1"), 2, "-1 is not in the range x>=0."),
        (("add", "INDEX"), 2, "give --corpus, or --vectors."),
        (("delete", "INDEX"), 2, "name the documents to delete, or give --ids-from."),
        (("delete", "INDEX", "--ids-from", "no.txt"), 2, "'no.txt': No such file"),
        (("delete", "INDEX", "a", "a"), 1, "ids"),
        (("resize", "INDEX"), 2, "say how to search: --plan, or --stage and --engine."),
        (("resize", "INDEX", "--engine", "graph"), 2, "--engine needs at least one --stage"),
        (("resize", "INDEX", "--stage", "64:int9"), 2, "like 64:int8:200, got '64:int9'."),
        (("resize", "INDEX", "--stage", "64"), 2, "like 64:int8:200, got '64'."),
        (("resize", "INDEX", "--stage", "64:int8:9"), 1, "the last has none, got [9]"),
        (("resize", "INDEX", "--stage", "512:int8"), 1, "`dim` must lie in [1, 256]"),
        (("resize", "INDEX", "--stage", "64:int8", "--engine", "x"), 2, "flat, nested, graph"),
        (("resize", "INDEX", "--stage", "64:int8", "--engine", "flat:a=1"), 2, "It takes none."),
        (("resize", "INDEX", "--stage", "64:int8", "--engine", "graph:a"), 2, "whole numbers"),
        (
            ("resize", "INDEX", "--stage", "64:int8", "--engine", "graph:degree=9999"),
            1,
            "`degree` of the engine 'graph' must lie in [4, 256], got 9999.",
        ),
        (("resize", "INDEX", "--stage", "64:int8", "--engine", "signs"), 1, "signs"),
        (
            ("resize", "INDEX", "--plan", "p.json", "--stage", "64:int8"),
            2,
            "give --plan, or --stage and --engine, not both.",
        ),
        (("resize", "INDEX", "--plan", "p.json"), 1, "p.json"),
        *(((verb, "nowhere"), 1, "nowhere is not an index") for verb in ("verify", "compact")),
        (("backup", "nowhere", "--out", "copy"), 1, "nowhere is not an index"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_mistakes_get_one_helpful_line(
    arguments: tuple[str, ...], status: int, message: str, built: Path
) -> None:
    refused = run(*(built if argument == "INDEX" else argument for argument in arguments))
    assert refused.exit_code == status, refused.output
    assert message in said(refused)
    assert refused.stdout == ""
    assert not isinstance(refused.exception, BaseException) or isinstance(
        refused.exception, SystemExit
    )


def test_a_mistake_in_a_plan_does_not_wait_for_the_encoding(corpus: Path, tmp_path: Path) -> None:
    narrower = ("--stage", "64:int8:9", "--stage", "32:int8")
    refused = run("build", *MODEL, "--corpus", corpus, *narrower, "--out", tmp_path / "index")
    assert refused.exit_code == 1
    assert said(refused).startswith("error: `stages` must not get narrower along the chain")
    missing = run("build", "--vectors", "no.npy", "--plan", "no.json", "--out", tmp_path / "index")
    assert "no.json" in said(missing)
    assert not (tmp_path / "index").exists()


def test_the_page_on_search_has_every_engine_with_its_settings() -> None:
    page = (Path(__file__).parents[2] / "docs" / "search.md").read_text()
    for name in ENGINES:
        (line,) = re.findall(rf"^\| `{name}` \|.*$", page, re.MULTILINE)
        try:
            engine = engine_class(name)
        except MissingExtraError:  # its row can be read by those who have it
            continue
        build, _, search = line.split("|")[-2].partition(";")
        for told, settings in ((build, engine.build_settings), (search, engine.search_settings)):
            named = {key: int(value) for key, value in re.findall(r"`(\w+)` (\d+)", told)}
            assert named == {key: setting.default for key, setting in settings.items()}, name
        assert ("| yes |" in line) == engine.is_exact
        heads = set(Dtype) if "| all |" in line else set(re.findall(r"[\w-]+", line.split("|")[4]))
        assert heads == set(engine.formats), name


def test_another_writer_is_told_of_in_one_line(index: Path) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            HOLDER,
            str(index),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    refused = run("delete", index, "river-bread-1999")
    searched = run("search", index, "bread")
    holder.communicate("")
    assert refused.exit_code == 1
    assert "is being written by another process. Wait until it is done." in said(refused)
    assert searched.exit_code == 0
    assert run("delete", index, "river-bread-1999").exit_code == 0
