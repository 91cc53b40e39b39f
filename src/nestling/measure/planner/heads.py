"""Heads to try: which prefixes in which formats, before anything is built."""

from collections.abc import Sequence
from dataclasses import dataclass

from nestling.core import Dtype

NARROWEST_HEAD = 16
WIDEST_HEAD = 256
"""Or the full width, if that is not more than twice as wide. Signs may be twice as wide."""
SIGNS_FROM = 128
"""Sign codes of fewer dimensions find too little to be worth the time of trying them."""
MOST_WIDTHS = 12
"""Of models that were trained at more widths than that, those next to the halvings are tried."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Head:
    """A first stage to try."""

    dim: int
    dtype: Dtype

    @property
    def key(self) -> tuple[int, Dtype]:
        """Width and format, as tiers are kept by."""
        return self.dim, self.dtype


def candidate_widths(embed_dim: int, nesting_dims: Sequence[int] | None) -> tuple[int, ...]:
    """Return the widths to try, ascending, the full one last.

    The nesting dims of the model, else halvings of the full width: if they are not known, or none of
    them can be a head.
    """
    known = {dim for dim in nesting_dims or () if dim < embed_dim}
    halvings = _halvings(embed_dim)
    if not any(NARROWEST_HEAD <= dim <= _widest_head(embed_dim) for dim in known):
        known |= set(halvings)
    elif len(known) > MOST_WIDTHS:
        known = {min(known, key=lambda dim: (abs(dim - halving), dim)) for halving in halvings}
    return tuple(sorted(known | {embed_dim}))


def candidate_heads(widths: Sequence[int]) -> list[Head]:
    """Return the heads to try: int8 of every middling width, cheaper codes of the wider ones."""
    widest = _widest_head(widths[-1])
    heads = [Head(dim=dim, dtype=Dtype.INT8) for dim in widths if NARROWEST_HEAD <= dim <= widest]
    heads += [Head(dim=dim, dtype=Dtype.INT4) for dim in widths if 64 <= dim <= widest]
    signs = [dim for dim in widths if SIGNS_FROM <= dim <= 2 * widest]
    return heads + [Head(dim=dim, dtype=Dtype.ROTATED_BINARY) for dim in signs]


def _widest_head(embed_dim: int) -> int:
    return embed_dim if embed_dim <= 2 * WIDEST_HEAD else WIDEST_HEAD


def _halvings(embed_dim: int) -> list[int]:
    """Return halves of the full width, halves of these and so on, the widest first."""
    halvings = []
    dim = embed_dim // 2
    while dim >= NARROWEST_HEAD:
        halvings.append(dim)
        dim //= 2
    return halvings
