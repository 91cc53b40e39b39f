from itertools import combinations

import numpy as np
import pytest

from nestling.data.training_pairs import make_pairs
from nestling.encode import open_encoder
from nestling.encode.vector_map import OrthogonalMap
from nestling.train.adapter.pairs import encode_pairs

WORDS = [
    "river",
    "mountain",
    "guitar",
    "bread",
    "engine",
    "window",
    "doctor",
    "planet",
    "carpet",
    "tiger",
    "island",
    "pepper",
]


@pytest.fixture(scope="module")
def encoder():
    return open_encoder("static:wordllama")


def pairs_of(count=60):
    # No two bags of words are equal, nor are the vectors of a static model.
    names = [f"{left} {right}" for left, right in combinations(WORDS, 2)][:count]
    return make_pairs([(name, f"where is the {name}", "") for name in names], source="words")


def test_whole_groups_are_held_out(encoder):
    pairs = encode_pairs(encoder, pairs_of(), most=1000, seed=0, cache=None)
    assert pairs.held_out is not None
    assert (len(pairs.anchors), len(pairs.held_out.anchors), pairs.num_pairs) == (48, 12, 60)
    held = {row.tobytes() for row in pairs.held_out.positives}
    assert not held & {row.tobytes() for row in pairs.positives}
    assert len(np.unique(pairs.groups)) == 48


def test_classes_are_held_out_whole_and_no_text_seeks_itself(encoder):
    texts = [[f"{word} {number}" for number in range(4)] for word in WORDS]
    rows = [(group[a], group[(a + 1) % 4], "") for group in texts for a in range(4)]
    labelled = make_pairs(rows, source="labels", groups=np.repeat(np.arange(12), 4).tolist())
    pairs = encode_pairs(encoder, labelled, most=1000, seed=0, cache=None)
    assert pairs.held_out is not None
    assert set(np.unique(pairs.groups, return_counts=True)[1]) == {4}
    assert len(np.unique(pairs.groups)) == 10
    assert (len(pairs.held_out.anchors), len(pairs.held_out.positives)) == (8, 8)
    assert (pairs.held_out.own >= 0).all()
    # The three others of a class are all that share its word: found first, the value is 1.
    values = pairs.held_out.values(OrthogonalMap(np.eye(256)), (64, 256))
    assert values[256] == pytest.approx(1)


def test_too_few_groups_hold_nothing_out(encoder):
    pairs = encode_pairs(encoder, pairs_of(3), most=1000, seed=0, cache=None)
    assert pairs.held_out is None
    assert len(pairs.anchors) == 3


def labelled_pairs(sizes):
    """Classes of so many pairs each; no two texts are equal."""
    rows, groups = [], []
    for number, size in enumerate(sizes):
        texts = [f"{WORDS[number]} {place}" for place in range(size)]
        rows += [(text, texts[place - 1], "") for place, text in enumerate(texts)]
        groups += [number] * size
    return make_pairs(rows, source="labels", groups=groups)


@pytest.mark.parametrize(
    ("sizes", "held_groups"), [([8] * 4, 2), ([8] * 7, 2), ([60, 3, 3, 3], 2), ([4] * 12, 2)]
)
def test_two_classes_at_least_are_held_out_of_four_and_more(encoder, sizes, held_groups):
    pairs = encode_pairs(encoder, labelled_pairs(sizes), most=1000, seed=0, cache=None)
    assert pairs.held_out is not None
    assert len(np.unique(pairs.groups)) == len(sizes) - held_groups
    assert len(pairs.anchors) + len(pairs.held_out.anchors) == pairs.num_pairs == sum(sizes)
    # A class that is most of the pairs is what there is to fit on.
    assert max(sizes) in np.unique(pairs.groups, return_counts=True)[1]


def test_of_large_classes_a_draw_of_the_pairs_is_judged(encoder, monkeypatch):
    monkeypatch.setattr("nestling.train.adapter.pairs.MOST_HELD_OUT", 20)
    pairs = encode_pairs(encoder, labelled_pairs([40] * 10), most=1000, seed=0, cache=None)
    assert pairs.held_out is not None
    assert (len(np.unique(pairs.groups)), len(pairs.anchors)) == (8, 320)
    assert 10 < len(pairs.held_out.anchors) <= 20
    assert pairs.num_pairs == 340


def test_at_most_so_many_pairs_are_encoded_and_the_seed_decides_which(encoder):
    first, again, other = (
        encode_pairs(encoder, pairs_of(), most=30, seed=seed, cache=None).anchors.tobytes()
        for seed in (0, 0, 1)
    )
    assert first == again != other
    assert encode_pairs(encoder, pairs_of(), most=30, seed=0, cache=None).num_pairs == 30
