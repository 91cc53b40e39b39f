"""`builtin:digits`: the handwritten digits that come with scikit-learn, as a task of images."""

import numpy as np

from nestling.data.splits import TRAIN_SHARE, unit_hash
from nestling.data.types import ClassificationTask

LARGEST_VALUE = 16
"""Of a pixel in scikit-learn's copy: the number of dots set in a square of 4 x 4."""


def make_digits_task(*, name: str) -> ClassificationTask:
    """Return the 1,797 images of 8 x 8 pixels, their values 0 to 16 stretched to 0 to 255.

    They are split by a hash of the pixels, 80% train and 20% test (Alpaydin and Kaynak 1998,
    "Optical Recognition of Handwritten Digits", test part).
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / LARGEST_VALUE)).astype(np.uint8)
    labels = [str(label) for label in digits.target]
    is_train = np.array([unit_hash(image.tobytes()) for image in images]) < TRAIN_SHARE
    train_rows, test_rows = np.flatnonzero(is_train), np.flatnonzero(~is_train)
    note = (
        f"{len(train_rows):,} train and {len(test_rows):,} test images of 8 x 8, 10 labels; "
        f"scikit-learn's digits, split by a hash of the pixels, 80% train and 20% test"
    )
    return ClassificationTask(
        name=name,
        train_inputs=images[train_rows],
        train_labels=[labels[row] for row in train_rows],
        test_inputs=images[test_rows],
        test_labels=[labels[row] for row in test_rows],
        notes=(note,),
    )
