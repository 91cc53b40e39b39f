"""The learning rate of a step, a function of the step alone, so that a continued run needs no memory."""

import math

from nestling.train.job import LoopOptions


def rate_factor(step: int, num_steps: int, options: LoopOptions) -> float:
    """Return which part of the peak learning rate a step is trained with.

    Over the first `warmup_share` of all steps the rate climbs in equal parts to the peak, which
    the first step after them has. From there it falls to zero, which would be the rate of the step
    after the last one: no step is wasted at rate zero.

    Args:
        step: Counted from 0, below `num_steps`.
        num_steps: Of the whole run.
        options: `schedule` and `warmup_share` are read.

    Returns:
        A factor in (0, 1].
    """
    num_warmup_steps = int(options.warmup_share * num_steps)
    if step < num_warmup_steps:
        return (step + 1) / (num_warmup_steps + 1)
    done_share = (step - num_warmup_steps) / (num_steps - num_warmup_steps)
    if options.schedule == "linear":
        return 1.0 - done_share
    if options.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * done_share))
    return 1.0
