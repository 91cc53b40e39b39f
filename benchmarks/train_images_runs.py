"""What `train_images.py` runs: the data sets, the arms, and the numbers of one trained model."""

import ast
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

import nestling
from nestling.core import View, nested_top_k
from nestling.data import ClassificationTask, open_task
from nestling.measure.adaptive_retrieval import measure_adaptive_retrieval, paper_chains
from nestling.measure.cascade import WidthAnswers, equal_fixed_width, evaluate_cascade
from nestling.measure.cascade_fit import fit_greedy_thresholds, fit_thresholds
from nestling.train.augmentation import Augmentation
from nestling.train.images import (
    IMAGE_OPTIONS,
    ImageJob,
    ImageRecipe,
    ImageSplit,
    LabelledImages,
    accuracy_by_dim,
    make_classifier,
    split_images,
)
from nestling.train.job import LoopOptions
from nestling.train.loop import fit
from nestling.train.models.classifier import NestedClassifier

ByDim = dict[int, float]

BOOSTS = {"4,2": (4.0, 2.0), "8,4,2": (8.0, 4.0, 2.0), "16,8,2": (16.0, 8.0, 2.0)}
"""Weights of the first prefixes, the others having 1: the grid that validation chooses from."""

SEARCH_SEED = 1000
"""Of the runs that choose a boost; no other run has it."""

CODE = (
    "core/*.py",
    "measure/adaptive_retrieval.py",
    "measure/cascade*.py",
    "train/*.py",
    "train/losses/*.py",
    "train/models/*.py",
)
NOT_CODE = ("static_", "self_distillation", "nested_info_nce", "_info_nce")
"""Files of the package that can change a number; what reads the data is covered by a hash of them.
Those that begin so train texts."""

SHIFTS_ONLY = Augmentation(max_shift=0.07, max_rotation_deg=0.0, max_zoom=0.0, max_shear=0.0)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A data set and how it is learnt.

    Attributes:
        dims: Nesting dims, which are also the widths of the rigid models.
        num_epochs: Of every arm.
        augmentation: Of every arm; chosen by a look at validation images before any comparison.
        has_many_classes: Whether the widths are far below the number of classes somewhere.
        is_built_in: Whether it is read without `NESTLING_DATA`.
    """

    dims: tuple[int, ...]
    num_epochs: int
    augmentation: Augmentation
    has_many_classes: bool = False
    is_built_in: bool = False


FASHION = Bench(dims=(2, 4, 8, 16, 32, 64), num_epochs=10, augmentation=SHIFTS_ONLY)

BENCHES = {
    "omniglot": Bench(
        dims=(4, 8, 16, 32, 64, 128, 256),
        num_epochs=25,
        augmentation=Augmentation(),
        has_many_classes=True,
    ),
    "digits": Bench(
        dims=(2, 4, 8, 16, 32, 64), num_epochs=30, augmentation=Augmentation(), is_built_in=True
    ),
    "fashion": FASHION,
    "fashion_full": FASHION,
}


DEFAULT_DATASETS = ("omniglot", "digits", "fashion")
"""In the order they are run; all of Fashion-MNIST is for a GPU."""


@dataclass(frozen=True, kw_only=True, order=True)
class Run:
    """One model to train.

    Attributes:
        dataset: Key of `BENCHES`.
        arm: "untied", "tied", "rigid", or a search for a boost.
        seed: Of weights, order and augmentation.
        dim: Width of a rigid model, else 0.
        boost: Key of `BOOSTS`, or "".
    """

    dataset: str
    arm: str
    seed: int
    dim: int = 0
    boost: str = ""

    @property
    def name(self) -> str:
        """The arm in the report's words."""
        width = f" {self.dim}" if self.dim else ""
        return f"{self.arm}{width}{f' boosted {self.boost}' if self.boost else ''}"


