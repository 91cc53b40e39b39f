"""Few-shot classification by the nearest class mean, at every prefix.

Each prefix of a support example is scaled to unit norm by itself, a class is the mean of its
examples, and a query goes to the class with the highest cosine (Mensink et al. 2013, "Distance-based
image classification"; used as in Kusupati et al. 2022, Section 4.4, arXiv:2205.13147).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int

from nestling.core import check_dims, find_bad_rows, normalize, take_prefix
from nestling.errors import DataError
from nestling.measure.intervals import bootstrap_mean_interval

BLOCK_BYTES = 32 << 20
"""Gathered vectors, and scores, that are held at a time."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FewShot:
    """Accuracy by width over many draws of the support examples.

    Attributes:
        dims: Widths.
        num_ways: Classes to tell apart; chance is one over it.
        num_shots: Support examples per class.
        accuracies: Of each draw. A draw is the same examples at every width.
    """

    dims: tuple[int, ...]
    num_ways: int
    num_shots: int
    accuracies: Float64[np.ndarray, "widths draws"]

    @property
    def mean_by_dim(self) -> dict[int, float]:
        """Mean accuracy over the draws."""
        return dict(zip(self.dims, self.accuracies.mean(axis=1).tolist(), strict=True))

    def interval_by_dim(self, *, confidence: float, seed: int) -> dict[int, tuple[float, float]]:
        """Return the two-sided bootstrap interval of each mean, over draws.

        It says how well the mean over draws from this pool is known, not how another pool would do.
        Intervals of different widths are paired.
        """
        return {
            dim: bootstrap_mean_interval(values, confidence=confidence, seed=seed)
            for dim, values in zip(self.dims, self.accuracies, strict=True)
        }


