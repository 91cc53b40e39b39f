import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nestling.errors import DimensionError
from nestling.measure.cascade import Cascade
from nestling.train.models.classifier import NestedClassifier, as_tensor
from nestling.train.models.nested_head import NestedHead

DIMS = (2, 4, 8)
IMAGES = np.random.default_rng(0).integers(0, 256, (40, 3, 5), dtype=np.uint8)
LABELS = np.arange(40) % 5


def make(*, tied: bool, bias: bool = True) -> NestedClassifier:
    """Any module will do as a backbone; this one drops out, which tells the two modes apart."""
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(15, 8), nn.Dropout(0.5))
    classifier = NestedClassifier(backbone, NestedHead(DIMS, 5, tied=tied, bias=bias))
    with torch.no_grad():
        classifier.head.weight.mul_(6)  # confident here and there
    return classifier


@pytest.mark.parametrize("tied", [False, True])
def test_predictions_are_those_of_the_head(tied: bool) -> None:
    classifier = make(tied=tied)
    pixels = torch.from_numpy(IMAGES.astype(np.float32) / 255)
    embeddings = classifier.eval()(pixels)
    for dim in DIMS:
        wanted = classifier.head.logits(embeddings, dim).argmax(dim=1)
        assert torch.equal(classifier.predict(IMAGES, dim=dim), wanted)
        assert torch.equal(classifier.predict(pixels, dim=dim), wanted)
    assert torch.equal(classifier.predict(IMAGES), classifier.predict(IMAGES, dim=8))


def test_embed_is_in_evaluation_mode_without_gradients_and_leaves_the_mode() -> None:
    classifier = make(tied=True).train()
    embeddings = classifier.embed(IMAGES)
    assert classifier.training
    assert not embeddings.requires_grad
    assert torch.equal(embeddings, classifier.embed(IMAGES))
    assert not torch.equal(embeddings, classifier(as_tensor(IMAGES)))
    assert not classifier.eval().embed(IMAGES).requires_grad
    assert not classifier.training


def test_embed_in_passes_equals_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = make(tied=True)
    whole = classifier.embed(IMAGES)
    monkeypatch.setattr("nestling.train.models.classifier.ROWS_PER_PASS", 7)
    torch.testing.assert_close(classifier.embed(IMAGES), whole)
    assert classifier.embed(IMAGES[:0]).shape == (0, 8)


thresholds = st.one_of(st.floats(0, 1), st.just(math.inf))


@given(
    tied=st.booleans(),
    bias=st.booleans(),
    dims=st.sampled_from([(2, 4, 8), (4, 8), (2,), (8,)]),
    limits=st.tuples(thresholds, thresholds),
)
def test_a_cascade_answers_as_its_policy_says(
    tied: bool, bias: bool, dims: tuple[int, ...], limits: tuple[float, float]
) -> None:
    classifier = make(tied=tied, bias=bias)
    cascade = Cascade(dims=dims, thresholds=limits[: len(dims) - 1])
    found = classifier.predict_cascade(IMAGES, cascade)
    answers = classifier.answer(IMAGES, LABELS, dims=dims)
    exits = cascade.exits(answers.confidences)
    # A confidence within rounding of its threshold may fall on either side of it.
    gaps = np.abs(answers.confidences[:-1].T - np.array(cascade.thresholds))
    clear = (gaps > 1e-5).all(axis=1)
    assert np.array_equal(found.dims.numpy()[clear], np.array(dims)[exits][clear])
    predicted = np.array([classifier.predict(IMAGES, dim=dim).numpy() for dim in dims])
    wanted = predicted[exits, np.arange(len(exits))]
    assert np.array_equal(found.labels.numpy()[clear], wanted[clear])


def test_a_tied_cascade_stops_at_untrained_widths_too() -> None:
    cascade = Cascade(dims=(1, 3, 7), thresholds=(0.9, 0.9))
    assert set(make(tied=True).predict_cascade(IMAGES, cascade).dims.tolist()) <= {1, 3, 7}
    with pytest.raises(DimensionError, match="`dim` must be one of 2,4,8, the widths that untied"):
        make(tied=False).predict_cascade(IMAGES, cascade)


def test_answers_are_those_of_predict() -> None:
    classifier = make(tied=False)
    answers = classifier.answer(IMAGES, LABELS)
    assert answers.dims == DIMS
    for dim, accuracy in answers.accuracy_by_dim.items():
        right = classifier.predict(IMAGES, dim=dim).numpy() == LABELS
        assert accuracy == right.mean()


def test_on_a_gpu_it_answers_as_on_a_cpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU: the classifier is not tested on one")
    classifier, moved = make(tied=True), make(tied=True).cuda()
    cascade = Cascade(dims=(2, 8), thresholds=(0.9,))
    embeddings = moved.embed(IMAGES)
    assert embeddings.device.type == moved.predict(IMAGES).device.type == "cuda"
    torch.testing.assert_close(embeddings.cpu(), classifier.embed(IMAGES), rtol=1e-3, atol=1e-3)
    assert len(moved.embed(IMAGES[:0]).cpu()) == 0
    answers = moved.answer(IMAGES, LABELS)
    found = moved.predict_cascade(IMAGES, cascade)
    assert answers.accuracy_by_dim.keys() == set(DIMS)
    for dim in DIMS:
        labels = moved.predict(IMAGES, dim=dim).cpu().numpy()
        assert answers.accuracy_by_dim[dim] == (labels == LABELS).mean()
    assert found.labels.device.type == "cuda"
    assert set(found.dims.tolist()) <= {2, 8}


def test_class_names() -> None:
    classifier = make(tied=True)
    assert classifier.class_names == ("0", "1", "2", "3", "4")
    with pytest.raises(DimensionError, match="`class_names` must be one per class, got 1 for a he"):
        NestedClassifier(classifier.backbone, classifier.head, class_names=["a"])


def test_widths_the_head_does_not_read() -> None:
    with pytest.raises(DimensionError, match=r"`dim` must lie in \[1, 8\]"):
        make(tied=True).predict(IMAGES, dim=9)
    with pytest.raises(DimensionError, match=r"`dim` must lie in \[1, 8\]"):
        make(tied=True).predict_cascade(IMAGES, Cascade(dims=(2, 16), thresholds=(0.5,)))
    with pytest.raises(DimensionError, match=r"`dim` must be at least 1, got 0"):
        make(tied=True).predict(IMAGES, dim=0)
