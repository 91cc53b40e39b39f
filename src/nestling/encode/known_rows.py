"""Vectors that are on disk already, found by the content they were encoded from."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from nestling.encode.blocks import (
    ROWS_FILE,
    VECTORS_FILE,
    Block,
    Row,
    find_damage,
    parse_rows,
    read_blocks,
    read_span,
)
from nestling.encode.vector_folder import STORED_DTYPES, Manifest


class KnownRows:
    """Where the vector of a content hash can be copied from.

    All folders must hold vectors of one fingerprint, role and dtype; the caller sees to that.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._dtype = STORED_DTYPES[manifest.dtype]
        self._embed_dim = manifest.embed_dim
        self._row_bytes = manifest.row_bytes
        self._places: dict[str, tuple[Path, int]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, content: str) -> bool:
        return content in self._places

    def add(self, folder: Path, rows: Sequence[Row], *, first_row: int) -> None:
        """Learn rows that lie in `folder` from row number `first_row` on."""
        for number, row in enumerate(rows, start=first_row):
            self._places.setdefault(row.content, (folder, number))

    def add_blocks(self, folder: Path, blocks: Sequence[Block]) -> None:
        """Learn the rows of finished blocks."""
        path = folder / ROWS_FILE
        for block in blocks:
            lines = read_span(path, block.rows_start, block.rows_end)
            self.add(folder, parse_rows(lines, source=path), first_row=block.first_row)

    def add_intact_blocks(self, folder: Path) -> None:
        """Learn the rows of those blocks of a folder, finished or not, that fit their checksums."""
        blocks = read_blocks(folder, may_be_torn=True)
        intact = [block for block in blocks if find_damage(folder, block, self._row_bytes) is None]
        self.add_blocks(folder, intact)

    def copy_into(self, block: Float[np.ndarray, "rows dim"], wanted: Mapping[int, str]) -> None:
        """Fill rows of `block` with the vectors of the contents that `wanted` names for them."""
        by_folder: dict[Path, list[tuple[int, int]]] = defaultdict(list)
        for position, content in wanted.items():
            folder, number = self._places[content]
            by_folder[folder].append((position, number))
        for folder, pairs in by_folder.items():
            positions, numbers = map(list, zip(*pairs, strict=True))
            stored = np.memmap(
                folder / VECTORS_FILE,
                self._dtype,
                mode="r",
                shape=(max(numbers) + 1, self._embed_dim),
            )
            block[positions] = stored[numbers]
