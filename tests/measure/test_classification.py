import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from nestling.core import Dtype, take_prefix
from nestling.core.progress import silent
from nestling.errors import DataError
from nestling.measure.classification import measure_classification
from nestling.measure.cuts import make_cuts

DIMS = (4, 16, 64)


@pytest.fixture(scope="module")
def labelled(nested_vectors):
    """Labels that depend on the first coordinates, with names in no order."""
    names = np.array(["pear", "apple", "fig"])
    labels = names[np.argmax(nested_vectors[:, :3], axis=1)].tolist()
    return nested_vectors[:600], labels[:600], nested_vectors[600:700], labels[600:700]


def test_accuracies_equal_scikit_learn_on_renormalised_prefixes(labelled):
    train, train_labels, test, test_labels = labelled
    dtypes = [Dtype.INT8, Dtype.INT4, Dtype.ROTATED_BINARY]
    cuts = make_cuts(train, dims=DIMS, dtypes=dtypes, seed=0)
    measured, _ = measure_classification(
        train, train_labels, test, test_labels, cuts, progress=silent
    )
    for row in measured:
        (cut,) = [
            cut
            for cut in cuts
            if (cut.family, cut.dtype, cut.draw) == (row.family, row.dtype, row.draw)
            and row.dim in cut.dims
        ]
        turned_train = take_prefix(cut.corpus_side(train), row.dim, renormalize=True)
        turned_test = take_prefix(cut.query_side(test), row.dim, renormalize=True)
        neighbour = KNeighborsClassifier(1, metric="cosine").fit(turned_train, train_labels)
        found = neighbour.predict(turned_test)
        if row.dtype is Dtype.ROTATED_BINARY:  # rows of equal signs tie; the first one counts
            nearest = np.argmax(np.round(turned_test @ turned_train.T, 5), axis=1)
            found = np.array(train_labels)[nearest]
        hits = found == np.array(test_labels)
        np.testing.assert_array_equal(row.metrics["accuracy_1nn"], hits.astype(float))
        if "accuracy_logistic" in row.metrics:
            probe = LogisticRegression(max_iter=1000).fit(turned_train, train_labels)
            hits = probe.predict(turned_test) == np.array(test_labels)
            np.testing.assert_array_equal(row.metrics["accuracy_logistic"], hits.astype(float))


def test_which_cuts_are_probed(labelled):
    train, train_labels, test, test_labels = labelled
    cuts = make_cuts(train, dims=DIMS, dtypes=[Dtype.INT8], seed=0)
    told = []
    measured, _ = measure_classification(
        train,
        train_labels,
        test,
        test_labels,
        cuts,
        progress=lambda label, done, total: told.append((label, done, total)),
    )
    probed = {
        (row.family, str(row.dtype)) for row in measured if "accuracy_logistic" in row.metrics
    }
    assert probed == {
        ("prefix", "float32"),
        ("prefix", "int8"),
        ("prefix", "binary"),
        ("pca", "float32"),
    }
    assert told[-1] == ("linear probes", 10, 10)


def test_clipped_values_are_counted_once_though_probes_code_them_again(labelled):
    train, train_labels, test, test_labels = labelled
    cuts = make_cuts(train, dims=(64,), dtypes=[Dtype.INT8], seed=0)
    outlier = train.copy()
    outlier[5, :3] = 100.0
    _, notes = measure_classification(
        outlier, train_labels, test, test_labels, cuts, progress=silent
    )
    assert "prefix int8 clipped 3 values outside the calibrated range" in notes


def test_a_label_never_seen_in_training_is_an_error_and_no_crash(labelled):
    train, train_labels, test, _ = labelled
    cuts = make_cuts(train, dims=(64,), dtypes=[], seed=0)
    measured, _ = measure_classification(
        train, train_labels, test[:1], ["unheard of"], cuts, progress=silent
    )
    assert measured[0].metrics == {"accuracy_1nn": [0.0], "accuracy_logistic": [0.0]}


def test_one_class_is_refused(labelled):
    train, _, test, test_labels = labelled
    cuts = make_cuts(train, dims=(64,), dtypes=[], seed=0)
    with pytest.raises(
        DataError, match=r"`train_labels` must hold at least two classes, got \['a'\]"
    ):
        measure_classification(train, ["a"] * 600, test, test_labels, cuts, progress=silent)
