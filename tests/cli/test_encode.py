import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import save_file

from nestling.cli import main
from nestling.core import Dtype
from nestling.encode import VectorFolder, encode_corpus, open_encoder
from nestling.encode.nest import WEIGHTS_FILE, WEIGHTS_KEY
from tests.encode.adapters import save_adapter
from tests.encode.fakes import FakeEncoder, make_corpus, make_texts
from tests.encode.graphs import TABLE, save_tokenizer
from tests.encode.test_nest import stamp


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def adapt(folder: Path, vectors: Path | None = None) -> tuple[object, ...]:
    """The command but for its --out."""
    model = f"nest:{folder}/adapter"
    return ("encode", "--model", model, "--vectors", vectors or folder / "vectors")


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with vectors of a real model, an adapter of it, and the vectors adapted."""
    folder = tmp_path_factory.mktemp("day")
    parent = open_encoder("static:wordllama")
    encode_corpus(parent, make_corpus(make_texts(50)), folder / "vectors")
    save_adapter(folder / "adapter", parent.fingerprint)
    adapted = run(*adapt(folder), "--out", folder / "adapted", "--json")
    assert adapted.exit_code == 0, adapted.output
    (folder / "report.json").write_text(adapted.stdout)
    return folder


def test_json_says_what_was_made_of_the_vectors(day):
    report = json.loads((day / "report.json").read_text())
    folder = VectorFolder.open(day / "adapted")
    assert report["fingerprint"] == folder.fingerprint.to_json()
    assert report["fingerprint"]["origin"] == {"model": f"nest:{day.resolve()}/adapter"}
    expected = {
        "out": str(day / "adapted"),
        "num_documents": 50,
        "embed_dim": 256,
        "dtype": "float32",
        "num_encoded": 50,
        "num_resumed": 0,
        "num_dropped": 0,
        "corpus_hash": folder.corpus_hash,
    }
    assert {key: report[key] for key in expected} == expected


def test_people_are_told_in_a_line_and_a_second_run_has_nothing_to_do(day):
    again = run(*adapt(day), "--out", day / "adapted")
    assert again.exit_code == 0, again.output
    assert again.stdout.startswith("50 vectors x 256 dims in float32 (0.1 MB) -> ")
    assert "0 adapted, 50 there already, 0 copied from unchanged or equal inputs" in again.stdout
    assert "adapting vectors: 50 in" in again.stderr


def test_the_number_format_is_float32_unless_asked_for(day, tmp_path):
    half = run(*adapt(day), "--out", tmp_path / "half", "--dtype", "float16", "--json")
    assert json.loads(half.stdout)["dtype"] == "float16"
    again = run(*adapt(day, tmp_path / "half"), "--out", tmp_path / "twice")
    assert again.exit_code == 1
    assert "differ in adapter" in again.stderr
    half_vectors = encode_corpus(
        open_encoder("static:wordllama"),
        make_corpus(make_texts(3)),
        tmp_path / "small",
        dtype=Dtype.FLOAT16,
    ).folder
    mapped = run(*adapt(day, half_vectors.path), "--out", tmp_path / "mapped", "--json")
    assert json.loads(mapped.stdout)["dtype"] == "float32"


def test_a_corpus_is_encoded_as_before(tmp_path):
    (tmp_path / "corpus.jsonl").write_text('{"_id": "one", "text": "tea"}\n')
    encoded = run(
        *("encode", "--model", "static:wordllama", "--corpus", tmp_path / "corpus.jsonl"),
        *("--out", tmp_path / "out", "--json"),
    )
    assert encoded.exit_code == 0, encoded.output
    assert json.loads(encoded.stdout)["dtype"] == "float32"


def test_an_index_of_adapted_vectors_is_searched_with_text(day, tmp_path):
    for name in ("vectors", "adapted"):
        built = run("build", "--vectors", day / name, "--out", tmp_path / name)
        assert built.exit_code == 0, built.output
    plain, turned = (
        json.loads(run("search", tmp_path / name, "a nest of vectors", "--json").stdout)["hits"]
        for name in ("vectors", "adapted")
    )
    assert [hit["id"] for hit in turned] == [hit["id"] for hit in plain]
    np.testing.assert_allclose(
        [hit["score"] for hit in turned], [hit["score"] for hit in plain], atol=1e-5
    )


def test_a_plain_file_is_taken_at_its_word_and_that_is_said(day, tmp_path):
    np.save(tmp_path / "v.npy", np.array(VectorFolder.open(day / "vectors").vectors))
    adapted = run(*adapt(day, tmp_path / "v.npy"), "--out", tmp_path / "out")
    assert adapted.exit_code == 0, adapted.output
    assert (
        "v.npy does not say which model made it: taken for vectors of wordllama" in adapted.stderr
    )


def test_bad_rows_are_refused_or_left_out(day, tmp_path):
    rows = np.array(VectorFolder.open(day / "vectors").vectors)
    rows[3] = 0.0
    np.save(tmp_path / "v.npy", rows)
    arguments = (*adapt(day, tmp_path / "v.npy"), "--out", tmp_path / "out")
    refused = run(*arguments)
    assert refused.exit_code == 1
    assert "got 1 bad of 50: '3'" in refused.stderr
    dropped = run(*arguments, "--bad-rows", "drop")
    assert dropped.exit_code == 0, dropped.output
    assert "left out 1 zero, NaN or infinite rows: '3'" in dropped.stderr


def test_vectors_of_another_model_are_refused_by_both_names(day, tmp_path):
    encode_corpus(FakeEncoder(embed_dim=256), make_corpus(make_texts(3)), tmp_path / "v")
    refused = run(*adapt(day, tmp_path / "v"), "--out", tmp_path / "out")
    assert refused.exit_code == 1
    assert "is 'fake' and" in refused.stderr
    assert "is 'wordllama-l2-supercat-256'" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give either --corpus or --vectors, got neither."),
        (("--corpus", "builtin", "--vectors", "v"), "--corpus or --vectors, got both."),
        (("--vectors", "v"), "--vectors needs an adapter as --model, nest:DIR, .* got static:wo"),
        (("--vectors", "v", "--max-tokens", "9"), "--max-tokens do not go with --vectors"),
        (("--vectors", "v", "--base-url", "http://x"), "--base-url and .* do not go with"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments, message, tmp_path):
    refused = run("encode", "--model", "static:wordllama", "--out", tmp_path / "out", *arguments)
    assert refused.exit_code == 2
    assert re.search(message, " ".join(refused.stderr.split())), refused.stderr


def test_a_trained_model_is_no_adapter(tmp_path):
    save_tokenizer(tmp_path)
    save_file({WEIGHTS_KEY: TABLE}, tmp_path / WEIGHTS_FILE)
    stamp(tmp_path, "static")
    refused = run(
        *("encode", "--model", f"nest:{tmp_path}", "--vectors", "v", "--out", tmp_path / "out")
    )
    assert refused.exit_code == 2
    assert "--vectors needs an adapter as --model" in refused.stderr


def test_adapting_imports_no_heavy_part(day, tmp_path):
    program = (
        "import sys; from nestling.cli import main; "
        "main(sys.argv[1:], standalone_mode=False); "
        "heavy = {'torch', 'transformers', 'onnxruntime', 'httpx', 'pyarrow'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    arguments = [str(argument) for argument in (*adapt(day), "--out", tmp_path / "out")]
    finished = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True
    )
    assert finished.stdout.splitlines()[-1] == "[]"
