"""What a disk may hold after the power was lost: a model that promises as little as POSIX does.

A crash state is the log up to some place, less any of the operations that were not durable yet.

- An operation on a file (write, truncate) is durable once an fsync or fdatasync of that file, begun
  after it, has returned. Until then each may be lost alone, later ones kept; a write may also be
  torn into sectors of 512 bytes, any of which are kept, and a file may have grown without its data
  (it then reads as zeros).
- A change of a name (of a new file, a removal, a rename) is durable once an fsync of its *folder*
  has returned; an fsync of the file says nothing about its name. A rename happens wholly or not at
  all, and is durable with the folder of the new name. Until then each may be lost alone, in any
  order; what is in a folder whose own name was lost is lost with it.
- The content of a durable sector never rots, and one sector is never half written.

Real file systems keep more. ext4 and XFS journal names, so that names survive in order, an fsync of
any file makes every earlier change of a name durable, and ext4 (`auto_da_alloc`, on by default)
writes the data of a file before a rename over an older one. A program that is right here is right
there; POSIX alone, and other file systems, allow what is modelled: see T. Pillai et al., "All File
Systems Are Not Created Equal", OSDI 2014, table 1.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.search.crash.log import (
    CHANGES,
    ROOT,
    Change,
    Enter,
    Event,
    Fsync,
    Leave,
    Mark,
    Rename,
    Truncate,
    Write,
)

SECTOR_BYTES = 512

Tree = dict[str, bytes | None]
"""Content by relative path; None is a folder."""


@dataclass(frozen=True, slots=True)
class CrashState:
    """Attributes:
    place: How many events of the log came before the crash.
    lost: Places of the operations that did not reach the disk.
    torn: Per place of a write, its sectors that did, counted from its first; the file grew anyway.
    """

    place: int
    lost: frozenset[int] = frozenset()
    torn: Mapping[int, frozenset[int]] = field(default_factory=dict)


def pending(events: Sequence[Event], place: int, *, without: Collection[int] = ()) -> list[int]:
    """Return the places of the operations that a crash at `place` may lose.

    `without` names places of fsyncs to be taken as never called.
    """
    covered: dict[int, int] = {}
    for number in range(place):
        event = events[number]
        if isinstance(event, Fsync) and number not in without:
            covered[event.node] = max(event.begin, covered.get(event.node, 0))
    return [
        number
        for number in range(place)
        if isinstance(event := events[number], CHANGES) and number >= covered.get(event.node, 0)
    ]


def survivors(events: Sequence[Event], state: CrashState) -> Tree:
    """Return what is found after the crash."""
    files: dict[int, bytearray] = {}
    folders: dict[int, dict[str, int]] = {ROOT: {}}
    # What a thing is, is known even where the change that named it was lost.
    for event in events[: state.place]:
        if isinstance(event, Enter):
            if event.is_folder:
                folders[event.child] = {}
            else:
                files[event.child] = bytearray()
    for number, event in enumerate(events[: state.place]):
        if isinstance(event, CHANGES) and number not in state.lost:
            _apply(event, files, folders, state.torn.get(number))
    return dict(_walk(ROOT, "", files, folders))


def _apply(
    event: Change,
    files: dict[int, bytearray],
    folders: dict[int, dict[str, int]],
    sectors: frozenset[int] | None,
) -> None:
    match event:
        case Write(node, _, offset, data):
            content = files[node]
            _resize(content, max(len(content), offset + len(data)))
            for number, (start, stop) in enumerate(_sectors(offset, len(data))):
                if sectors is None or number in sectors:
                    content[offset + start : offset + stop] = data[start:stop]
        case Truncate(node, _, size):
            _resize(files[node], size)
        case Enter(node, _, name, child):
            folders[node][name] = child
        case Leave(node, _, name):
            folders[node].pop(name, None)
        case Rename(node, _, name, child, source, source_name):
            folders[source].pop(source_name, None)
            folders[node][name] = child


def _resize(content: bytearray, size: int) -> None:
    del content[size:]
    content.extend(bytes(size - len(content)))


def _sectors(offset: int, length: int) -> Iterator[tuple[int, int]]:
    """Yield the parts of a write that begin and end at sectors, as places within it."""
    start = 0
    while start < length:
        stop = min(length, start + SECTOR_BYTES - (offset + start) % SECTOR_BYTES)
        yield start, stop
        start = stop


def num_sectors(write: Write) -> int:
    return sum(1 for _ in _sectors(write.offset, len(write.data)))


def _walk(
    folder: int, path: str, files: dict[int, bytearray], folders: dict[int, dict[str, int]]
) -> Iterator[tuple[str, bytes | None]]:
    for name, child in sorted(folders[folder].items()):
        below = f"{path}{name}"
        if child in folders:
            yield below, None
            yield from _walk(child, f"{below}/", files, folders)
        else:
            yield below, bytes(files[child])


def read_tree(folder: Path) -> Tree:
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in folder.rglob("*")
    }


def write_tree(tree: Tree, folder: Path) -> None:
    folder.mkdir()
    for name, content in sorted(tree.items()):
        if content is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(content)


def split(events: Sequence[Event], prefix: str) -> dict[str, list[Event]]:
    """Cut a log at the marks that begin with `prefix`; return each part by the rest of its mark."""
    parts: dict[str, list[Event]] = {}
    first, name = 0, ""
    for place, event in enumerate(events):
        if isinstance(event, Mark) and event.text.startswith(prefix):
            first, name = place + 1, event.text.removeprefix(prefix)
            parts[name] = []
        elif name:
            moved = replace(event, begin=event.begin - first) if isinstance(event, Fsync) else event
            parts[name].append(moved)
    return parts
