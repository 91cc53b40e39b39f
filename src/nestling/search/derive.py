"""What is derived from stored vectors: tiers and the engine, each in a folder of its own."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from nestling.core import Dtype
from nestling.core.files import fsync_folder
from nestling.core.progress import Progress
from nestling.errors import FormatError
from nestling.search.engines import engine_class, full_settings
from nestling.search.engines.base import Engine
from nestling.search.manifest import EngineEntry, Manifest, TierEntry, named
from nestling.search.plan import Plan
from nestling.search.rowfile import CheckedRows, FileState, measure_file
from nestling.search.tier_files import derive_tier_files, needed_tiers, open_stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Where and how something is derived.

    Attributes:
        path: The index folder.
        generation: Which generation it is for; it names the folders.
        num_threads: Threads to use.
        progress: Counts rows.
    """

    path: Path
    generation: int
    num_threads: int
    progress: Progress


def threads_to_use(num_threads: int | None) -> int:
    """Return the number asked for; by default, the processors that this process may use."""
    return num_threads or len(os.sched_getaffinity(0))


def without_derived(manifest: Manifest) -> Manifest:
    """Return a manifest that names its rows, and neither tiers nor an engine."""
    return replace(
        manifest, tiers=(), files=named(manifest.rows, manifest.states_in(manifest.rows))
    )


def derive_tiers(
    work: Work, manifest: Manifest, plan: Plan, vectors: CheckedRows, *, reused: Manifest | None
) -> Manifest:
    """Return a manifest that has the tiers a plan needs, written and flushed where they are new.

    Args:
        work: Where and how.
        manifest: What there is; the tiers it names are replaced.
        plan: What needs them.
        vectors: The stored vectors.
        reused: Whose tiers may be kept: a manifest of the same rows, or None.
    """
    kept = {} if reused is None else {(tier.dim, tier.dtype): tier for tier in reused.tiers}
    tiers: list[TierEntry] = []
    files = dict(manifest.files)
    for dim, dtype in needed_tiers(plan, manifest.vector_dtype):
        if reused is not None and (dim, dtype) in kept:
            entry = kept[dim, dtype]
            files |= named(entry.folder, reused.states_in(entry.folder))
        else:
            entry, states = _derive_tier(work, vectors, dim, dtype)
            files |= states
        tiers.append(entry)
    return replace(manifest, plan=plan, tiers=tuple(tiers), files=files)


def derive_engine(
    work: Work, manifest: Manifest, vectors: CheckedRows, *, reused: Manifest | None
) -> Manifest:
    """Return a manifest that has the engine its plan needs, written and flushed where it is new.

    Args:
        work: Where and how.
        manifest: What there is, with the tiers of the plan.
        vectors: The stored vectors.
        reused: Whose engine may be kept: a manifest of the same rows, or None.
    """
    settings = checked_settings(manifest.plan)
    if reused is not None and _same_engine(reused, manifest, settings):
        folder = reused.engine.folder
        files = {**manifest.files, **named(folder, reused.states_in(folder))}
        return replace(manifest, engine=reused.engine, files=files)
    vectors.ensure_span(0, len(vectors.rows))
    head = open_stage(work.path, manifest, manifest.plan.head, vectors, is_mapped=False).tier
    engine = engine_class(manifest.plan.engine.name).build(
        head,
        vectors.rows,
        settings=settings,
        num_threads=work.num_threads,
        progress=work.progress,
    )
    return with_engine(work, manifest, engine, settings)


def checked_settings(plan: Plan) -> dict[str, int]:
    """Return the build settings of a plan's engine, completed.

    Raises:
        FormatError: If a setting, of a query too, is unknown or out of its range, or the engine cannot
            search a head of this format.
        MissingExtraError: If the engine needs a package that is not installed.
    """
    name = plan.engine.name
    kind = engine_class(name)
    if plan.head.dtype not in kind.formats:
        raise FormatError(
            f"`engine` {name!r} searches heads of the formats {', '.join(sorted(kind.formats))}, "
            f"got {plan.head.describe()!r}. Choose one of these formats, or another engine."
        )
    full_settings(name, plan.engine.search, kind.search_settings)
    return full_settings(name, plan.engine.build, kind.build_settings)


def with_engine(
    work: Work, manifest: Manifest, engine: Engine, settings: Mapping[str, int]
) -> Manifest:
    """Return a manifest with an engine for all of its rows, after writing it to the disk."""
    name = f"engine-{work.generation}-{engine.name}"
    folder = work.path / name
    folder.mkdir()
    saved = engine.save(folder)
    files = {f"{name}/{file}": measure_file(folder / file) for file in saved}
    if not saved:
        folder.rmdir()
    entry = EngineEntry(
        name=engine.name, build=dict(settings), folder=name, num_rows=manifest.num_rows
    )
    old = f"{manifest.engine.folder}/"
    others = {file: state for file, state in manifest.files.items() if not file.startswith(old)}
    return replace(manifest, engine=entry, files={**others, **files})


def has_files(manifest: Manifest) -> bool:
    """Return whether the engine keeps anything but the tier; if not, it costs nothing to extend."""
    return bool(manifest.states_in(manifest.engine.folder))


def _derive_tier(
    work: Work, vectors: CheckedRows, dim: int, dtype: Dtype
) -> tuple[TierEntry, dict[str, FileState]]:
    vectors.ensure_span(0, len(vectors.rows))
    name = f"tier-{work.generation}-{dim}-{dtype}"
    folder = work.path / name
    folder.mkdir()
    states = derive_tier_files(vectors.rows, folder, dim=dim, dtype=dtype, progress=work.progress)
    fsync_folder(folder)
    return TierEntry(dim=dim, dtype=dtype, folder=name), named(name, states)


def _same_engine(old: Manifest, new: Manifest, settings: Mapping[str, int]) -> bool:
    is_same_head = old.tier_of(old.plan.head) == new.tier_of(new.plan.head)
    return is_same_head and (old.engine.name, old.engine.build) == (new.plan.engine.name, settings)
