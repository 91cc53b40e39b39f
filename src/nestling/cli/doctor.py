"""`nestling doctor`."""

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
from rich.table import Table

from nestling.cli.doctor_drift import drift_table
from nestling.cli.options import debug_option, json_option
from nestling.cli.terminal import print_json, print_table, talk
from nestling.core import cosine_scores, normalize, top_k
from nestling.core.nested_top_k import View, nested_top_k
from nestling.encode import cache_root, open_encoder
from nestling.measure.adapter_check import check_adapter

LOW_DISK_BYTES = 1 << 30


class Check(NamedTuple):
    """One thing that was looked at."""

    name: str
    ok: bool
    found: str
    advice: str


@click.command(
    name="doctor",
    epilog="""\b
Examples:
  nestling doctor --json
  nestling doctor --adapter my-adapter --vectors new-vectors

Exits with 1 if something that every user needs does not work. With --adapter nothing but the adapter
is looked at, and the command exits with 1 if it should be fitted again: energy of a prefix down by
more than a tenth, more than 5 points of its ten nearest neighbours lost, or more than 0.1% of the
values clipped by int8 beyond what is usual, each beyond three standard errors.""",
)
@click.option(
    "--adapter",
    type=click.Path(path_type=Path),
    metavar="NESTDIR",
    help="Check whether this adapter still fits --vectors.",
)
@click.option(
    "--vectors",
    type=click.Path(path_type=Path),
    metavar="VECTORS",
    help="New vectors of the adapter's model, or such that it mapped.",
)
@json_option
@debug_option
@click.pass_context
def command(ctx: click.Context, adapter: Path | None, vectors: Path | None, as_json: bool) -> None:
    """Check this machine and installation, and say what to do about what is missing."""
    if adapter is not None and vectors is not None:
        _check_adapter(ctx, adapter, vectors, as_json=as_json)
        return
    if adapter is not None or vectors is not None:
        raise click.UsageError(
            "--adapter and --vectors belong together: name the adapter, and new vectors of its model."
        )
    checks = [_guarded(check) for check in (_python, _processor, _kernel, _model, _cache, _data)]
    extras = [_extra(name, module) for name, module in EXTRAS.items()]
    if as_json:
        print_json(
            {
                "checks": [check._asdict() for check in checks],
                "extras": [extra._asdict() for extra in extras],
            }
        )
    else:
        table = Table()
        for name in ("what", "", "found", "what to do"):
            table.add_column(name)
        for check in checks:
            table.add_row(check.name, "ok" if check.ok else "FAILED", check.found, check.advice)
        for extra in extras:
            table.add_row(
                f"extra {extra.name}", "ok" if extra.ok else "absent", extra.found, extra.advice
            )
        print_table(table)
    if not all(check.ok for check in checks):
        ctx.exit(1)


def _check_adapter(ctx: click.Context, adapter: Path, vectors: Path, *, as_json: bool) -> None:
    found = check_adapter(adapter, vectors)
    if as_json:
        print_json(found.to_json())
    else:
        print_table(drift_table(found.report))
        click.echo(found.report.advice)
        for note in found.notes:
            talk(note)
    if found.report.verdict == "refit":
        ctx.exit(1)


EXTRAS = {
    "openai": "httpx",
    "onnx": "onnxruntime",
    "parquet": "pyarrow",
    "st": "sentence_transformers",
    "train": "accelerate",
    "train-st": "datasets",
}


def _guarded(check: Callable[[], Check]) -> Check:
    # A doctor reports what is broken; it does not break off.
    try:
        return check()
    except Exception as error:
        name = check.__name__.removeprefix("_")
        return Check(
            name,
            False,
            f"{type(error).__name__}: {error}",
            "reinstall: pip install --force-reinstall nestling",
        )


def _python() -> Check:
    found = f"nestling {version('nestling')}, Python {platform.python_version()}, NumPy {version('numpy')}, numba {version('numba')}"
    return Check("python", sys.version_info >= (3, 11), found, "")


def _processor() -> Check:
    from threadpoolctl import threadpool_info

    libraries = {
        f"{info['internal_api']} ({info['num_threads']} threads)" for info in threadpool_info()
    }
    return Check(
        "processor", True, f"{os.cpu_count()} cores, BLAS: {', '.join(sorted(libraries))}", ""
    )


def _kernel() -> Check:
    generator = np.random.default_rng(0)
    queries, corpus = (
        normalize(generator.standard_normal((rows, 32)).astype(np.float32)) for rows in (8, 500)
    )
    fast = nested_top_k(corpus, [View(name="as is", queries=queries)], (8, 32), 5)["as is"].by_dim
    same = all(
        np.array_equal(fast[dim].rows, top_k(cosine_scores(queries, corpus, dim), 5).rows)
        for dim in (8, 32)
    )
    return Check(
        "kernel", same, "compiled search agrees with plain NumPy" if same else "wrong results", ""
    )


def _model() -> Check:
    encoder = open_encoder("static:wordllama")
    vectors = encoder.encode(
        ["read a file", "open a file for reading", "the moon"], role="document"
    )
    near, far = float(vectors[0] @ vectors[1]), float(vectors[0] @ vectors[2])
    return Check(
        "model",
        near > far,
        f"static:wordllama, {encoder.embed_dim} dims, cosines {near:.2f} and {far:.2f}",
        "",
    )


def _cache() -> Check:
    folder = cache_root()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free_bytes = shutil.disk_usage(existing).free
    ok = os.access(existing, os.W_OK) and free_bytes > LOW_DISK_BYTES
    advice = "" if ok else "name a folder with space that you may write to in NESTLING_CACHE"
    return Check("cache", ok, f"{folder}, {free_bytes / 1e9:.1f} GB free", advice)


def _data() -> Check:
    folder = os.environ.get("NESTLING_DATA")
    if not folder:
        return Check(
            "data", True, "NESTLING_DATA is not set", "only benchmarks and some tests need it"
        )
    found = Path(folder).is_dir()
    return Check(
        "data", found, folder, "" if found else "NESTLING_DATA names no folder: mend or unset it"
    )


def _extra(name: str, module: str) -> Check:
    if importlib.util.find_spec(module) is None:
        return Check(name, False, "", f"pip install 'nestling[{name}]' if you need it")
    try:
        return Check(name, True, f"{module} {version(module.replace('_', '-'))}", "")
    except PackageNotFoundError:
        return Check(name, True, module, "")
