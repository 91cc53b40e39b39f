"""Importing nestling stays light: no torch, no server, no cluster."""

import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "fastapi",
    "ray",
    "sentence_transformers",
    "onnxruntime",
    "httpx",
    "pyarrow",
    "faiss",
    "svs",
)
ROOMS = (
    "nestling",
    "nestling.core",
    "nestling.data",
    "nestling.encode",
    "nestling.search",
    "nestling.measure",
)


def heavy_modules_after(statement: str) -> set[str]:
    program = f"{statement}\nimport sys\nprint(' '.join(sorted(set(sys.modules) & set({HEAVY!r}))))"
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(finished.stdout.split())


@pytest.mark.parametrize("room", [*ROOMS, "nestling.cli"])
def test_import_brings_nothing_heavy(room: str) -> None:
    assert heavy_modules_after(f"import {room}") == set()


def test_the_check_can_fail() -> None:
    assert "httpx" in heavy_modules_after("import httpx, nestling")
