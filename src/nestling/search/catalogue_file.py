"""The catalogue's SQLite file: how it is opened, changed as one, and refused."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nestling.errors import FormatError, WriteError

ADVICE = "Build the index again, or restore the file from a copy."
BUSY_TIMEOUT_S = 60.0
"""How long a reader waits for a writer's commit, and a writer for readers, before giving up."""

_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
# The second: what SQLite says of a damaged schema may quote bytes that are no text.
_REFUSALS = (sqlite3.DatabaseError, UnicodeDecodeError)


def connect(path: Path) -> sqlite3.Connection:
    """Open an existing file."""
    # The mode keeps SQLite from making an empty file where one is missing. It is "rw" for readers
    # too, so that they can undo what a writer left that died in the middle of a change; where it
    # may not write, SQLite only reads.
    connection = sqlite3.connect(
        f"{path.resolve().as_uri()}?mode=rw",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=BUSY_TIMEOUT_S,
    )
    # A commit counts once its rollback journal is gone from the folder. Only EXTRA flushes the
    # folder then: with FULL, a power loss could bring the journal back, and undo the commit.
    connection.execute("PRAGMA synchronous = EXTRA")
    return connection


@contextmanager
def connected(path: Path) -> Iterator[sqlite3.Connection]:
    """Yield a connection that is closed at the end of the block."""
    connection = connect(path)
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit what the block does, or nothing of it if it raises."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # On a full disk SQLite has rolled back by itself.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextmanager
def naming_refusals(path: Path, *, source: Path | None = None) -> Iterator[None]:
    """Turn what SQLite says while writing into an error that names the file.

    Args:
        path: What is written.
        source: What is read meanwhile, and damaged if anything is; by default `path`.
    """
    try:
        yield
    except _REFUSALS as error:
        if isinstance(error, UnicodeDecodeError) or _code(error) in _DAMAGED:
            raise FormatError(f"cannot read {source or path}: {error}. {ADVICE}") from error
        raise WriteError(
            f"cannot write {path}: {error}. Free some space, or name a folder you may write to."
        ) from error


@contextmanager
def naming_damage(path: Path) -> Iterator[None]:
    """Turn what SQLite says while reading into a `FormatError` that names the file."""
    try:
        yield
    except _REFUSALS as error:
        advice = ADVICE
        if _code(error) == sqlite3.SQLITE_BUSY:
            advice = "Another process is changing it. Try again."
        elif path.with_name(f"{path.name}-journal").exists():
            advice = (
                "A writer died in the middle of a change, which is undone when the index is opened "
                "by somebody who may write to the folder."
            )
        raise FormatError(f"cannot read {path}: {error}. {advice}") from error


def _code(error: Exception) -> int | None:
    # The low byte is the primary code; errors of Python's own have none.
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF
