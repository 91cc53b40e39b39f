"""Started by the kill test: for each line on standard input, fork a process that encodes.

A line is `<folder> <log>`. The fork writes the id of every text to the log before it encodes it.
Its process id is printed; it stays valid, ended or not, until a line asks how it ended.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nestling.data.docstrings import harvest
from nestling.encode import encode_corpus, open_encoder
from tests.encode.fakes import make_corpus

BLOCK_ROWS = 16


class LoggingEncoder:
    """An encoder that says what it encodes; everything else is the inner one's."""

    def __init__(self, inner: Any, log: int) -> None:
        self._inner = inner
        self._log = log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def encode(self, inputs: Any, *, role: Any, ids: Sequence[str] | None = None) -> Any:
        os.write(self._log, "".join(f"{name}\n" for name in ids or ()).encode())
        return self._inner.encode(inputs, role=role, ids=ids)


def read_corpus() -> Any:
    """2,000 docstrings of the standard library, some of them equal."""
    files = sorted(str(path) for path in Path(os.__file__).parent.glob("*.py"))
    texts = [text for found in harvest(files) for _, text in found or []][:1950]
    return make_corpus([*texts, *texts[:50]])


def say(answer: object) -> None:
    sys.stdout.write(f"{answer}\n")
    sys.stdout.flush()


def main() -> None:
    corpus, encoder = read_corpus(), open_encoder("static:wordllama")
    say("ready")
    while line := sys.stdin.readline():
        folder, log = line.split()
        process = os.fork()
        if process == 0:
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            logging_encoder = LoggingEncoder(encoder, descriptor)
            encode_corpus(logging_encoder, corpus, Path(folder), block_rows=BLOCK_ROWS)
            os._exit(0)
        say(process)
        sys.stdin.readline()
        say(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))


if __name__ == "__main__":
    main()
