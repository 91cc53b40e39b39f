"""Maps from full-width vectors to full-width vectors that say more in their first coordinates."""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, final, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from nestling.core import Projection, normalize
from nestling.core.files import write_atomically
from nestling.encode.batches import reason_of
from nestling.errors import FormatError, VectorError

MAP_FILE = "adapter.safetensors"

ORTHOGONALITY = 1e-6
"""Most that an entry of R^T R may differ from the identity; float32 rounding leaves a tenth of it."""

PIECE_ROWS = 512
"""Rows that one thread multiplies at a time."""


@runtime_checkable
class VectorMap(Protocol):
    """What an adapter does to unit rows; no inheritance needed."""

    @property
    def embed_dim(self) -> int:
        """Full width, of what goes in and of what comes out."""

    @property
    def is_lossless(self) -> bool:
        """Whether cosines at full width stay what they were."""

    @property
    def weights(self) -> Mapping[str, Float32[np.ndarray, "..."]]:
        """What is saved, by name."""

    def __call__(
        self, rows: Float32[np.ndarray, "rows embed_dim"]
    ) -> Float32[np.ndarray, "rows embed_dim"]:
        """Return one mapped row per unit row, of unit L2 norm; an all-zero row stays zero.

        A row that is not finite comes out not finite. The bits of a row do not depend on the rows
        beside it: any cut of the rows gives the same.
        """


@final
class OrthogonalMap:
    """A rotation: full-width scores are what they were, and the first coordinates say more.

    Attributes:
        matrix: Of shape (embed_dim, embed_dim); rows are multiplied from the left.
    """

    def __init__(self, matrix: Float[np.ndarray, "embed_dim _embed_dim"]) -> None:
        """Take the matrix.

        Raises:
            VectorError: If it is not orthogonal to 1e-6 once it is in float32.
        """
        self.matrix = np.ascontiguousarray(matrix, dtype=np.float32)
        self._turn = Projection(self.matrix)
        deviation = deviation_from_orthogonal(self.matrix)
        if not deviation <= ORTHOGONALITY:
            raise VectorError(
                f"`matrix` must be orthogonal: no entry of its product with its transpose may differ from the "
                f"identity by more than {ORTHOGONALITY:g}, got {deviation:.2g}. Fit the adapter again."
            )

    @property
    def embed_dim(self) -> int:
        """Full width."""
        return int(self.matrix.shape[0])

    @property
    def is_lossless(self) -> bool:
        """True."""
        return True

    @property
    def weights(self) -> dict[str, Float32[np.ndarray, "..."]]:
        """The matrix, as "rotation"."""
        return {"rotation": self.matrix}

    def __call__(
        self, rows: Float32[np.ndarray, "rows {self.embed_dim}"]
    ) -> Float32[np.ndarray, "rows {self.embed_dim}"]:
        """Return the rotated rows; they are as long as before but for rounding."""
        return _on_all_cores(self._turn, rows)


@final
class ResidualMap:
    """A residual multilayer perceptron with one hidden layer: x + W2 relu(W1 x + b1) + b2, to unit length.

    The adaptor of Yoon et al. 2024 (Matryoshka-Adaptor, arXiv:2407.20243). It changes full-width
    scores.
    """

    def __init__(
        self,
        *,
        inner: Float32[np.ndarray, "embed_dim hidden"],
        inner_bias: Float32[np.ndarray, " _hidden"],
        outer: Float32[np.ndarray, "_hidden _embed_dim"],
        outer_bias: Float32[np.ndarray, " _embed_dim"],
    ) -> None:
        """Take both layers.

        Raises:
            VectorError: If their shapes do not fit together, or a weight is not finite.
        """
        wanted = (inner.shape[1:], inner.shape[::-1], inner.shape[:1])
        if (inner_bias.shape, outer.shape, outer_bias.shape) != wanted:
            raise VectorError(
                f"both layers of a residual map must fit together, got the shapes {inner.shape}, "
                f"{inner_bias.shape}, {outer.shape} and {outer_bias.shape}. Fit the adapter again."
            )
        if not all(np.isfinite(weight).all() for weight in (inner, inner_bias, outer, outer_bias)):
            raise VectorError(
                "weights of a residual map must be finite, got NaN or infinite ones. Fit the adapter again."
            )
        self._inner = inner
        self._inner_bias = inner_bias
        self._outer = outer
        self._outer_bias = outer_bias
        self._enter, self._leave = Projection(inner), Projection(outer)

    @property
    def embed_dim(self) -> int:
        """Full width."""
        return int(self._inner.shape[0])

    @property
    def is_lossless(self) -> bool:
        """False."""
        return False

    @property
    def weights(self) -> dict[str, Float32[np.ndarray, "..."]]:
        """Both layers."""
        return {
            "inner": self._inner,
            "inner_bias": self._inner_bias,
            "outer": self._outer,
            "outer_bias": self._outer_bias,
        }

    def __call__(
        self, rows: Float32[np.ndarray, "rows {self.embed_dim}"]
    ) -> Float32[np.ndarray, "rows {self.embed_dim}"]:
        """Return the adapted rows, of unit length; all-zero rows stay zero."""
        return _on_all_cores(self._adapt, rows)

    def _adapt(
        self, rows: Float32[np.ndarray, "rows embed_dim"]
    ) -> Float32[np.ndarray, "rows embed_dim"]:
        with np.errstate(invalid="ignore", over="ignore"):
            hidden = np.maximum(self._enter(rows) + self._inner_bias, np.float32(0.0))
            adapted = normalize(rows + self._leave(hidden) + self._outer_bias)
        return np.where(rows.any(axis=1, keepdims=True), adapted, np.float32(0.0))