def few_shot_episodes(
    vectors: Float[np.ndarray, "inputs full"],
    labels: Int[np.ndarray, " labels"],
    dims: Sequence[int],
    *,
    num_ways: int,
    num_shots: int,
    num_queries: int = 15,
    num_episodes: int,
    seed: int,
) -> FewShot:
    """Return the accuracy of n-way k-shot episodes.

    An episode draws classes, and from each of them support examples and queries, all distinct.
    Classes with too few examples for both are left out.

    Args:
        vectors: One per input, finite and not zero.
        labels: Class of each input.
        dims: Ascending unique widths.
        num_ways: Classes per episode, at least 2.
        num_shots: Support examples per class, at least 1.
        num_queries: Queries per class, at least 1.
        num_episodes: Draws, at least 1.
        seed: The same seed draws the same episodes.

    Raises:
        DataError: If fewer than `num_ways` classes are large enough, a count is out of range, or
            vectors and labels do not fit.
        DimensionError: If `dims` breaks the rules of `check_dims`.
    """
    widths = check_dims(dims, vectors.shape[1])
    _check(vectors, labels, name="vectors")
    _check_counts(num_ways=(num_ways, 2), num_shots=(num_shots, 1))
    _check_counts(num_queries=(num_queries, 1), num_episodes=(num_episodes, 1))
    members, starts, sizes = _group(labels)
    taken = num_shots + num_queries
    eligible = np.flatnonzero(sizes >= taken)
    if len(eligible) < num_ways:
        raise DataError(
            f"`num_ways` must not exceed the classes with at least {taken} examples (`num_shots` and "
            f"`num_queries` together), {len(eligible)} of {len(sizes)}, got {num_ways}. Ask for "
            f"fewer ways, shots or queries."
        )
    generator = np.random.default_rng(seed)
    pool = np.full(num_episodes, len(eligible))
    classes = eligible[draw_distinct(generator, pool, num_ways)]
    drawn = draw_distinct(generator, sizes[classes], taken)
    inputs = members[starts[classes][:, :, None] + drawn]
    step = max(1, BLOCK_BYTES // (4 * inputs[0].size * vectors.shape[1]))
    accuracies = np.concatenate(
        [
            _episode_accuracies(vectors[inputs[start : start + step]], widths, num_shots)
            for start in range(0, num_episodes, step)
        ],
        axis=1,
    )
    return FewShot(dims=widths, num_ways=num_ways, num_shots=num_shots, accuracies=accuracies)


def few_shot_all_classes(
    train: Float[np.ndarray, "train full"],
    train_labels: Int[np.ndarray, " train_labels"],
    test: Float[np.ndarray, "test test_dim"],
    test_labels: Int[np.ndarray, " test_labels"],
    dims: Sequence[int],
    *,
    num_shots: int,
    num_draws: int,
    seed: int,
) -> FewShot:
    """Return the accuracy on a test split with a fixed number of support examples of every class.

    A test label without train examples counts as an error.

    Args:
        train: Support examples are drawn from these; finite and not zero.
        train_labels: Class of each.
        test: All of them are queries in every draw.
        test_labels: Class of each.
        dims: Ascending unique widths.
        num_shots: Support examples per class, at least 1 and at most the smallest class.
        num_draws: Draws of the support examples, at least 1.
        seed: The same seed draws the same examples.

    Raises:
        DataError: If a class has fewer than `num_shots` examples, there are under two classes, a
            count is out of range, or vectors and labels do not fit.
        DimensionError: If `dims` breaks the rules of `check_dims`, or the widths of train and test
            differ.
    """
    _check(train, train_labels, name="train")
    _check(test, test_labels, name="test")
    if train.shape[1] != test.shape[1]:
        raise DataError(
            f"`test` must be as wide as `train`, {train.shape[1]}, got {test.shape[1]}. Encode both "
            f"with one model."
        )
    widths = check_dims(dims, train.shape[1])
    members, starts, sizes = _group(train_labels)
    _check_counts(num_shots=(num_shots, 1), num_draws=(num_draws, 1))
    if len(sizes) < 2 or sizes.min() < num_shots:
        raise DataError(
            f"`train_labels` must hold at least two classes of at least `num_shots` = {num_shots} "
            f"examples, got {len(sizes)} classes, the smallest of {sizes.min()}."
        )
    generator = np.random.default_rng(seed)
    drawn = draw_distinct(generator, np.tile(sizes, (num_draws, 1)), num_shots)
    inputs = members[starts[:, None] + drawn]
    classes = np.unique(train_labels)
    # -1 is the place of no class: such a query is never right.
    place = np.minimum(np.searchsorted(classes, test_labels), len(classes) - 1)
    wanted = np.where(classes[place] == test_labels, place, -1)
    step = max(1, BLOCK_BYTES // (4 * max(len(classes), num_shots * train.shape[1])))
    accuracies = np.empty((len(widths), num_draws))
    for row, width in enumerate(widths):
        support, queries = take_prefix(train, width, renormalize=True), test[:, :width]
        for draw in range(num_draws):
            means = normalize(_class_means(support, inputs[draw], step))
            num_right = sum(
                int(((queries[s : s + step] @ means.T).argmax(1) == wanted[s : s + step]).sum())
                for s in range(0, len(queries), step)
            )
            accuracies[row, draw] = num_right / len(queries)
    return FewShot(dims=widths, num_ways=len(classes), num_shots=num_shots, accuracies=accuracies)


def draw_distinct(
    generator: np.random.Generator, sizes: Int[np.ndarray, "*batch"], num: int
) -> Int[np.ndarray, "*batch num"]:
    """Return `num` distinct numbers below each size, every ordered choice being equally likely.

    The t-th draw picks among the size - t numbers that are left: a number r, raised by one for each
    earlier pick that is not above it. Memory does not grow with the sizes.

    Args:
        generator: Source of the draws.
        sizes: At least `num` each.
        num: How many numbers.
    """
    left = sizes[..., None] - np.arange(num)
    picks = generator.integers(0, left)
    ascending = np.empty(picks.shape, dtype=picks.dtype)
    for place in range(num):
        for earlier in range(place):
            picks[..., place] += picks[..., place] >= ascending[..., earlier]
        ascending[..., place] = picks[..., place]
        ascending[..., : place + 1].sort(axis=-1)
    return picks


def _episode_accuracies(
    gathered: Float[np.ndarray, "episodes ways taken full"], dims: tuple[int, ...], num_shots: int
) -> Float64[np.ndarray, "widths episodes"]:
    num_ways = gathered.shape[1]
    wanted = np.arange(num_ways)[None, :, None]
    accuracies = np.empty((len(dims), len(gathered)))
    for row, dim in enumerate(dims):
        support = take_prefix(gathered[:, :, :num_shots], dim, renormalize=True)
        means = normalize(support.mean(axis=2))
        # The norm of a query scales all its scores alike: the best class is the same without it.
        scores = np.einsum("ewqd,ecd->ewqc", gathered[:, :, num_shots:, :dim], means, optimize=True)
        accuracies[row] = (scores.argmax(axis=3) == wanted).mean(axis=(1, 2))
    return accuracies


def _class_means(
    support: Float[np.ndarray, "train dim"], inputs: Int[np.ndarray, "classes shots"], step: int
) -> Float[np.ndarray, "classes dim"]:
    """Return the mean of some rows per class, a block of classes at a time."""
    return np.concatenate(
        [
            support[inputs[start : start + step]].mean(axis=1)
            for start in range(0, len(inputs), step)
        ]
    )


def _group(
    labels: Int[np.ndarray, " inputs"],
) -> tuple[Int[np.ndarray, " inputs"], Int[np.ndarray, " classes"], Int[np.ndarray, " classes"]]:
    """Return the inputs ordered by class, where each class starts among them, and its size."""
    _, starts, sizes = np.unique(np.sort(labels), return_index=True, return_counts=True)
    return np.argsort(labels, kind="stable"), starts, sizes


def _check(vectors: np.ndarray, labels: np.ndarray, *, name: str) -> None:
    if len(vectors) != len(labels) or not len(vectors):
        raise DataError(
            f"`{name}` must hold at least one vector and one label each, got {len(vectors)} vectors "
            f"and {len(labels)} labels."
        )
    num_bad = int(find_bad_rows(vectors).sum())
    if num_bad:
        raise DataError(
            f"`{name}` must be finite and not zero, got {num_bad} bad rows of {len(vectors)}. Leave "
            f"these rows out."
        )


def _check_counts(**counts: tuple[int, int]) -> None:
    for name, (value, least) in counts.items():
        if value < least:
            raise DataError(f"`{name}` must be at least {least}, got {value}.")
