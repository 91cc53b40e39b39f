import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.errors import DataError, DimensionError
from nestling.measure import few_shot
from nestling.measure.few_shot import draw_distinct, few_shot_all_classes, few_shot_episodes

DIMS = (2, 4, 16)


def make_classes(
    sizes: list[int], *, full: int = 16, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    # Class numbers with gaps, in no order.
    labels = generator.permutation(np.repeat(3 * np.arange(len(sizes)) + 5, sizes))
    centres = np.random.default_rng(99).standard_normal((3 * len(sizes) + 5, full))
    vectors = centres[labels] + generator.standard_normal((len(labels), full))
    return vectors.astype(np.float32), labels


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def classify_by_hand(support: dict[int, np.ndarray], query: np.ndarray, dim: int) -> int:
    """The class whose mean of unit prefixes has the highest cosine with the query's prefix."""
    scores = {
        label: float(unit(np.mean([unit(row[:dim]) for row in rows], axis=0)) @ unit(query[:dim]))
        for label, rows in support.items()
    }
    return max(scores, key=lambda label: scores[label])


@pytest.mark.parametrize("block_bytes", [32 << 20, 1])
def test_episodes_equal_the_plain_loop(monkeypatch, block_bytes):
    monkeypatch.setattr(few_shot, "BLOCK_BYTES", block_bytes)
    vectors, labels = make_classes([9, 7, 3, 8, 12, 7])
    fast = few_shot_episodes(
        vectors, labels, DIMS, num_ways=3, num_shots=2, num_queries=5, num_episodes=12, seed=4
    )
    generator = np.random.default_rng(4)
    by_class = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    eligible = [members for members in by_class if len(members) >= 7]
    classes = draw_distinct(generator, np.full(12, len(eligible)), 3)
    drawn = draw_distinct(
        generator, np.array([[len(eligible[c]) for c in row] for row in classes]), 7
    )
    for row, dim in enumerate(DIMS):
        for episode in range(12):
            chosen = {
                way: vectors[eligible[classes[episode, way]][drawn[episode, way]]]
                for way in range(3)
            }
            support = {way: rows[:2] for way, rows in chosen.items()}
            right = [
                classify_by_hand(support, query, dim) == way
                for way, rows in chosen.items()
                for query in rows[2:]
            ]
            assert fast.accuracies[row, episode] == pytest.approx(np.mean(right))


@pytest.mark.parametrize("block_bytes", [32 << 20, 1])
def test_all_classes_equal_the_plain_loop(monkeypatch, block_bytes):
    monkeypatch.setattr(few_shot, "BLOCK_BYTES", block_bytes)
    vectors, labels = make_classes([9, 7, 4, 8])
    test, test_labels = make_classes([5, 5, 5, 5, 5], seed=1)
    fast = few_shot_all_classes(
        vectors, labels, test, test_labels, DIMS, num_shots=3, num_draws=4, seed=2
    )
    by_class = {int(label): np.flatnonzero(labels == label) for label in np.unique(labels)}
    sizes = np.array([len(members) for members in by_class.values()])
    drawn = draw_distinct(np.random.default_rng(2), np.tile(sizes, (4, 1)), 3)
    for row, dim in enumerate(DIMS):
        for draw in range(4):
            support = {
                label: vectors[members[drawn[draw, place]]]
                for place, (label, members) in enumerate(by_class.items())
            }
            right = [
                classify_by_hand(support, query, dim) == label
                for query, label in zip(test, test_labels, strict=True)
            ]
            assert fast.accuracies[row, draw] == pytest.approx(np.mean(right))
    # The fifth class has no train examples: its queries are errors.
    assert fast.num_ways == 4
    assert fast.accuracies.max() <= 0.8


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=20), st.integers(0, 99), st.integers(1, 12)
)
def test_draws_are_distinct_and_in_range(sizes, seed, num):
    sizes = [max(size, num) for size in sizes]
    drawn = draw_distinct(np.random.default_rng(seed), np.array(sizes), num)
    assert drawn.shape == (len(sizes), num)
    for row, size in zip(drawn.tolist(), sizes, strict=True):
        assert len(set(row)) == num
        assert 0 <= min(row) <= max(row) < size


def test_every_ordered_draw_is_equally_likely():
    drawn = draw_distinct(np.random.default_rng(0), np.full(24_000, 4), 3)
    counts = Counter(map(tuple, drawn.tolist()))
    assert set(counts) == set(itertools.permutations(range(4), 3))
    assert max(abs(count - 1000) for count in counts.values()) < 130


