"""Which prefix widths are allowed, and which are sensible."""

from collections.abc import Sequence

from nestling.errors import DimensionError

SMALLEST_DEFAULT_DIM = 8
"""Halving stops here: below 8 the paper saw a collapse (Kusupati et al. 2022, arXiv:2205.13147)."""


def check_dim(dim: int, embed_dim: int) -> int:
    """Return `dim` if it is a prefix width of an embedding of width `embed_dim`.

    Raises:
        DimensionError: If `dim` is outside [1, embed_dim].
    """
    if dim < 1:
        raise DimensionError(
            f"`dim` must be at least 1, got {dim}. Name a width from 1 to {embed_dim}."
        )
    if dim > embed_dim:
        raise DimensionError(
            f"`dim` must lie in [1, {embed_dim}] for embeddings of width {embed_dim}, got {dim}. "
            f"To go wider, encode with a model whose `embed_dim` is at least {dim}."
        )
    return dim


def check_dims(dims: Sequence[int], embed_dim: int) -> tuple[int, ...]:
    """Return `dims` as a tuple if they are ascending, unique prefix widths.

    Raises:
        DimensionError: If the list is empty, unsorted, repeats a width, or leaves [1, embed_dim].
    """
    widths = tuple(int(dim) for dim in dims)
    if not widths:
        raise DimensionError(
            "`dims` must name at least one width, got none. Pass e.g. --dims 16,64,256."
        )
    if list(widths) != sorted(set(widths)):
        suggestion = ",".join(str(dim) for dim in sorted(set(widths)))
        raise DimensionError(
            f"`dims` must ascend without repeats, got {','.join(map(str, widths))}. Pass {suggestion}."
        )
    for dim in (widths[0], widths[-1]):
        check_dim(dim, embed_dim)
    return widths


def check_nesting_dims(dims: Sequence[int], embed_dim: int) -> tuple[int, ...]:
    """Return `dims` as nesting dims: `check_dims`, with the full width appended if it is missing."""
    widths = check_dims(dims, embed_dim)
    return widths if widths[-1] == embed_dim else (*widths, embed_dim)


def default_nesting_dims(embed_dim: int) -> tuple[int, ...]:
    """Halve `embed_dim` while the result stays whole and at least 8.

    The rule of Kusupati et al. 2022, Section 3 (arXiv:2205.13147): 1,024 gives 8, 16, ... 1,024;
    768 gives 12, 24, ... 768; a width below 16 gives itself.
    """
    check_dim(embed_dim, embed_dim)
    dims = [embed_dim]
    while dims[-1] % 2 == 0 and dims[-1] // 2 >= SMALLEST_DEFAULT_DIM:
        dims.append(dims[-1] // 2)
    return tuple(reversed(dims))
