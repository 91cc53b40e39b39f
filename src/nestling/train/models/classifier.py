"""A backbone and a nested head: labels from any prefix of the embedding."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nestling.core import check_dim
from nestling.data import Images
from nestling.errors import DimensionError
from nestling.measure.cascade import Cascade, WidthAnswers
from nestling.train.models.nested_head import NestedHead

ROWS_PER_PASS = 256
LARGEST_GREY = 255


class CascadePrediction(NamedTuple):
    """What a cascade answers: class numbers, and the width that answered each input."""

    labels: Int[Tensor, " inputs"]
    dims: Int[Tensor, " inputs"]


class NestedClassifier(nn.Module):
    """Any backbone that makes embeddings, and a nested head that reads prefixes of them.

    Called, it returns embeddings with gradients; `embed`, `predict` and `predict_cascade` run in
    evaluation mode without, and leave the mode as it was. They move inputs to the device of the
    weights, and their tensors stay there: `.cpu()` brings them to NumPy.
    """

    def __init__(
        self, backbone: nn.Module, head: NestedHead, *, class_names: Sequence[str] | None = None
    ) -> None:
        """Join them.

        Args:
            backbone: A batch of inputs to `head.nesting_dims[-1]` coordinates each.
            head: What labels a prefix.
            class_names: One per class; by default their numbers.

        Raises:
            DimensionError: If there is another number of class names than classes.
        """
        super().__init__()
        self.backbone = backbone
        self.head = head
        num_classes = len(head.weight)
        names = map(str, range(num_classes)) if class_names is None else class_names
        self.class_names = tuple(names)
        if len(self.class_names) != num_classes:
            raise DimensionError(
                f"`class_names` must be one per class, got {len(self.class_names)} for a head of {num_classes}."
            )

    @property
    def nesting_dims(self) -> tuple[int, ...]:
        """Widths it is trained at, the last the full one."""
        return self.head.nesting_dims

    def forward(self, inputs: Any) -> Float[Tensor, "inputs embed_dim"]:
        """Return embeddings, not normalised, as the head reads them."""
        return self.backbone(inputs)

    def embed(self, inputs: Images | Tensor) -> Float[Tensor, "inputs embed_dim"]:
        """Return embeddings, not normalised, a few hundred inputs at a time.

        Args:
            inputs: Grey images of values 0 to 255, or whatever the backbone takes.
        """
        device = next(self.parameters()).device
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad():
                parts = [
                    self(as_tensor(inputs[start : start + ROWS_PER_PASS]).to(device))
                    for start in range(0, len(inputs), ROWS_PER_PASS)
                ]
        finally:
            self.train(was_training)
        return torch.cat(parts) if parts else torch.empty(0, self.nesting_dims[-1], device=device)

    def predict(self, inputs: Images | Tensor, *, dim: int | None = None) -> Int[Tensor, " inputs"]:
        """Return the number of the most probable class of each input.

        Args:
            inputs: As for `embed`.
            dim: Width that the head reads: a nesting dim, or any with a tied head; by default all.

        Raises:
            DimensionError: If the head does not read this width.
        """
        with torch.no_grad():
            return self.head.predict(
                self.embed(inputs), self.nesting_dims[-1] if dim is None else dim
            )

    def answer(
        self,
        inputs: Images | Tensor,
        labels: Int[np.ndarray, " inputs"],
        *,
        dims: Sequence[int] | None = None,
    ) -> WidthAnswers:
        """Return how sure and how right the head is at every width, to fit a cascade on.

        Args:
            inputs: As for `embed`.
            labels: True class numbers.
            dims: Ascending widths; by default the nesting dims.

        Raises:
            DimensionError: If the head does not read one of the widths.
            DataError: If there is no input, or a label is no class number.
        """
        with torch.no_grad():
            embeddings = self.embed(inputs)
            logits = {
                dim: self.head.logits(embeddings, dim).cpu().double().numpy()
                for dim in dims or self.nesting_dims
            }
        return WidthAnswers.of_logits(logits, labels)

    def predict_cascade(self, inputs: Images | Tensor, cascade: Cascade) -> CascadePrediction:
        """Label each input by the first width of the cascade that is sure of it.

        The backbone runs once for all. Of a tied head, a wider prefix adds its own coordinates to
        the logits that the narrower one left, so that no product is made twice; an untied head
        starts anew at every width.

        Args:
            inputs: As for `embed`.
            cascade: Widths and thresholds, from `nestling.measure`.

        Raises:
            DimensionError: If the head does not read a width of the cascade.
        """
        for dim in cascade.dims:
            check_dim(dim, self.nesting_dims[-1])
        with torch.no_grad():
            return self._answer(self.embed(inputs), cascade)

    def _answer(
        self, embeddings: Float[Tensor, "inputs embed_dim"], cascade: Cascade
    ) -> CascadePrediction:
        device = embeddings.device
        labels = torch.zeros(len(embeddings), dtype=torch.int64, device=device)
        dims = torch.zeros_like(labels)
        going = torch.arange(len(embeddings), device=device)
        sums: Tensor | None = None  # of a tied head: the logits of the prefix read so far
        num_read = 0
        for dim, threshold in zip(cascade.dims, (*cascade.thresholds, 0.0), strict=True):
            if threshold == np.inf:
                continue
            if self.head.tied:
                band = self.head.weight[:, num_read:dim]
                start = self.head.bias if sums is None else sums
                product = embeddings[going, num_read:dim] @ band.T
                logits = product if start is None else start + product
                num_read = dim
            else:
                logits = self.head.logits(embeddings[going], dim)
            confidences = logits.double().softmax(dim=1).amax(dim=1)
            stops = (confidences > threshold) | (dim == cascade.dims[-1])
            labels[going[stops]] = logits[stops].argmax(dim=1)
            dims[going[stops]] = dim
            going, sums = going[~stops], logits[~stops]
        return CascadePrediction(labels, dims)


def as_tensor(inputs: Images | Tensor) -> Tensor:
    """Return images as grey values in [0, 1]; a tensor as it is."""
    if isinstance(inputs, Tensor):
        return inputs
    return torch.from_numpy(inputs.astype(np.float32) / np.float32(LARGEST_GREY))
