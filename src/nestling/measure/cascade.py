"""A cascade of classifiers on one nested embedding: answer early where the short prefix is sure.

The policy of Kusupati et al. 2022, Section 4.2.1 and Appendix D.1 (arXiv:2205.13147): start at the
shortest prefix, stop at the first width whose confidence exceeds its threshold; the last answers
whatever is left. Here is the policy as data, and what it does; `cascade_fit` finds thresholds.
"""

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from nestling.core import check_dims
from nestling.errors import DataError, DimensionError, FormatError

CASCADE_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Cascade:
    """When to stop: plain data.

    Attributes:
        dims: Ascending unique widths, at least one.
        thresholds: One per width but the last: stop there if the confidence is strictly above. 0
            always stops; infinity skips the width, whose head then need not be computed.
    """

    dims: tuple[int, ...]
    thresholds: tuple[float, ...]

    def __post_init__(self) -> None:
        check_dims(self.dims, max(self.dims, default=1))
        if len(self.thresholds) != len(self.dims) - 1:
            raise FormatError(
                f"`thresholds` must be one per width but the last, {len(self.dims) - 1}, got "
                f"{len(self.thresholds)}. Fit them with `fit_thresholds`."
            )
        outside = [value for value in self.thresholds if not (0 <= value <= 1 or value == math.inf)]
        if outside:
            raise FormatError(
                f"`thresholds` must lie in [0, 1], or be infinite to skip a width, got {outside[0]}. "
                f"Fit them with `fit_thresholds`."
            )

    def exits(self, confidences: Float[np.ndarray, "widths inputs"]) -> Int[np.ndarray, " inputs"]:
        """Return the position in `dims` of the width that answers each input.

        Args:
            confidences: Largest softmax probability of each width, in the order of `dims`.
        """
        stops = confidences[:-1] > np.array(self.thresholds)[:, None]
        answers = np.ones((1, confidences.shape[1]), dtype=bool)
        return np.concatenate([stops, answers]).argmax(axis=0)

    def capped(self, dim: int) -> "Cascade":
        """Return the cascade that goes no further than `dim`: that width answers what is left.

        Raises:
            DimensionError: If `dim` is not one of the widths.
        """
        if dim not in self.dims:
            raise DimensionError(
                f"`dim` must be a width of the cascade, one of "
                f"{','.join(map(str, self.dims))}, got {dim}."
            )
        place = self.dims.index(dim)
        return Cascade(dims=self.dims[: place + 1], thresholds=self.thresholds[:place])

    def to_json(self) -> dict[str, Any]:
        """Return plain data that `from_json` reads back; an infinite threshold becomes null."""
        return {
            "cascade_version": CASCADE_VERSION,
            "dims": list(self.dims),
            "thresholds": [value if math.isfinite(value) else None for value in self.thresholds],
        }

    @classmethod
    def from_json(cls, data: Any) -> "Cascade":
        """Read what `to_json` wrote.

        Raises:
            FormatError: If a field is missing or of another kind, or the version is newer.
            DimensionError: If the widths do not ascend.
        """
        try:
            if data["cascade_version"] > CASCADE_VERSION:
                raise FormatError(
                    f"`cascade_version` {data['cascade_version']} is newer than {CASCADE_VERSION}, the "
                    f"newest that this nestling reads. Upgrade nestling."
                )
            return cls(
                dims=tuple(operator.index(dim) for dim in data["dims"]),
                thresholds=tuple(
                    math.inf if value is None else float(value) for value in data["thresholds"]
                ),
            )
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, FormatError | DimensionError):
                raise
            raise FormatError(
                f"not a cascade: {error!r}. Write one with `Cascade.to_json`."
            ) from error


