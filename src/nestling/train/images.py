"""Train a nested image classifier on a task: data, job, and the folder it ends in."""

import hashlib
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn, optim

from nestling.core import check_nesting_dims
from nestling.core.progress import Progress, silent
from nestling.data import ClassificationTask, Images
from nestling.data.splits import unit_hash
from nestling.errors import DataError, TrainingError
from nestling.measure.classification import check_classes
from nestling.train.augmentation import Augmentation, augment
from nestling.train.export import import_onnx, save_classifier
from nestling.train.job import LoopOptions, check_early_stopping
from nestling.train.loop import fit
from nestling.train.losses import LossValue
from nestling.train.losses.nested_cross_entropy import NestedCrossEntropy
from nestling.train.model_card import Quality
from nestling.train.model_folder import CHECKPOINT_FOLDER, training_folder
from nestling.train.models.classifier import NestedClassifier, as_tensor
from nestling.train.models.nested_head import NestedHead
from nestling.train.models.resnet import ResNetShape, SmallResNet
from nestling.train.processes import process_state
from nestling.train.record import TrainingRecord

HEAD_RATE_FACTOR = 10.0
"""The head learns faster than the backbone: logits from few coordinates need large weights."""

TINY_SIDE = 16
"""Images with a shorter side are not halved before the first stage."""

