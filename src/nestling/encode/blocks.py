"""Finished blocks of a vector folder: appended in an order that a kill cannot break.

Three files grow together. `vectors.bin` holds raw rows, `rows.jsonl` one line per row (its id and
the hash of what was encoded), and `blocks.jsonl` one line per finished block with the checksums of
what the block added to the other two. A block exists once its line in `blocks.jsonl` does; bytes
beyond the last such line belong to a block in flight and are cut off by the next run.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from json.encoder import encode_basestring_ascii
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from nestling.core.files import checksum, fsync_folder, naming_write_errors, seal, unseal
from nestling.errors import FormatError

VECTORS_FILE = "vectors.bin"
ROWS_FILE = "rows.jsonl"
BLOCKS_FILE = "blocks.jsonl"
ENCODE_AGAIN = "Remove the folder and encode again."
PARSED_LINES = 4096
"""Lines that are parsed as one JSON list: twice as fast as one by one, and still bounded."""


class Row(NamedTuple):
    """One line of `rows.jsonl`.

    Attributes:
        id: Id of the input.
        content: Hash of what was encoded.
    """

    id: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One line of `blocks.jsonl`.

    Attributes:
        num_inputs: Inputs read up to and including this block; more than rows if some were dropped.
        first_row: Row number of its first vector.
        num_rows: Vectors in it.
        rows_start: Where its lines begin in `rows.jsonl`, in bytes.
        rows_end: Where they end.
        vectors_checksum: Of its bytes in `vectors.bin`.
        rows_checksum: Of its bytes in `rows.jsonl`.
    """

    num_inputs: int
    first_row: int
    num_rows: int
    rows_start: int
    rows_end: int
    vectors_checksum: str
    rows_checksum: str

    @property
    def end_row(self) -> int:
        """Row number after its last vector."""
        return self.first_row + self.num_rows


def read_blocks(folder: Path, *, may_be_torn: bool) -> list[Block]:
    """Return the finished blocks in order.

    Args:
        folder: The vector folder.
        may_be_torn: Whether a broken last line is expected (a run was killed while it wrote) and
            left out.

    Raises:
        FormatError: If a line is damaged or does not continue the line before it.
    """
    path = folder / BLOCKS_FILE
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    blocks: list[Block] = []
    for number, line in enumerate(lines, start=1):
        try:
            blocks.append(_parse_block(line, after=blocks, source=f"line {number} of {path}"))
        except FormatError:
            if may_be_torn and number == len(lines):
                break
            raise
    return blocks


def _parse_block(line: bytes, *, after: Sequence[Block], source: str) -> Block:
    try:
        data = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        data = None
    block = Block(**unseal(data, source=source, advice=ENCODE_AGAIN))
    expected = (after[-1].end_row, after[-1].rows_end) if after else (0, 0)
    if (block.first_row, block.rows_start) != expected:
        raise FormatError(
            f"{source} does not continue the line before it: it starts at row {block.first_row}, not at "
            f"{expected[0]}. Remove the folder and encode again."
        )
    return block


def find_damage(folder: Path, block: Block, row_bytes: int) -> str | None:
    """Return which file of a block does not hold what was written, or None if both do."""
    vectors = read_span(
        folder / VECTORS_FILE, block.first_row * row_bytes, block.end_row * row_bytes
    )
    if checksum(vectors) != block.vectors_checksum:
        return VECTORS_FILE
    rows = read_span(folder / ROWS_FILE, block.rows_start, block.rows_end)
    return None if checksum(rows) == block.rows_checksum else ROWS_FILE


def read_span(path: Path, start: int, end: int) -> bytes:
    """Return the bytes [start, end) of a file, fewer if it is shorter, none if it is missing."""
    if not path.exists():
        return b""
    with path.open("rb") as file:
        file.seek(start)
        return file.read(end - start)


