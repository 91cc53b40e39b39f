"""Choices by hash: the same everywhere, and the same tomorrow when rows were added or moved."""

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from nestling.errors import DataError

LARGEST_HOLD_OUT = 1000
HOLD_OUT_SHARE = 0.1
TRAIN_SHARE = 0.8
"""Of labelled data that comes in one piece."""


def unit_hash(content: str | bytes) -> float:
    """Return a number in [0, 1) that depends on nothing but the content and looks random."""
    raw = content.encode() if isinstance(content, str) else content
    digest = hashlib.blake2b(raw, digest_size=6).digest()
    return int.from_bytes(digest) / 2**48


def hold_out(num_rows: int, ids: Sequence[str] | None = None) -> Int64[np.ndarray, " held"]:
    """Choose the rows that leave the corpus to serve as queries: 1,000 or a tenth, what is less.

    The choice depends on the ids alone, not on the order of the rows: the smallest hashes leave.

    Args:
        num_rows: Rows in the corpus.
        ids: One per row; without them the row numbers serve.

    Returns:
        Row numbers, ascending; at least one.

    Raises:
        DataError: If there are fewer than two rows, or ids do not match them.
    """
    if num_rows < 2:
        raise DataError(
            f"`num_rows` must be at least 2 to hold a query out, got {num_rows}. "
            f"Name a larger corpus, or give queries of your own with --queries."
        )
    if ids is not None and len(ids) != num_rows:
        raise DataError(f"`ids` must be one per row, got {len(ids)} for {num_rows} rows.")
    names = map(str, range(num_rows)) if ids is None else ids
    hashes = np.array([unit_hash(name) for name in names])
    num_held = max(1, min(LARGEST_HOLD_OUT, int(HOLD_OUT_SHARE * num_rows)))
    return np.sort(np.argsort(hashes, kind="stable")[:num_held])