IMAGE_OPTIONS = LoopOptions(
    num_epochs=25, learning_rate=8e-3, warmup_share=0.2, checkpoint_every_s=60.0
)
"""What `SmallResNet` learns well with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecipe:
    """What is trained, and on what; `LoopOptions` says how long and how fast.

    Attributes:
        nesting_dims: Ascending widths; `embed_dim` is appended if it is missing.
        embed_dim: Full width.
        tied: One weight matrix for all prefixes (MRL-E), so that the head reads every width; or
            one matrix per width (MRL).
        dim_weights: Weight of each nesting dim in the loss; None for 1.
        batch_size: Images per step.
        label_smoothing: Share of a label that is spread over all classes.
        weight_decay: Of matrices and kernels; of AdamW.
        validation_share: Of the train images; held out by hash of their pixels. 0 holds out none.
        augmentation: How images are changed from epoch to epoch.
    """

    nesting_dims: tuple[int, ...]
    embed_dim: int
    tied: bool = True
    dim_weights: tuple[float, ...] | None = None
    batch_size: int = 128
    label_smoothing: float = 0.1
    weight_decay: float = 0.05
    validation_share: float = 0.1
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        dims = check_nesting_dims(self.nesting_dims, self.embed_dim)
        object.__setattr__(self, "nesting_dims", dims)
        rules = (
            ("batch_size", "must be at least 2", self.batch_size >= 2),
            ("label_smoothing", "must lie in [0, 1)", 0 <= self.label_smoothing < 1),
            ("weight_decay", "must be at least 0", self.weight_decay >= 0),
            ("validation_share", "must lie in [0, 1)", 0 <= self.validation_share < 1),
        )
        for name, rule, is_kept in rules:
            if not is_kept:
                raise TrainingError(
                    f"`{name}` {rule}, got {getattr(self, name)}. Change it and train again."
                )


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledImages:
    """Images and the numbers of their classes."""

    images: Images
    labels: Int64[np.ndarray, " images"]

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: Int64[np.ndarray, " taken"]) -> "LabelledImages":
        """Return some of them, by number."""
        return LabelledImages(images=self.images[rows], labels=self.labels[rows])


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSplit:
    """A task of images, ready to train on.

    Attributes:
        class_names: Sorted; labels are places in it.
        train: What is learnt from.
        validation: What was held out of the train images; may be empty.
        test: The test images.
    """

    class_names: tuple[str, ...]
    train: LabelledImages
    validation: LabelledImages
    test: LabelledImages


def split_images(task: ClassificationTask, *, validation_share: float) -> ImageSplit:
    """Number the classes, and hold out some train images by a hash of their pixels.

    A class keeps at least one image to learn from.

    Raises:
        DataError: If the inputs are texts, a side is empty, there is one class only, or a test label
            has no train image.
    """
    train, test = task.train_inputs, task.test_inputs
    if not isinstance(train, np.ndarray) or not isinstance(test, np.ndarray):
        raise DataError(
            f"`task` must hold images, got texts in {task.name!r}. Name images:<dir> or builtin:digits."
        )
    if not len(train) or not len(test):
        raise DataError(
            f"`task` must hold train and test images, got {len(train)} and {len(test)} in {task.name!r}."
        )
    check_classes(task.train_labels)
    class_names = tuple(sorted(set(task.train_labels)))
    number = {name: place for place, name in enumerate(class_names)}
    unknown = sorted(set(task.test_labels) - set(number))
    if unknown:
        named = ", ".join(map(repr, unknown[:5])) + (" ..." if len(unknown) > 5 else "")
        raise DataError(
            f"`test_labels` must all have train images, got {len(unknown)} that have none in {task.name!r}: "
            f"{named}. Leave these test images out, or add train images."
        )
    known = LabelledImages(
        images=train, labels=np.array([number[name] for name in task.train_labels], np.int64)
    )
    # Salted, since the two sides of a task may be a cut of the plain hash already.
    hashes = np.array([unit_hash(b"validation" + image.tobytes()) for image in train])
    is_held = hashes < validation_share
    _, first_rows = np.unique(known.labels[np.argsort(-hashes)], return_index=True)
    is_held[np.argsort(-hashes)[first_rows]] = False
    return ImageSplit(
        class_names=class_names,
        train=known.take(np.flatnonzero(~is_held)),
        validation=known.take(np.flatnonzero(is_held)),
        test=LabelledImages(
            images=test, labels=np.array([number[name] for name in task.test_labels], np.int64)
        ),
    )


class ImageJob:
    """A `TrainingJob`: a classifier learns from images, any backbone of grey images will do."""

    def __init__(
        self,
        classifier: NestedClassifier,
        train: LabelledImages,
        validation: LabelledImages,
        *,
        recipe: ImageRecipe,
        seed: int,
    ) -> None:
        """Join model and data.

        Args:
            classifier: Trained in place; its head has the widths of the recipe.
            train: What is learnt from.
            validation: May be empty: then `validate` returns None.
            recipe: See there.
            seed: Of shuffling and augmentation.
        """
        self.classifier = classifier
        self.nesting_dims = recipe.nesting_dims
        self.module: nn.Module = _LossOfClassifier(classifier, recipe)
        self.num_batches = max(1, len(train) // recipe.batch_size)
        self._train = train
        self._validation = validation
        self._recipe = recipe
        self._seed = seed
        self._order: tuple[int, Int64[np.ndarray, " images"]] | None = None

    @property
    def settings(self) -> Mapping[str, Any]:
        """The recipe, the size of the model, and a hash of all images and labels."""
        digest = hashlib.blake2b(digest_size=16)
        for side in (self._train, self._validation):
            digest.update(f"{side.images.shape}".encode())
            digest.update(np.ascontiguousarray(side.images).data)
            digest.update(side.labels.data)
        backbone = self.classifier.backbone
        return {
            "job": "images",
            **asdict(self._recipe),
            "nesting_dims": list(self.nesting_dims),
            "dim_weights": self._recipe.dim_weights and list(self._recipe.dim_weights),
            "backbone": backbone.shape.to_json()
            if isinstance(backbone, SmallResNet)
            else type(backbone).__name__,
            "num_classes": len(self.classifier.class_names),
            "num_train": len(self._train),
            "num_validation": len(self._validation),
            "data_hash": digest.hexdigest(),
        }

    def batch(
        self, epoch: int, index: int
    ) -> tuple[Float[Tensor, "batch height width"], Int64[Tensor, " batch"]]:
        """Return changed images and their labels; those left over by full batches wait for the next epoch."""
        if self._order is None or self._order[0] != epoch:
            generator = np.random.default_rng([self._seed, epoch])
            self._order = epoch, generator.permutation(len(self._train))
        size = self._recipe.batch_size
        taken = self._train.take(self._order[1][index * size : (index + 1) * size])
        generator = np.random.default_rng([self._seed, epoch, index])
        pixels = augment(as_tensor(taken.images), self._recipe.augmentation, generator)
        return pixels, torch.from_numpy(taken.labels)

    def make_optimizer(self, learning_rate: float) -> optim.Optimizer:
        """Return AdamW; norms and biases do not decay, and the head learns faster."""
        decay = self._recipe.weight_decay
        of_backbone = list(self.classifier.backbone.parameters())
        groups = [
            ([one for one in of_backbone if one.ndim > 1], decay, 1.0),
            ([one for one in of_backbone if one.ndim <= 1], 0.0, 1.0),
            (list(self.classifier.head.parameters()), decay, HEAD_RATE_FACTOR),
        ]
        return optim.AdamW(
            [
                {"params": weights, "weight_decay": share, "lr": factor * learning_rate}
                for weights, share, factor in groups
                if weights
            ]
        )

    def validate(self) -> Mapping[int, float] | None:
        """Return the head's accuracy at every width on the images held out."""
        if not len(self._validation):
            return None
        return accuracy_by_dim(self.classifier, self._validation)


