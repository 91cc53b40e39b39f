"""Records of many rows: room for them, and what fills it."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import UInt16

from nestling.core.progress import Progress, silent
from nestling.search.nested.bands import RECORD_BYTES, WORDS, Bands
from nestling.search.nested.proof import rotation_error, unit_rows
from nestling.search.tier import Tier

CHUNK_ROWS = 2048
"""Rows that are turned together; the cut does not depend on the number of threads."""

Records = tuple[UInt16[np.ndarray, "rows words"], ...]


def empty_records(num_bands: int, num_rows: int) -> Records:
    """Return room for the records of every band, all zero; each record is one cache line."""
    return tuple(_aligned_zeros(num_rows) for _ in range(num_bands))


def encode_rows(
    tier: Tier,
    bands: Bands,
    records: Records,
    first_row: int,
    *,
    num_threads: int = 1,
    progress: Progress = silent,
) -> None:
    """Write the records of a tier's rows from `first_row` on.

    Args:
        tier: Float rows.
        bands: The map.
        records: Written; as many rows as the tier has.
        first_row: Of the tier and of the records.
        num_threads: Threads to use; matrix products must be held to one.
        progress: Counts rows.
    """
    # Here and not above: numba takes a third of a second to import.
    from nestling.search.nested._kernels import write_records

    basis = bands.basis.astype(np.float64)
    eta = rotation_error(*basis.shape)

    def encode(start: int) -> int:
        stop = min(start + CHUNK_ROWS, len(tier))
        rows, squares = unit_rows(tier.unpack(start, stop))
        cut = np.zeros((bands.num_bands, stop - start, WORDS), np.uint16)
        write_records(
            rows @ basis,
            squares,
            bands.centres,
            bands.steps,
            bands.coarse_ends,
            bands.fine_ends,
            bands.excess + 4 * eta,
            eta,
            cut,
        )
        for part, new in zip(records, cut, strict=True):
            part[start:stop] = new
        return stop

    starts = range(first_row, len(tier), CHUNK_ROWS)
    with ThreadPoolExecutor(num_threads, thread_name_prefix="nested") as executor:
        for stop in executor.map(encode, starts):
            progress("cut rows into bands", stop - first_row, len(tier) - first_row)


def _aligned_zeros(num_rows: int) -> UInt16[np.ndarray, "rows words"]:
    place = np.zeros((num_rows + 1) * RECORD_BYTES, np.uint8)
    start = -place.ctypes.data % RECORD_BYTES
    aligned = place[start : start + num_rows * RECORD_BYTES]
    return aligned.view(np.uint16).reshape(num_rows, WORDS)
