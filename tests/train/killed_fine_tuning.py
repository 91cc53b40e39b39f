"""Started by the kill test: fine-tunes a tiny BERT and says after every step where it stands.

python -m tests.train.killed_fine_tuning <base folder> <out>
"""

import sys
from pathlib import Path
from typing import Any

import torch

from nestling.train import sentence_transformers_callbacks
from nestling.train.job import LoopOptions
from nestling.train.transformers_text import train_sentence_transformer
from tests.train.tiny_bert import DIMS, make_pairs


def fine_tune(base: Path, out: Path, **changes: Any) -> Any:
    """Train 3 epochs of 10 steps, with dropout, hard negatives and drawn prefixes, one thread."""
    options = {"num_epochs": 3, "learning_rate": 3e-3, "checkpoint_every_s": 0.0, "seed": 1}
    settings: dict[str, Any] = {
        "dims": DIMS,
        "dims_per_step": 2,
        "options": LoopOptions(**{**options, **changes.pop("options", {})}),
        "batch_size": 32,
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


if __name__ == "__main__":
    sentence_transformers_callbacks.SECONDS_BETWEEN_REPORTS = 0.0
    fine_tune(Path(sys.argv[1]), Path(sys.argv[2]), progress=say)
