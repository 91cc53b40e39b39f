"""Run a program and write down all it does to the files below one folder.

    python -m tests.search.crash.record FOLDER MARKS LOG COMMAND...

FOLDER must be empty at first. What the program writes to the file MARKS, which lies elsewhere,
becomes a mark in the log.
"""

import os
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.search.crash.log import (
    ROOT,
    Enter,
    Event,
    Fsync,
    Leave,
    Mark,
    Rename,
    Truncate,
    Unsupported,
    Write,
    save,
)
from tests.search.crash.ptrace import Handler, trace

HERE = -100
"""In place of an open folder: the working folder."""
NEVER_TOLD_APART = os.O_SYNC | os.O_DSYNC | (os.O_TMPFILE & ~os.O_DIRECTORY)
CLONE_FILE, CLONE_RANGE = 0x40049409, 0x4020940D
ONLY_NEW_NAME = 1

Place = tuple[str, str]
"""A folder's real path, and a name in it."""


class Recorder:
    """Turns the calls of a process into events."""

    def __init__(self, root: Path, marks: Path) -> None:
        self.events: list[Event] = []
        self.root = os.path.realpath(root)
        self._marks = os.path.realpath(marks)
        self._nodes = {os.stat(self.root).st_ino: ROOT}  # noqa: PTH116

    def handle(self, thread: int, name: str, arguments: tuple[int, ...]) -> Handler:
        call = _Call(self, thread, arguments)
        return WAYS[name](call, *arguments) if name in WAYS else call.refuse(name)

    def is_below(self, path: str) -> bool:
        return path == self.root or path.startswith(f"{self.root}/")

    def is_marks(self, path: str) -> bool:
        return path == self._marks

    def relative(self, path: str) -> str:
        return os.path.relpath(path, self.root)

    def node(self, path: str) -> int:
        return self._nodes[os.stat(path).st_ino]  # noqa: PTH116

    def new_node(self, path: str) -> int:
        number = len(self.events) + 1  # larger than any before, since each is followed by an event
        self._nodes[os.stat(path).st_ino] = number  # noqa: PTH116
        return number