def test_same_seed_same_bits_and_another_seed_another_draw():
    vectors, labels = make_classes([20] * 6)

    def draw(seed: int) -> list[list[float]]:
        measured = few_shot_episodes(
            vectors, labels, DIMS, num_ways=5, num_shots=1, num_episodes=10, seed=seed
        )
        return measured.accuracies.tolist()

    assert draw(0) == draw(0) != draw(1)


def test_more_shots_and_more_width_help_and_intervals_hold_their_means():
    vectors, labels = make_classes([60] * 10)
    means = {}
    for shots in (1, 5):
        measured = few_shot_episodes(
            vectors, labels, DIMS, num_ways=5, num_shots=shots, num_episodes=200, seed=0
        )
        assert (measured.dims, measured.num_ways, measured.num_shots) == (DIMS, 5, shots)
        means[shots] = measured.mean_by_dim
        intervals = measured.interval_by_dim(confidence=0.95, seed=0)
        for dim, (low, high) in intervals.items():
            assert low < measured.mean_by_dim[dim] < high
    assert all(means[5][dim] > means[1][dim] for dim in DIMS)
    assert means[1][2] < means[1][4] < means[1][16]


def test_nothing_is_written_to():
    vectors, labels = make_classes([20] * 4)
    vectors.flags.writeable = labels.flags.writeable = False
    few_shot_episodes(vectors, labels, DIMS, num_ways=2, num_shots=1, num_episodes=3, seed=0)
    few_shot_all_classes(vectors, labels, vectors, labels, DIMS, num_shots=2, num_draws=2, seed=0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_ways": 4}, r"`num_ways` must not exceed .* at least 16 .* 3 of 4, got 4"),
        ({"num_ways": 1}, "`num_ways` must be at least 2, got 1"),
        ({"num_shots": 0}, "`num_shots` must be at least 1, got 0"),
        ({"num_queries": 0}, "`num_queries` must be at least 1, got 0"),
        ({"num_episodes": 0}, "`num_episodes` must be at least 1, got 0"),
        ({"labels": np.zeros(3, int)}, "`vectors` must hold .* 66 vectors and 3 labels"),
        ({"vectors": np.zeros((66, 16), np.float32)}, "finite and not zero, got 66 bad rows of 66"),
    ],
)
def test_bad_episodes_are_refused(changed, message):
    vectors, labels = make_classes([20, 20, 20, 6])
    asked = {"num_ways": 2, "num_shots": 1, "num_episodes": 3, "seed": 0, **changed}
    vectors, labels = asked.pop("vectors", vectors), asked.pop("labels", labels)
    with pytest.raises(DataError, match=message):
        few_shot_episodes(vectors, labels, DIMS, **asked)


def test_bad_splits_are_refused():
    vectors, labels = make_classes([5, 5, 2])

    def ask(
        train: np.ndarray,
        train_labels: np.ndarray,
        test: np.ndarray,
        test_labels: np.ndarray,
        *,
        num_shots: int = 2,
        num_draws: int = 2,
    ) -> None:
        few_shot_all_classes(
            train,
            train_labels,
            test,
            test_labels,
            DIMS,
            num_shots=num_shots,
            num_draws=num_draws,
            seed=0,
        )

    with pytest.raises(
        DataError, match=r"`num_shots` = 3 examples, got 3 classes, the smallest of 2"
    ):
        ask(vectors, labels, vectors, labels, num_shots=3)
    with pytest.raises(DataError, match=r"at least two classes .* got 1 classes"):
        ask(vectors, labels * 0, vectors, labels)
    with pytest.raises(DataError, match="`num_draws` must be at least 1, got 0"):
        ask(vectors, labels, vectors, labels, num_draws=0)
    with pytest.raises(DataError, match="`test` must be as wide as `train`, 16, got 8"):
        ask(vectors, labels, vectors[:, :8].copy(), labels)
    with pytest.raises(DataError, match="`test` must hold at least one vector"):
        ask(vectors, labels, vectors[:0], labels[:0])
    with pytest.raises(DimensionError, match="`dim` must lie in"):
        few_shot_episodes(vectors, labels, (32,), num_ways=2, num_shots=1, num_episodes=1, seed=0)
