"""What an index consists of: the file that is switched last, so that it is always true."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nestling.core import Dtype, Fingerprint
from nestling.core.files import read_json, seal, unseal, write_json
from nestling.errors import FormatError
from nestling.search.plan import Plan
from nestling.search.rowfile import FileState

INDEX_VERSION = 1
MANIFEST = "index.json"
VECTORS = "full/vectors.bin"
CATALOGUE = "catalogue.sqlite"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The committed state of an index folder.

    Attributes:
        generation: Counts the committed changes, from 1.
        num_rows: Documents; whatever lies behind them in a file was never acknowledged.
        vector_dtype: Format of the full vectors, float32 or float16.
        fingerprint: What made the vectors.
        plan: The funnel that `search` runs.
        engine: What scans the head tier.
        head: Folder of the head tier.
        files: Committed length and checksum of each file of rows, by path within the index.
        catalogue_checksum: CRC-32 of all ids, texts and metadata, in the order of rows.
    """

    generation: int
    num_rows: int
    vector_dtype: Dtype
    fingerprint: Fingerprint
    plan: Plan
    engine: str
    head: str
    files: Mapping[str, FileState]
    catalogue_checksum: int

    @property
    def head_files(self) -> dict[str, FileState]:
        """The files of the head tier, by name within its folder."""
        prefix = f"{self.head}/"
        return {
            name.removeprefix(prefix): state
            for name, state in self.files.items()
            if name.startswith(prefix)
        }

    def save(self, folder: Path) -> None:
        """Write the manifest whole or not at all: the moment at which a change counts."""
        content = {
            "index_version": INDEX_VERSION,
            "generation": self.generation,
            "num_rows": self.num_rows,
            "vector_dtype": self.vector_dtype,
            "fingerprint": self.fingerprint.to_json(),
            "plan": self.plan.to_json(),
            "engine": self.engine,
            "head": self.head,
            "files": {name: list(state) for name, state in self.files.items()},
            "catalogue_checksum": self.catalogue_checksum,
        }
        plain = json.loads(json.dumps(content))
        write_json(folder / MANIFEST, seal(plain))

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Read the manifest of an index folder.

        Raises:
            FormatError: If the folder is not an index, or the manifest is damaged or of a newer
                version.
        """
        path = folder / MANIFEST
        if not path.exists():
            raise FormatError(
                f"{folder} is not an index: it has no {MANIFEST}. "
                f"Check the path, or make one with `nestling build`."
            )
        content = read_json(path)
        try:
            if content["index_version"] > INDEX_VERSION:
                raise FormatError(
                    f"`index_version` {content['index_version']} of {folder} is newer than "
                    f"{INDEX_VERSION}, the newest that this nestling reads. Upgrade nestling."
                )
            unseal(content, source=str(path), advice="Build the index again.")
            return cls(
                generation=content["generation"],
                num_rows=content["num_rows"],
                vector_dtype=Dtype(content["vector_dtype"]),
                fingerprint=Fingerprint.from_json(content["fingerprint"]),
                plan=Plan.from_json(content["plan"]),
                engine=content["engine"],
                head=content["head"],
                files={name: FileState(*state) for name, state in content["files"].items()},
                catalogue_checksum=content["catalogue_checksum"],
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, FormatError):
                raise
            raise FormatError(
                f"{path} is not the manifest of an index: {error!r}. Build the index again."
            ) from error
