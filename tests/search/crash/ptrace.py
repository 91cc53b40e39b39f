"""Stop a process, and all it starts, before and after each call that may change a disk.

`strace` in small: the kernel's own tracing, so that nothing is missed, whether a call comes from
Python, from SQLite or from the C library's buffers. A seccomp filter picks the calls; the others
run at full speed. Linux on x86-64 only.
"""

import ctypes
import os
import platform
import signal
import struct
import sys
from collections.abc import Callable, Generator, Sequence

CALLS = {
    "write": 1, "open": 2, "mmap": 9, "ioctl": 16, "pwrite64": 18, "writev": 20, "sendfile": 40,
    "fsync": 74, "fdatasync": 75, "truncate": 76, "ftruncate": 77, "rename": 82, "mkdir": 83,
    "rmdir": 84, "creat": 85, "link": 86, "unlink": 87, "symlink": 88, "sync": 162, "openat": 257,
    "mkdirat": 258, "unlinkat": 263, "renameat": 264, "linkat": 265, "symlinkat": 266,
    "splice": 275, "fallocate": 285, "pwritev": 296, "syncfs": 306, "renameat2": 316,
    "copy_file_range": 326, "pwritev2": 328, "io_uring_setup": 425, "openat2": 437,
}  # fmt: skip
"""The calls that are looked at, with their numbers on x86-64."""

NAMES = {number: name for name, number in CALLS.items()}

MAKES_OR_SYNCS = os.O_CREAT | os.O_TRUNC | os.O_SYNC | os.O_DSYNC
"""Flags of an `open` that says more than where to look."""

X86_64 = 0xC000003E
TRACE_ME, CONT, SET_OPTIONS, NEXT_CALL, GET_CALL = 0, 7, 0x4200, 24, 0x420E
TRACE_CHILDREN_AND_FILTER = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x80 | 0x100000
STOPPED_BY_FILTER = 7
AFTER_CALL = signal.SIGTRAP | 0x80
ALLOW, TRACE = 0x7FFF0000, 0x7FF00000

Handler = Generator[None, int, None]
"""Runs to its `yield` before the call, and is sent what the call returned."""

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.restype = ctypes.c_long
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def why_not() -> str | None:
    """Return why processes cannot be traced here, or None if they can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "power loss is only recorded on Linux on x86-64"
    child = os.posix_spawn(
        sys.executable, [sys.executable, "-m", "tests.search.crash.ptrace"], os.environ
    )
    _, status = os.waitpid(child, 0)
    return "this system does not let a process trace its child" if status else None


def trace(command: Sequence[str], handle: Callable[[int, str, tuple[int, ...]], Handler]) -> int:
    """Run `command`, with a handler around each call in `CALLS`; return its exit status."""
    main = os.fork()
    if main == 0:
        _start(command)
    os.waitpid(main, 0)
    _ask(SET_OPTIONS, main, data=TRACE_CHILDREN_AND_FILTER)
    _ask(CONT, main)
    known, running, status_of_main = {main}, {}, 0
    while True:
        try:
            thread, status = os.waitpid(-1, 0x40000000)  # threads too
        except ChildProcessError:
            return status_of_main
        if not os.WIFSTOPPED(status):
            if thread == main:
                status_of_main = status
            continue
        cause = os.WSTOPSIG(status)
        if status >> 16 == STOPPED_BY_FILTER:
            number, *arguments = _call(thread)
            running[thread] = handle(thread, NAMES[number], tuple(arguments))
            next(running[thread])
            _ask(NEXT_CALL, thread)
        elif cause == AFTER_CALL:
            _finish(running.pop(thread), _call(thread)[0])
            _ask(CONT, thread)
        else:
            # A child that was just started stops once by itself; every other signal is its own.
            is_event = status >> 16 or (thread not in known and cause == signal.SIGSTOP)
            known.add(thread)
            _ask(CONT, thread, data=0 if is_event else cause)


def _finish(handler: Handler, result: int) -> None:
    try:
        handler.send(result)
    except StopIteration:
        return
    raise AssertionError("a handler yields once")


def _start(command: Sequence[str]) -> None:
    try:
        _ask(TRACE_ME, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        _install_filter()
        os.execvp(command[0], list(command))  # noqa: S606
    finally:
        os._exit(127)


def _ask(request: int, thread: int, address: int = 0, data: int = 0) -> None:
    if libc.ptrace(request, thread, address, data) < 0:
        code = ctypes.get_errno()
        # A thread that was killed meanwhile is told by the next wait.
        if request in (CONT, NEXT_CALL) and code == 3:
            return
        raise OSError(code, os.strerror(code))


def _call(thread: int) -> tuple[int, ...]:
    """Return number and arguments of a call that begins, or what it returned."""
    buffer = ctypes.create_string_buffer(96)
    _ask(GET_CALL, thread, 96, ctypes.addressof(buffer))
    if buffer.raw[0] == 2:
        return struct.unpack_from("<q", buffer.raw, 24)
    return struct.unpack_from("<7Q", buffer.raw, 24)


def _install_filter() -> None:
    load, same, any_bit, give = 0x20, 0x15, 0x45, 0x06

    def argument(place: int) -> int:
        return 16 + 8 * place  # its lower half

    steps = [(load, 0, 0, 4), (same, 1, 0, X86_64), (give, 0, 0, ALLOW), (load, 0, 0, 0)]
    for name, number in CALLS.items():
        conditions = {
            "open": [(1, MAKES_OR_SYNCS)],
            "openat": [(2, MAKES_OR_SYNCS)],
            "mmap": [(2, 2), (3, 1)],  # to be written, shared
        }.get(name, [])
        body = []
        for place, bits in conditions:
            body += [(load, 0, 0, argument(place)), (any_bit, 1, 0, bits), (give, 0, 0, ALLOW)]
        body.append((give, 0, 0, TRACE))
        steps += [(same, 0, len(body), number), *body]
    steps.append((give, 0, 0, ALLOW))
    program = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *step) for step in steps))
    pointer = struct.pack("<HxxxxxxQ", len(steps), ctypes.addressof(program))
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, pointer, 0, 0):
        raise OSError(ctypes.get_errno(), "no seccomp filter")


if __name__ == "__main__":
    raise SystemExit(trace(["true"], lambda *_: iter(())) != 0)  # type: ignore[arg-type]
