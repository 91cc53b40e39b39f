"""Every prefix in float and, in the same loss, as its stored code."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from nestling.core import Dtype
from nestling.errors import DataError, TrainingError
from nestling.train.losses._info_nce_kernel import Prefixes, in_full_precision
from nestling.train.losses.nested_loss import NestedLoss
from nestling.train.losses.nesting import LossValue, Nesting, StepDims
from nestling.train.losses.self_distillation import SelfDistillation, distil
from nestling.train.losses.straight_through import check_coded, straight_through


class QuantizedPrefixes(nn.Module):
    """A nested loss, and the same loss with the documents as their codes: widths times bits.

    With base_m the loss at prefix m, and code_t the straight-through code of format t,

        L = sum_m c_m ( base_m(q, d) + w sum_t base_m(q, code_t(d / |d|)) ).

    Queries stay float, as in search. Documents are scaled to unit length before they are coded, as
    they are before they are stored; ranges are those of the batch. See `straight_through` for the
    gradients.

    Around `SelfDistillation` the codes are the pupils and never the teacher: rows teach at full
    width in float, detached, and the full width's own code learns from them, too, with the
    weight of the full width (which does not count in float, where it is the teacher itself).

    Rotated-binary is coded width by width, and the base is called for each; other codes nest and
    take one call per format.

    Attributes:
        base: The nested loss, of cosines: `NestedInfoNCE`, `SelfDistillation`, `NestedLoss`, or one
            with `nesting` and `value(queries, *documents, step=..., ...)`.
        dtypes: Formats of the documents, besides float.
        weight: w.
    """

    def __init__(self, base: nn.Module, dtypes: Sequence[Dtype], *, weight: float = 1.0) -> None:
        """Wrap a loss.

        Raises:
            TrainingError: If `dtypes` are no codes, none, or one of them twice; if `weight` is not
                a positive finite number; or if `base` does not compare cosines.
        """
        super().__init__()
        self.dtypes = check_coded("dtypes", dtypes)
        if not self.dtypes:
            raise TrainingError("`dtypes` must name a format, got none. Use the base loss alone.")
        if not 0 < weight < float("inf"):
            raise TrainingError(f"`weight` must be positive and finite, got {weight:g}.")
        if isinstance(base, NestedLoss) and not base.renormalize:
            raise TrainingError(
                "`base` must compare cosines, as codes are those of unit rows, got a NestedLoss with "
                "renormalize=False. Set renormalize=True."
            )
        self.base = base
        self.weight = weight

    @property
    def nesting(self) -> Nesting:
        """The prefixes of the base."""
        nesting: Nesting = self.base.nesting
        return nesting

    def value(
        self,
        queries: Float[Tensor, "queries dim"],
        *documents: Float[Tensor, "_rows dim"],
        step: int | None = None,
        **keywords: Any,
    ) -> LossValue:
        """Return the loss of a batch; `by_dim` is the base's in float.

        Args:
            queries: What the base takes first.
            documents: All other embeddings the base takes by position. None at all around a
                `SelfDistillation` that ranks the queries for each other.
            step: Number of the step, which draws the prefixes where they are sampled.
            keywords: What the base takes by keyword, as it is.

        Raises:
            DataError: If there are no documents to code; or as the base.
            DimensionError: As the base.
        """
        alone = not documents and not isinstance(self.base, SelfDistillation)
        if alone or "documents" in keywords:
            raise DataError(
                "`documents` must be given by position, as they are what is coded, got only the queries so."
            )
        value: LossValue = self.base.value(queries, *documents, step=step, **keywords)
        rows = documents or (queries,)
        drawn = self.nesting.at_step(step)
        total = value.total
        for dtype in self.dtypes:
            for widths, coded in _coded(rows, dtype, drawn, self.nesting.dims):
                cut = queries[:, : widths.dims[-1]]
                if isinstance(self.base, SelfDistillation):
                    loss = self._distilled(cut, coded[0], widths, (queries, *documents))
                else:
                    loss = _at(self.base, widths).value(cut, *coded, **keywords).total
                total = total + self.weight * loss
        return value._replace(total=total)

    def forward(
        self,
        queries: Float[Tensor, "queries dim"],
        *documents: Float[Tensor, "_rows dim"],
        step: int | None = None,
        **keywords: Any,
    ) -> Float[Tensor, ""]:
        """Return the total of `value`."""
        return self.value(queries, *documents, step=step, **keywords).total

    def _distilled(
        self, queries: Tensor, coded: Tensor, widths: Nesting, teacher: Sequence[Tensor]
    ) -> Tensor:
        prefixes = Prefixes(
            dims=widths.dims,
            weights=widths.weights,
            temperature=self.base.temperature,
            block_rows=self.base.block_rows,
        )
        total, _ = distil(
            queries,
            coded,
            prefixes,
            teacher=(teacher[0], teacher[-1]),
            without_itself=len(teacher) == 1,
        )
        return total


def _coded(
    documents: Sequence[Tensor], dtype: Dtype, drawn: StepDims, dims: tuple[int, ...]
) -> Iterator[tuple[Nesting, list[Tensor]]]:
    """Yield codes, as they decode, and the widths at which they are those of the prefix."""
    unit = functional.normalize(torch.cat(in_full_precision(*documents)), dim=1)
    lengths = [len(rows) for rows in documents]
    widths = tuple(dims[position] for position in drawn.positions)
    if dtype is not Dtype.ROTATED_BINARY:
        coded = straight_through(unit, dtype)
        yield Nesting(dims=widths, weights=drawn.weights), list(coded.split(lengths))
        return
    for dim, weight in zip(widths, drawn.weights, strict=True):
        if weight:
            coded = straight_through(unit, dtype, dim=dim)
            yield Nesting(dims=(dim,), weights=(weight,)), list(coded.split(lengths))


def _at(base: nn.Module, widths: Nesting) -> nn.Module:
    """Return the same loss, its parts shared, at other widths."""
    other = copy.copy(base)
    other.nesting = widths
    return other
