import numpy as np
import pytest
from scipy.stats import spearmanr

from nestling.core import Dtype, Int4Codec, Int8Codec, random_rotation, take_prefix
from nestling.measure.cuts import make_cuts
from nestling.measure.metrics import spearman
from nestling.measure.pairs import measure_pairs

DIMS = (4, 16, 64)


@pytest.fixture
def pairs(nested_vectors):
    left, right = nested_vectors[:300], nested_vectors[300:600]
    noise = np.random.default_rng(0).standard_normal(300)
    return left, right, (left * right).sum(axis=1) + 0.1 * noise


def cosines(left: np.ndarray, right: np.ndarray, dim: int) -> np.ndarray:
    left, right = (take_prefix(side, dim, renormalize=True) for side in (left, right))
    return (left * right).sum(axis=1)


def test_each_row_equals_a_cosine_from_scratch(pairs):
    left, right, gold = pairs
    sample = np.concatenate([left, right])
    cuts = make_cuts(sample, dims=DIMS, dtypes=list(Dtype), seed=0)
    measured = measure_pairs(
        left, right, cuts, metric="spearman", judge=lambda scores: spearman(gold, scores)
    )
    codec, int4 = Int8Codec.calibrate(sample), Int4Codec.calibrate(sample)
    coded = {
        Dtype.FLOAT32: right,
        Dtype.FLOAT16: right.astype(np.float16).astype(np.float32),
        Dtype.INT8: codec.decode(codec.encode(right)[0]),
        Dtype.INT4: int4.decode(int4.encode(right)[0]),
        Dtype.BINARY: np.where(right > 0, 1, -1).astype(np.float32),
    }
    values, vectors = np.linalg.eigh((sample.T @ sample).astype(np.float64))
    basis = vectors[:, np.argsort(-values)]
    checked = 0
    for row in measured:
        if row.dtype is Dtype.ROTATED_BINARY and row.family == "prefix":
            turn = random_rotation(row.dim)
            signs = np.where(right[:, : row.dim] @ turn > 0, 1, -1).astype(np.float32)
            expected = cosines(left[:, : row.dim] @ turn, signs, row.dim)
        elif row.family == "prefix":
            expected = cosines(left, coded[row.dtype], row.dim)
        elif (row.family, row.dtype) == ("pca", Dtype.FLOAT32):
            expected = cosines(left @ basis, right @ basis, row.dim)
        else:
            continue
        checked += 1
        assert row.metrics["spearman"] == pytest.approx(
            spearmanr(gold, expected).statistic, abs=1e-6
        ), (row.family, row.dtype, row.dim)
    assert checked == len(Dtype) * 3 + 3
    assert {row.dim for row in measured if row.family == "random"} == {4, 16}
