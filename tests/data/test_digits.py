import numpy as np
import pytest
from sklearn.datasets import load_digits

from nestling.data import ClassificationTask, open_corpus, open_task
from nestling.errors import DataError


@pytest.fixture(scope="module")
def task() -> ClassificationTask:
    opened = open_task("builtin:digits")
    assert isinstance(opened, ClassificationTask)
    return opened


def test_every_image_is_on_one_side_with_its_label(task: ClassificationTask) -> None:
    digits = load_digits()
    wanted = {
        (np.rint(image * 255 / 16).astype(np.uint8).tobytes(), str(label))
        for image, label in zip(digits.images, digits.target, strict=True)
    }
    sides = [
        {(image.tobytes(), label) for image, label in zip(images, labels, strict=True)}
        for images, labels in (
            (task.train_inputs, task.train_labels),
            (task.test_inputs, task.test_labels),
        )
        if isinstance(images, np.ndarray)
    ]
    assert sides[0] | sides[1] == wanted
    assert not sides[0] & sides[1]


def test_shape_and_shares(task: ClassificationTask) -> None:
    assert isinstance(task.train_inputs, np.ndarray)
    assert task.train_inputs.dtype == np.uint8
    assert task.train_inputs.shape[1:] == (8, 8)
    assert task.train_inputs.max() == 255
    assert 0.75 < len(task.train_inputs) / 1797 < 0.85
    assert set(task.train_labels) == set(task.test_labels) == set("0123456789")
    assert task.name == "builtin:digits"
    (note,) = task.notes
    sizes = f"{len(task.train_inputs):,} train and {len(task.test_inputs):,} test images of 8 x 8"
    assert note.startswith(sizes)


def test_it_has_neither_splits_nor_documents() -> None:
    with pytest.raises(DataError, match=r"Write it as .* or builtin:digits"):
        open_task("builtin:digits#train")
    with pytest.raises(DataError, match="a builtin:digits task has none"):
        open_corpus("builtin:digits")
