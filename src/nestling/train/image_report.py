"""What a trained image model does on its test images: by head, by neighbour, by cascade."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nestling.core import View, nested_top_k
from nestling.core.progress import Progress, silent
from nestling.encode.onnx import OnnxEncoder
from nestling.measure.cascade import (
    Cascade,
    CascadeOutcome,
    WidthAnswers,
    equal_fixed_width,
    evaluate_cascade,
)
from nestling.measure.cascade_fit import fit_greedy_thresholds, fit_thresholds
from nestling.train.export import load_classifier
from nestling.train.images import ImageSplit, LabelledImages

VECTOR_NAME = "images"


@dataclass(frozen=True, slots=True, kw_only=True)
class WidthReport:
    """Accuracies on the test images at one width.

    Attributes:
        dim: The width.
        accuracy_head: Of the head that reads this prefix.
        accuracy_1nn: Of the label of the nearest train image, by cosine of the renormalised prefixes;
            the images held out for validation are not searched.
    """

    dim: int
    accuracy_head: float
    accuracy_1nn: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CascadeReport:
    """A cascade fitted on the validation images, on the test images.

    Attributes:
        rule: "greedy" for the paper's thresholds, "joint" for the least cost at the validation
            accuracy of the full width.
        cascade: The policy.
        outcome: What it does.
        equal_dim: Smallest width that alone is as accurate; None if none is.
        num_fitted: Validation images it was fitted on.
    """

    rule: str
    cascade: Cascade
    outcome: CascadeOutcome
    equal_dim: int | None
    num_fitted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageReport:
    """What `report_images` found.

    Attributes:
        widths: One per nesting dim, ascending.
        cascades: The two rules; none without validation images.
        num_test: Test images.
    """

    widths: tuple[WidthReport, ...]
    cascades: tuple[CascadeReport, ...]
    num_test: int

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        cascades = [
            {**asdict(each), "cascade": each.cascade.to_json(), "outcome": asdict(each.outcome)}
            for each in self.cascades
        ]
        return {
            "rows": [asdict(each) for each in self.widths],
            "cascades": cascades,
            "num_test": self.num_test,
        }


def report_images(folder: Path, split: ImageSplit, *, progress: Progress = silent) -> ImageReport:
    """Judge the model of a folder, as it reads from the disk, on the test images of its task.

    Args:
        folder: What `train_images` wrote.
        split: What it was trained on, from `split_images` with the same share.
        progress: Told about the neighbour search.

    Raises:
        FormatError: If the folder is damaged.
        MissingExtraError: If `onnxruntime` is missing.
    """
    classifier = load_classifier(folder)
    dims = classifier.nesting_dims
    answers = classifier.answer(split.test.images, split.test.labels)
    by_neighbour = _neighbour_accuracies(folder, split, dims, progress)
    widths = tuple(
        WidthReport(dim=dim, accuracy_head=by_head, accuracy_1nn=by_neighbour[dim])
        for dim, by_head in answers.accuracy_by_dim.items()
    )
    cascades: tuple[CascadeReport, ...] = ()
    if len(split.validation):
        fitted_on = classifier.answer(split.validation.images, split.validation.labels)
        cascades = fit_cascades(fitted_on, answers, is_tied=classifier.head.tied)
    return ImageReport(widths=widths, cascades=cascades, num_test=len(split.test))


def fit_cascades(
    validation: WidthAnswers, test: WidthAnswers, *, is_tied: bool
) -> tuple[CascadeReport, ...]:
    """Fit both kinds of thresholds on one split and evaluate them on another.

    The joint search pays what the head pays: tied heads the width at exit, untied ones every
    width tried.
    """
    joint = fit_thresholds(validation, cost="dim" if is_tied else "cumulative_dim", max_loss=0.0)
    reports = []
    for rule, cascade in (("greedy", fit_greedy_thresholds(validation)), ("joint", joint)):
        outcome = evaluate_cascade(cascade, test)
        equal = equal_fixed_width(outcome, test)
        reports.append(
            CascadeReport(
                rule=rule,
                cascade=cascade,
                outcome=outcome,
                equal_dim=None if equal is None else equal.dim,
                num_fitted=validation.is_correct.shape[1],
            )
        )
    return tuple(reports)


def _neighbour_accuracies(
    folder: Path, split: ImageSplit, dims: Sequence[int], progress: Progress
) -> dict[int, float]:
    encoder = OnnxEncoder(str(folder))

    def embed(known: LabelledImages) -> np.ndarray:
        return encoder.encode(known.images, role="document")

    view = View(name=VECTOR_NAME, queries=embed(split.test))
    found = nested_top_k(embed(split.train), [view], dims, 1, progress=progress)[VECTOR_NAME]
    return {
        dim: float((split.train.labels[top.rows[:, 0]] == split.test.labels).mean())
        for dim, top in found.by_dim.items()
    }
