"""What the reports of several benchmarks share: the machine, the versions, tables and ranges."""

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

Seconds = dict[str, list[float]]
"""By side, of each round."""


def cpu_name(*, with_family: bool = False) -> str:
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    named = re.search(r"model name\s*:\s*(.+)", cpuinfo)
    name = named[1].strip() if named else platform.processor() or platform.machine()
    family = re.search(r"cpu family\s*:\s*(\d+)", cpuinfo)
    return f"{name} (family {family[1]})" if with_family and family else name


def describe_machine(gpu: str | None = None) -> tuple[str, str]:
    """Return the machine in words, and for the name of a file."""
    hardware = f"{gpu}, " if gpu else ""
    hardware += cpu_name(with_family=True)
    cores = len(os.sched_getaffinity(0))
    slug = re.sub(r"\W+", "-", hardware.lower()).strip("-")
    return f"{hardware}, {cores} cores", f"{slug}-{cores}cores"


def describe_run(
    machine: str,
    *,
    num_threads: int,
    packages: Sequence[str],
    loads: tuple[float, float],
    revision: str | None = None,
) -> str:
    """Say when, where and with what was measured; the loads are those before and after."""
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    versions += f"; revision {revision}" if revision else ""
    return (
        f"{datetime.now(UTC):%Y-%m-%d}. {machine}, {num_threads} threads. Python "
        f"{platform.python_version()}, {versions}. One-minute load {loads[0]:.2f} before and "
        f"{loads[1]:.2f} after."
    )


def describe_revision() -> str:
    """Return what the repository is at; "" where nothing knows."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def table(header: str, rows: Sequence[str], *, to_the_right: bool = False) -> str:
    """Return a table; all columns but the first may be set to the right."""
    others = "|---:" if to_the_right else "|---"
    return "\n".join([header, "|---" + others * (header.count("|") - 2) + "|", *rows])


def ratios(seconds: Seconds, slow: str, fast: str) -> list[float]:
    """Return them round by round."""
    return [a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)]


def spread(values: Sequence[float], unit: float = 1, digits: int = 3) -> str:
    """Return the median and the range."""
    scaled = [unit * value for value in values]
    return f"{median(scaled):.{digits}g} ({min(scaled):.{digits}g} to {max(scaled):.{digits}g})"