def _on_all_cores(
    apply: Callable[[Float32[np.ndarray, "rows dim"]], Float32[np.ndarray, "rows dim"]],
    rows: Float32[np.ndarray, "rows dim"],
) -> Float32[np.ndarray, "rows dim"]:
    """Apply what takes each row for itself, a piece per core at a time."""
    starts = range(0, len(rows), PIECE_ROWS)
    if len(starts) <= 1:
        return apply(rows)
    mapped = np.empty(rows.shape, np.float32)

    def apply_piece(start: int) -> None:
        piece = slice(start, start + PIECE_ROWS)
        mapped[piece] = apply(rows[piece])

    with ThreadPoolExecutor(min(len(starts), _num_cores())) as executor:
        for _ in executor.map(apply_piece, starts):
            pass
    return mapped


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def deviation_from_orthogonal(matrix: Float[np.ndarray, "rows columns"]) -> float:
    """Return by how much R^T R differs from the identity at most; infinite if R is not square."""
    if matrix.shape[0] != matrix.shape[1] or not matrix.size or not np.isfinite(matrix).all():
        return float("inf")
    wide = matrix.astype(np.float64)
    return float(np.abs(wide.T @ wide - np.eye(len(wide))).max())


def save_map(folder: Path, vector_map: VectorMap) -> None:
    """Write a map into a folder.

    Raises:
        WriteError: If the folder cannot be written.
    """
    write_atomically(folder / MAP_FILE, save(dict(vector_map.weights)))


def load_map(folder: Path) -> VectorMap:
    """Read what `save_map` wrote.

    Raises:
        FormatError: If it is missing or damaged, or a rotation in it is no longer one.
    """
    path = folder / MAP_FILE
    if not path.is_file():
        raise FormatError(f"no file {path}. Copy the folder again, or fit the adapter again.")
    try:
        weights = load_file(path)
    except (SafetensorError, ValueError) as error:
        raise FormatError(f"{path} is damaged: {reason_of(error)}. Copy it again.") from error
    shapes = {name: weight.ndim for name, weight in weights.items()}
    is_float32 = all(weight.dtype == np.float32 for weight in weights.values())
    for axes, make in MAPS:
        if shapes == axes and is_float32:
            try:
                return make(weights)
            except VectorError as error:
                raise FormatError(f"{path} is not a map that can be applied: {error}") from error
    got = ", ".join(f"{name} {weights[name].dtype}{weights[name].shape}" for name in sorted(shapes))
    raise FormatError(
        f"{path} must hold a rotation or a residual map in float32, got {got or 'nothing'}. "
        f"Upgrade nestling, or fit the adapter again."
    )


MAPS: tuple[tuple[dict[str, int], Callable[[dict[str, np.ndarray]], VectorMap]], ...] = (
    ({"rotation": 2}, lambda weights: OrthogonalMap(weights["rotation"])),
    (
        {"inner": 2, "inner_bias": 1, "outer": 2, "outer_bias": 1},
        lambda weights: ResidualMap(**weights),
    ),
)
"""Names of the weights with the number of their axes, and what they are together."""
