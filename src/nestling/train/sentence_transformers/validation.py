"""What the prefixes of a model are worth while it trains."""

from collections.abc import Sequence
from typing import Any, final

import numpy as np
from jaxtyping import Float32

from nestling.core import Dtype, Fingerprint, Space
from nestling.data import Inputs, Task
from nestling.encode import Role
from nestling.encode.batches import texts_only
from nestling.encode.normalization import apply_normalization
from nestling.errors import MissingExtraError
from nestling.measure import measure

try:
    from sentence_transformers.base.evaluation import BaseEvaluator
except ImportError as error:
    raise MissingExtraError("sentence-transformers", "train-st") from error


@final
class PrefixEvaluator(BaseEvaluator):
    """Measures every prefix of the model as it is, as `nestling measure` would."""

    def __init__(self, task: Task, dims: Sequence[int]) -> None:
        super().__init__()
        self._task = task
        self._dims = dims

    def __call__(self, model: Any, *arguments: Any, **options: Any) -> dict[str, float]:
        """Return the task's main metric of each prefix, as `dim_<width>`."""
        encoder = LiveEncoder(model, embed_dim=self._dims[-1])
        results = measure(
            encoder, self._task, dims=self._dims, dtypes=[Dtype.FLOAT32], baselines=False
        )
        return {
            f"dim_{dim}": results.find(family="prefix", dim=dim, dtype=Dtype.FLOAT32).value
            for dim in self._dims
        }


@final
class LiveEncoder:
    """A model that is still in training, as an `Encoder`; nothing is saved."""

    def __init__(self, model: Any, *, embed_dim: int) -> None:
        self._model = model
        self._embed_dim = embed_dim
        space = Space(
            model="in training",
            revision="",
            pooling="of the model",
            normalization="l2",
            embed_dim=embed_dim,
        )
        self._fingerprint = Fingerprint(space=space, encoder={"backend": "sentence-transformers"})

    @property
    def fingerprint(self) -> Fingerprint:
        """A passing one: the vectors are not stored."""
        return self._fingerprint

    @property
    def embed_dim(self) -> int:
        """Full width."""
        return self._embed_dim

    @property
    def nesting_dims(self) -> None:
        """None: whoever measures it says where it is cut."""

    @property
    def max_tokens(self) -> int | None:
        """The model's `max_seq_length`."""
        limit: int | None = self._model.max_seq_length
        return limit

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, special tokens included."""
        encode = self._model.tokenizer.encode
        return [len(encode(text, truncation=False, verbose=False)) for text in texts]

    def encode(
        self, inputs: Inputs, *, role: Role, ids: Sequence[str] | None = None
    ) -> Float32[np.ndarray, "inputs {self.embed_dim}"]:
        """Return unit rows, with the model's own prompts."""
        texts = texts_only(inputs, model="a model in training")
        if not texts:
            return np.empty((0, self._embed_dim), np.float32)
        encode = self._model.encode_query if role == "query" else self._model.encode_document
        made = encode(texts, show_progress_bar=False, convert_to_numpy=True)
        return apply_normalization(np.asarray(made, dtype=np.float32), "l2")
