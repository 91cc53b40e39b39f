"""The speed half of `adapter.py`: fits, steps, applying, and streaming a large vector folder."""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adapter_report import WIDTHS
from report import describe_revision

from nestling.core import normalize
from nestling.core.files import write_json
from nestling.encode.vector_map import OrthogonalMap
from nestling.train.adapter.learn import Turning, may_turn
from nestling.train.losses.self_distillation import SelfDistillation

Rows = np.ndarray
Result = dict[str, Any]


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def cached(what: str, options: argparse.Namespace, compute: Callable[[], Result]) -> Result:
    """Return a part, from the work folder where it was finished."""
    key = f"{what} steps={options.steps} quick={options.quick}"
    path = options.work / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    if not path.exists():
        load_before = os.getloadavg()[0]
        started_s = time.perf_counter()
        result = compute()
        say(f"  {time.perf_counter() - started_s:.0f} s")
        loads = [load_before, os.getloadavg()[0]]
        about = {"key": key, "loads": loads, "revision": describe_revision()}
        write_json(path, {**about, **result})
    return json.loads(path.read_text())


def run_speed(options: argparse.Namespace) -> Result:
    say("fits ...")
    generator = np.random.default_rng(0)
    shape = (300, 96) if options.quick else (5000, 384)
    spectrum = 0.99 ** np.arange(shape[1])
    rows = normalize((generator.standard_normal(shape) * spectrum).astype(np.float32))
    return cached(
        f"speed {shape} {options.stream_rows}",
        options,
        lambda: {
            "fit_s": time_fit(rows, options),
            "steps_s": time_steps(rows, options),
            "apply_s": time_apply(options),
            "stream": stream(options),
        },
    )


def time_fit(rows: Rows, options: argparse.Namespace) -> Result:
    """Time the command line from vectors to a finished folder, three times."""
    folder = options.work / "fit"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    np.save(folder / "rows.npy", rows)
    dims = ",".join(str(dim) for dim in WIDTHS if dim < rows.shape[1])
    seconds: dict[str, list[float]] = {"auto": [], "rotation": []}
    for turn in range(options.rounds):
        for method, of_method in seconds.items():
            out = folder / f"{method}{turn}"
            started_s = time.perf_counter()
            command = ["nestling", "train", "adapter", "--fit-on", str(folder / "rows.npy")]
            command += ["--dims", dims, "--method", method, "--out", str(out), "--json"]
            subprocess.run([sys.executable, "-m", *command], check=True, capture_output=True)
            of_method.append(time.perf_counter() - started_s)
    return seconds


def time_steps(rows: Rows, options: argparse.Namespace) -> Result:
    """Time a step on the rotations beside PyTorch's orthogonal parametrisations, same batch and loss."""
    embed_dim = rows.shape[1]
    dims = (*(dim for dim in WIDTHS if dim < embed_dim), embed_dim)
    batch = torch.from_numpy(rows[: min(800, len(rows))])
    loss = SelfDistillation(dims)
    turning = Turning(np.eye(embed_dim), may_turn(dims, (), by_coordinate=False))

    def on_rotations() -> None:
        turned = (batch @ turning.rotation).requires_grad_()
        loss.value(turned).total.backward()
        turning.step([turned], 1e-3)

    sides: dict[str, Callable[[], None]] = {"here": on_rotations}
    matrices: dict[str, Callable[[], torch.Tensor]] = {"here": lambda: turning.rotation}
    for kind in ("matrix_exp", "cayley", "householder"):
        linear = torch.nn.Linear(embed_dim, embed_dim, bias=False)
        with torch.no_grad():
            linear.weight.copy_(torch.eye(embed_dim))
        torch.nn.utils.parametrizations.orthogonal(linear, orthogonal_map=kind)
        optimizer = torch.optim.Adam(linear.parameters(), lr=1e-3)

        def parametrised(linear: Any = linear, optimizer: Any = optimizer) -> None:
            optimizer.zero_grad()
            loss.value(linear(batch)).total.backward()
            optimizer.step()

        sides[kind] = parametrised
        matrices[kind] = lambda linear=linear: linear.weight.detach()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.step_rounds):
        for name, step in sides.items():
            started_s = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - started_s)
    deviations = {}
    for name, matrix in matrices.items():
        wide = matrix().float().double()
        identity = torch.eye(embed_dim, dtype=torch.float64)
        deviations[name] = float((wide.T @ wide - identity).abs().max())
    exact = turning.finish().astype(np.float32).astype(np.float64)
    deviations["here, finished"] = float(np.abs(exact.T @ exact - np.eye(embed_dim)).max())
    return {"seconds": seconds, "deviations": deviations, "batch": len(batch)}