class _LossOfClassifier(nn.Module):
    def __init__(self, classifier: NestedClassifier, recipe: ImageRecipe) -> None:
        super().__init__()
        self.classifier = classifier
        self.loss = NestedCrossEntropy(
            recipe.nesting_dims, recipe.dim_weights, label_smoothing=recipe.label_smoothing
        )

    def forward(self, batch: tuple[Tensor, Tensor], step: int) -> LossValue:
        pixels, labels = batch
        head = self.classifier.head
        return self.loss.value(self.classifier(pixels), labels, head.weight, head.bias, step=step)


def accuracy_by_dim(classifier: NestedClassifier, known: LabelledImages) -> dict[int, float]:
    """Return the share of images that the head labels correctly, for every nesting dim."""
    answers = classifier.answer(known.images, known.labels)
    return answers.accuracy_by_dim


def make_classifier(
    recipe: ImageRecipe, *, class_names: Sequence[str], image_sides: tuple[int, int], seed: int
) -> NestedClassifier:
    """Return a `SmallResNet` with a nested head, with fresh weights that depend on the seed alone."""
    stem_stride = 1 if min(image_sides) < TINY_SIDE else 2
    shape = ResNetShape(embed_dim=recipe.embed_dim, stem_stride=stem_stride)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = NestedHead(recipe.nesting_dims, len(class_names), tied=recipe.tied)
        return NestedClassifier(SmallResNet(shape), head, class_names=class_names)


def train_images(
    task: ClassificationTask,
    recipe: ImageRecipe,
    *,
    out: Path,
    options: LoopOptions = IMAGE_OPTIONS,
    overwrite: bool = False,
    command: str | None = None,
    progress: Progress = silent,
    warn: Callable[[str], object] = warnings.warn,
) -> TrainingRecord:
    """Train a small residual network whose every prefix labels images, and write a `nest:` folder.

    Called again after an interruption, it goes on where it was. Validation values are the head's
    accuracies on the images held out.

    Args:
        task: Images and labels.
        recipe: What is trained.
        out: Folder for the model; checkpoints are in it until the model is written.
        options: How it is trained.
        overwrite: Replace a finished model that is there, once the new one is trained; and start
            over where checkpoints of another training are there.
        command: What was typed, for the model card.
        progress: Told as it goes on.
        warn: Told what a person should know.

    Returns:
        The training record, which is in the folder too.

    Raises:
        DataError: As `split_images`.
        DimensionError: If widths or weights break the rules.
        TrainingError: As `fit`.
        WriteError: As `training_folder`, or if nothing can be written.
        MissingExtraError: If `onnx` is not installed.
    """
    import_onnx()  # better missed now than after the training
    split = split_images(task, validation_share=recipe.validation_share)
    height, width = split.train.images.shape[1:]
    classifier = make_classifier(
        recipe, class_names=split.class_names, image_sides=(height, width), seed=options.seed
    )
    job = ImageJob(classifier, split.train, split.validation, recipe=recipe, seed=options.seed)
    has_validation = len(split.validation) > 0
    check_early_stopping(options, recipe.nesting_dims, has_validation=has_validation)
    with training_folder(out, overwrite=overwrite):
        record = fit(
            job,
            options,
            checkpoint_folder=out / CHECKPOINT_FOLDER,
            restart=overwrite,
            progress=progress,
            warn=warn,
        )
        if not process_state().is_main_process:
            return record
        quality = Quality(
            metric="accuracy of the head",
            measured_on=f"the {len(split.test):,} test images of `{task.name}`",
            by_dim=accuracy_by_dim(classifier, split.test),
        )
        save_classifier(
            classifier,
            out,
            record=record,
            quality=quality,
            training_data=f"Labelled images of `{task.name}`: {'; '.join(task.notes)}.",
            command=command,
        )
        shutil.rmtree(out / CHECKPOINT_FOLDER)
    return record
