"""What must be equal, and what should be, when a training is continued."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import accelerate
import torch
from accelerate import Accelerator

from nestling.errors import TrainingError
from nestling.measure.environment import describe_environment
from nestling.train.job import LoopOptions

# Facts about the machine which may change the last bits of a result.
_BIT_FACTS = ("torch", "device", "cpu", "num_threads")


def continuation_settings(
    settings: Mapping[str, Any],
    options: LoopOptions,
    *,
    nesting_dims: Sequence[int],
    num_batches: int,
    num_processes: int,
) -> dict[str, dict[str, Any]]:
    """Return everything that decides the numbers of a run, as JSON.

    Args:
        settings: Of the job.
        options: Of the loop.
        nesting_dims: Widths that are trained.
        num_batches: Of an epoch, over all processes.
        num_processes: That share them.
    """
    loop = asdict(options)
    del loop["checkpoint_every_s"]  # changes no number
    loop |= {
        "nesting_dims": nesting_dims,
        "num_batches": num_batches,
        "num_processes": num_processes,
    }
    return {"job": as_json(settings), "loop": as_json(loop)}


def check_same_settings(
    before: Mapping[str, dict[str, Any]], now: Mapping[str, dict[str, Any]], path: Path
) -> None:
    """Refuse to continue another training.

    Args:
        before: `continuation_settings` of the checkpoint.
        now: Those of this run.
        path: The checkpoint, for the message.

    Raises:
        TrainingError: If they differ; the message names what does.
    """
    differences = [
        f"{name} {before[part].get(name)} against {now[part].get(name)}"
        for part in ("job", "loop")
        for name in sorted(before[part] | now[part])
        if before[part].get(name) != now[part].get(name)
    ]
    if differences:
        raise TrainingError(
            f"a training is continued with the settings it began with, but the checkpoint {path} and this run "
            f"differ in {'; '.join(differences)}. Give the same settings, name another --out, or start over "
            f"with --overwrite."
        )


def describe_machine(accelerator: Accelerator, options: LoopOptions) -> dict[str, Any]:
    """Return versions, hardware, and where and by how many processes is trained."""
    device = accelerator.device
    is_cuda = device.type == "cuda"
    return {
        **describe_environment(seed=options.seed, command=None),
        "torch": str(torch.__version__),
        "accelerate": accelerate.__version__,
        "device": torch.cuda.get_device_name(device) if is_cuda else device.type,
        "num_threads": torch.get_num_threads(),
        "num_processes": accelerator.num_processes,
    }


def changed_facts(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return what changed about the machine that may change the last bits; "" for nothing."""
    return ", ".join(
        f"{fact} {before[fact]} against {now[fact]}"
        for fact in _BIT_FACTS
        if before[fact] != now[fact]
    )


def as_json(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data as a file would give it back, so that tuples equal lists."""
    return json.loads(json.dumps(dict(data), allow_nan=False))