@dataclass(frozen=True, kw_only=True, eq=False)
class WidthAnswers:
    """What the head of every width says about every input of a split.

    Attributes:
        dims: Ascending unique widths.
        confidences: Largest softmax probability, in (0, 1].
        is_correct: Whether the most probable class is the true one.
    """

    dims: tuple[int, ...]
    confidences: Float[np.ndarray, "widths inputs"]
    is_correct: Bool[np.ndarray, "widths inputs"]

    def __post_init__(self) -> None:
        check_dims(self.dims, max(self.dims, default=1))
        shape = self.confidences.shape
        if len(shape) != 2 or shape != self.is_correct.shape or shape[0] != len(self.dims):
            raise DataError(
                f"`confidences` and `is_correct` must have one row per width, {len(self.dims)}, and "
                f"the same inputs, got shapes {shape} and {self.is_correct.shape}."
            )
        if shape[1] == 0:
            raise DataError("`confidences` must hold at least one input, got none.")
        outside = ~((self.confidences > 0) & (self.confidences <= 1))
        if outside.any():
            raise DataError(
                f"`confidences` must be probabilities in (0, 1], got {self.confidences[outside][0]}. "
                f"Take the largest softmax probability, e.g. with `WidthAnswers.of_logits`."
            )

    @classmethod
    def of_logits(
        cls,
        logits_by_dim: Mapping[int, Float[np.ndarray, "inputs classes"]],
        labels: Int[np.ndarray, " labels"],
    ) -> "WidthAnswers":
        """Return the answers of heads that give logits (or logarithms of probabilities).

        Args:
            logits_by_dim: Logits of each width, in any order of widths.
            labels: Class numbers; they are columns of the logits.

        Raises:
            DataError: If logits are not finite, shapes do not fit, or a label is not a column.
        """
        dims = tuple(sorted(logits_by_dim))
        columns = [_answers(logits_by_dim[dim], labels, dim) for dim in dims]
        return cls(
            dims=dims,
            confidences=np.array([confidence for confidence, _ in columns], dtype=np.float64),
            is_correct=np.array([is_correct for _, is_correct in columns], dtype=bool),
        )

    @property
    def accuracy_by_dim(self) -> dict[int, float]:
        """Accuracy of every width used alone."""
        return dict(zip(self.dims, self.is_correct.mean(axis=1).tolist(), strict=True))

    def take(self, inputs: Int[np.ndarray, " taken"]) -> "WidthAnswers":
        """Return the answers for some inputs, by number."""
        return WidthAnswers(
            dims=self.dims,
            confidences=self.confidences[:, inputs],
            is_correct=self.is_correct[:, inputs],
        )

    def of_widths(self, dims: tuple[int, ...]) -> "WidthAnswers":
        """Return the answers of some of the widths.

        Raises:
            DimensionError: If one of them is not there.
        """
        missing = [dim for dim in dims if dim not in self.dims]
        if missing:
            raise DimensionError(
                f"`dims` must be widths that gave answers, among {','.join(map(str, self.dims))}, "
                f"got {','.join(map(str, missing))}. Give the logits of these widths too."
            )
        places = [self.dims.index(dim) for dim in dims]
        return WidthAnswers(
            dims=dims, confidences=self.confidences[places], is_correct=self.is_correct[places]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CascadeOutcome:
    """What a cascade does on a split.

    Attributes:
        accuracy: Share of inputs answered correctly.
        mean_dim: Mean width at exit: the paper's count. It leaves out the heads tried before.
        mean_cumulative_dim: Mean sum of the widths tried, the exit among them: what untied heads
            cost per class. Skipped widths are not tried.
        share_by_dim: Share of the inputs that each width answers; sums to 1.
    """

    accuracy: float
    mean_dim: float
    mean_cumulative_dim: float
    share_by_dim: dict[int, float]

    @property
    def mean_head_cost(self) -> float:
        """Mean multiply-adds per class of tied heads.

        The width at exit: logits of a wider prefix continue the sums of the narrower one.
        """
        return self.mean_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedWidth:
    """The smallest width that alone is at least as accurate as a cascade.

    Widths are few, so its accuracy is usually above the cascade's and the ratios flatter the cascade.
    To compare without favour, fit the cascade to the accuracy of a given width instead.

    Attributes:
        dim: The width.
        accuracy: Its accuracy.
        dim_ratio: `dim` over the cascade's `mean_dim`.
        cumulative_ratio: `dim` over its `mean_cumulative_dim`.
    """

    dim: int
    accuracy: float
    dim_ratio: float
    cumulative_ratio: float


def evaluate_cascade(cascade: Cascade, answers: WidthAnswers) -> CascadeOutcome:
    """Return what a cascade does on a split it was not fitted on (or was: then too good).

    Args:
        cascade: The policy.
        answers: Of at least the widths of the cascade.

    Raises:
        DimensionError: If a width of the cascade has no answers.
    """
    used = answers.of_widths(cascade.dims)
    exits = cascade.exits(used.confidences)
    is_tried = np.isfinite([*cascade.thresholds, 0.0])
    dims = np.array(cascade.dims)
    shares = np.bincount(exits, minlength=len(dims)) / len(exits)
    return CascadeOutcome(
        accuracy=float(answers_correctly(cascade, answers).mean()),
        mean_dim=float(shares @ dims),
        mean_cumulative_dim=float(shares @ np.cumsum(dims * is_tried)),
        share_by_dim=dict(zip(cascade.dims, shares.tolist(), strict=True)),
    )


def answers_correctly(cascade: Cascade, answers: WidthAnswers) -> Bool[np.ndarray, " inputs"]:
    """Return which inputs the cascade answers correctly; arguments as in `evaluate_cascade`."""
    used = answers.of_widths(cascade.dims)
    exits = cascade.exits(used.confidences)
    return used.is_correct[exits, np.arange(len(exits))]


def equal_fixed_width(outcome: CascadeOutcome, answers: WidthAnswers) -> FixedWidth | None:
    """Return the smallest width that alone is as accurate as the cascade on the same split.

    Args:
        outcome: Of the cascade.
        answers: Of every width to compare with, for the same inputs.

    Returns:
        None if the cascade is more accurate than every width alone.
    """
    for dim, accuracy in answers.accuracy_by_dim.items():
        if accuracy >= outcome.accuracy:
            return FixedWidth(
                dim=dim,
                accuracy=accuracy,
                dim_ratio=dim / outcome.mean_dim,
                cumulative_ratio=dim / outcome.mean_cumulative_dim,
            )
    return None


def _answers(
    logits: Float[np.ndarray, "inputs classes"], labels: Int[np.ndarray, " labels"], dim: int
) -> tuple[Float[np.ndarray, " inputs"], Bool[np.ndarray, " inputs"]]:
    if len(logits) != len(labels) or logits.ndim != 2 or not logits.size:
        raise DataError(
            f"`logits_by_dim` must hold one row per label, {len(labels)}, and a column per class, got "
            f"shape {logits.shape} at width {dim}."
        )
    if not np.isfinite(logits).all():
        raise DataError(f"`logits_by_dim` must be finite, got NaN or infinity at width {dim}.")
    outside = (labels < 0) | (labels >= logits.shape[1])
    if outside.any():
        raise DataError(
            f"`labels` must be columns of the logits, 0 to {logits.shape[1] - 1}, got "
            f"{int(labels[outside][0])}. Number the classes as the head does."
        )
    wide = logits.astype(np.float64)
    confidences = 1.0 / np.exp(wide - wide.max(axis=1, keepdims=True)).sum(axis=1)
    return confidences, logits.argmax(axis=1) == labels
