"""Training in several processes: which one this is, and how it leaves the others."""

import atexit
import gc
from functools import cache

from accelerate import Accelerator, PartialState
from torch import distributed


def process_state() -> PartialState:
    """Return which process of how many this is, as the loop will see it.

    Asked alone, `PartialState` does not read ACCELERATE_USE_CPU and takes every process for the only one.
    """
    Accelerator(mixed_precision="no")
    leave_group_at_exit()
    return PartialState()


def leave_group_at_exit() -> None:
    """See to it that this process leaves its group, if it is in one, before it ends.

    The group's threads, left to the end of the process, now and then abort it after its work is done.
    """
    if distributed.is_available() and distributed.is_initialized():
        _register()


@cache
def _register() -> None:
    atexit.register(_leave)


def _leave() -> None:
    # Models wrapped for several processes hold the group, and some stand in reference cycles.
    gc.collect()
    if distributed.is_initialized():
        distributed.destroy_process_group()
