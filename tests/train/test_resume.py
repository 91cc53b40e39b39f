"""A run that was killed, wherever, ends with the bits of one that was not."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from nestling.train.loop import fit
from tests.train.toy_job import ToyJob, make_options, numbers_of, weights_of

pytestmark = pytest.mark.usefixtures("on_cpu")

NUM_STEPS = 28
NUM_RANDOM_KILLS = 10


@pytest.fixture(scope="module")
def train():
    """Train in processes of their own; return how to wait for them, and their ids."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    parent = subprocess.Popen(
        [sys.executable, "-m", "tests.train.training_child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env=environment,
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    requests, answers = parent.stdin, parent.stdout
    assert json.loads(answers.readline()) == "ready"

    def ask(line: str) -> Any:
        requests.write(line + "\n")
        requests.flush()
        return json.loads(answers.readline())

    def start(folder: Path, *, kill: dict[str, int], every_s: float = 0.0, **changes: Any):
        request = {
            "folder": str(folder),
            "kill": kill,
            "every_s": every_s,
            "job": "toy",
            "world": 1,
        }
        pids = ask(json.dumps({**request, "stop_dim": 4, **changes}))
        return pids, lambda: ask("how did they end?")

    with parent:
        yield start


def run(train, folder: Path, **changes: Any) -> int:
    _, wait = train(folder, **{"kill": {}, **changes})
    return max(wait(), key=abs)


def result(folder: Path) -> tuple[bytes, bytes, Any]:
    """Final weights, final optimiser state and losses."""
    newest = max(folder.glob("step-*"))
    record = json.loads(folder.with_name(f"{folder.name}.json").read_text())
    optimizer = (newest / "optimizer.safetensors").read_bytes()
    weights = folder.with_name(f"{folder.name}.weights").read_bytes()
    return weights, optimizer, record["epochs"]


@pytest.fixture(scope="module")
def undisturbed(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    began = time.monotonic()
    assert run(train, folder, every_s=1e9) == 0
    return result(folder), time.monotonic() - began


def test_killed_during_steps_the_bits_are_those_of_an_undisturbed_run(train, undisturbed, tmp_path):
    expected, _ = undisturbed
    folder = tmp_path / "run"
    for kill_at in (1, 2, 3, 5, 8):
        assert run(train, folder, kill={"batch": kill_at}) == -signal.SIGKILL
    assert run(train, folder) == 0
    assert result(folder) == expected
    record = json.loads(folder.with_name("run.json").read_text())
    assert record["num_resumes"] == 3  # nothing was written before the first two kills


def test_killed_before_every_flush_of_a_checkpoint_the_bits_are_the_same(
    train, undisturbed, tmp_path
):
    """Every write flushes three files and two folders; each run gets one flush further."""
    expected, _ = undisturbed
    folder = tmp_path / "run"
    for kill_at in range(1, 14):
        assert run(train, folder, kill={"fsync": kill_at}) == -signal.SIGKILL
    assert run(train, folder, every_s=1e9) == 0
    assert result(folder) == expected
    assert not list(folder.glob(".*"))


def test_killed_at_random_moments_the_bits_are_the_same(train, undisturbed, tmp_path):
    expected, whole_run_s = undisturbed
    moments = random.Random(0)
    num_kills, num_rounds = 0, 0
    while num_kills < NUM_RANDOM_KILLS:
        # A round that happens to finish before it is killed counts for nothing; begin another.
        num_rounds += 1
        folder = tmp_path / f"round_{num_rounds}"
        for _ in range(1000):
            (pid,), wait = train(folder, kill={})
            if num_kills < NUM_RANDOM_KILLS:
                time.sleep(moments.uniform(0.0, whole_run_s))
                os.kill(pid, signal.SIGKILL)
            (code,) = wait()
            if code == 0:
                break
            assert code == -signal.SIGKILL
            num_kills += 1
        assert result(folder) == expected


class Interruption(BaseException):
    """Ends a run in this process, as Ctrl-C would."""


@pytest.fixture(scope="module")
def uninterrupted(on_cpu, tmp_path_factory):
    job = ToyJob()
    record = fit(job, make_options(), checkpoint_folder=tmp_path_factory.mktemp("whole") / "run")
    return weights_of(job), numbers_of(record)


@settings(max_examples=8)
@given(st.lists(st.integers(1, NUM_STEPS), min_size=1, max_size=3), st.sampled_from([0.0, 1e9]))
def test_interrupted_after_any_steps_the_bits_are_the_same(
    tmp_path_factory, uninterrupted, num_batches, every_s
):
    folder = tmp_path_factory.mktemp("interrupted") / "run"
    options = make_options(checkpoint_every_s=every_s)

    def interrupting(left: int):
        def on_batch(epoch: int, index: int) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Interruption

        return on_batch

    for left in (*num_batches, 10**9):
        job = ToyJob(on_batch=interrupting(left))
        random.random()  # what the caller draws in between must not matter
        np.random.random()  # noqa: NPY002
        torch.rand(1)
        try:
            record = fit(job, options, checkpoint_folder=folder)
        except Interruption:
            continue
        if left == 10**9:
            assert (weights_of(job), numbers_of(record)) == uninterrupted


def test_two_processes_equal_one_with_the_same_global_batch(train, tmp_path):
    halves, whole = tmp_path / "halves", tmp_path / "whole"
    assert run(train, whole, job="whole", every_s=1e9) == 0
    assert run(train, halves, job="halves", every_s=1e9, world=2, port=free_port()) == 0
    first = halves.with_name("halves.weights")
    second = halves.with_name("halves.weights1")
    assert first.read_bytes() == second.read_bytes()
    expected = load_file(whole.with_name("whole.weights"))
    for name, value in load_file(first).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6, msg=name)
    found = json.loads(halves.with_name("halves.json").read_text())["epochs"]
    for epoch, other in zip(found, result(whole)[2], strict=True):
        assert epoch["loss"] == pytest.approx(other["loss"], rel=1e-5)


def test_two_killed_processes_go_on_to_the_same_bits(train, tmp_path):
    """With dropout: each process has random states of its own."""
    changes = {"world": 2, "job": "toy"}
    assert run(train, tmp_path / "whole", every_s=1e9, port=free_port(), **changes) == 0
    _, wait = train(tmp_path / "killed", kill={"batch": 8}, port=free_port(), **changes)
    assert -signal.SIGKILL in wait()
    assert run(train, tmp_path / "killed", port=free_port(), **changes) == 0
    assert result(tmp_path / "killed") == result(tmp_path / "whole")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
