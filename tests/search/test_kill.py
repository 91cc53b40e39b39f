"""Writers die by kill -9 at every step; what they leave is the old state or the new one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(scenario: str, folder: Path) -> int:
    finished = subprocess.run(
        [sys.executable, "-m", "tests.search.killing", scenario, str(folder)],
        cwd=ROOT,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    return int(finished.stdout)


@pytest.mark.parametrize(
    ("scenario", "least"), [("build", 10), ("overwrite", 13), ("add", 4), ("add_at_random", 8)]
)
def test_a_killed_writer_leaves_the_old_state_or_the_new(
    scenario: str, least: int, tmp_path: Path
) -> None:
    assert run(scenario, tmp_path) >= least


def test_readers_see_one_index_while_it_is_replaced(tmp_path: Path) -> None:
    assert run("read_while_overwritten", tmp_path) == 1
