"""The two kinds of ONNX graph that make embeddings: of tokens, and of grey images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from tokenizers import Tokenizer

from nestling.data.types import Images
from nestling.encode.batches import reason_of
from nestling.errors import EncoderError

BATCH_SIZE = 32
TOKEN_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUT_NAMES = ("sentence_embedding", "last_hidden_state", "token_embeddings")
"""Looked for in this order; a graph that has none of them gives its first output."""
INTEGERS = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}


@dataclass(frozen=True, kw_only=True)
class Graph:
    """An ONNX session and how to read its output.

    Attributes:
        session: An onnxruntime session.
        pooling: "mean" or "cls": how token vectors become one, if the output has a row per token.
        uri: What to call it in messages.
    """

    session: Any
    pooling: str
    uri: str

    def run(
        self, feeds: dict[str, np.ndarray], mask: Int[np.ndarray, "rows tokens"] | None
    ) -> Float[np.ndarray, "rows width"]:
        """Return one vector per row of a batch.

        Args:
            feeds: The graph's inputs by name.
            mask: 1 for each token that counts; None if all do.

        Raises:
            EncoderError: If the graph fails, or returns neither a vector nor token vectors per row.
        """
        names = [output.name for output in self.session.get_outputs()]
        output = next((name for name in OUTPUT_NAMES if name in names), names[0])
        try:
            (made,) = self.session.run([output], feeds)
        except Exception as error:  # onnxruntime's errors have no common base of their own
            raise EncoderError(
                f"{self.uri} failed: {reason_of(error)}. Check the graph."
            ) from error
        if made.ndim == 2:
            return made
        if made.ndim != 3:
            raise EncoderError(
                f"`{output}` of {self.uri} must have 2 axes (rows, width) or 3 (rows, tokens, width), "
                f"got {made.ndim}. Export the embedding as the first output."
            )
        if self.pooling == "cls":
            return made[:, 0]
        if mask is None:
            return made.mean(axis=1)
        return np.einsum("rtw,rt->rw", made, mask.astype(made.dtype)) / mask.sum(
            axis=1, keepdims=True
        )


class TextGraph:
    """A graph that reads token ids."""

    def __init__(self, graph: Graph, tokenizer_file: Path, *, max_tokens: int | None) -> None:
        inputs = {put.name: put.type for put in graph.session.get_inputs()}
        unknown = [name for name in inputs if name not in TOKEN_INPUTS]
        if unknown or not set(inputs.values()) <= set(INTEGERS):
            raise EncoderError(
                f"inputs of a text graph must be integer {', '.join(TOKEN_INPUTS)}, got {inputs} in "
                f"{graph.uri}. Export it again with these."
            )
        if not tokenizer_file.is_file():
            raise EncoderError(
                f"{graph.uri} reads tokens and needs {tokenizer_file}, which is not there. "
                f"Put the tokenizer's file beside the graph."
            )
        self._graph = graph
        self._dtypes = {name: INTEGERS[kind] for name, kind in inputs.items()}
        try:
            self._counter = Tokenizer.from_file(str(tokenizer_file))
            self._tokenizer = Tokenizer.from_file(str(tokenizer_file))
        except Exception as error:  # tokenizers raises nothing more precise
            raise EncoderError(
                f"{tokenizer_file} is not the file of a tokenizer: {reason_of(error)}. Save it again."
            ) from error
        own_limit = (self._tokenizer.truncation or {}).get("max_length")
        self.max_tokens: int | None = max_tokens or own_limit
        self._counter.no_truncation()
        for tokenizer in (self._counter, self._tokenizer):
            tokenizer.no_padding()
        if self.max_tokens is not None:
            self._tokenizer.enable_truncation(self.max_tokens)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, special tokens included."""
        return [len(encoding.ids) for encoding in self._counter.encode_batch_fast(list(texts))]

    def embed(self, texts: Sequence[str], *, width: int) -> Float[np.ndarray, "texts {width}"]:
        """Return one vector per text; a text without tokens gives a zero row."""
        encodings = self._tokenizer.encode_batch_fast(list(texts))
        lengths = np.array([len(encoding.ids) for encoding in encodings], dtype=np.int64)
        embeddings = np.zeros((len(texts), width), dtype=np.float32)
        for rows in self._batches(lengths):
            embeddings[rows] = self._embed_batch([encodings[row] for row in rows], lengths[rows])
        return embeddings

    def probe(self) -> int:
        """Return the width, found by encoding one text."""
        encodings = self._tokenizer.encode_batch_fast(["How wide is a vector?"])
        return int(self._embed_batch(encodings, np.array([len(encodings[0].ids)])).shape[1])

    def _batches(self, lengths: Int[np.ndarray, " texts"]) -> Iterator[np.ndarray]:
        """Yield rows of similar length together; of equal length if the graph takes no mask."""
        order = np.argsort(-lengths, kind="stable")
        order = order[lengths[order] > 0]
        cuts = np.flatnonzero(np.diff(lengths[order])) + 1
        for run in [order] if "attention_mask" in self._dtypes else np.split(order, cuts):
            for start in range(0, len(run), BATCH_SIZE):
                yield run[start : start + BATCH_SIZE]

    def _embed_batch(
        self, encodings: Sequence[Any], lengths: Int[np.ndarray, " rows"]
    ) -> Float[np.ndarray, "rows width"]:
        mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
        columns = {"attention_mask": mask}
        for name, field in (("input_ids", "ids"), ("token_type_ids", "type_ids")):
            column = np.zeros(mask.shape, dtype=np.int64)
            column[mask == 1] = np.concatenate([getattr(each, field) for each in encodings])
            columns[name] = column
        feeds = {name: columns[name].astype(dtype) for name, dtype in self._dtypes.items()}
        return self._graph.run(feeds, mask)


