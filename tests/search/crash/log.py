"""What happened to a disk, in order: the words between the recorder and the model of a disk.

Files and folders are named by a number given when they are made, since names change. `node` is the
file or folder whose fsync makes an operation durable.
"""

import base64
import json
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = 0
"""Number of the folder that is recorded."""


@dataclass(frozen=True, slots=True)
class Write:
    node: int
    path: str
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Truncate:
    node: int
    path: str
    size: int


@dataclass(frozen=True, slots=True)
class Enter:
    """A name in a folder: of a new file or folder, or a further one of an old file."""

    node: int
    path: str
    name: str
    child: int
    is_folder: bool


@dataclass(frozen=True, slots=True)
class Leave:
    node: int
    path: str
    name: str


@dataclass(frozen=True, slots=True)
class Rename:
    """From `source_name` in the folder `source` to `name` in the folder `node`."""

    node: int
    path: str
    name: str
    child: int
    source: int
    source_name: str


@dataclass(frozen=True, slots=True)
class Fsync:
    """Covers the operations before place `begin` of the log, where the call began."""

    node: int
    path: str
    begin: int


@dataclass(frozen=True, slots=True)
class Mark:
    """What the recorded program said, e.g. that a write was acknowledged."""

    text: str


@dataclass(frozen=True, slots=True)
class Unsupported:
    """A call that the model of a disk does not know."""

    text: str


Change = Write | Truncate | Enter | Leave | Rename
Event = Change | Fsync | Mark | Unsupported
CHANGES = (Write, Truncate, Enter, Leave, Rename)
KINDS = {kind.__name__: kind for kind in (*CHANGES, Fsync, Mark, Unsupported)}


def save(events: list[Event], path: Path) -> None:
    lines = []
    for event in events:
        fields = asdict(event)
        if isinstance(event, Write):
            fields["data"] = base64.b64encode(event.data).decode()
        lines.append([type(event).__name__, fields])
    path.write_text(json.dumps(lines))


def load(path: Path) -> list[Event]:
    events = []
    for kind, fields in json.loads(path.read_text()):
        if kind == "Write":
            fields["data"] = base64.b64decode(fields["data"])
        events.append(KINDS[kind](**fields))
    return events
