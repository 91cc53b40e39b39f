"""Record one of our programs, and refuse a recording that missed something."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.search.crash.disk import CrashState, read_tree, survivors
from tests.search.crash.log import Event, Unsupported, load
from tests.search.crash.ptrace import why_not

REPOSITORY = Path(__file__).parents[3]


def record(command: Sequence[str], folder: Path) -> list[Event]:
    """Return what `command ROOT MARKS` did to an empty folder ROOT.

    Replayed in full, the recording must give the very bytes that are there: nothing was missed.
    """
    root, marks, log = folder / "root", folder / "marks", folder / "log"
    root.mkdir(parents=True)
    recorder = [sys.executable, "-m", "tests.search.crash.record", str(root), str(marks), str(log)]
    finished = subprocess.run(
        [*recorder, *command, str(root), str(marks)],
        cwd=REPOSITORY,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    events = load(log)
    check_complete(events, root)
    return events


def check_complete(events: Sequence[Event], root: Path) -> None:
    refused = [event.text for event in events if isinstance(event, Unsupported)]
    assert not refused, f"the model of a disk does not know: {refused}"
    replayed, real = survivors(events, CrashState(len(events))), read_tree(root)
    differing = [
        name for name in replayed.keys() | real.keys() if replayed.get(name) != real.get(name)
    ]
    assert replayed == real, f"the recording missed something about {differing}"


def require_tracing() -> None:
    if reason := why_not():
        pytest.skip(f"power loss is NOT tested: {reason}")


def program(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "tests.search.crash.programs", name, *arguments]
