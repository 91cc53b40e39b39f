"""What a result was measured with and on."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nestling import __version__

_LIBRARIES = ("numpy", "scipy", "scikit-learn", "numba")


def describe_environment(*, seed: int, command: str | None) -> dict[str, Any]:
    """Return versions, hardware, seed, date in UTC and, if there was one, the command."""
    environment: dict[str, Any] = {
        "nestling": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in _LIBRARIES},
        "system": platform.platform(),
        "cpu": cpu_name(),
        "num_cores": os.cpu_count(),
        "seed": seed,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if command is not None:
        environment["command"] = command
    return environment


def cpu_name() -> str:
    """Return the processor's name for people, as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