class ImageGraph:
    """A graph that reads grey images as floats from 0 to 1.

    Their shape is (rows, height, width), or (rows, channels, height, width) with 1 channel, or 3
    that all get the grey values.
    """

    max_tokens = None

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._input = graph.session.get_inputs()[0]
        channels = 1 if len(self._input.shape) == 3 else self._input.shape[1]
        if channels not in (1, 3):
            raise EncoderError(
                f"an image graph must take 1 or 3 channels first, got the input shape {self._input.shape} in "
                f"{graph.uri}. Export it with (rows, channels, height, width)."
            )

    def embed(self, images: Images) -> Float[np.ndarray, "images embed_dim"]:
        """Return one vector per image.

        Raises:
            EncoderError: If the images are not of the size that the graph takes.
        """
        for axis, wanted in zip((1, 2), self._input.shape[-2:], strict=True):
            if isinstance(wanted, int) and images.shape[axis] != wanted:
                raise EncoderError(
                    f"images for {self._graph.uri} must be {self._input.shape[-2:]} pixels, got "
                    f"{list(images.shape[1:])}. Resize them first."
                )
        step = self._input.shape[0] if isinstance(self._input.shape[0], int) else BATCH_SIZE
        batches = [images[start : start + step] for start in range(0, len(images), step)]
        return np.concatenate([self._embed_batch(batch) for batch in batches])

    def probe(self) -> int:
        """Return the width, found by encoding one black image."""
        size = [length if isinstance(length, int) else 32 for length in self._input.shape[-2:]]
        return int(self.embed(np.zeros((1, *size), dtype=np.uint8)).shape[1])

    def _embed_batch(self, images: Images) -> Float[np.ndarray, "images embed_dim"]:
        pixels = images.astype(np.float32) / np.float32(255)
        if len(self._input.shape) == 4:
            rows, height, width = pixels.shape
            channels = self._input.shape[1]
            pixels = np.broadcast_to(pixels[:, None], (rows, channels, height, width))
        return self._graph.run({self._input.name: np.ascontiguousarray(pixels)}, None)


def open_graph(
    graph: Graph, tokenizer_file: Path, *, max_tokens: int | None
) -> TextGraph | ImageGraph:
    """Tell by its inputs what a graph reads.

    Raises:
        EncoderError: If it is neither texts nor images.
    """
    inputs = graph.session.get_inputs()
    if any(put.name == "input_ids" for put in inputs):
        return TextGraph(graph, tokenizer_file, max_tokens=max_tokens)
    if len(inputs) == 1 and inputs[0].type == "tensor(float)" and len(inputs[0].shape) in (3, 4):
        return ImageGraph(graph)
    shapes = ", ".join(f"{put.name} {put.type} {put.shape}" for put in inputs)
    raise EncoderError(
        f"{graph.uri} must read token ids (`input_ids`), or one float image of 3 or 4 axes, got {shapes}. "
        f"Export it with one of these."
    )
