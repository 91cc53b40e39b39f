"""Copy one generation of an index, while others read and write it."""

from pathlib import Path, PurePath

import numpy as np

from nestling.core.files import fsync_folder
from nestling.core.progress import Progress
from nestling.errors import FormatError
from nestling.search.catalogue import Catalogue
from nestling.search.manifest import CATALOGUE, Manifest
from nestling.search.rowfile import CHUNK_VALUES, RESTORE, FileState, RowWriter, check_size, unfit
from nestling.search.verify import is_sound

CHUNK_BYTES = 4 * CHUNK_VALUES


def copy_generation(path: Path, manifest: Manifest, target: Path, *, progress: Progress) -> None:
    """Write a generation into an empty folder, checking what is copied; its manifest comes last.

    Args:
        path: The index folder. Its files only grow, so that what counts of them stands still.
        manifest: Of the generation.
        target: Where the copy goes.
        progress: Counts bytes.

    Raises:
        FormatError: If a file is missing or damaged; the message names it.
        FileNotFoundError: If a writer removes the generation meanwhile.
    """
    for name, state in manifest.files.items():
        check_size(path / name, state)
    folders = sorted(
        {str(folder) for name in manifest.files for folder in PurePath(name).parents if folder.name}
    )
    for folder in folders:
        (target / folder).mkdir()
    _copy_catalogue(path, manifest, target)
    total = sum(state.num_bytes for state in manifest.files.values())
    done = 0
    for name, state in manifest.files.items():
        _copy_file(path / name, target / name, state)
        done += state.num_bytes
        progress("copy files", done, total)
    for folder in folders:
        fsync_folder(target / folder)
    manifest.save(target)


def _copy_file(source: Path, target: Path, state: FileState) -> None:
    with source.open("rb") as file, RowWriter(target) as writer:
        while left := state.num_bytes - writer.state.num_bytes:
            content = file.read(min(left, CHUNK_BYTES))
            if not content:
                break
            writer.write(np.frombuffer(content, np.uint8))
        if writer.state != state:
            raise unfit(source)


def _copy_catalogue(path: Path, manifest: Manifest, target: Path) -> None:
    name = Path(manifest.rows, CATALOGUE)
    catalogue = Catalogue.open(path / name, num_rows=manifest.num_rows)
    try:
        catalogue.copy(target / name, generation=manifest.generation)
    finally:
        catalogue.close()
    if not is_sound(target / name, manifest):
        raise FormatError(f"{path / name} is damaged: it differs from its checksum. {RESTORE}")
