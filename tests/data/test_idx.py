import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from nestling.data.idx import read_idx, read_image_folder
from nestling.errors import DataError


def idx_bytes(values: np.ndarray) -> bytes:
    """The format, spelled out."""
    header = struct.pack(">BBBB", 0, 0, 8, values.ndim)
    for length in values.shape:
        header += struct.pack(">I", length)
    return header + bytes(int(value) for value in values.ravel())


def make_images(num_images: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(num_images)
    images = generator.integers(0, 256, (num_images, 3, 4), dtype=np.uint8)
    return images, np.arange(num_images, dtype=np.uint8) % 2


def save(folder: Path, side: str, num_images: int, *, style: str = "-images-idx3-ubyte") -> None:
    images, labels = make_images(num_images)
    (folder / f"{side}{style}").write_bytes(idx_bytes(images))
    labels_style = style.replace("images", "labels").replace("idx3", "idx1")
    (folder / f"{side}{labels_style}").write_bytes(idx_bytes(labels))


@pytest.mark.parametrize("style", ["-images-idx3-ubyte", "-images.idx3-ubyte"])
@pytest.mark.parametrize(("train", "test"), [("train", "t10k"), ("digits-train", "digits-test")])
def test_two_sides(tmp_path: Path, train: str, test: str, style: str) -> None:
    save(tmp_path, train, 6, style=style)
    save(tmp_path, test, 4, style=style)
    task = read_image_folder(tmp_path, name="images:x")
    np.testing.assert_array_equal(task.train_inputs, make_images(6)[0])
    np.testing.assert_array_equal(task.test_inputs, make_images(4)[0])
    assert task.train_labels == ["0", "1", "0", "1", "0", "1"]
    assert task.notes[0].startswith("6 train and 4 test images of 3 x 4, 2 labels; ")


def test_gz(tmp_path: Path) -> None:
    save(tmp_path, "train", 6)
    save(tmp_path, "t10k", 4)
    plain = read_image_folder(tmp_path, name="x")
    for path in list(tmp_path.iterdir()):
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    packed = read_image_folder(tmp_path, name="x")
    np.testing.assert_array_equal(packed.train_inputs, plain.train_inputs)
    assert packed.test_labels == plain.test_labels


def test_one_pair_is_split_by_a_hash_of_the_pixels(tmp_path: Path) -> None:
    save(tmp_path, "all", 200)
    task = read_image_folder(tmp_path, name="x")
    assert len(task.train_inputs) + len(task.test_inputs) == 200
    assert 20 < len(task.test_inputs) < 60
    assert len(task.train_labels) == len(task.train_inputs)
    assert "split by a hash of the pixels" in task.notes[0]


def test_wrong_magic(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(idx_bytes(np.zeros(3, np.uint8)))
    with pytest.raises(
        DataError, match="must start with the IDX magic number 0x00000803, got 0x00000801"
    ):
        read_idx(path, num_axes=3)
    path.write_bytes(b"\x89PNG and so on")
    with pytest.raises(DataError, match="magic number 0x00000801, got 0x89504e47"):
        read_idx(path, num_axes=1)


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (9, "is cut off inside its header of 16 bytes"),
        (20, r"must hold 24 bytes for the shape \(2, 3, 4\), got 4"),
    ],
)
def test_truncated(tmp_path: Path, cut: int, message: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(idx_bytes(make_images(2)[0])[:cut])
    with pytest.raises(DataError, match=message):
        read_idx(path, num_axes=3)


def test_bytes_left_over(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(idx_bytes(make_images(2)[0]) + b"x")
    with pytest.raises(DataError, match=r"must hold 24 bytes for the shape \(2, 3, 4\), got 25"):
        read_idx(path, num_axes=3)


def test_missing_labels(tmp_path: Path) -> None:
    save(tmp_path, "train", 6)
    save(tmp_path, "t10k", 4)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(
        DataError, match=r"needs its labels in .*t10k-labels-idx1-ubyte, got no such file"
    ):
        read_image_folder(tmp_path, name="x")


def test_labels_of_another_set(tmp_path: Path) -> None:
    save(tmp_path, "train", 6)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(make_images(5)[1]))
    with pytest.raises(DataError, match="must hold one label per image, got 5 labels for 6 images"):
        read_image_folder(tmp_path, name="x")


def test_sides_of_two_sizes_or_empty(tmp_path: Path) -> None:
    save(tmp_path, "train", 6)
    save(tmp_path, "t10k", 0)
    with pytest.raises(
        DataError, match=r"must be there and of one size, got shapes \(6, 3, 4\) and \(0, 3, 4\)"
    ):
        read_image_folder(tmp_path, name="x")


@pytest.mark.parametrize("sides", [[], ["a", "b"], ["a-train", "b-train", "t10k"]])
def test_no_or_too_many_sets(tmp_path: Path, sides: list[str]) -> None:
    for side in sides:
        save(tmp_path, side, 2)
    got = ", ".join(map(repr, sorted(sides))) or "no images"
    with pytest.raises(
        DataError, match=rf"must hold the IDX files .*; got {got}\. Name a folder that holds one"
    ):
        read_image_folder(tmp_path, name="x")


def test_missing_folder_and_file_for_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="`path` must exist"):
        read_image_folder(tmp_path / "nothing", name="x")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="got no images"):
        read_image_folder(tmp_path / "file", name="x")
