"""Read every byte of an index that counts."""

from pathlib import Path

from nestling.core.progress import Progress
from nestling.errors import FormatError
from nestling.search.catalogue import Catalogue
from nestling.search.manifest import CATALOGUE, Manifest
from nestling.search.rowfile import RESTORE, measure_file


def verify_generation(path: Path, manifest: Manifest, *, progress: Progress) -> None:
    """Compare every file of a generation with its checksum, and the catalogue with all of its own.

    Args:
        path: The index folder.
        manifest: Of the generation.
        progress: Counts bytes.

    Raises:
        FormatError: Naming every damaged file.
    """
    damaged = []
    total = sum(state.num_bytes for state in manifest.files.values())
    done = 0
    for name, state in manifest.files.items():
        try:
            if measure_file(path / name, state.num_bytes) != state:
                damaged.append(name)
        except FileNotFoundError:
            damaged.append(f"{name} (missing)")
        done += state.num_bytes
        progress("verify files", done, total)
    if not is_sound(path / manifest.rows / CATALOGUE, manifest):
        damaged.append(f"{manifest.rows}/{CATALOGUE}")
    if damaged:
        raise FormatError(
            f"the files of {path} must hold the bytes that were written, but these differ "
            f"from their checksum: {', '.join(damaged)}. {RESTORE}"
        )


def is_sound(path: Path, manifest: Manifest) -> bool:
    """Return whether a catalogue is whole and holds what it should at a generation."""
    try:
        catalogue = Catalogue.open(path, num_rows=manifest.num_rows)
        try:
            return catalogue.measure(generation=manifest.generation) == manifest.catalogue
        finally:
            catalogue.close()
    except FormatError:
        return False