class _Call:
    """One call of one thread, stopped before or after the kernel runs it."""

    def __init__(self, recorder: Recorder, thread: int, arguments: tuple[int, ...]) -> None:
        self.recorder = recorder
        self.log = recorder.events.append
        self.thread = thread
        self.arguments = arguments

    def write(self, file: int, spans: list[tuple[int, int]], offset: int | None) -> Handler:
        result = yield
        path = self.file(file)
        if result <= 0 or not (self.recorder.is_below(path) or self.recorder.is_marks(path)):
            return
        data = b"".join(self.memory(start, length) for start, length in spans)[:result]
        if self.recorder.is_marks(path):
            self.log(Mark(data.decode().strip()))
            return
        start = self.position(file) - result if offset is None else offset
        self.log(Write(self.node(file), self.recorder.relative(path), start, data))

    def copy(self, file: int, offset_at: int | None) -> Handler:
        result = yield
        path = self.file(file)
        if result <= 0 or not self.recorder.is_below(path):
            return
        after = self.position(file)
        if offset_at is not None:
            (after,) = struct.unpack("<q", self.memory(offset_at, 8))
        with open(f"/proc/{self.thread}/fd/{file}", "rb") as copied:  # noqa: PTH123
            copied.seek(after - result)
            data = copied.read(result)
        self.log(Write(self.node(file), self.recorder.relative(path), after - result, data))

    def open(self, base: int, at: int, flags: int) -> Handler:
        path = os.path.realpath(os.path.join(*self.place(base, at)))  # noqa: PTH118
        was_there = os.path.exists(path)  # noqa: PTH110
        result = yield
        if result < 0 or not self.recorder.is_below(path):
            return
        name = self.recorder.relative(path)
        if flags & NEVER_TOLD_APART:
            self.log(Unsupported(f"open of {name} with flags {flags:#o}"))
        elif not was_there:
            folder = os.path.dirname(path)  # noqa: PTH120
            child = self.recorder.new_node(f"/proc/{self.thread}/fd/{result}")
            node = self.recorder.node(folder)
            self.log(Enter(node, name, os.path.basename(path), child, False))  # noqa: PTH119
        elif flags & os.O_TRUNC:
            self.log(Truncate(self.node(result), name, 0))

    def truncate(self, path: str, size: int) -> Handler:
        node = self.recorder.node(path) if self.recorder.is_below(path) else None
        result = yield
        if result == 0 and node is not None:
            self.log(Truncate(node, self.recorder.relative(path), size))

    def reserve(self, file: int, mode: int, end: int) -> Handler:
        if mode:
            yield from self.refuse("fallocate")
            return
        path = self.file(file)
        is_longer = end > os.stat(f"/proc/{self.thread}/fd/{file}").st_size  # noqa: PTH116
        result = yield
        if result == 0 and is_longer and self.recorder.is_below(path):
            self.log(Truncate(self.node(file), self.recorder.relative(path), end))

    def fsync(self, file: int) -> Handler:
        begin = len(self.recorder.events)
        result = yield
        path = self.file(file)
        if result == 0 and self.recorder.is_below(path):
            self.log(Fsync(self.node(file), self.recorder.relative(path), begin))

    def mkdir(self, base: int, at: int) -> Handler:
        folder, name = self.place(base, at)
        result = yield
        if result == 0 and self.recorder.is_below(folder):
            path = f"{folder}/{name}"
            child = self.recorder.new_node(path)
            node = self.recorder.node(folder)
            self.log(Enter(node, self.recorder.relative(path), name, child, True))

    def leave(self, base: int, at: int) -> Handler:
        folder, name = self.place(base, at)
        result = yield
        if result == 0 and self.recorder.is_below(folder):
            path = self.recorder.relative(f"{folder}/{name}")
            self.log(Leave(self.recorder.node(folder), path, name))

    def rename(self, old: Place, new: Place, flags: int) -> Handler:
        result = yield
        is_below = [self.recorder.is_below(folder) for folder, _ in (old, new)]
        if result < 0 or not any(is_below):
            return
        path = f"{new[0]}/{new[1]}"
        if flags & ~ONLY_NEW_NAME or not all(is_below):
            self.log(Unsupported(f"rename of {old} to {new} with flags {flags}"))
            return
        source, node = (self.recorder.node(folder) for folder, _ in (old, new))
        child = self.recorder.node(path)
        self.log(Rename(node, self.recorder.relative(path), new[1], child, source, old[1]))

    def link(self, old: Place, new: Place) -> Handler:
        result = yield
        if result == 0 and self.recorder.is_below(new[0]):
            path = f"{new[0]}/{new[1]}"
            if not self.recorder.is_below(old[0]):
                self.log(Unsupported(f"link of {path} to a file elsewhere"))
                return
            node, child = self.recorder.node(new[0]), self.recorder.node(path)
            self.log(Enter(node, self.recorder.relative(path), new[1], child, False))

    def refuse(self, name: str) -> Handler:
        """Whatever else changes a disk, or flushes all of it, must not touch the folder."""
        path = self.target(name)
        result = yield
        # An address and a `void` may look like a failure.
        has_happened = result >= 0 or name in ("mmap", "sync")
        if has_happened and self.recorder.is_below(path):
            self.log(Unsupported(f"{name} of {self.recorder.relative(path)}"))

    def target(self, name: str) -> str:
        a = self.arguments
        match name:
            case "mmap":
                return self.file(a[4])
            case "ioctl":
                return self.file(a[0]) if a[1] in (CLONE_FILE, CLONE_RANGE) else "?"
            case "fallocate":
                return self.file(a[0])
            case "symlink":
                return self.place(HERE, a[1])[0]
            case "symlinkat":
                return self.place(a[1], a[2])[0]
            case _:
                return self.recorder.root

    def node(self, file: int) -> int:
        return self.recorder.node(f"/proc/{self.thread}/fd/{file}")

    def file(self, file: int) -> str:
        """Return where an open file lies, or a word that is no path."""
        try:
            return os.readlink(f"/proc/{self.thread}/fd/{_signed(file)}")  # noqa: PTH115
        except OSError:
            return "?"

    def place(self, base: int, at: int) -> Place:
        start = _signed(base)
        where = "cwd" if start == HERE else f"fd/{start}"
        given = os.fsdecode(b"".join(self.text(at)))
        path = os.path.join(os.readlink(f"/proc/{self.thread}/{where}"), given)  # noqa: PTH115, PTH118
        folder, name = os.path.split(path.rstrip("/"))
        return os.path.realpath(folder), name

    def spans(self) -> list[tuple[int, int]]:
        packed = self.memory(self.arguments[1], 16 * self.arguments[2])
        return list(struct.iter_unpack("<QQ", packed))

    def text(self, start: int) -> Iterator[bytes]:
        # By pages, since the next one may not be there.
        while True:
            page = self.memory(start, 4096 - start % 4096)
            content, end, _ = page.partition(b"\0")
            yield content
            if end:
                return
            start += len(page)

    def memory(self, start: int, length: int) -> bytes:
        with open(f"/proc/{self.thread}/mem", "rb", buffering=0) as memory:  # noqa: PTH123
            return os.pread(memory.fileno(), length, start)

    def position(self, file: int) -> int:
        for line in Path(f"/proc/{self.thread}/fdinfo/{file}").read_text().splitlines():
            if line.startswith("pos:"):
                return int(line.split()[1])
        raise AssertionError(line)


