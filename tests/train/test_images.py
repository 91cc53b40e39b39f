from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nestling.data import ClassificationTask, open_task
from nestling.encode.nest_manifest import NestManifest
from nestling.errors import DataError, DimensionError, TrainingError, WriteError
from nestling.train.augmentation import Augmentation
from nestling.train.export import load_classifier
from nestling.train.image_report import report_images
from nestling.train.images import (
    HEAD_RATE_FACTOR,
    IMAGE_OPTIONS,
    ImageJob,
    ImageRecipe,
    LabelledImages,
    accuracy_by_dim,
    make_classifier,
    split_images,
    train_images,
)
from nestling.train.losses import LossValue
from nestling.train.models.classifier import NestedClassifier
from nestling.train.models.nested_head import NestedHead

RECIPE = ImageRecipe(nesting_dims=(2, 4), embed_dim=8, batch_size=64)
QUICK = replace(IMAGE_OPTIONS, num_epochs=3)


class StoppedError(Exception):
    pass


class StopAfter:
    """A progress that ends a run as soon as it hears of so many steps."""

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps

    def __call__(self, label: str, done: int, total: int) -> None:
        if done >= self.num_steps:
            raise StoppedError


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Any:
    # Images this small are slower with more threads, and much slower on a busy machine.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits() -> ClassificationTask:
    """600 images to learn from, 200 to test on."""
    task = open_task("builtin:digits")
    assert isinstance(task, ClassificationTask)
    return replace(
        task,
        train_inputs=task.train_inputs[:600],
        train_labels=task.train_labels[:600],
        test_inputs=task.test_inputs[:200],
        test_labels=task.test_labels[:200],
    )


def make_task(train_labels: str, test_labels: str, *, size: int = 3) -> ClassificationTask:
    generator = np.random.default_rng(0)
    num = len(train_labels) + len(test_labels)
    images = generator.integers(0, 256, (num, size, size), dtype=np.uint8)
    return ClassificationTask(
        name="handmade",
        train_inputs=images[: len(train_labels)],
        train_labels=list(train_labels),
        test_inputs=images[len(train_labels) :],
        test_labels=list(test_labels),
    )


def make_job(task: ClassificationTask, recipe: ImageRecipe = RECIPE, *, seed: int = 0) -> ImageJob:
    split = split_images(task, validation_share=recipe.validation_share)
    classifier = make_classifier(
        recipe, class_names=split.class_names, image_sides=(8, 8), seed=seed
    )
    return ImageJob(classifier, split.train, split.validation, recipe=recipe, seed=seed)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = load_classifier(folder).state_dict()
    return state


# --- Splitting ---------------------------------------------------------------------------------


def test_the_split_keeps_every_image_and_its_label(digits: ClassificationTask) -> None:
    split = split_images(digits, validation_share=0.2)
    assert split.class_names == tuple("0123456789")
    sides = split.train, split.validation
    found = {
        (image.tobytes(), split.class_names[label])
        for side in sides
        for image, label in zip(side.images, side.labels, strict=True)
    }
    assert isinstance(digits.train_inputs, np.ndarray)
    images = [image.tobytes() for image in digits.train_inputs]
    assert found == set(zip(images, digits.train_labels, strict=True))
    assert 0.15 < len(split.validation) / 600 < 0.25
    assert [split.class_names[label] for label in split.test.labels] == digits.test_labels


def test_an_image_is_held_out_whatever_stands_beside_it(digits: ClassificationTask) -> None:
    whole = split_images(digits, validation_share=0.2)
    part = replace(
        digits,
        train_inputs=digits.train_inputs[:300][::-1],
        train_labels=digits.train_labels[:300][::-1],
    )
    held = {image.tobytes() for image in whole.validation.images}
    assert {
        image.tobytes() for image in split_images(part, validation_share=0.2).validation.images
    } < held
    assert len(split_images(digits, validation_share=0.0).validation) == 0


