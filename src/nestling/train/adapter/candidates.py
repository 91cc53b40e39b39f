"""The maps that compete, each fitted as a whole."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float32

from nestling.core import random_rotation
from nestling.core.progress import Progress, silent
from nestling.encode.vector_map import OrthogonalMap, VectorMap
from nestling.train.adapter.learn import (
    RotationOptions,
    learn_rotation,
    learn_supervised_rotation,
    may_turn,
)
from nestling.train.adapter.pairs import FitPairs
from nestling.train.adapter.principal_axes import Matrix, banded_basis, pca_basis
from nestling.train.adapter.residual import ResidualLoss, learn_residual

Method = Literal[
    "identity", "pca", "rotation", "banded", "variance", "random", "supervised", "residual"
]
"""Kinds of map, the simpler ones first among those that may be chosen automatically."""

METHODS: tuple[Method, ...] = get_args(Method)

AUTOMATIC: tuple[Method, ...] = ("identity", "pca", "rotation", "banded")
"""Kinds that may be chosen unasked: all keep the full-width scores."""

BASELINES: tuple[Method, ...] = ("identity", "pca")
"""What a fitted map must beat: doing nothing, and what anybody can do."""

MOST_SINGLE_BOUNDARIES = 3
"""Banded maps with one boundary; of more widths, the narrowest, the middle and the widest."""

RESIDUAL_LOSSES: dict[str, ResidualLoss] = {
    "residual": "listwise",
    "residual (published losses)": "published",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A map that was fitted.

    Attributes:
        name: Unique among the candidates, e.g. "banded 16,64".
        method: Its kind.
        map: What it does.
        seconds: That fitting took.
    """

    name: str
    method: Method
    map: VectorMap
    seconds: float


def fit_candidates(
    rows: Float32[np.ndarray, "rows dim"],
    dims: Sequence[int],
    *,
    methods: Sequence[Method],
    options: RotationOptions,
    pairs: FitPairs | None = None,
    progress: Progress = silent,
) -> Iterator[Candidate]:
    """Yield the maps of some kinds, each as soon as it is fitted, in the order of `METHODS`.

    - identity: the vectors as they are;
    - pca: onto the eigenvectors of X^T X, largest eigenvalue first, in float64. Nothing is centred:
      the mean carries signal for a cosine, and with a shift the map would be no rotation;
    - rotation: learned, from the PCA; once freely, and once within the band of the widest width below
      the full one and the rest, so that this prefix keeps the scores of the PCA, if there is a
      narrower one;
    - banded: learned, from the PCA of each band, turning only within the bands between boundaries, so
      that the prefixes at the boundaries keep the scores of the original ones. Once each with a
      single width as boundary, three at most, and for codes with all of them at once; see
      `band_boundaries`;
    - variance: coordinates in the order of their variance;
    - random: a rotation by chance, what a map is worth that knows nothing;
    - supervised: learned from pairs, from the PCA; left out where there are none;
    - residual: a perceptron, fitted with two losses (see `learn_residual`), which changes the
      full-width scores.

    However many widths: two free fits and at most four banded ones.

    Args:
        rows: Unit rows to fit on.
        dims: Ascending widths, the last the full one.
        methods: The kinds.
        options: Of the learned rotations; its seed is that of all draws.
        pairs: What belongs together, for a supervised map.
        progress: Told as they are fitted.
    """
    for method, name, fit in _plans(rows, dims, options=options, pairs=pairs, progress=progress):
        if method in methods:
            started_s = time.perf_counter()
            fitted = fit()
            seconds = time.perf_counter() - started_s
            yield Candidate(name=name, method=method, map=fitted, seconds=seconds)


def band_boundaries(dims: Sequence[int], *, by_coordinate: bool) -> list[tuple[int, ...]]:
    """Return the boundaries of the banded maps: all widths below the full one, and single ones.

    Left out is what could turn nothing that a width sees. In float32 that is every map with all widths
    as boundaries, since a turn between two neighbouring ones changes no score at either.

    Args:
        dims: Ascending widths, the last the full one.
        by_coordinate: Whether single coordinates count, as they do in codes.
    """
    below = tuple(dims[:-1])
    singles = below
    if len(below) > MOST_SINGLE_BOUNDARIES:
        singles = (below[0], below[len(below) // 2], below[-1])
    all_bands = dict.fromkeys([below, *((dim,) for dim in singles)])
    return [bands for bands in all_bands if _is_seen(dims, bands, by_coordinate=by_coordinate)]


def _is_seen(dims: Sequence[int], bands: Sequence[int], *, by_coordinate: bool) -> bool:
    return bool(may_turn(dims, bands, by_coordinate=by_coordinate).any())


def _plans(
    rows: Float32[np.ndarray, "rows dim"],
    dims: Sequence[int],
    *,
    options: RotationOptions,
    pairs: FitPairs | None,
    progress: Progress,
) -> Iterator[tuple[Method, str, Callable[[], VectorMap]]]:
    embed_dim, seed = rows.shape[1], options.seed
    by_coordinate = bool(options.dtypes)

    def telling(name: str) -> Progress:
        return lambda label, done, total: progress(f"fit {name}", done, total)

    def learn(name: str, start: Matrix, bands: tuple[int, ...] = ()) -> VectorMap:
        return OrthogonalMap(
            learn_rotation(
                rows, dims[:-1], start=start, bands=bands, options=options, progress=telling(name)
            )
        )

    def learn_banded(name: str, bands: tuple[int, ...]) -> VectorMap:
        return learn(name, banded_basis(rows, bands), bands)

    def learn_supervised(known: FitPairs) -> VectorMap:
        return OrthogonalMap(
            learn_supervised_rotation(
                known.anchors,
                known.positives,
                dims[:-1],
                groups=known.groups,
                start=pca_basis(rows),
                options=options,
                progress=telling("supervised"),
            )
        )

    def learn_perceptron(name: str, loss: ResidualLoss) -> VectorMap:
        return learn_residual(rows, dims, loss=loss, seed=seed, progress=telling(name))

    yield "identity", "identity", lambda: OrthogonalMap(np.eye(embed_dim))
    yield "pca", "pca", lambda: OrthogonalMap(pca_basis(rows))
    yield "rotation", "rotation", lambda: learn("rotation", pca_basis(rows))
    if _is_seen(dims, dims[-2:-1], by_coordinate=by_coordinate):
        # What the narrower widths gain is then no loss at the widest.
        kept = f"rotation within {dims[-2]}"
        yield "rotation", kept, lambda: learn(kept, pca_basis(rows), (dims[-2],))
    for bands in band_boundaries(dims, by_coordinate=by_coordinate):
        name = f"banded {','.join(map(str, bands))}"
        yield "banded", name, partial(learn_banded, name, bands)
    yield "variance", "variance", lambda: OrthogonalMap(_variance_order(rows))
    yield "random", "random", lambda: OrthogonalMap(random_rotation(embed_dim, seed))
    if pairs is not None:
        yield "supervised", "supervised", partial(learn_supervised, pairs)
    for name, loss in RESIDUAL_LOSSES.items():
        yield "residual", name, partial(learn_perceptron, name, loss)


def _variance_order(rows: Float32[np.ndarray, "rows dim"]) -> Matrix:
    order = np.argsort(-rows.var(axis=0, dtype=np.float64), kind="stable")
    return np.eye(rows.shape[1])[:, order]