WAYS: dict[str, Callable[..., Handler]] = {
    "write": lambda c, file, at, length, *_: c.write(file, [(at, length)], None),
    "pwrite64": lambda c, file, at, length, offset, *_: c.write(file, [(at, length)], offset),
    "writev": lambda c, file, *_: c.write(file, c.spans(), None),
    "pwritev": lambda c, file, _, __, offset, *___: c.write(file, c.spans(), offset),
    "pwritev2": lambda c, file, _, __, offset, *___: c.write(file, c.spans(), offset),
    "sendfile": lambda c, file, *_: c.copy(file, None),
    "copy_file_range": lambda c, _, __, file, offset_at, *___: c.copy(file, offset_at or None),
    "splice": lambda c, _, __, file, offset_at, *___: c.copy(file, offset_at or None),
    "open": lambda c, path, flags, *_: c.open(HERE, path, flags),
    "creat": lambda c, path, *_: c.open(HERE, path, os.O_CREAT | os.O_TRUNC),
    "openat": lambda c, base, path, flags, *_: c.open(base, path, flags),
    "truncate": lambda c, path, size, *_: c.truncate("/".join(c.place(HERE, path)), size),
    "ftruncate": lambda c, file, size, *_: c.truncate(c.file(file), size),
    "fallocate": lambda c, file, mode, start, length, *_: c.reserve(file, mode, start + length),
    "fsync": lambda c, file, *_: c.fsync(file),
    "fdatasync": lambda c, file, *_: c.fsync(file),
    "mkdir": lambda c, path, *_: c.mkdir(HERE, path),
    "mkdirat": lambda c, base, path, *_: c.mkdir(base, path),
    "rmdir": lambda c, path, *_: c.leave(HERE, path),
    "unlink": lambda c, path, *_: c.leave(HERE, path),
    "unlinkat": lambda c, base, path, *_: c.leave(base, path),
    "rename": lambda c, old, new, *_: c.rename(c.place(HERE, old), c.place(HERE, new), 0),
    "renameat": lambda c, a, old, b, new, *_: c.rename(c.place(a, old), c.place(b, new), 0),
    "renameat2": lambda c, a, old, b, new, how, _: c.rename(c.place(a, old), c.place(b, new), how),
    "link": lambda c, old, new, *_: c.link(c.place(HERE, old), c.place(HERE, new)),
    "linkat": lambda c, a, old, b, new, *_: c.link(c.place(a, old), c.place(b, new)),
}
"""What to do about each call, from its arguments; the others of `CALLS` are refused."""


def _signed(number: int) -> int:
    return struct.unpack("<i", struct.pack("<I", number & 0xFFFFFFFF))[0]


if __name__ == "__main__":
    root, marks, log = map(Path, sys.argv[1:4])
    if any(root.iterdir()):
        raise SystemExit(f"{root} must be empty")
    recorder = Recorder(root, marks)
    status = trace(sys.argv[4:], recorder.handle)
    save(recorder.events, log)
    raise SystemExit(os.waitstatus_to_exitcode(status))
