"""Say how many texts an encoder does not read to the end."""

import numpy as np

from nestling.data.types import Inputs
from nestling.encode.protocol import Encoder


def truncation_notes(encoder: Encoder, inputs: Inputs, *, name: str) -> tuple[str, ...]:
    """Return a note on the texts that are longer than the encoder reads, or none.

    Args:
        encoder: Whose limit and tokens count.
        inputs: Texts; images are read whole.
        name: What to call them, e.g. "documents".
    """
    limit = encoder.max_tokens
    if limit is None or isinstance(inputs, np.ndarray):
        return ()
    num_cut = sum(count > limit for count in encoder.count_tokens(inputs))
    if num_cut == 0:
        return ()
    note = (
        f"{num_cut:,} of {len(inputs):,} {name} are longer than the {limit} tokens that the model reads: "
        f"what comes after is left out"
    )
    return (note,)
