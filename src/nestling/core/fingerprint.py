"""What made a vector, and which vectors may be compared with it."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from nestling.errors import FingerprintError, FormatError


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What makes scores comparable: two vectors may be compared only if their spaces are equal.

    Attributes:
        model: Lineage of the model; a submodel taken from a parent carries the parent's name.
        revision: Hub revision or a hash of the weights.
        pooling: How token vectors become one vector.
        normalization: What is applied to the full width before any cut, e.g. "l2" or
            "layer_norm+l2".
        embed_dim: Full width.
        adapter: Map applied after the model, or None.
    """

    model: str
    revision: str
    pooling: str
    normalization: str
    embed_dim: int
    adapter: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """Stamped on every vector file and index.

    Attributes:
        space: What makes scores comparable.
        encoder: Who made the vectors: backend, prompts, token limit. Differences here are
            allowed; they are kept to explain a result, not to refuse one.
        origin: How to open the encoder again: `model`, its URI, and for an endpoint `base_url`.
            A hint that is never compared: a model folder may move.
    """

    space: Space
    encoder: dict[str, str]
    origin: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain data that `from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> "Fingerprint":
        """Read what `to_json` wrote.

        Raises:
            FormatError: If a field is missing or unknown.
        """
        try:
            return cls(
                space=Space(**data["space"]),
                encoder=dict(data["encoder"]),
                origin=dict(data["origin"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(
                f"`fingerprint` must hold a space and an encoder as nestling writes them, got {data!r}."
            ) from error


def check_same_space(
    left: Fingerprint,
    right: Fingerprint,
    *,
    left_name: str,
    right_name: str,
    advice: str = "Encode both sides with the same model.",
) -> None:
    """Refuse to compare vectors of two spaces.

    Args:
        left: One side.
        right: The other side.
        left_name: What to call the left side in the message, e.g. "index /tmp/idx".
        right_name: What to call the right side.
        advice: What to do if they differ.

    Raises:
        FingerprintError: If the spaces differ; the message names both and what differs.
    """
    if left.space == right.space:
        return
    differences = [
        f"{field.name} {getattr(left.space, field.name)!r} against {getattr(right.space, field.name)!r}"
        for field in fields(Space)
        if getattr(left.space, field.name) != getattr(right.space, field.name)
    ]
    raise FingerprintError(
        f"vectors of two spaces cannot be compared: {left_name} is {left.space.model!r} and "
        f"{right_name} is {right.space.model!r}; they differ in {'; '.join(differences)}. {advice}"
    )
