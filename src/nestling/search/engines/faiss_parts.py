"""What the engines on FAISS share: threads, files, filters and a search without detours.

FAISS is imported where it is used: `import nestling` does not load it.
"""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from nestling.search.rowset import RowSet


def faiss_module() -> Any:
    """Return FAISS, imported when first asked for, and untyped: its stubs know half of it."""
    import faiss

    return faiss


@contextmanager
def faiss_threads(num_threads: int) -> Iterator[Any]:
    """Yield the module, set to use so many threads when called from this thread."""
    faiss = faiss_module()

    before = faiss.omp_get_max_threads()
    if before == num_threads:
        yield faiss
        return
    faiss.omp_set_num_threads(num_threads)
    try:
        yield faiss
    finally:
        faiss.omp_set_num_threads(before)


def write_index(index: Any, path: Path, *, flags: int = 0) -> None:
    """Write an index of FAISS to a file, through Python's own writes, and flush it to the disk."""
    faiss = faiss_module()

    with path.open("wb") as file:
        writer = faiss.PyCallbackIOWriter(file.write)
        faiss.write_index(index, writer, flags)
        del writer  # it hands over what it holds back
        file.flush()
        os.fsync(file.fileno())


def read_index(path: Path, *, flags: int = 0) -> Any:
    """Read what `write_index` wrote with the same flags."""
    faiss = faiss_module()

    with path.open("rb") as file:
        return faiss.read_index(faiss.PyCallbackIOReader(file.read), flags)


def copied(index: Any, *, flags: int = 0) -> Any:
    """Return a copy of an index, less what the flags leave out."""
    faiss = faiss_module()

    content = io.BytesIO()
    writer = faiss.PyCallbackIOWriter(content.write)
    faiss.write_index(index, writer, flags)
    del writer
    content.seek(0)
    return faiss.read_index(faiss.PyCallbackIOReader(content.read), flags)


def selector(allowed: RowSet) -> Any:
    """Return the set as FAISS takes it; the bitmap is shared, and kept alive by what is returned."""
    faiss = faiss_module()

    chosen = faiss.IDSelectorBitmap(allowed.num_rows, faiss.swig_ptr(allowed.bits))
    chosen.shared_bits = allowed.bits
    return chosen


def search_raw(
    index: Any, queries: Float32[np.ndarray, "queries dim"], k: int, parameters: Any
) -> Int64[np.ndarray, "queries k"]:
    """Return the rows an index finds, -1 where it finds fewer; `queries` are C-contiguous."""
    faiss = faiss_module()

    rows = np.empty((len(queries), k), dtype=np.int64)
    scores = np.empty((len(queries), k), dtype=np.float32)
    index.search_c(
        len(queries),
        faiss.swig_ptr(queries),
        k,
        faiss.swig_ptr(scores),
        faiss.swig_ptr(rows),
        parameters,
    )
    return rows