# --- Data --------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def read(dataset: str) -> ImageSplit:
    """The same split for every arm and seed."""
    readers: dict[str, Callable[[], ImageSplit]] = {
        "omniglot": _omniglot,
        "digits": _digits,
        "fashion": lambda: _fashion(10_000),
        "fashion_full": lambda: _fashion(58_000),
    }
    return readers[dataset]()


def describe(dataset: str) -> str:
    split = read(dataset)
    sizes = f"{len(split.train):,} train, {len(split.validation):,} validation, {len(split.test):,} test"
    height, width = split.test.images.shape[1:]
    return f"{len(split.class_names)} classes, {sizes} images of {height} x {width}"


def _omniglot() -> ImageSplit:
    """Drawers 1-14 of every character are learnt from, 15-16 hold out, 17-20 test."""
    path = Path(os.environ["NESTLING_DATA"]) / "omniglot_small" / "omniglot_small_28x28.npz"
    with np.load(path) as stored:
        images, labels = stored["X"], stored["character"].astype(np.int64)
    order = np.argsort(labels, kind="stable")
    drawer = np.empty_like(labels)
    drawer[order] = np.arange(len(labels)) - np.searchsorted(labels[order], labels[order])
    assert (np.bincount(labels) == 20).all()
    known = LabelledImages(images=images, labels=labels)
    sides = [
        known.take(np.flatnonzero((drawer >= start) & (drawer < stop)))
        for start, stop in ((0, 14), (14, 16), (16, 20))
    ]
    names = tuple(str(label) for label in range(int(labels.max()) + 1))
    return ImageSplit(class_names=names, train=sides[0], validation=sides[1], test=sides[2])


def _fashion(num_train: int) -> ImageSplit:
    """The first train images are learnt from, the last 2,000 hold out; the whole test set."""
    task = open_task(f"images:{Path(os.environ['NESTLING_DATA']) / 'fashion_mnist'}")
    assert isinstance(task, ClassificationTask)
    whole = split_images(task, validation_share=0.0)
    assert len(whole.train) == 60_000
    rows = np.arange(len(whole.train))
    return replace(
        whole, train=whole.train.take(rows[:num_train]), validation=whole.train.take(rows[-2000:])
    )


def _digits() -> ImageSplit:
    task = open_task("builtin:digits")
    assert isinstance(task, ClassificationTask)
    return split_images(task, validation_share=0.15)


# --- What a number depends on -------------------------------------------------------------------


def settings_of(run: Run, num_epochs: int | None, device: str) -> dict[str, Any]:
    """All that a stored number depends on: it counts no more once any of this is another."""
    return {
        "run": asdict(run),
        "recipe": asdict(recipe_of(run)),
        "options": asdict(options_of(run, num_epochs)),
        "data": hash_of_data(run.dataset),
        "code": hash_of_code(),
        "versions": {name: version(name) for name in ("nestling", "torch", "numpy")},
        "device": device,
    }


@cache
def hash_of_data(dataset: str) -> str:
    split, digest = read(dataset), hashlib.blake2b(digest_size=8)
    for side in (split.train, split.validation, split.test):
        digest.update(f"{side.images.shape}".encode())
        digest.update(np.ascontiguousarray(side.images).data)
        digest.update(side.labels.data)
    return digest.hexdigest()


@cache
def hash_of_code() -> str:
    """Of what runs: a comment or a docstring changes no number."""
    package = Path(nestling.__file__).parent
    found = [path for pattern in CODE for path in package.glob(pattern)]
    files = sorted(path for path in found if not path.name.startswith(NOT_CODE))
    digest = hashlib.blake2b(digest_size=8)
    for path in (*files, Path(__file__)):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                node.body = [part for part in node.body if not _is_text(part)]
        digest.update(f"{path.name} {ast.dump(tree)}".encode())
    return digest.hexdigest()


def _is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


# --- One run -----------------------------------------------------------------------------------