def test_every_class_keeps_an_image_to_learn_from() -> None:
    split = split_images(make_task("abcdeaabbb", "a"), validation_share=0.99)
    assert sorted(split.train.labels.tolist()) == [0, 1, 2, 3, 4]
    assert len(split.validation) == 5


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (make_task("aaa", "a"), r"at least two classes, got \['a'\]"),
        (make_task("ab", "abxy"), r"`test_labels` must all .* got 2 that have none .*: 'x', 'y'"),
        (make_task("ab", ""), r"must hold train and test images, got 2 and 0 in 'handmade'"),
        (make_task("", "a"), r"must hold train and test images, got 0 and 1"),
        (
            replace(make_task("ab", "a"), train_inputs=["x", "y"]),
            r"`task` must hold images, got texts in 'handmade'\. Name images:",
        ),
    ],
)
def test_tasks_that_cannot_be_learnt(task: ClassificationTask, message: str) -> None:
    with pytest.raises(DataError, match=message):
        split_images(task, validation_share=0.1)


# --- Recipe ------------------------------------------------------------------------------------


def test_the_full_width_is_appended() -> None:
    assert RECIPE.nesting_dims == (2, 4, 8)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"nesting_dims": (4, 2)}, DimensionError, "`dims` must ascend without repeats, got 4,2"),
        ({"nesting_dims": (16,)}, DimensionError, r"`dim` must lie in \[1, 8\]"),
        ({"nesting_dims": ()}, DimensionError, "`dims` must name at least one width"),
        ({"batch_size": 1}, TrainingError, "`batch_size` must be at least 2, got 1"),
        ({"label_smoothing": 1.0}, TrainingError, r"`label_smoothing` must lie in \[0, 1\)"),
        ({"weight_decay": -1.0}, TrainingError, "`weight_decay` must be at least 0, got -1"),
        ({"validation_share": 1.0}, TrainingError, r"`validation_share` must lie in \[0, 1\)"),
    ],
)
def test_bad_recipes(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        replace(RECIPE, **options)


# --- The job -----------------------------------------------------------------------------------


def test_a_batch_is_the_same_whenever_it_is_asked_for(digits: ClassificationTask) -> None:
    one, other = make_job(digits), make_job(digits)
    asked = [(0, 0), (0, 3), (1, 0), (0, 3), (0, 0)]
    for (pixels, labels), place in zip([one.batch(*place) for place in asked], asked, strict=True):
        wanted_pixels, wanted_labels = other.batch(*place)
        assert torch.equal(pixels, wanted_pixels)
        assert torch.equal(labels, wanted_labels)
    assert not torch.equal(one.batch(0, 0)[1], one.batch(1, 0)[1])
    assert not torch.equal(one.batch(0, 0)[1], make_job(digits, seed=1).batch(0, 0)[1])


def test_an_epoch_shows_every_image_at_most_once(digits: ClassificationTask) -> None:
    still = Augmentation(max_shift=0.0, max_rotation_deg=0.0, max_zoom=0.0, max_shear=0.0)
    job = make_job(digits, replace(RECIPE, augmentation=still, validation_share=0.0))
    assert job.num_batches == 600 // 64
    shown = torch.cat([job.batch(4, index)[0] for index in range(job.num_batches)])
    rounded = {image.round(decimals=3).numpy().tobytes() for image in shown}
    assert len(rounded) == job.num_batches * 64


def test_few_images_are_one_batch(digits: ClassificationTask) -> None:
    job = make_job(digits, replace(RECIPE, batch_size=5000))
    assert job.num_batches == 1
    assert len(job.batch(0, 0)[1]) == len(split_images(digits, validation_share=0.1).train)


def test_the_head_learns_faster_and_only_matrices_decay(digits: ClassificationTask) -> None:
    job = make_job(digits)
    groups = job.make_optimizer(0.5).param_groups
    assert [group["lr"] for group in groups] == [0.5, 0.5, 0.5 * HEAD_RATE_FACTOR]
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0, 0.05]
    num = sum(len(group["params"]) for group in groups)
    assert num == len(list(job.module.parameters()))
    assert all(weights.ndim > 1 for weights in groups[0]["params"])
    assert all(weights.ndim == 1 for weights in groups[1]["params"])


