"""Small files in the layouts the room reads."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nestling.data.builtin import read_builtin_corpus
from nestling.data.types import Corpus


@pytest.fixture
def beir_folder(tmp_path: Path) -> Path:
    """Three documents, three queries, a test split that judges two of them."""
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    write_jsonl(
        folder / "corpus.jsonl",
        {"_id": "d1", "title": "Owls", "text": "hunt at night."},
        {"_id": "d2", "title": "", "text": " Larks sing at dawn. "},
        {"_id": "d3", "text": "Swifts sleep on the wing.", "metadata": {}},
    )
    write_jsonl(
        folder / "queries.jsonl",
        {"_id": "q1", "text": "who hunts at night"},
        {"_id": "q2", "text": "who sings"},
        {"_id": "q3", "text": "who sleeps flying"},
    )
    (folder / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq3\td3\t2\nq3\td2\t0\nq1\td1\t1\n"
    )
    return folder


def write_jsonl(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="session")
def builtin_corpus() -> Corpus:
    return read_builtin_corpus(is_wide=False)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes], Path]:
    """Write a file below the test's own folder and return its path."""

    def write_file(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write_file