def recipe_of(run: Run) -> ImageRecipe:
    """The same for every arm but for what the arm is about."""
    bench = BENCHES[run.dataset]
    # A rigid head reads d of the channels; the others would learn nothing, and are left out.
    dims = (run.dim,) if run.dim else bench.dims
    weights = [1.0] * len(dims)
    for place, weight in enumerate(BOOSTS.get(run.boost, ())):
        weights[place] = weight
    return ImageRecipe(
        nesting_dims=dims,
        embed_dim=dims[-1],
        tied=run.arm != "untied",
        dim_weights=tuple(weights),
        augmentation=bench.augmentation,
    )


def options_of(run: Run, num_epochs: int | None) -> LoopOptions:
    epochs = num_epochs or BENCHES[run.dataset].num_epochs
    return replace(IMAGE_OPTIONS, num_epochs=epochs, seed=run.seed)


def prepare_worker(device: str) -> None:
    """One thread; and the loop, which takes a GPU where it finds one, kept off it for "cpu"."""
    torch.set_num_threads(1)
    os.environ["ACCELERATE_USE_CPU"] = "true" if device == "cpu" else "false"


def execute(run: Run, num_epochs: int | None) -> dict[str, Any]:
    """Train one model and return all its numbers, as JSON."""
    split, recipe = read(run.dataset), recipe_of(run)
    height, width = split.train.images.shape[1:]
    classifier = make_classifier(
        recipe, class_names=split.class_names, image_sides=(height, width), seed=run.seed
    )
    job = ImageJob(classifier, split.train, split.validation, recipe=recipe, seed=run.seed)
    with tempfile.TemporaryDirectory() as folder:
        started_s = time.perf_counter()
        record = fit(job, options_of(run, num_epochs), checkpoint_folder=Path(folder))
        seconds = time.perf_counter() - started_s
    numbers: dict[str, Any] = {
        "seconds": seconds,
        "images_per_s": record.num_steps * min(recipe.batch_size, len(split.train)) / seconds,
        "validation": accuracy_by_dim(classifier, split.validation),
    }
    if run.seed != SEARCH_SEED:
        numbers |= judge(classifier, split, run)
    return numbers


def judge(classifier: NestedClassifier, split: ImageSplit, run: Run) -> dict[str, Any]:
    train = classifier.embed(split.train.images).cpu().numpy()
    test = classifier.embed(split.test.images).cpu().numpy()
    numbers: dict[str, Any] = {"head": accuracy_by_dim(classifier, split.test)}
    numbers |= neighbours(train, test, split, classifier.nesting_dims)
    bench = BENCHES[run.dataset]
    if run.dim == bench.dims[-1]:
        numbers["cuts"] = cuts_of_rigid(classifier, train, test, split, bench.dims)
    if not run.dim:
        numbers["retrieval"] = retrieval(train, test, split, bench.dims)
        numbers["untrained"] = untrained(classifier, train, test, split)
        numbers["cascades"] = cascades(classifier, split)
    return numbers


def neighbours(
    train: np.ndarray, test: np.ndarray, split: ImageSplit, dims: Sequence[int]
) -> dict[str, ByDim]:
    """1-NN accuracy and mAP@10 as the paper defines it, each prefix renormalised."""
    view = View(name="test", queries=test)
    found = nested_top_k(train, [view], dims, 10, num_threads=1)["test"].by_dim
    ranks = np.arange(1, 11)
    by_dim: dict[str, ByDim] = {"nn": {}, "map": {}}
    for dim, top in found.items():
        hits = split.train.labels[top.rows] == split.test.labels[:, None]
        by_dim["nn"][dim] = float(hits[:, 0].mean())
        precision = hits.cumsum(axis=1) / ranks
        by_dim["map"][dim] = float((precision * hits).sum(axis=1).mean() / 10)
    return by_dim


