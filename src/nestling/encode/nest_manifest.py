"""`nestling.json`: what a model trained here says about itself."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from nestling.core import Fingerprint, check_nesting_dims
from nestling.core.files import read_json, seal, unseal, write_json
from nestling.errors import FormatError

MANIFEST_FILE = "nestling.json"
NEST_VERSION = 1

NestKind = Literal["static", "images", "sentence-transformers", "adapter"]
"""How the weights are run: a token table in NumPy, an ONNX graph, sentence-transformers, or a map
that is applied to the vectors of another encoder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NestManifest:
    """The file `nestling.json` of a model folder.

    `model`, `normalization` and `nesting_dims` are also what `onnx:` reads there, so that an image
    model opens as either.

    Attributes:
        kind: How the weights are run.
        model: Name of the model.
        embed_dim: Full width.
        nesting_dims: Widths it was trained to be cut at, the last the full one.
        normalization: Rule for the full width, "l2" or "none".
        fingerprint: Of the vectors it makes; None until the folder is complete.
        training: The training record, JSON.
        parent: What makes the vectors that an adapter maps; None for other kinds.
    """

    kind: NestKind
    model: str
    embed_dim: int
    nesting_dims: tuple[int, ...]
    normalization: str = "l2"
    fingerprint: Fingerprint | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    parent: Fingerprint | None = None

    def save(self, folder: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            WriteError: If the folder cannot be written.
        """
        data = {
            "nest_version": NEST_VERSION,
            "kind": self.kind,
            "model": self.model,
            "embed_dim": self.embed_dim,
            "nesting_dims": list(self.nesting_dims),
            "normalization": self.normalization,
            "fingerprint": None if self.fingerprint is None else self.fingerprint.to_json(),
            "training": dict(self.training),
            **({} if self.parent is None else {"parent": self.parent.to_json()}),
        }
        write_json(folder / MANIFEST_FILE, seal(data))

    @classmethod
    def load(cls, folder: Path) -> "NestManifest":
        """Read the file.

        Raises:
            FormatError: If it is missing, damaged, or of a newer version.
        """
        path = folder / MANIFEST_FILE
        sealed = read_json(path)
        kind = sealed.get("kind") if isinstance(sealed, dict) else None
        data = unseal(sealed, source=str(path), advice=make_again(kind))
        if data["nest_version"] > NEST_VERSION:
            raise FormatError(
                f"{path} has version {data['nest_version']}, newer than {NEST_VERSION}, the newest that this "
                f"nestling reads. Upgrade nestling."
            )
        if data["kind"] not in get_args(NestKind):
            raise FormatError(
                f"`kind` in {path} must be one of {', '.join(get_args(NestKind))}, got {data['kind']!r}. "
                f"Upgrade nestling."
            )
        stamped = data["fingerprint"]
        return cls(
            kind=data["kind"],
            model=data["model"],
            embed_dim=data["embed_dim"],
            nesting_dims=check_nesting_dims(data["nesting_dims"], data["embed_dim"]),
            normalization=data["normalization"],
            fingerprint=None if stamped is None else Fingerprint.from_json(stamped),
            training=data["training"],
            parent=Fingerprint.from_json(data["parent"]) if "parent" in data else None,
        )


def make_again(kind: object) -> str:
    """Return what to do about a damaged or unfinished folder of some kind."""
    made = "Fit the adapter" if kind == "adapter" else "Train the model"
    return f"{made} again, or copy it again."
