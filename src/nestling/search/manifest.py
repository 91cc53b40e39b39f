"""What an index consists of: the file that is switched last, so that it is always true."""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nestling.core import Dtype, Fingerprint
from nestling.core.files import read_json, seal, unseal, write_json
from nestling.errors import FormatError
from nestling.search.catalogue import CatalogueState
from nestling.search.plan import Plan, Stage
from nestling.search.rowfile import NOTHING, RESTORE, FileState

INDEX_VERSION = 2
MANIFEST = "index.json"

VECTORS = "vectors.bin"
SUMS = "sums.bin"
DEAD = "dead.bin"
CATALOGUE = "catalogue.sqlite"


@dataclass(frozen=True, slots=True, kw_only=True)
class TierEntry:
    """A tier that has files of its own.

    Attributes:
        dim: Prefix width.
        dtype: Number format.
        folder: Where its files are, within the index.
    """

    dim: int
    dtype: Dtype
    folder: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineEntry:
    """The engine as it was made.

    Attributes:
        name: As in the table of engines.
        build: All settings it was made with.
        folder: Where its files are, within the index; there is no such folder if it has none.
        num_rows: Rows it was made for.
    """

    name: str
    build: Mapping[str, int]
    folder: str
    num_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The committed state of an index folder.

    Attributes:
        generation: Counts the committed changes, from 1.
        num_rows: Rows stored, dead ones included; whatever lies behind them in a file was never
            acknowledged.
        vector_dtype: Format of the full vectors, float32 or float16.
        fingerprint: What made the vectors.
        nesting_dims: Widths that were thought of as prefixes, ascending; the last is the full one.
        plan: The funnel that `search` runs.
        rows: Folder of the full vectors, ids and the catalogue.
        tiers: Those with files of their own.
        engine: What searches the head tier.
        files: Committed length and checksum of each file of rows, by path within the index.
        catalogue: What the catalogue holds.
    """

    generation: int
    num_rows: int
    vector_dtype: Dtype
    fingerprint: Fingerprint
    nesting_dims: tuple[int, ...]
    plan: Plan
    rows: str
    tiers: tuple[TierEntry, ...]
    engine: EngineEntry
    files: Mapping[str, FileState]
    catalogue: CatalogueState

    @property
    def embed_dim(self) -> int:
        """Full width."""
        return self.fingerprint.space.embed_dim

    @property
    def num_dead(self) -> int:
        """Rows that were deleted or replaced."""
        return self.files[f"{self.rows}/{DEAD}"].num_bytes // 8

    @property
    def num_live(self) -> int:
        """Documents."""
        return self.num_rows - self.num_dead

    @property
    def folders(self) -> frozenset[str]:
        """All folders that belong to this generation."""
        return frozenset((self.rows, self.engine.folder, *(tier.folder for tier in self.tiers)))

    @property
    def has_new_folders(self) -> bool:
        """Whether a folder was made for this generation, which its name says."""
        return any(name.split("-")[1] == str(self.generation) for name in self.folders)

    def tier_of(self, stage: Stage) -> TierEntry | None:
        """Return the files that a stage reads; None if it reads the stored vectors."""
        for tier in self.tiers:
            if (tier.dim, tier.dtype) == (stage.dim, stage.dtype):
                return tier
        return None

    def states_in(self, folder: str) -> dict[str, FileState]:
        """Return what counts of the files in a folder, by name within it."""
        prefix = f"{folder}/"
        return {
            name.removeprefix(prefix): state
            for name, state in self.files.items()
            if name.startswith(prefix)
        }

    def state(self, folder: str, name: str) -> FileState:
        """Return what counts of a file, which may not exist yet."""
        return self.files.get(f"{folder}/{name}", NOTHING)

    def save(self, folder: Path) -> None:
        """Write the manifest whole or not at all: the moment at which a change counts."""
        content = {
            "index_version": INDEX_VERSION,
            "generation": self.generation,
            "num_rows": self.num_rows,
            "vector_dtype": self.vector_dtype,
            "fingerprint": self.fingerprint.to_json(),
            "nesting_dims": self.nesting_dims,
            "plan": self.plan.to_json(),
            "rows": self.rows,
            "tiers": [asdict(tier) for tier in self.tiers],
            "engine": asdict(self.engine),
            "files": self.files,
            "catalogue": self.catalogue,
        }
        plain = json.loads(json.dumps(content))
        write_json(folder / MANIFEST, seal(plain))

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Read the manifest of an index folder.

        Raises:
            FormatError: If the folder is not an index, or the manifest is damaged or of another
                version.
        """
        content = load_content(folder)
        path = folder / MANIFEST
        try:
            return cls(
                generation=content["generation"],
                num_rows=content["num_rows"],
                vector_dtype=Dtype(content["vector_dtype"]),
                fingerprint=Fingerprint.from_json(content["fingerprint"]),
                nesting_dims=tuple(content["nesting_dims"]),
                plan=Plan.from_json(content["plan"]),
                rows=content["rows"],
                tiers=tuple(
                    TierEntry(dim=tier["dim"], dtype=Dtype(tier["dtype"]), folder=tier["folder"])
                    for tier in content["tiers"]
                ),
                engine=EngineEntry(**content["engine"]),
                files={name: FileState(*state) for name, state in content["files"].items()},
                catalogue=CatalogueState(*content["catalogue"]),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, FormatError):
                raise
            raise FormatError(
                f"{path} is not the manifest of an index: {error!r}. {RESTORE}"
            ) from error


def named(folder: str, states: Mapping[str, FileState]) -> dict[str, FileState]:
    """Return the states of the files in a folder by path within the index."""
    return {f"{folder}/{name}": state for name, state in states.items()}


def mark_of(folder: Path) -> tuple[int, ...] | None:
    """Return what differs once the manifest of an index was switched; None if there is none."""
    try:
        status = (folder / MANIFEST).stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def version_of(folder: Path) -> int | None:
    """Return the format version of an index; None if its manifest cannot be read."""
    try:
        return int(read_json(folder / MANIFEST)["index_version"])
    except (FormatError, KeyError, TypeError, ValueError):
        return None


def check_not_newer(folder: Path, version: int | None) -> None:
    """Refuse an index of a newer format version.

    Raises:
        FormatError: Naming both versions.
    """
    if version is not None and version > INDEX_VERSION:
        raise FormatError(
            f"`index_version` {version} of {folder} is newer than {INDEX_VERSION}, the newest that "
            f"this nestling reads. Upgrade nestling."
        )


def next_generation(folder: Path) -> int:
    """Return a number above all that parts of an index are named after, and that of its manifest."""
    numbers = [re.match(r"(?:rows|tier|engine)-(\d+)", path.name) for path in folder.iterdir()]
    last = max((int(number[1]) for number in numbers if number), default=0)
    with suppress(FormatError, KeyError, TypeError):
        last = max(last, load_content(folder)["generation"])
    return last + 1


def load_content(folder: Path) -> dict[str, Any]:
    """Read the JSON of a manifest, of this version or an older one, and check it.

    Raises:
        FormatError: If the folder is not an index, or the manifest is damaged or of a newer version.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise FormatError(
            f"{folder} is not an index: it has no {MANIFEST}. "
            f"Check the path, or make one with `nestling build`."
        )
    content = read_json(path)
    version = content.get("index_version") if isinstance(content, dict) else None
    if not isinstance(version, int):
        raise FormatError(f"{path} is not the manifest of an index. {RESTORE}")
    check_not_newer(folder, version)
    return unseal(content, source=str(path), advice=RESTORE)
