import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nestling.core import find_bad_rows, take_prefix
from nestling.encode.normalization import (
    LAYER_NORM_EPSILON,
    apply_normalization,
    check_normalization,
    normalization_of,
)
from nestling.errors import FormatError


@pytest.mark.parametrize(
    ("model", "rule"),
    [
        ("nomic-ai/nomic-embed-text-v1.5", "layer_norm+l2"),
        ("Nomic-Embed-Text-v1.5-GGUF", "layer_norm+l2"),
        ("nomic-ai/nomic-embed-text-v1", "l2"),
        ("sentence-transformers/all-MiniLM-L6-v2", "l2"),
    ],
)
def test_the_family_is_told_by_the_name(model, rule):
    assert normalization_of(model) == rule


def test_layer_norm_acts_on_the_full_width_before_the_cut():
    embedding = np.array([[3.0, 1.0, -2.0, 6.0]])
    mean, variance = 2.0, 8.5
    normed = (embedding - mean) / np.sqrt(variance + LAYER_NORM_EPSILON)
    ours = apply_normalization(embedding, "layer_norm+l2")
    np.testing.assert_allclose(
        take_prefix(ours, 2, renormalize=True),
        normed[:, :2] / np.linalg.norm(normed[:, :2]),
        atol=1e-6,
    )
    cut_first = embedding[:, :2] / np.linalg.norm(embedding[:, :2])
    assert np.abs(take_prefix(ours, 2, renormalize=True) - cut_first).max() > 0.1


@pytest.mark.parametrize("rule", ["l2", "layer_norm+l2"])
@given(rows=arrays(np.float64, (4, 5), elements=st.floats(-1e3, 1e3)))
def test_rows_come_out_unit_or_zero_and_float32(rule, rows):
    made = apply_normalization(rows, rule)
    assert made.dtype == np.float32
    norms = np.linalg.norm(made, axis=1)
    assert (np.isclose(norms, 1.0, atol=1e-5) | (norms == 0.0)).all()


@pytest.mark.parametrize("rule", ["l2", "layer_norm+l2"])
def test_bad_rows_stay_findable(rule):
    rows = np.array([[np.nan, 1.0], [np.inf, 1.0], [0.0, 0.0], [2.0, 1.0], [3e38, -3e38]])
    made = apply_normalization(rows, rule)
    assert find_bad_rows(made).tolist()[:4] == [True, True, True, False]


def test_an_unknown_rule_lists_the_known_ones():
    with pytest.raises(FormatError, match=r"must be one of l2, layer_norm\+l2, got 'zscore'"):
        check_normalization("zscore", source="nestling.json")
