"""What a model family does to the full width before any cut.

Nomic v1.5 is trained with a layer norm over all 768 coordinates, then the cut, then L2. A cut
taken before the layer norm is another vector, so the rule must act here, where the width is full.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Float32

from nestling.core import normalize
from nestling.errors import FormatError

LAYER_NORM_EPSILON = 1e-5
"""The default of torch.nn.functional.layer_norm, which the model card calls."""

FAMILIES = {"nomic-embed-text-v1.5": "layer_norm+l2"}
"""Part of a model's name -> its rule; every other model takes "l2"."""


def normalization_of(model: str) -> str:
    """Return the rule of a model by its name or path; unknown names get "l2"."""
    folded = model.lower()
    return next((rule for part, rule in FAMILIES.items() if part in folded), "l2")


def check_normalization(rule: str, *, source: str) -> str:
    """Return `rule` if it is known.

    Raises:
        FormatError: If it is not; the message lists those that are.
    """
    if rule not in RULES:
        raise FormatError(
            f"`normalization` in {source} must be one of {', '.join(RULES)}, got {rule!r}. Correct the file."
        )
    return rule


def apply_normalization(
    embeddings: Float[np.ndarray, "rows full"], rule: str
) -> Float32[np.ndarray, "rows full"]:
    """Return the embeddings as float32 with the rule applied, each row of unit L2 norm.

    An all-zero row stays zero. A row with NaN or infinite values comes out with NaN, so that a
    check for bad rows finds it.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        return RULES[rule](embeddings.astype(np.float32))


def _layer_norm_then_l2(
    embeddings: Float32[np.ndarray, "rows full"],
) -> Float32[np.ndarray, "rows full"]:
    centred = embeddings - embeddings.mean(axis=1, keepdims=True)
    return normalize(centred / np.sqrt(centred.var(axis=1, keepdims=True) + LAYER_NORM_EPSILON))


RULES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "l2": normalize,
    "layer_norm+l2": _layer_norm_then_l2,
}
