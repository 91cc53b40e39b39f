"""Programs to be recorded: `python -m tests.search.crash.programs NAME [ARGUMENT...] ROOT MARKS`."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nestling.core.files import fsync_folder, write_atomically
from tests.search.crash.states import ACKNOWLEDGED

if TYPE_CHECKING:
    from tests.search.crash.life import Step

Mark = Callable[[str], None]
LIFE = "life "
FILES = [("plain", b"first"), ("plain", b"second" * 999), ("new/folders/deep", b"third")]


def atomic_files(root: Path, mark: Mark) -> None:
    for number, (name, content) in enumerate(FILES, start=1):
        write_atomically(root / name, content)
        mark(f"{ACKNOWLEDGED}{number}")


def sqlite(root: Path, mark: Mark, level: str) -> None:
    connection = sqlite3.connect(root / "numbers.sqlite", isolation_level=None)
    connection.execute(f"PRAGMA synchronous={level}")
    connection.execute("CREATE TABLE numbers(number INTEGER UNIQUE, word TEXT UNIQUE)")
    mark(f"{ACKNOWLEDGED}1")
    for number in range(2):
        # The table and its two unique indexes: several pages in one transaction.
        connection.execute("INSERT INTO numbers VALUES (?, ?)", (number, f"word {number}"))
        mark(f"{ACKNOWLEDGED}{number + 2}")
    connection.close()


def lives(root: Path, mark: Mark) -> None:
    """All lives in one process, each in a folder of its own after a mark."""
    from tests.search.crash.life import LIVES

    for name, steps in LIVES.items():
        mark(f"{LIFE}{name}")
        folder = root / name
        folder.mkdir()
        fsync_folder(root)
        for number, step in enumerate(steps, start=1):
            if step.killed_after is None:
                step.write(folder)
                mark(f"{ACKNOWLEDGED}{number}")
            else:
                die_in(step, folder)
                mark("killed")


def die_in(step: "Step", folder: Path) -> None:
    """Do a step in a process that is killed before the first fsync after it called something."""
    process = os.fork()
    if process == 0:
        try:
            kill_before_flush(step.killed_after)
            step.write(folder)
        finally:
            os._exit(1)
    _, status = os.waitpid(process, 0)
    assert os.WIFSIGNALED(status), "the step came to its end"


def kill_before_flush(after: str | None) -> None:
    is_near = not after

    def fsync(file: int) -> None:
        if is_near:
            os.kill(os.getpid(), signal.SIGKILL)
        flush(file)

    def wrapped(*arguments: Any) -> Any:
        nonlocal is_near
        is_near = True
        return original(*arguments)

    flush = os.fsync
    os.fsync = fsync  # type: ignore[assignment]
    if after:
        original = getattr(Path, after)
        setattr(Path, after, wrapped)


def every_call(root: Path, mark: Mark) -> None:
    """Write in every way that the recorder knows, through Python, C and a child's hands."""
    for name in ("raw", "folder/", "folder/deep/", "gone/"):
        (root / name).mkdir() if name.endswith("/") else (root / name).touch()
    with (root / "raw").open("r+b", buffering=0) as file:
        file.write(b"a" * 1000)
        os.pwrite(file.fileno(), b"bb", 5000)
        os.writev(file.fileno(), [b"ccc", b"dddd"])
        os.pwritev(file.fileno(), [b"e", b"f"], 10)
        os.posix_fallocate(file.fileno(), 0, 6000)
        os.write(os.dup(file.fileno()), b"through a second number")
        os.ftruncate(file.fileno(), 5500)
        os.fdatasync(file.fileno())
    np.arange(3000).tofile(root / "by the C library")
    shutil.copyfile(root / "raw", root / "sent")
    with (root / "raw").open("rb") as source, (root / "ranged").open("wb") as target:
        os.copy_file_range(source.fileno(), target.fileno(), 3000, 100, 50)
    with (root / "raw").open("ab") as file:
        file.write(b"at the end")
    os.truncate(root / "sent", 17)
    os.link(root / "sent", root / "folder" / "linked")
    (root / "sent").rename(root / "folder" / "moved")
    (root / "ranged").replace(root / "raw")
    (root / "gone").rmdir()
    (root / "folder").rename(root / "renamed")
    thread = threading.Thread(target=lambda: (root / "by a thread").write_text("thread"))
    thread.start()
    thread.join()
    subprocess.run(["sh", "-c", "echo child > 'by a child'"], cwd=root, check=True)
    shutil.copytree(root / "renamed", root / "tree")
    shutil.rmtree(root / "tree")
    (root / "emptied").write_text("full")
    (root / "emptied").open("wb").close()
    fsync_folder(root)
    mark("done")


def unknown(root: Path, mark: Mark, call: str) -> None:
    """Do something that the recorder must refuse."""
    path = root / "file"
    path.write_bytes(bytes(4096))
    elsewhere = root.with_name("elsewhere")
    elsewhere.touch()
    ways: dict[str, Callable[[], Any]] = {
        "mmap": lambda: np.memmap(path, np.uint8, "r+"),
        "symlink": lambda: (root / "link").symlink_to(path),
        "open": lambda: os.open(path, os.O_WRONLY | os.O_SYNC),
        "sync": os.sync,
        "rename": lambda: elsewhere.rename(root / "in"),
    }
    ways[call]()


def main() -> None:
    name, *arguments, root, marks = sys.argv[1:]
    descriptor = os.open(marks, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def mark(text: str) -> None:
        os.write(descriptor, text.encode())

    PROGRAMS[name](Path(root), mark, *arguments)


PROGRAMS: dict[str, Callable[..., None]] = {
    job.__name__: job for job in (atomic_files, every_call, lives, sqlite, unknown)
}

if __name__ == "__main__":
    main()