def test_settings_tell_other_data_and_recipes_apart(digits: ClassificationTask) -> None:
    settings = make_job(digits).settings
    assert settings["nesting_dims"] == [2, 4, 8]
    swapped = replace(digits, train_labels=[*digits.train_labels[1:], digits.train_labels[0]])
    assert make_job(swapped).settings["data_hash"] != settings["data_hash"]
    assert make_job(digits, replace(RECIPE, tied=False)).settings != settings
    assert make_job(digits).settings == settings


def test_validation_is_the_heads_accuracy(digits: ClassificationTask) -> None:
    job = make_job(digits)
    split = split_images(digits, validation_share=0.1)
    values = job.validate()
    assert values is not None
    predicted = job.classifier.predict(split.validation.images, dim=4).numpy()
    assert values[4] == (predicted == split.validation.labels).mean()
    assert list(values) == [2, 4, 8]
    assert make_job(digits, replace(RECIPE, validation_share=0.0)).validate() is None


@pytest.mark.parametrize("tied", [False, True])
def test_any_module_is_a_backbone(digits: ClassificationTask, tied: bool) -> None:
    split = split_images(digits, validation_share=0.1)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, 8))
    classifier = NestedClassifier(backbone, NestedHead((2, 4, 8), 10, tied=tied))
    job = ImageJob(classifier, split.train, split.validation, recipe=RECIPE, seed=0)
    value = job.module(job.batch(0, 0), 0)
    assert isinstance(value, LossValue)
    value.total.backward()
    assert backbone[1].weight.grad is not None
    assert job.settings["backbone"] == "Sequential"


def test_tiny_images_keep_their_resolution() -> None:
    strides = [
        make_classifier(
            RECIPE, class_names=("a", "b"), image_sides=sides, seed=0
        ).backbone.shape.stem_stride
        for sides in ((8, 28), (16, 16), (28, 28))
    ]
    assert strides == [1, 2, 2]


def test_fresh_weights_depend_on_the_seed_and_leave_the_callers_draws() -> None:
    def weights(seed: int) -> torch.Tensor:
        made = make_classifier(RECIPE, class_names=("a", "b"), image_sides=(8, 8), seed=seed)
        return made.head.weight.detach()

    torch.manual_seed(7)
    before = torch.get_rng_state()
    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))
    assert torch.equal(torch.get_rng_state(), before)


# --- Training ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(digits: ClassificationTask, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a run that nobody disturbed."""
    out = tmp_path_factory.mktemp("trained") / "nest"
    train_images(digits, RECIPE, out=out, options=QUICK, command="typed")
    return out


def test_it_learns_at_every_width(trained: Path, digits: ClassificationTask) -> None:
    split = split_images(digits, validation_share=0.1)
    accuracies = accuracy_by_dim(load_classifier(trained), split.test)
    assert accuracies[2] > 0.25
    assert accuracies[4] > 0.6
    assert accuracies[8] > 0.8
    manifest = NestManifest.load(trained)
    assert manifest.nesting_dims == (2, 4, 8)
    assert len(manifest.training["epochs"]) == 3
    card = (trained / "README.md").read_text()
    assert "accuracy of the head on the 200 test images of `builtin:digits`" in card
    assert f"{accuracies[8]:.4f}" in card
    assert "typed" in card
    assert sorted(path.name for path in trained.iterdir()) == [
        "README.md",
        "classifier.json",
        "model.onnx",
        "model.safetensors",
        "nestling.json",
    ]


