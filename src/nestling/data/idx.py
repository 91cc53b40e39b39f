"""IDX files of grey images and their labels, as MNIST and its relatives come."""

import math
import re
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from nestling.data.lines import check_exists, read_bytes
from nestling.data.splits import TRAIN_SHARE, unit_hash
from nestling.data.types import ClassificationTask, Images
from nestling.errors import DataError

IMAGES_NAME = re.compile(r"(?P<side>.+?)[-.]images[-.]idx3[-.]ubyte(?:\.gz)?$")
UINT8 = 0x08
TEST_NAMES = ("t10k", "test")


def read_image_folder(folder: Path, *, name: str) -> ClassificationTask:
    """Read train and test images from a folder of IDX files, plain or gz.

    A pair of files is `X-images-idx3-ubyte` and `X-labels-idx1-ubyte`. With X ending in `train`
    and in `t10k` or `test` they are the two sides; a single pair is split by a hash of the pixels,
    80% train and 20% test.

    Raises:
        DataError: If the files are missing, ambiguous, damaged, or do not belong together.
    """
    check_exists(folder)
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    pairs = {match["side"]: path for path in entries if (match := IMAGES_NAME.match(path.name))}
    train = [path for side, path in pairs.items() if side.endswith("train")]
    test = [path for side, path in pairs.items() if side.endswith(TEST_NAMES)]
    if len(train) == len(test) == 1:
        train_images, train_labels = _read_pair(train[0])
        test_images, test_labels = _read_pair(test[0])
        origin = f"{train[0].name} and {test[0].name}"
    elif len(pairs) == 1:
        images, labels = _read_pair(*pairs.values())
        is_train = np.array([unit_hash(image.tobytes()) for image in images]) < TRAIN_SHARE
        train_images, test_images = images[is_train], images[~is_train]
        train_labels, test_labels = labels[is_train], labels[~is_train]
        origin = "one pair of files: split by a hash of the pixels, 80% train and 20% test"
    else:
        raise DataError(
            f"{folder} must hold the IDX files train-images-idx3-ubyte and t10k-images-idx3-ubyte (or one "
            f"pair), plain or gz, with their labels; got {', '.join(map(repr, pairs)) or 'no images'}. "
            f"Name a folder that holds one data set."
        )
    if train_images.shape[1:] != test_images.shape[1:] or not len(train_images) * len(test_images):
        raise DataError(
            f"train and test images must be there and of one size, got shapes {train_images.shape} and "
            f"{test_images.shape} in {folder}."
        )
    height, width = train_images.shape[1:]
    note = (
        f"{len(train_images):,} train and {len(test_images):,} test images of {height} x {width}, "
        f"{len(np.unique(train_labels))} labels; {origin}"
    )
    return ClassificationTask(
        name=name,
        train_inputs=train_images,
        train_labels=[str(label) for label in train_labels],
        test_inputs=test_images,
        test_labels=[str(label) for label in test_labels],
        notes=(note,),
    )


def read_idx(path: Path, *, num_axes: int) -> UInt8[np.ndarray, "*shape"]:
    """Read one IDX file of unsigned bytes.

    The format: two zero bytes, the type, the number of axes, each length as a big-endian 32-bit
    number, then the values (LeCun, Cortes, Burges, "The MNIST database", file formats).

    Args:
        path: Plain or gz.
        num_axes: 3 for images, 1 for labels.

    Raises:
        DataError: If the magic number is another, or bytes are missing or left over.
    """
    content = read_bytes(path)
    magic = bytes([0, 0, UINT8, num_axes])
    if content[:4] != magic:
        raise DataError(
            f"{path} must start with the IDX magic number 0x{magic.hex()}, got 0x{content[:4].hex()}. "
            f"Name IDX files of unsigned bytes with {num_axes} axes."
        )
    header_bytes = 4 + 4 * num_axes
    if len(content) < header_bytes:
        raise DataError(
            f"{path} is cut off inside its header of {header_bytes} bytes. Copy it again."
        )
    shape = np.frombuffer(content, dtype=">u4", count=num_axes, offset=4)
    lengths = tuple(int(length) for length in shape)
    if len(content) - header_bytes != math.prod(lengths):
        raise DataError(
            f"{path} must hold {math.prod(lengths):,} bytes for the shape {lengths}, got "
            f"{len(content) - header_bytes:,}. Copy it again."
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header_bytes).reshape(lengths)


def _read_pair(images_path: Path) -> tuple[Images, UInt8[np.ndarray, " images"]]:
    images = read_idx(images_path, num_axes=3)
    labels_name = re.sub(r"([-.])images([-.])idx3([-.])", r"\1labels\2idx1\3", images_path.name)
    labels_path = images_path.with_name(labels_name)
    if not labels_path.exists():
        raise DataError(f"{images_path} needs its labels in {labels_path}, got no such file.")
    labels = read_idx(labels_path, num_axes=1)
    if len(labels) != len(images):
        raise DataError(
            f"{labels_path} must hold one label per image, got {len(labels):,} labels for "
            f"{len(images):,} images. Check that the files belong together."
        )
    return images, labels