def time_apply(options: argparse.Namespace) -> Result:
    """Time the map beside the plain product, in turn."""
    generator = np.random.default_rng(1)
    dim, num_rows = (128, 2000) if options.quick else (1024, 100_000)
    matrix = np.linalg.qr(generator.standard_normal((dim, dim)))[0]
    vector_map = OrthogonalMap(matrix)
    rows = normalize(generator.standard_normal((num_rows, dim), dtype=np.float32))
    vector_map(rows[:10])  # compiles
    seconds: dict[str, list[float]] = {"map": [], "product": []}
    for _ in range(options.rounds + 2):
        for name, apply in (
            ("map", lambda: vector_map(rows)),
            ("product", lambda: rows @ vector_map.matrix),
        ):
            started_s = time.perf_counter()
            apply()
            seconds[name].append(time.perf_counter() - started_s)
    return {"seconds": seconds, "shape": [num_rows, dim]}


def watch_peak(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process, and return its peak memory.

    The kernel's high-water mark is read while it runs: what wait4 tells includes the memory of this
    process, from which it was forked.
    """
    peak_bytes = 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            break
        marks = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
        peak_bytes = max(peak_bytes, *(1024 * int(mark) for mark in marks), 0)
        time.sleep(0.05)
    if process.wait() != 0:
        raise RuntimeError(f"nestling encode ended with {process.returncode}")
    return peak_bytes


def stream(options: argparse.Namespace) -> Result:
    """Adapt a large vector folder with the command line: seconds and peak memory of the process."""
    folder = options.work / "stream"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    dim = 128 if options.quick else 1024
    generator = np.random.default_rng(2)
    say(f"writing {options.stream_rows:,} x {dim} ...")
    path = folder / "rows.npy"
    rows = np.lib.format.open_memmap(
        path, mode="w+", dtype=np.float32, shape=(options.stream_rows, dim)
    )
    for start in range(0, options.stream_rows, 10_000):
        rows[start : start + 10_000] = generator.standard_normal(
            (min(10_000, options.stream_rows - start), dim), dtype=np.float32
        )
    rows.flush()
    np.save(folder / "sample.npy", np.array(rows[:4000]))
    matrix = np.linalg.qr(generator.standard_normal((dim, dim)))[0].astype(np.float32)
    started_s = time.perf_counter()
    for start in range(0, options.stream_rows, 1024):
        rows[start : start + 1024] @ matrix
    product_s = time.perf_counter() - started_s
    del rows
    run = [sys.executable, "-m", "nestling"]
    fit = ["train", "adapter", "--fit-on", str(folder / "sample.npy"), "--dims", str(dim // 8)]
    subprocess.run(
        [*run, *fit, "--method", "pca", "--out", str(folder / "nest")],
        check=True,
        capture_output=True,
    )
    apply = ["encode", "--model", f"nest:{folder / 'nest'}", "--vectors", str(path)]
    say("streaming ...")
    started_s = time.perf_counter()
    process = subprocess.Popen(
        [*run, *apply, "--out", str(folder / "adapted")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    peak_bytes = watch_peak(process)
    seconds = time.perf_counter() - started_s
    shutil.rmtree(folder)
    return {
        "rows": options.stream_rows,
        "dim": dim,
        "seconds": seconds,
        "product_s": product_s,
        "peak_bytes": peak_bytes,
    }
