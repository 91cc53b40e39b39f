"""Writers die by kill -9 at every step and at random; nothing acknowledged is lost, nothing is torn."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.search.support import scratch_folder

ROOT = Path(__file__).parents[2]
LEAST = {
    "build": 20,
    "overwrite": 20,
    "add": 10,
    "upsert": 10,
    "delete": 5,
    "compact": 20,
    "absorb": 8,
    "resize": 15,
    "resize_back": 10,
    "at_random": 170,
}
"""Kills, at least: 300 in all, so that a step that is no longer noticed is missed."""


def run(scenario: str) -> int:
    with scratch_folder() as folder:
        finished = subprocess.run(
            [sys.executable, "-m", "tests.search.killing", scenario, str(folder)],
            cwd=ROOT,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
    assert finished.returncode == 0, finished.stderr
    return int(finished.stdout)


@pytest.mark.parametrize("scenario", LEAST)
def test_a_killed_writer_leaves_the_old_state_or_the_new(scenario: str) -> None:
    assert run(scenario) >= LEAST[scenario]


def test_readers_see_one_generation_while_it_is_changed() -> None:
    assert run("read_while_written") == 1
