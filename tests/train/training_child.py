"""Started by the resume tests: for each line on standard input, fork processes that train.

A line is a JSON object:
    folder      of the checkpoints
    every_s     seconds between checkpoints
    kill        {"batch": n} kills the process with SIGKILL when it makes its n-th batch,
                {"fsync": n} just before its n-th flush of a file or folder; {} lets it live
    job         "toy", or "halves" and "whole" (see below)
    world       number of processes
    port        where they meet, if there are two
The process ids are printed; they stay valid, ended or not, until a line asks how they ended. The
first process writes the final weights to `<folder>/../<folder>.weights`, and the record beside it;
the others write their weights only.
"""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
import torch.distributed.tensor  # seconds of imports that each fork would do by itself
from safetensors.torch import save_file

from nestling.train.loop import fit
from tests.train.toy_job import ToyJob, make_options, numbers_of

NUM_THREADS = 1


def say(answer: object) -> None:
    sys.stdout.write(f"{json.dumps(answer)}\n")
    sys.stdout.flush()


class HalvesJob(ToyJob):
    """Every loss is a mean over the batch, nothing is random, no batch norm: batches can be split."""

    def __init__(self, **changes: Any) -> None:
        super().__init__(dropout=0.0, dims_per_step=2, num_batches=6, **changes)
        self._module.encoder[1] = torch.nn.Identity()


class WholeJob(HalvesJob):
    """Each batch is two of `HalvesJob`'s, one after the other."""

    @property
    def num_batches(self) -> int:
        return 3

    def batch(self, epoch: int, index: int) -> Any:
        parts = [super(WholeJob, self).batch(epoch, 2 * index + half) for half in (0, 1)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


JOBS: dict[str, Callable[..., ToyJob]] = {"toy": ToyJob, "halves": HalvesJob, "whole": WholeJob}


def countdown(num_calls: int | None) -> Callable[[], None]:
    """Return what kills this process when it is called for the n-th time."""
    left = num_calls

    def call() -> None:
        nonlocal left
        if left is not None:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return call


def train(request: dict[str, Any], rank: int) -> None:
    flush, fsync = countdown(request["kill"].get("fsync")), os.fsync

    def killing_fsync(descriptor: int) -> None:
        flush()
        fsync(descriptor)

    os.fsync = killing_fsync  # type: ignore[assignment]
    make_batch = countdown(request["kill"].get("batch"))
    job = JOBS[request["job"]](on_batch=lambda epoch, index: make_batch())
    folder = Path(request["folder"])
    options = make_options(
        checkpoint_every_s=request["every_s"], early_stop_dim=request["stop_dim"]
    )
    record = fit(job, options, checkpoint_folder=folder, warn=print_error)
    weights = dict(job.module.state_dict())
    save_file(weights, folder.with_name(f"{folder.name}.weights{rank or ''}"))
    if rank == 0:
        result = {"epochs": numbers_of(record), "num_resumes": record.num_resumes}
        folder.with_name(f"{folder.name}.json").write_text(json.dumps(result))


def print_error(message: str) -> None:
    sys.stderr.write(message + "\n")


def fork(request: dict[str, Any], rank: int) -> int:
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        if request["world"] > 1:
            # What `accelerate launch` would set.
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(request["world"]),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(request["port"]),
                "OMP_NUM_THREADS": str(NUM_THREADS),
            }
        train(request, rank)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    torch.set_num_threads(NUM_THREADS)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    say("ready")
    while line := sys.stdin.readline():
        request = json.loads(line)
        processes = [fork(request, rank) for rank in range(request["world"])]
        say(processes)
        sys.stdin.readline()
        say([os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes])


if __name__ == "__main__":
    main()
