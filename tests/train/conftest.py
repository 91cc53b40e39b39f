"""Fixtures of the training tests."""

import pytest
import torch
from accelerate.state import AcceleratorState


@pytest.fixture(scope="module")
def on_cpu():
    """Train on the CPU, with one thread, also where there is a GPU; forget it afterwards."""
    num_threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        AcceleratorState._reset_state(reset_partial_state=True)
        torch.set_num_threads(1)
        yield
    torch.set_num_threads(num_threads)
    AcceleratorState._reset_state(reset_partial_state=True)
