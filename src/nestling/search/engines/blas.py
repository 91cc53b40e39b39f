"""Hold NumPy's matrix products to one thread while an engine shares out its work itself.

The number of threads of a BLAS library is one setting for the whole process. Splitting the rows by
hand keeps the sums, and so the last bits of every score, independent of the number of threads.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

_LOCK = Lock()
_held: list[int] = []
_num_holders = 0


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let matrix products run on the calling thread only, and set back what was set.

    Several threads may hold it at once: the first one sets, the last one sets back. It costs about a
    microsecond per library where nothing changes; `threadpoolctl.threadpool_limits`, which looks
    for the libraries each time, costs 400.
    """
    global _num_holders
    libraries = _blas_libraries()
    with _LOCK:
        _num_holders += 1
        if _num_holders == 1:
            _held[:] = [library.get_num_threads() or 1 for library in libraries]
            for library, num_threads in zip(libraries, _held, strict=True):
                if num_threads != 1:
                    library.set_num_threads(1)
    try:
        yield
    finally:
        with _LOCK:
            _num_holders -= 1
            if _num_holders == 0:
                for library, num_threads in zip(libraries, _held, strict=True):
                    if num_threads != 1:
                        library.set_num_threads(num_threads)


@cache
def _blas_libraries() -> list[Any]:
    from threadpoolctl import ThreadpoolController

    return list(ThreadpoolController().select(user_api="blas").lib_controllers)
