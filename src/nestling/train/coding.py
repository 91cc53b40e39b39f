"""What trainings of text models may ask of stored codes, and of the spread of rows."""

import math
from collections.abc import Sequence

from torch import nn

from nestling.core import Dtype
from nestling.errors import TrainingError
from nestling.train.losses.quantized_prefixes import QuantizedPrefixes
from nestling.train.losses.straight_through import check_coded


def check_coding(
    quantize: Sequence[Dtype], quantize_weight: float, spread_out_weight: float
) -> None:
    """Look at the options before anything else is done.

    Raises:
        TrainingError: If a format has no codes or is there twice, or a weight is out of range.
    """
    check_coded("quantize", quantize)
    if not 0 < quantize_weight < math.inf:
        raise TrainingError(
            f"`quantize_weight` must be positive and finite, got {quantize_weight:g}. Leave `quantize` out "
            f"to train without codes."
        )
    if not 0 <= spread_out_weight < math.inf:
        raise TrainingError(
            f"`spread_out_weight` must be finite and at least 0, got {spread_out_weight:g}. 0 leaves it out."
        )


def with_codes(base: nn.Module, quantize: Sequence[Dtype], weight: float) -> nn.Module:
    """Return the loss with documents in float and in these formats; the loss itself for none."""
    return QuantizedPrefixes(base, quantize, weight=weight) if quantize else base
