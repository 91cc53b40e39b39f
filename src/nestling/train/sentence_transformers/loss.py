"""Any sentence-transformers model trains with a nested loss, through its own Trainer."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nestling.errors import DataError, MissingExtraError, TrainingError
from nestling.train.losses.gradient_cache import encode_in_chunks
from nestling.train.losses.nested_info_nce import NestedInfoNCE
from nestling.train.losses.nesting import LossValue, Nesting
from nestling.train.losses.quantized_prefixes import QuantizedPrefixes
from nestling.train.losses.self_distillation import SelfDistillation
from nestling.train.losses.spread_out import SpreadOut

Features = Mapping[str, Any]
"""One tokenised column of a batch, as the Trainer hands it on."""


@final
class SentenceTransformersLoss(nn.Module):
    """Make a nested loss one that `SentenceTransformerTrainer(loss=...)` takes.

    Each column of a batch is embedded once; all prefixes are cut from that. The columns go to the
    loss in their order: for `NestedInfoNCE` the first holds the queries, the second their
    documents, all others more documents, and a label column the group of each pair; any
    other loss is called with all columns and, if there is one, the label column as `labels`.

    The Trainer logs `loss_dim_8`, `loss_dim_16`, ... beside `loss`: what each prefix adds to it,
    weight included, and `loss_codes`, `loss_self_distillation` and `loss_spread_out` where they are
    asked for. They add up to `loss`; gradients are those of the loss itself, bit for bit.
    While the model is not training, every prefix counts, whatever is drawn per step.

    Attributes:
        model: The model that is trained; the Trainer may put a wrapped one in its place.
        nested: The nested loss.
        step: Of the loss; `step_callback` keeps it up to date.
        last: Of the last batch that was trained on, before gradients of it were taken: the total is
            what is minimised, all parts included; `by_dim` are those of the nested loss in float.
    """

    def __init__(
        self,
        model: nn.Module,
        nested: nn.Module,
        *,
        self_distillation: SelfDistillation | QuantizedPrefixes | None = None,
        self_distillation_weight: float = 1.0,
        spread_out: SpreadOut | None = None,
        spread_out_weight: float = 1.0,
        mini_batch_size: int | None = None,
    ) -> None:
        """Wrap a loss.

        Args:
            model: A `SentenceTransformer`.
            nested: A loss with `nesting` and `value(..., step=...)`: `NestedInfoNCE`, `NestedLoss`
                over any loss of embeddings, `QuantizedPrefixes` around one of them, or one of your
                own.
            self_distillation: Added to it, on the first and the other columns.
            self_distillation_weight: How much of it is added.
            spread_out: Added to it, on the first and the other columns; labels are groups there if
                they are groups in the nested loss.
            spread_out_weight: How much of it is added.
            mini_batch_size: Embed this many rows at a time, keep only their embeddings, and embed
                them again for the gradients: the loss of a large batch in the memory of a small
                one (Gao et al. 2021, arXiv:2101.06983). None embeds all rows at once.

        Raises:
            DataError: If `mini_batch_size` is below 1.
        """
        super().__init__()
        if mini_batch_size is not None and mini_batch_size < 1:
            raise DataError(
                f"`mini_batch_size` must be at least 1, got {mini_batch_size}. Leave it out to embed "
                f"all rows at once."
            )
        self.model = model
        self.nested = nested
        self.self_distillation = self_distillation
        self.self_distillation_weight = self_distillation_weight
        self.spread_out = spread_out
        self.spread_out_weight = spread_out_weight
        self.mini_batch_size = mini_batch_size
        self.step: int | None = None
        self.last: LossValue | None = None

    @property
    def nesting(self) -> Nesting:
        """The prefixes of the nested loss."""
        nesting: Nesting = self.nested.nesting
        return nesting

    def forward(
        self, sentence_features: Sequence[Features], labels: Tensor | None = None
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the loss of a batch in parts, which the Trainer adds up.

        Args:
            sentence_features: One tokenised column each.
            labels: The label column, or None.

        Raises:
            TrainingError: If prefixes are drawn per step and nobody says which step it is.
            DataError: If `mini_batch_size` is set and a column is not padded text.
            MissingExtraError: If sentence-transformers is not installed.
        """
        step = self._step_of_batch()
        embeddings = self._embed(list(sentence_features))
        total, shares = self._contrast(embeddings, labels, step)
        # The full width takes what is left of the total, and with it all of its gradient.
        full = f"loss_dim_{self.nesting.dims[-1]}"
        others = {name: share for name, share in shares.items() if name != full}
        return {**others, full: total - sum(others.values())}

    def step_callback(self) -> Any:
        """Return a callback for the Trainer that keeps `step` equal to its own, also after a resume.

        Needed where prefixes are drawn per step: every rank then draws alike.

        Raises:
            MissingExtraError: If transformers is not installed.
        """
        from nestling.train.sentence_transformers.callbacks import StepCallback

        return StepCallback(self)

    def _step_of_batch(self) -> int | None:
        if not self.model.training:
            return None
        if self.step is None and self.nesting.dims_per_step is not None:
            raise TrainingError(
                "`dims_per_step` draws prefixes from the number of the step, got a batch and no step. Pass "
                "callbacks=[loss.step_callback()] to the Trainer, or set `loss.step` in your own loop."
            )
        return self.step

    def _embed(self, features: Sequence[Features]) -> list[Float[Tensor, "_rows dim"]]:
        """Embed each column once; those of documents in one pass where they allow it."""
        try:
            from sentence_transformers.base.losses.merged_forward import embed_columns
        except ImportError as error:
            raise MissingExtraError("sentence-transformers", "train-st") from error
        size = self.mini_batch_size
        if size is None:
            return list(embed_columns(self.model, features))
        return [encode_in_chunks(self._encode, list(cut_rows(each, size))) for each in features]

    def _encode(self, chunk: Features) -> Float[Tensor, "rows dim"]:
        # The modules write into what they are given, and a chunk is encoded twice.
        return self.model(dict(chunk))["sentence_embedding"]

    def _contrast(
        self, embeddings: Sequence[Tensor], labels: Tensor | None, step: int | None
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """Return the total, and what each prefix adds to it, detached; 0 for those not drawn."""
        sides = [embeddings[0], *([torch.cat(list(embeddings[1:]))] if embeddings[1:] else [])]
        groups = self._groups(embeddings, labels)
        value = self._value(embeddings, sides, groups, labels, step)
        total = value.total
        shares = {f"loss_dim_{dim}": torch.zeros_like(total.detach()) for dim in self.nesting.dims}
        for position, weight in zip(*self.nesting.at_step(step), strict=True):
            name = f"loss_dim_{self.nesting.dims[position]}"
            shares[name] = (weight * value.by_dim[position]).to(total.dtype)
        if isinstance(self.nested, QuantizedPrefixes):
            shares["loss_codes"] = total.detach() - sum(shares.values())
        if self.self_distillation is not None:
            distilled = self.self_distillation.value(*sides, step=step)
            added = self.self_distillation_weight * distilled.total
            shares["loss_self_distillation"] = added.detach()
            total = total + added
        if self.spread_out is not None:
            spread = self.spread_out.value(*sides, **groups, step=step)
            added = self.spread_out_weight * spread.total
            shares["loss_spread_out"] = added.detach()
            total = total + added
        if self.model.training:
            self.last = LossValue(total.detach(), value.by_dim)
        return total, shares

    @property
    def _is_contrastive(self) -> bool:
        nested = self.nested
        base = nested.base if isinstance(nested, QuantizedPrefixes) else nested
        return isinstance(base, NestedInfoNCE)

    def _value(
        self,
        embeddings: Sequence[Tensor],
        sides: Sequence[Tensor],
        groups: Mapping[str, Tensor],
        labels: Tensor | None,
        step: int | None,
    ) -> LossValue:
        value: LossValue
        if self._is_contrastive:
            value = self.nested.value(*sides, **groups, step=step)
        else:
            keywords = {} if labels is None else {"labels": labels}
            value = self.nested.value(*embeddings, **keywords, step=step)
        return value

    def _groups(
        self, embeddings: Sequence[Tensor], labels: Tensor | None
    ) -> dict[str, Int[Tensor, " rows"]]:
        if labels is None or not self._is_contrastive:
            return {}
        # A mined negative belongs to no pair, so it gets a group that no query has.
        nobody = (labels.min() - 1).expand(sum(map(len, embeddings[2:])))
        return {"query_groups": labels, "document_groups": torch.cat([labels, nobody])}


def cut_rows(features: Features, num_rows: int) -> Iterator[Features]:
    """Cut one column of a batch into chunks of rows, each without the padding it does not need.

    Raises:
        DataError: If the column is not padded text, whose rows could be told apart.
    """
    mask = features.get("attention_mask")
    if mask is None or mask.ndim != 2:
        raise DataError(
            f"`mini_batch_size` cuts a batch of padded texts, got the features {', '.join(features)}. "
            f"Leave it out for this model."
        )
    total_rows, num_tokens = mask.shape
    for start in range(0, total_rows, num_rows):
        rows = slice(start, start + num_rows)
        # Padding may stand on the left, where positions are counted from; only the right is cut.
        longest = int(mask[rows].any(0).nonzero().max()) + 1 if mask[rows].any() else num_tokens
        yield {
            name: _cut(value, rows, longest, shape=(total_rows, num_tokens))
            for name, value in features.items()
        }


def _cut(value: Any, rows: slice, longest: int, *, shape: tuple[int, int]) -> Any:
    if not isinstance(value, Tensor) or not value.ndim or len(value) != shape[0]:
        return value
    return value[rows, :longest] if tuple(value.shape[:2]) == shape else value[rows]
