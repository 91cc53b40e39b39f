"""The random generators that training draws from: kept, put back, and given back to the caller.

They are the global ones, because that is what dropout and the code of users draw from.
"""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def read_generators(device: torch.device) -> dict[str, Any]:
    """Return the state of the global generators of Python, NumPy and PyTorch, as JSON.

    Args:
        device: Of the training; its generator is read as well, unless it is the CPU's.
    """
    version, words, next_gauss = random.getstate()
    algorithm, keys, place, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "python": [version, np.asarray(words, np.uint32).tobytes().hex(), next_gauss],
        "numpy": [algorithm, np.asarray(keys).tobytes().hex(), place, has_gauss, gauss],
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
        "device": None if device.type == "cpu" else _device_state(device),
    }


def set_generators(states: Mapping[str, Any], device: torch.device) -> None:
    """Put the global generators into the state that `read_generators` returned."""
    version, words, next_gauss = states["python"]
    random.setstate((version, tuple(_words(words).tolist()), next_gauss))
    algorithm, keys, *rest = states["numpy"]
    np.random.set_state((algorithm, _words(keys), *rest))  # noqa: NPY002
    torch.set_rng_state(_bytes(states["torch"]))
    if states["device"] is not None and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(_bytes(states["device"]))


def seed_generators(seed: int, process: int) -> None:
    """Seed the global generators; each process draws its own numbers."""
    mixed = int(np.random.SeedSequence([seed, process]).generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)  # noqa: NPY002
    torch.manual_seed(mixed)


@contextmanager
def giving_generators_back(device: torch.device) -> Iterator[None]:
    """Leave the caller's generators as they were."""
    states = read_generators(device)
    try:
        yield
    finally:
        set_generators(states, device)


def _device_state(device: torch.device) -> str:
    return torch.get_device_module(device).get_rng_state().numpy().tobytes().hex()


def _words(text: str) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(text), np.uint32)


def _bytes(text: str) -> torch.Tensor:
    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)