def cuts_of_rigid(
    classifier: NestedClassifier,
    train: np.ndarray,
    test: np.ndarray,
    split: ImageSplit,
    dims: tuple[int, ...],
) -> dict[str, ByDim]:
    """What can be cut from a full-width model that was not trained to be cut."""
    weight = classifier.head.weight.detach().cpu().double().numpy()
    bias = classifier.head.bias.detach().cpu().double().numpy()
    left, sizes, right = np.linalg.svd(weight, full_matrices=False)
    labels, wide = split.test.labels, test.astype(np.float64)
    cuts: dict[str, ByDim] = {"first_head": {}, "svd_head": {}, "first_nn": {}}
    for dim in dims:
        first = wide[:, :dim] @ weight[:, :dim].T + bias
        low_rank = (wide @ right[:dim].T * sizes[:dim]) @ left[:, :dim].T + bias
        cuts["first_head"][dim] = float((first.argmax(axis=1) == labels).mean())
        cuts["svd_head"][dim] = float((low_rank.argmax(axis=1) == labels).mean())
    cuts["first_nn"] = neighbours(train, test, split, dims)["nn"]
    for name, mean in (("svd_nn", np.zeros(train.shape[1])), ("pca_nn", train.mean(axis=0))):
        axes = np.linalg.svd(train - mean, full_matrices=False)[2].T
        database, queries = (((side - mean) @ axes).astype(np.float32) for side in (train, test))
        cuts[name] = neighbours(database, queries, split, dims)["nn"]
    return cuts


def retrieval(
    train: np.ndarray, test: np.ndarray, split: ImageSplit, dims: tuple[int, ...]
) -> list[dict[str, Any]]:
    """The paper's chains that end at full width: one scan, a shortlist re-ranked, a funnel."""
    chains = [stages for stages in paper_chains(dims) if stages[-1].dim == dims[-1]]
    rows = measure_adaptive_retrieval(
        train, split.train.labels, test, split.test.labels, chains, num_threads=1
    )
    names = ("accuracy_1nn", "map_at_10_paper", "map_at_10")
    return [
        {
            "kind": row.kind,
            "chain": row.describe(),
            "full_scan_ratio": row.full_scan_ratio,
            **{name: row.mean(name) for name in names},
        }
        for row in rows
    ]


def untrained(
    classifier: NestedClassifier, train: np.ndarray, test: np.ndarray, split: ImageSplit
) -> dict[str, ByDim]:
    """Widths halfway between the trained ones; an untied head has none there."""
    between = tuple((low + high) // 2 for low, high in pairwise(classifier.nesting_dims))
    numbers = {"nn": neighbours(train, test, split, between)["nn"]}
    if classifier.head.tied:
        answers = classifier.answer(split.test.images, split.test.labels, dims=between)
        numbers["head"] = answers.accuracy_by_dim
    return numbers


def cascades(classifier: NestedClassifier, split: ImageSplit) -> dict[str, Any]:
    """Thresholds fitted on validation images, at work on test images."""
    fitted = classifier.answer(split.validation.images, split.validation.labels)
    test = classifier.answer(split.test.images, split.test.labels)
    found = {
        "greedy": fit_greedy_thresholds(fitted),
        "joint, width at exit": fit_thresholds(fitted, cost="dim", max_loss=0.0),
        "joint, widths tried": fit_thresholds(fitted, cost="cumulative_dim", max_loss=0.0),
    }
    return {name: _outcome(cascade, test) for name, cascade in found.items()}


def _outcome(cascade: Any, test: WidthAnswers) -> Mapping[str, Any]:
    outcome = evaluate_cascade(cascade, test)
    equal = equal_fixed_width(outcome, test)
    return {
        "accuracy": outcome.accuracy,
        "mean_dim": outcome.mean_dim,
        "mean_cumulative_dim": outcome.mean_cumulative_dim,
        "equal_dim": None if equal is None else equal.dim,
        "full": test.accuracy_by_dim[test.dims[-1]],
    }
