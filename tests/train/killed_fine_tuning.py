"""Started by tests: fine-tunes a tiny BERT and says after every step where it stands.

python -m tests.train.killed_fine_tuning <base folder> <out>

With a port behind them two processes train together, without dropout or negatives. The first of
them kills itself after the third step; then two others finish what they began.
"""

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

from nestling.train import loop
from nestling.train.job import LoopOptions
from nestling.train.sentence_transformers.fine_tune import train_sentence_transformer
from tests.train.tiny_bert import DIMS, make_pairs


def fine_tune(base: Path, out: Path, **changes: Any) -> Any:
    """Train 3 epochs of 10 steps, with dropout, hard negatives and drawn prefixes, one thread."""
    options = {"num_epochs": 3, "learning_rate": 3e-3, "checkpoint_every_s": 0.0, "seed": 1}
    settings: dict[str, Any] = {
        "dims": DIMS,
        "dims_per_step": 2,
        "options": LoopOptions(**{**options, **changes.pop("options", {})}),
        "batch_size": BATCH_SIZE,
        "out": out,
        "device": "cpu",
    }
    pairs = changes.pop("pairs", None) or make_pairs(330, with_negatives=True)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return train_sentence_transformer(f"st:{base}", pairs, **{**settings, **changes})
    finally:
        torch.set_num_threads(before)


def say(label: str, done: int, total: int) -> None:
    """Write one line per step."""
    sys.stdout.write(f"{done}\n")
    sys.stdout.flush()


BATCH_SIZE = 32
TOGETHER: dict[str, Any] = {
    "pairs": make_pairs(176),
    "options": {"num_epochs": 2, "max_grad_norm": 1.0, "early_stop_dim": 8, "patience": 2},
    "temperature": 0.1,
    "self_distillation_weight": 0.5,
}
"""5 whole batches of 32 pairs: 2 steps of 2 processes, and one that is left out."""


def train_together(rank: int, port: str, *, kill_at: int | None) -> None:
    """Train as one of two processes, and look that nobody is asked to do what the first one does."""

    def progress(label: str, done: int, total: int) -> None:
        assert rank == 0
        say(label, done, total)
        if done == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    # What `accelerate launch` would set.
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    _, task = make_pairs(512).hold_out(0.2)
    record = fine_tune(
        Path(sys.argv[1]), Path(sys.argv[2]), progress=progress, validation=task, **TOGETHER
    )
    assert (record.num_steps, record.num_resumes) == (4, 1)
    assert record.environment["num_processes"] == 2


def fork(rank: int, port: str, *, kill_at: int | None) -> int:
    """Fork one of two processes."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        train_together(rank, port, kill_at=kill_at)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    loop.SECONDS_BETWEEN_REPORTS = 0.0
    if len(sys.argv) == 3:
        fine_tune(Path(sys.argv[1]), Path(sys.argv[2]), progress=say)
    else:
        for kill_at in (3, None):
            both = [fork(rank, sys.argv[3], kill_at=kill_at) for rank in (0, 1)]
            ended = [os.waitstatus_to_exitcode(os.waitpid(each, 0)[1]) for each in both]
            assert ended == ([0, 0] if kill_at is None else [-signal.SIGKILL, 1]), ended
