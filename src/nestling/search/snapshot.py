"""All of one generation that a search reads; it never changes, and readers swap it for a newer one."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

from nestling.errors import FormatError
from nestling.search.catalogue import Catalogue
from nestling.search.engines import engine_class, full_settings
from nestling.search.engines.base import Engine
from nestling.search.ids import RowIds
from nestling.search.manifest import CATALOGUE, EngineEntry, Manifest
from nestling.search.plan import Plan
from nestling.search.row_files import living, open_dead, open_ids, open_vectors
from nestling.search.rowfile import CheckedRows, LoadedRows, check_size, measure_file
from nestling.search.rowset import RowSet
from nestling.search.tier import Tier
from nestling.search.tier_files import OpenTier, TierKey, open_stage


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Snapshot:
    """One generation of an index, opened.

    Attributes:
        manifest: What it consists of.
        vectors: The stored vectors; whoever reads rows asks for them to be checked.
        open_tiers: What each stage reads, by width and format.
        tiers: The same without what storage needs beside.
        engine: What searches the head; for the first `engine.num_rows` rows.
        search_settings: What the plan sets of the engine, completed.
        dead: Rows that are dead, in the order of their deaths.
        allowed_live: Rows that are not dead; None if all live.
        catalogue: Texts, metadata, and rows by id.
        ids: Ids by row.
    """

    manifest: Manifest
    vectors: CheckedRows
    open_tiers: Mapping[TierKey, OpenTier]
    tiers: Mapping[TierKey, Tier]
    engine: Engine
    search_settings: Mapping[str, int]
    dead: LoadedRows
    allowed_live: RowSet | None
    catalogue: Catalogue
    ids: RowIds

    @classmethod
    def open(cls, path: Path, manifest: Manifest, *, known: "Snapshot | None" = None) -> "Snapshot":
        """Open a generation.

        Args:
            path: The index folder.
            manifest: Of the generation.
            known: An older generation; of what it shares with this one, only what is new is read.

        Raises:
            FormatError: If a file is missing, shorter than it should be, or damaged as far as it is
                read now.
        """
        for name, state in manifest.files.items():
            check_size(path / name, state)
        if known is not None and not _is_continued(path, known, manifest):
            known = None
        vectors = open_vectors(path, manifest, None if known is None else known.vectors)
        open_tiers = _open_tiers(path, manifest, vectors, known)
        tiers = {key: opened.tier for key, opened in open_tiers.items()}
        dead = open_dead(path, manifest, None if known is None else known.dead)
        if known is None:
            catalogue_path = path / manifest.rows / CATALOGUE
            catalogue = Catalogue.open(catalogue_path, num_rows=manifest.num_rows)
        else:
            catalogue = known.catalogue
        plan = manifest.plan
        name = plan.engine.name
        return cls(
            manifest=manifest,
            vectors=vectors,
            open_tiers=open_tiers,
            tiers=tiers,
            engine=_open_engine(path, manifest, vectors, tiers, known),
            search_settings=full_settings(
                name, plan.engine.search, engine_class(name).search_settings
            ),
            dead=dead,
            allowed_live=living(manifest.num_rows, dead.rows),
            catalogue=catalogue,
            ids=open_ids(path, manifest, None if known is None else known.manifest),
        )

    @property
    def plan(self) -> Plan:
        """The funnel to run."""
        return self.manifest.plan

    @property
    def num_rows(self) -> int:
        """Rows stored, dead ones included."""
        return self.manifest.num_rows

    @property
    def head(self) -> Tier:
        """What the first stage searches."""
        return self.tiers[self.plan.head.dim, self.plan.head.dtype]


def load_engine(
    path: Path, manifest: Manifest, entry: EngineEntry, vectors: CheckedRows, head: Tier
) -> Engine:
    """Read an engine from its files, after checking them.

    Raises:
        FormatError: If one is damaged; the message names it.
    """
    kind = engine_class(entry.name)
    prefix = f"{entry.folder}/"
    for name, state in manifest.files.items():
        is_whole = name.startswith(prefix) and name.removeprefix(prefix) not in kind.checks_itself
        if is_whole and measure_file(path / name, state.num_bytes) != state:
            raise FormatError(
                f"{path / name} is damaged: its content does not fit its checksum. Restore the file "
                f"from a copy, or let `resize` make the engine again."
            )
    return kind.load(
        path / entry.folder, head, vectors.rows, settings=entry.build, num_rows=entry.num_rows
    )


def _is_continued(path: Path, known: Snapshot, manifest: Manifest) -> bool:
    """Say whether files that `known` opened are those at `path`, perhaps longer by now.

    Their names are not enough: the folder may have been replaced by another index. As long as a file is
    mapped, no other gets its inode number.
    """
    if known.manifest.rows != manifest.rows or known.num_rows == 0:
        return False
    try:
        return os.path.samestat(known.vectors.status, known.vectors.path.stat())
    except FileNotFoundError:
        return False


def _open_tiers(
    path: Path, manifest: Manifest, vectors: CheckedRows, known: Snapshot | None
) -> dict[TierKey, OpenTier]:
    head = manifest.plan.head
    opened: dict[TierKey, OpenTier] = {}
    for stage in manifest.plan.stages:
        key = (stage.dim, stage.dtype)
        is_mapped = key != (head.dim, head.dtype)
        if key not in opened:
            opened[key] = open_stage(
                path,
                manifest,
                stage,
                vectors,
                is_mapped=is_mapped,
                known=_same_tier(known, manifest, key, is_mapped=is_mapped),
            )
    return opened


def _same_tier(
    known: Snapshot | None, manifest: Manifest, key: TierKey, *, is_mapped: bool
) -> OpenTier | None:
    """Return a tier that was opened before if its files are the same and live in the same place."""
    if known is None or key not in known.open_tiers:
        return None
    was_mapped = key != (known.plan.head.dim, known.plan.head.dtype)
    entries = [
        [tier for tier in each.tiers if (tier.dim, tier.dtype) == key]
        for each in (known.manifest, manifest)
    ]
    is_same = was_mapped == is_mapped and entries[0] == entries[1] != []
    return known.open_tiers[key] if is_same else None


def _open_engine(
    path: Path,
    manifest: Manifest,
    vectors: CheckedRows,
    tiers: Mapping[TierKey, Tier],
    known: Snapshot | None,
) -> Engine:
    entry = manifest.engine
    head = manifest.plan.head
    is_same_head = known is not None and known.manifest.tier_of(head) == manifest.tier_of(head)
    if known is not None and known.manifest.engine == entry and is_same_head:
        return known.engine
    return load_engine(path, manifest, entry, vectors, tiers[head.dim, head.dtype])
