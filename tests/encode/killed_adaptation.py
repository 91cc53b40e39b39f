"""Started by the kill test: for each line on standard input, fork a process that adapts vectors.

A line is `<adapter> <vectors> <folder> <log>`. The fork adds the number of rows to the log before
it maps them. Its process id is printed; it stays valid until a line asks how it ended.
"""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from nestling.core import Projection
from nestling.encode import AdaptedEncoder, adapt_vectors, open_encoder
from nestling.encode.vector_map import VectorMap

BLOCK_ROWS = 16


class LoggingMap:
    """A map that says how many rows it maps; everything else is the inner one's."""

    def __init__(self, inner: VectorMap, log: int) -> None:
        self._inner = inner
        self._log = log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        os.write(self._log, f"{len(rows)}\n".encode())
        return self._inner(rows)


def say(answer: object) -> None:
    sys.stdout.write(f"{answer}\n")
    sys.stdout.flush()


def main() -> None:
    # Compiled code is loaded once, here: a fork spends its life on the work that is to be killed.
    Projection(np.eye(2, dtype=np.float32))(np.eye(2, dtype=np.float32))
    say("ready")
    while line := sys.stdin.readline():
        uri, vectors, folder, log = line.split()
        process = os.fork()
        if process == 0:
            adapter = open_encoder(uri)
            assert isinstance(adapter, AdaptedEncoder)
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            adapter.map = LoggingMap(adapter.map, descriptor)
            adapt_vectors(adapter, Path(vectors), Path(folder), block_rows=BLOCK_ROWS)
            os._exit(0)
        say(process)
        sys.stdin.readline()
        say(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))


if __name__ == "__main__":
    main()
