"""Rows that cannot be compared: NaN, infinite, zero, duplicate ids."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32

from nestling.errors import DataError, VectorError

BadRowPolicy = Literal["error", "drop"]

EQUAL_STEP = 1e-3


def find_bad_rows(embeddings: Float[np.ndarray, "rows dim"]) -> Bool[np.ndarray, " rows"]:
    """Return which rows are all zero or hold NaN or infinite values; a cosine needs neither."""
    return ~np.isfinite(embeddings).all(axis=1) | ~embeddings.any(axis=1)


def check_rows(
    embeddings: Float[np.ndarray, "rows dim"], ids: Sequence[str], *, policy: BadRowPolicy
) -> Bool[np.ndarray, " rows"]:
    """Return which rows to keep.

    Args:
        embeddings: Row vectors.
        ids: One id per row, to name the bad ones.
        policy: "error" refuses bad rows by name; "drop" leaves them out.

    Raises:
        VectorError: If a row is bad and `policy` is "error".
    """
    bad = find_bad_rows(embeddings)
    if policy == "error" and bad.any():
        named = [ids[row] for row in np.flatnonzero(bad)[:5]]
        more = f" and {int(bad.sum()) - len(named)} more" if bad.sum() > len(named) else ""
        raise VectorError(
            f"vectors must be finite and not all zero, got {int(bad.sum())} bad of {len(bad)}: "
            f"{', '.join(map(repr, named))}{more}. Mend these inputs (an empty text encodes to zero), "
            f"or leave the rows out with --bad-rows drop."
        )
    return ~bad


def distinct_rows(unit: Float32[np.ndarray, "rows dim"]) -> Float32[np.ndarray, "distinct dim"]:
    """Return finite unit rows without repetition, in the order of their first places.

    Rows are equal if they are to 1e-3 in every coordinate: copies of another length differ by rounding,
    which is far finer, and texts that differ are further apart. Copies on either side of a step's edge,
    which are rare, are both kept.
    """
    steps = np.rint(unit / EQUAL_STEP).astype(np.int16)
    as_bytes = steps.view(np.dtype((np.void, steps.shape[1] * steps.itemsize)))[:, 0]
    _, first_places = np.unique(as_bytes, return_index=True)
    return unit[np.sort(first_places)]


def check_unique_ids(ids: Sequence[str], *, source: str) -> None:
    """Refuse a list of ids that names something twice.

    Raises:
        DataError: If an id occurs more than once; the message names up to five.
    """
    if len(set(ids)) == len(ids):
        return
    repeated = [name for name, count in Counter(ids).items() if count > 1]
    raise DataError(
        f"ids in {source} must be unique, got {len(repeated)} repeated: "
        f"{', '.join(map(repr, repeated[:5]))}. Give each document its own id."
    )