def test_an_interrupted_run_ends_with_the_same_bits(
    trained: Path, digits: ClassificationTask, tmp_path: Path
) -> None:
    options = replace(QUICK, checkpoint_every_s=0.0)
    for num_steps in (3, 11, 17):
        with pytest.raises(StoppedError):
            train_images(
                digits,
                RECIPE,
                out=tmp_path / "nest",
                options=options,
                progress=StopAfter(num_steps),
            )
    assert not (tmp_path / "nest" / "nestling.json").exists()
    record = train_images(digits, RECIPE, out=tmp_path / "nest", options=options)
    assert record.num_resumes > 0
    wanted, found = weights_of(trained), weights_of(tmp_path / "nest")
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    graphs = [(folder / "model.onnx").read_bytes() for folder in (trained, tmp_path / "nest")]
    assert graphs[0] == graphs[1]


def test_a_finished_model_is_replaced_only_on_demand(
    trained: Path, digits: ClassificationTask, tmp_path: Path
) -> None:
    out = tmp_path / "nest"
    out.mkdir()
    for path in trained.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    (out / "mine.txt").write_text("kept")
    with pytest.raises(WriteError, match=r"holds a finished model and is never .* --overwrite"):
        train_images(digits, RECIPE, out=out, options=QUICK)
    other = replace(RECIPE, tied=False)
    train_images(digits, other, out=out, options=replace(QUICK, num_epochs=1), overwrite=True)
    assert not load_classifier(out).head.tied
    assert (out / "mine.txt").read_text() == "kept"


def test_another_recipe_does_not_go_on_from_old_checkpoints(
    digits: ClassificationTask, tmp_path: Path
) -> None:
    options = replace(QUICK, checkpoint_every_s=0.0)
    with pytest.raises(StoppedError):
        train_images(digits, RECIPE, out=tmp_path, options=options, progress=StopAfter(5))
    rigid = replace(RECIPE, nesting_dims=(8,))
    with pytest.raises(TrainingError, match="nesting_dims"):
        train_images(digits, rigid, out=tmp_path, options=options)
    train_images(
        digits, rigid, out=tmp_path, options=replace(options, num_epochs=1), overwrite=True
    )
    assert load_classifier(tmp_path).nesting_dims == (8,)


def test_nothing_is_written_for_a_task_that_cannot_be_learnt(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least two classes"):
        train_images(make_task("aaa", "a"), RECIPE, out=tmp_path / "nest", options=QUICK)
    assert not (tmp_path / "nest").exists()


# --- The report --------------------------------------------------------------------------------


def test_the_report(trained: Path, digits: ClassificationTask) -> None:
    split = split_images(digits, validation_share=0.1)
    report = report_images(trained, split)
    by_head = {each.dim: each.accuracy_head for each in report.widths}
    assert by_head == accuracy_by_dim(load_classifier(trained), split.test)
    embedded = load_classifier(trained).embed
    for each in report.widths:
        train, test = (
            nn.functional.normalize(embedded(side.images)[:, : each.dim].double())
            for side in (split.train, split.test)
        )
        nearest = (test @ train.T).argmax(dim=1).numpy()
        wanted = (split.train.labels[nearest] == split.test.labels).mean()
        assert each.accuracy_1nn == pytest.approx(wanted, abs=0.011)  # ties within rounding
    assert [each.rule for each in report.cascades] == ["greedy", "joint"]
    assert all(each.num_fitted == len(split.validation) for each in report.cascades)
    data = report.to_json()
    assert [row["dim"] for row in data["rows"]] == [2, 4, 8]
    assert data["cascades"][0]["cascade"]["dims"] == [2, 4, 8]
    assert set(data["cascades"][0]["outcome"]) >= {"accuracy", "mean_dim", "mean_cumulative_dim"}


def test_without_validation_images_there_are_no_cascades(
    trained: Path, digits: ClassificationTask
) -> None:
    split = split_images(digits, validation_share=0.1)
    nobody = LabelledImages(images=split.test.images[:0], labels=split.test.labels[:0])
    assert report_images(trained, replace(split, validation=nobody)).cascades == ()
