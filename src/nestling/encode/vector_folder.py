"""A vector folder: full-width vectors on disk with their ids and what made them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from nestling.core import Dtype, Fingerprint
from nestling.core.files import read_json, seal, unseal, write_json
from nestling.encode.blocks import (
    BLOCKS_FILE,
    ENCODE_AGAIN,
    ROWS_FILE,
    VECTORS_FILE,
    Block,
    Row,
    find_damage,
    parse_rows,
    read_blocks,
    read_span,
)
from nestling.encode.protocol import Role
from nestling.errors import FormatError

MANIFEST_FILE = "vectors.json"
FORMAT_VERSION = 1
STORED_DTYPES: dict[Dtype, np.dtype[Any]] = {
    Dtype.FLOAT32: np.dtype("<f4"),
    Dtype.FLOAT16: np.dtype("<f2"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """`vectors.json`: what a vector folder holds.

    Attributes:
        fingerprint: What made the vectors.
        corpus_hash: Hash of every id and input, in order.
        role: Whether they were encoded as queries or as documents.
        dtype: Number format of `vectors.bin`, float32 or float16.
        num_inputs: Inputs to encode.
        block_rows: Most inputs per block.
        num_rows: Vectors, once all are there: fewer than inputs if bad rows were dropped.
        complete: Whether all inputs were encoded.
    """

    fingerprint: Fingerprint
    corpus_hash: str
    role: Role
    dtype: Dtype
    num_inputs: int
    block_rows: int
    num_rows: int | None = None
    complete: bool = False

    @property
    def embed_dim(self) -> int:
        """Full width."""
        return self.fingerprint.space.embed_dim

    @property
    def row_bytes(self) -> int:
        """Bytes of one vector."""
        return self.embed_dim * STORED_DTYPES[self.dtype].itemsize

    def save(self, folder: Path) -> None:
        """Write the manifest, whole or not at all."""
        data = {
            "format_version": FORMAT_VERSION,
            **asdict(self),
            "embed_dim": self.embed_dim,
            "fingerprint": self.fingerprint.to_json(),
        }
        write_json(folder / MANIFEST_FILE, seal(data))

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Read the manifest of a folder.

        Raises:
            FormatError: If there is none, it is damaged, or its version is newer than this one.
        """
        path = folder / MANIFEST_FILE
        if not path.exists():
            raise FormatError(
                f"{folder} is not a vector folder: it has no {MANIFEST_FILE}. "
                f"Make one with `nestling encode --out`."
            )
        data = read_json(path)
        version = data.get("format_version") if isinstance(data, dict) else None
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise FormatError(
                f"`format_version` {version} of {path} is newer than {FORMAT_VERSION}, the newest that "
                f"this nestling reads. Upgrade nestling."
            )
        return cls._from_json(unseal(data, source=str(path), advice=ENCODE_AGAIN))

    @classmethod
    def _from_json(cls, data: dict[str, Any]) -> "Manifest":
        plain = {key: data[key] for key in ("corpus_hash", "role", "num_inputs", "block_rows")}
        return cls(
            fingerprint=Fingerprint.from_json(data["fingerprint"]),
            dtype=Dtype(data["dtype"]),
            num_rows=data["num_rows"],
            complete=data["complete"],
            **plain,
        )


class VectorFolder:
    """A finished vector folder, opened for reading; the vectors stay on disk until used.

    Attributes:
        path: The folder.
        manifest: What it holds.
    """

    def __init__(self, path: Path, manifest: Manifest, blocks: Sequence[Block]) -> None:
        self.path = path
        self.manifest = manifest
        self._blocks = blocks

    @classmethod
    def open(cls, path: Path) -> "VectorFolder":
        """Open a folder after checking that no file is shorter or longer than it should be.

        The content of `vectors.bin` is not read; `verify` does that.

        Raises:
            FormatError: If the folder is not finished, a file is truncated or damaged, or the
                format is newer than this version reads.
        """
        manifest = Manifest.load(path)
        if not manifest.complete:
            done = read_blocks(path, may_be_torn=True)
            raise FormatError(
                f"{path} is not finished: {done[-1].num_inputs if done else 0} of {manifest.num_inputs} "
                f"inputs are encoded. Run the same `nestling encode` again: it goes on from there."
            )
        blocks = read_blocks(path, may_be_torn=False)
        last = blocks[-1] if blocks else None
        if last is None or (last.end_row, last.num_inputs) != (
            manifest.num_rows,
            manifest.num_inputs,
        ):
            raise FormatError(
                f"{path / BLOCKS_FILE} is truncated: it ends at row {last.end_row if last else 0} of "
                f"{manifest.num_rows}. {_MEND}"
            )
        _check_size(path / VECTORS_FILE, last.end_row * manifest.row_bytes)
        _check_size(path / ROWS_FILE, last.rows_end)
        return cls(path, manifest, blocks)

    @property
    def fingerprint(self) -> Fingerprint:
        """What made the vectors."""
        return self.manifest.fingerprint

    @property
    def corpus_hash(self) -> str:
        """Hash of every id and input, in order."""
        return self.manifest.corpus_hash

    @property
    def embed_dim(self) -> int:
        """Full width."""
        return self.manifest.embed_dim

    def __len__(self) -> int:
        return self._blocks[-1].end_row

    @cached_property
    def vectors(self) -> Float[np.ndarray, "rows embed_dim"]:
        """All vectors, memory-mapped and read-only, of the folder's dtype."""
        dtype = STORED_DTYPES[self.manifest.dtype]
        shape = (len(self), self.embed_dim)
        if len(self) == 0:
            return np.empty(shape, dtype)
        return np.memmap(self.path / VECTORS_FILE, dtype, mode="r", shape=shape)

    @property
    def doc_ids(self) -> list[str]:
        """Id of each row."""
        return [row.id for row in self._rows]

    @property
    def content_hashes(self) -> list[str]:
        """Hash of what each row was encoded from."""
        return [row.content for row in self._rows]

    def verify(self, rows: range | None = None) -> None:
        """Check every byte against the checksums written with it.

        Args:
            rows: Only the blocks that hold these rows; by default all.

        Raises:
            FormatError: If a block is damaged; the message names its rows and its file.
        """
        row_bytes = self.manifest.row_bytes
        found = [
            f"rows {block.first_row} to {block.end_row - 1} in {self.path / name}"
            for block in self._blocks
            if rows is None or (block.first_row < rows.stop and rows.start < block.end_row)
            if (name := find_damage(self.path, block, row_bytes)) is not None
        ]
        if found:
            more = f" and {len(found) - 3} more blocks" if len(found) > 3 else ""
            raise FormatError(
                f"a vector folder must hold the bytes that were written, but {', '.join(found[:3])}{more} "
                f"differ from their checksum. {_MEND}"
            )

    @cached_property
    def _rows(self) -> list[Row]:
        path = self.path / ROWS_FILE
        return parse_rows(read_span(path, 0, self._blocks[-1].rows_end), source=path)


_MEND = "Run the same `nestling encode` again: it keeps the intact blocks and encodes the rest."


def _check_size(path: Path, num_bytes: int) -> None:
    found = path.stat().st_size if path.exists() else 0
    if found != num_bytes:
        kind = "truncated" if found < num_bytes else "too long"
        raise FormatError(f"{path} is {kind}: it has {found} bytes of {num_bytes}. {_MEND}")