def parse_rows(data: bytes, *, source: Path) -> list[Row]:
    """Return the rows that some lines of `rows.jsonl` name.

    Raises:
        FormatError: If a line is not one.
    """
    lines = data.splitlines()
    rows: list[Row] = []
    try:
        for start in range(0, len(lines), PARSED_LINES):
            items = json.loads(b"[%b]" % b",".join(lines[start : start + PARSED_LINES]))
            rows += [Row(**item) for item in items]
    except (ValueError, TypeError) as error:
        raise FormatError(
            f"{source} is damaged: {error}. Remove the folder and encode again."
        ) from error
    return rows


class BlockWriter:
    """Appends blocks to a vector folder, after cutting off what an interrupted run left unfinished.

    Use it as a context manager; only one may be open on a folder.

    Attributes:
        blocks: The finished blocks, those of earlier runs included.
    """

    def __init__(self, folder: Path, row_bytes: int) -> None:
        self._folder = folder
        self._row_bytes = row_bytes
        self._descriptors: dict[str, int] = {}
        self.blocks = read_blocks(folder, may_be_torn=True)

    def __enter__(self) -> "BlockWriter":
        # After a power cut the log may have reached the disk without the data it speaks of.
        while self.blocks and find_damage(self._folder, self.blocks[-1], self._row_bytes):
            self.blocks.pop()
        ends = {
            VECTORS_FILE: self.num_rows * self._row_bytes,
            ROWS_FILE: self._rows_end,
            BLOCKS_FILE: sum(len(_block_line(block)) for block in self.blocks),
        }
        for name, end in ends.items():
            path = self._folder / name
            with naming_write_errors(path):
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
                self._descriptors[name] = descriptor
                os.ftruncate(descriptor, end)
                os.lseek(descriptor, end, os.SEEK_SET)
        fsync_folder(self._folder)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    @property
    def num_inputs(self) -> int:
        """Inputs that need not be read again."""
        return self.blocks[-1].num_inputs if self.blocks else 0

    @property
    def num_rows(self) -> int:
        """Vectors on disk."""
        return self.blocks[-1].end_row if self.blocks else 0

    @property
    def _rows_end(self) -> int:
        return self.blocks[-1].rows_end if self.blocks else 0

    def append(
        self, vectors: Float[np.ndarray, "rows dim"], rows: Sequence[Row], *, num_inputs: int
    ) -> None:
        """Write one block and wait until it is on the disk.

        Args:
            vectors: Rows in the folder's own number format.
            rows: What each vector belongs to.
            num_inputs: Inputs that were read to make them, dropped ones included.

        Raises:
            WriteError: If the disk is full or the folder cannot be written. The block is lost, the
                ones before it are not.
        """
        vector_bytes = np.ascontiguousarray(vectors).tobytes()
        row_lines = b"".join(_row_line(row) for row in rows)
        block = Block(
            num_inputs=self.num_inputs + num_inputs,
            first_row=self.num_rows,
            num_rows=len(rows),
            rows_start=self._rows_end,
            rows_end=self._rows_end + len(row_lines),
            vectors_checksum=checksum(vector_bytes),
            rows_checksum=checksum(row_lines),
        )
        # The order is the promise: the line that says "finished" comes after what it speaks of.
        self._write(VECTORS_FILE, vector_bytes)
        self._write(ROWS_FILE, row_lines)
        self._write(BLOCKS_FILE, _block_line(block))
        self.blocks.append(block)

    def _write(self, name: str, data: bytes) -> None:
        with naming_write_errors(self._folder / name):
            view = memoryview(data)
            while view:
                view = view[os.write(self._descriptors[name], view) :]
            os.fsync(self._descriptors[name])


def _row_line(row: Row) -> bytes:
    return f'{{"id": {encode_basestring_ascii(row.id)}, "content": "{row.content}"}}\n'.encode()


def _block_line(block: Block) -> bytes:
    return json.dumps(seal(asdict(block))).encode() + b"\n"
