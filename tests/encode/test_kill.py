"""Kill -9 at random moments loses at most the block in flight."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nestling.encode import VectorFolder, encode_corpus
from nestling.encode.blocks import ROWS_FILE, find_damage, parse_rows, read_blocks, read_span
from tests.encode.adapters import save_adapter
from tests.encode.fakes import FakeEncoder, make_corpus, make_texts
from tests.encode.killed_child import BLOCK_ROWS

NUM_KILLS = 20
ROW_BYTES = 256 * 4


@pytest.fixture
def start(request):
    """Start work in a process of its own; return its id and how to wait for it."""
    parent = subprocess.Popen(
        [sys.executable, "-m", f"tests.encode.{request.param}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    requests, answers = parent.stdin, parent.stdout
    assert answers.readline() == "ready\n"

    def ask(line: str) -> int:
        requests.write(line + "\n")
        requests.flush()
        return int(answers.readline())

    def start_one(*arguments: object):
        return ask(" ".join(map(str, arguments))), lambda: ask("how did it end?")

    with parent:
        yield start_one


def ids_on_disk(folder: Path) -> list[str]:
    """Ids of the finished blocks; the log must never speak of what is not there."""
    blocks = read_blocks(folder, may_be_torn=True) if folder.exists() else []
    for block in blocks[-1:]:
        assert find_damage(folder, block, ROW_BYTES) is None
    data = read_span(folder / ROWS_FILE, 0, blocks[-1].rows_end) if blocks else b""
    return [row.id for row in parse_rows(data, source=folder / ROWS_FILE)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read_log(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


@pytest.mark.parametrize("start", ["killed_child"], indirect=True)
def test_killed_at_twenty_random_moments_the_bytes_are_those_of_an_undisturbed_run(start, tmp_path):
    began = time.monotonic()
    _, wait = start(tmp_path / "undisturbed", tmp_path / "undisturbed.log")
    assert wait() == 0
    whole_run_s = time.monotonic() - began
    expected = contents(tmp_path / "undisturbed")
    num_unique = len(read_log(tmp_path / "undisturbed.log"))

    moments = random.Random(0)
    num_kills, num_lost, num_rounds = 0, 0, 0
    while num_kills < NUM_KILLS:
        # A round that happens to finish before it is killed counts for nothing; begin another.
        num_rounds += 1
        folder = tmp_path / f"round {num_rounds}".replace(" ", "_")
        all_encoded: list[str] = []
        for run in range(1000):
            before = ids_on_disk(folder)
            log = tmp_path / f"{folder.name}_{run}.log"
            process, wait = start(folder, log)
            if num_kills < NUM_KILLS:
                time.sleep(moments.uniform(0.0, whole_run_s / 8))
                os.kill(process, signal.SIGKILL)
            code = wait()
            encoded = read_log(log)
            assert not set(encoded) & set(before), "a row on disk was encoded again"
            assert set(before) <= set(ids_on_disk(folder)), "a row on disk was lost"
            all_encoded += encoded
            num_lost += len(set(encoded) - set(ids_on_disk(folder)))
            if code == 0:
                break
            assert code == -signal.SIGKILL
            assert len(set(encoded) - set(ids_on_disk(folder))) <= BLOCK_ROWS
            num_kills += 1
        assert contents(folder) == expected
        assert len(set(all_encoded)) == num_unique
        VectorFolder.open(folder).verify()
    assert num_lost <= NUM_KILLS * BLOCK_ROWS


@pytest.mark.parametrize("start", ["killed_adaptation"], indirect=True)
def test_an_adaptation_killed_at_random_moments_ends_in_the_same_bytes(start, tmp_path):
    encoder = FakeEncoder(embed_dim=64)
    vectors = encode_corpus(encoder, make_corpus(make_texts(1500)), tmp_path / "vectors").folder
    uri = save_adapter(tmp_path / "adapter", encoder.fingerprint)
    began = time.monotonic()
    _, wait = start(uri, vectors.path, tmp_path / "undisturbed", tmp_path / "undisturbed.log")
    assert wait() == 0
    whole_run_s = time.monotonic() - began
    expected = contents(tmp_path / "undisturbed")

    moments = random.Random(0)
    num_kills, num_rounds = 0, 0
    while num_kills < NUM_KILLS:
        num_rounds += 1
        folder, log = tmp_path / f"round_{num_rounds}", tmp_path / f"round_{num_rounds}.log"
        code, killed = None, 0
        while code != 0:
            before = read_blocks(folder, may_be_torn=True) if folder.exists() else []
            process, wait = start(uri, vectors.path, folder, log)
            if num_kills < NUM_KILLS:
                time.sleep(moments.uniform(0.0, whole_run_s / 3))
                os.kill(process, signal.SIGKILL)
            code = wait()
            assert code in {0, -signal.SIGKILL}
            killed += code != 0
            num_kills += code != 0
            after = read_blocks(folder, may_be_torn=True) if folder.exists() else []
            assert after[: len(before)] == before, "a finished block was lost"
        assert contents(folder) == expected
        num_mapped = sum(map(int, read_log(log)))
        assert 1500 <= num_mapped <= 1500 + killed * BLOCK_ROWS, "finished rows were mapped again"
        VectorFolder.open(folder).verify()
