"""Classification: label vectors with every cut at every width, by neighbour and by linear probe."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int64

from nestling.core import Dtype, take_prefix
from nestling.core.progress import Progress
from nestling.data import ClassificationTask, Inputs
from nestling.encode import Encoder
from nestling.errors import DataError
from nestling.measure.cuts import Cut, clipping_notes
from nestling.measure.embed import hash_inputs
from nestling.measure.options import Options, Outcome
from nestling.measure.ranking import rank
from nestling.measure.table import Measured, PerQuery

Train = Float32[np.ndarray, "train embed_dim"]
Test = Float32[np.ndarray, "test embed_dim"]
TrainLabels = Int64[np.ndarray, " train"]
TestLabels = Int64[np.ndarray, " test"]

MAX_ITERATIONS = 1000
"""Of the linear probe; unit vectors converge in far fewer."""


def run_classification(encoder: Encoder, task: ClassificationTask, options: Options) -> Outcome:
    """Encode train and test inputs alike, label with every cut, and compare with the truth.

    Raises:
        DataError: If the train labels are all equal.
    """
    check_classes(task.train_labels)
    num_train = len(task.train_inputs)
    ids = [f"train {number}" for number in range(num_train)]
    ids += [f"test {number}" for number in range(len(task.test_inputs))]
    inputs = _join(task.train_inputs, task.test_inputs)
    side = options.encode(encoder, inputs, ids, name="inputs")
    labels = [*task.train_labels, *task.test_labels]
    kept_labels = [labels[number] for number in side.kept]
    start_of_test = int(np.searchsorted(side.kept, num_train))
    train = side.vectors[:start_of_test]
    cuts = options.cuts(train)
    measured, clipped = measure_classification(
        train,
        kept_labels[:start_of_test],
        side.vectors[start_of_test:],
        kept_labels[start_of_test:],
        cuts,
        progress=options.progress,
    )
    return Outcome(
        measured=measured,
        main_metric="accuracy_1nn",
        nested_metric="accuracy_1nn",
        query_ids=side.ids[start_of_test:],
        fingerprint=side.fingerprint,
        corpus_hash=hash_inputs(inputs, ids),
        num_documents=start_of_test,
        notes=[*side.notes, *clipped],
    )


def check_classes(train_labels: Sequence[str]) -> None:
    """Refuse labels that are all equal: there is nothing to tell apart.

    Raises:
        DataError: If there are fewer than two classes.
    """
    classes = set(train_labels)
    if len(classes) < 2:
        raise DataError(
            f"`train_labels` must hold at least two classes, got {sorted(classes)} on "
            f"{len(train_labels)} inputs. Check the label column of the file."
        )


def measure_classification(
    train: Train,
    train_labels: Sequence[str],
    test: Test,
    test_labels: Sequence[str],
    cuts: Sequence[Cut],
    *,
    progress: Progress,
) -> tuple[list[Measured], list[str]]:
    """Label the test vectors with every cut, and compare with the true labels.

    `accuracy_1nn` takes the label of the nearest train vector by cosine, ties going to the first;
    `accuracy_logistic` that of a logistic regression on renormalised prefixes (scikit-learn, C =
    1), fitted for prefixes in every format and for PCA in float32. The train side is coded, the
    test side stays float32, as in search. A test label without a train example counts as an
    error. The seconds are those of the neighbour search.

    Returns:
        What was measured, random draws one by one, and what `clipping_notes` says.

    Raises:
        DataError: If the train labels are all equal.
    """
    check_classes(train_labels)
    number = {name: index for index, name in enumerate(sorted({*train_labels, *test_labels}))}
    known = np.array([number[name] for name in train_labels])
    wanted = np.array([number[name] for name in test_labels])
    rankings = rank(train, test, cuts, 1, progress=progress)
    # Now and not at the end: the probes code the train side once more.
    clipped = clipping_notes(cuts)
    num_probes = sum(len(cut.dims) for cut in cuts if _is_probed(cut))
    num_fitted = 0
    measured = []
    for cut in cuts:
        is_probed = _is_probed(cut)
        if is_probed:
            turned_test, turned_train = cut.query_side(test), cut.corpus_side(train)
        for dim in cut.dims:
            nearest = rankings[cut.name].by_dim[dim].rows[:, 0]
            metrics = {"accuracy_1nn": _accuracy(known[nearest], wanted)}
            if is_probed:
                labels = _probe(turned_train, known, turned_test, dim)
                metrics["accuracy_logistic"] = _accuracy(labels, wanted)
                num_fitted += 1
                progress("linear probes", num_fitted, num_probes)
            measured.append(
                Measured(
                    family=cut.family,
                    dim=dim,
                    dtype=cut.dtype,
                    draw=cut.draw,
                    metrics=metrics,
                    seconds=rankings[cut.name].seconds,
                )
            )
    return measured, clipped


def _is_probed(cut: Cut) -> bool:
    return cut.family == "prefix" or (cut.family, cut.dtype) == ("pca", Dtype.FLOAT32)


def _probe(train: Train, labels: TrainLabels, test: Test, dim: int) -> TestLabels:
    from sklearn.linear_model import LogisticRegression

    probe = LogisticRegression(C=1.0, max_iter=MAX_ITERATIONS)
    probe.fit(take_prefix(train, dim, renormalize=True), labels)
    return probe.predict(take_prefix(test, dim, renormalize=True))


def _accuracy(labels: TestLabels, wanted: TestLabels) -> PerQuery:
    return (labels == wanted).astype(np.float64)


def _join(first: Inputs, second: Inputs) -> Inputs:
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        return np.concatenate([first, second])
    return [*first, *second]
