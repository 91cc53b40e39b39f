"""`onnx:<dir>`: an ONNX graph that reads texts or grey images, run without PyTorch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from nestling.core import Fingerprint, Space, check_nesting_dims
from nestling.core.files import read_json
from nestling.data.types import Inputs
from nestling.encode.batches import hash_files, origin_of, reason_of, texts_only
from nestling.encode.normalization import apply_normalization, check_normalization, normalization_of
from nestling.encode.onnx_graphs import Graph, ImageGraph, TextGraph, open_graph
from nestling.encode.protocol import Role
from nestling.errors import EncoderError, FormatError, MissingExtraError

GRAPH_FILE = "model.onnx"
TOKENIZER_FILE = "tokenizer.json"
SETTINGS_FILE = "nestling.json"
POOLINGS = ("mean", "cls")
SETTINGS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "pooling": (f"one of {', '.join(POOLINGS)}", lambda value: value in POOLINGS),
    "prompts": (
        "an object of texts",
        lambda value: isinstance(value, dict) and all(isinstance(v, str) for v in value.values()),
    ),
    "max_tokens": ("a whole number from 1 up", lambda value: type(value) is int and value >= 1),
    "nesting_dims": (
        "a list of whole numbers",
        lambda value: isinstance(value, list) and all(type(dim) is int for dim in value),
    ),
}
"""What each setting must be, in words and as a check; null means the default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxSettings:
    """What `nestling.json` beside a graph may say; other keys in it are left alone.

    Attributes:
        model: Name of the model; by default that of its folder.
        pooling: "mean" or "cls", for graphs that return a row per token.
        prompts: What to put before a "query" and before a "document".
        normalization: Rule for the full width, e.g. "l2"; by default that of the model's family.
        max_tokens: Tokens that are read; by default what the tokenizer's file says, if anything.
        nesting_dims: Widths the model was trained to be cut at.
    """

    model: str
    pooling: str = "mean"
    prompts: Mapping[str, str] = field(default_factory=dict)
    normalization: str = "l2"
    max_tokens: int | None = None
    nesting_dims: tuple[int, ...] | None = None

    @classmethod
    def load(cls, folder: Path) -> "OnnxSettings":
        """Read the settings of a folder; all defaults if it has none.

        Raises:
            FormatError: If a value is not allowed.
        """
        path = folder / SETTINGS_FILE
        data = read_json(path) if path.exists() else {}
        if not isinstance(data, dict):
            raise FormatError(f"{path} must hold a JSON object, got {type(data).__name__}.")
        model = str(data.get("model", folder.resolve().name))
        rule = str(data.get("normalization", normalization_of(model)))
        for key, (wanted, is_fit) in SETTINGS.items():
            value = data.get(key)
            if value is not None and not is_fit(value):
                raise FormatError(
                    f"`{key}` in {path} must be {wanted}, got {value!r}. Correct the file."
                )
        dims = data.get("nesting_dims")
        return cls(
            model=model,
            pooling=data.get("pooling") or "mean",
            prompts=data.get("prompts") or {},
            normalization=check_normalization(rule, source=str(path)),
            max_tokens=data.get("max_tokens"),
            nesting_dims=None if dims is None else tuple(dims),
        )


class OnnxEncoder:
    """The graph `model.onnx` of a folder, with `tokenizer.json` beside it if it reads texts."""

    def __init__(self, name: str, *, max_tokens: int | None = None) -> None:
        folder = Path(name)
        self._uri = f"onnx:{name}"
        if not (folder / GRAPH_FILE).is_file():
            raise EncoderError(
                f"{self._uri} must be a folder with the file {GRAPH_FILE}, which is not there. Check the path."
            )
        self._settings = OnnxSettings.load(folder)
        graph = Graph(
            session=_open_session(folder / GRAPH_FILE, uri=self._uri),
            pooling=self._settings.pooling,
            uri=self._uri,
        )
        self._graph: TextGraph | ImageGraph = open_graph(
            graph, folder / TOKENIZER_FILE, max_tokens=max_tokens or self._settings.max_tokens
        )
        if max_tokens is not None and isinstance(self._graph, ImageGraph):
            raise EncoderError(
                f"`max_tokens` does not fit {self._uri}, which reads images. Leave it out."
            )
        self._embed_dim = self._graph.probe()
        dims = self._settings.nesting_dims
        self._nesting_dims = None if dims is None else check_nesting_dims(dims, self._embed_dim)
        weights = [path for path in folder.iterdir() if path.name.startswith(GRAPH_FILE)]
        tokenizer = [path for path in (folder / TOKENIZER_FILE,) if path.exists()]
        self._fingerprint = Fingerprint(
            space=Space(
                model=self._settings.model,
                revision=hash_files([*weights, *tokenizer]),
                pooling=self._settings.pooling,
                normalization=self._settings.normalization,
                embed_dim=self._embed_dim,
            ),
            encoder={
                "backend": "onnx",
                "query_prompt": self._settings.prompts.get("query", ""),
                "document_prompt": self._settings.prompts.get("document", ""),
                "max_tokens": str(self.max_tokens),
            },
            origin=origin_of("onnx", name),
        )

    @property
    def fingerprint(self) -> Fingerprint:
        """The model by name and by the hash of its graph and tokenizer."""
        return self._fingerprint

    @property
    def embed_dim(self) -> int:
        """Full width."""
        return self._embed_dim

    @property
    def nesting_dims(self) -> tuple[int, ...] | None:
        """`nesting_dims` of nestling.json, or None."""
        return self._nesting_dims

    @property
    def max_tokens(self) -> int | None:
        """What was asked for, else what nestling.json says, else what tokenizer.json says."""
        return self._graph.max_tokens

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, the document prompt and special tokens included.

        Raises:
            EncoderError: If the graph reads images.
        """
        if isinstance(self._graph, ImageGraph):
            raise EncoderError(f"{self._uri} reads images and has no tokens to count.")
        return self._graph.count_tokens(self._prompted(texts, "document"))

    def encode(
        self, inputs: Inputs, *, role: Role, ids: Sequence[str] | None = None
    ) -> Float32[np.ndarray, "inputs {self.embed_dim}"]:
        """Return unit rows; a text without tokens gives a zero row.

        Raises:
            EncoderError: If the graph fails, or reads the other kind of input.
        """
        if len(inputs) == 0:
            return np.empty((0, self._embed_dim), np.float32)
        if isinstance(self._graph, TextGraph):
            texts = self._prompted(texts_only(inputs, model=self._uri), role)
            made = self._graph.embed(texts, width=self._embed_dim)
        elif isinstance(inputs, np.ndarray):
            made = self._graph.embed(inputs)
        else:
            raise EncoderError(
                f"`inputs` of {self._uri} must be images, got {len(inputs)} texts. Name a text model."
            )
        return apply_normalization(made, self._settings.normalization)

    def _prompted(self, texts: Sequence[str], role: Role) -> list[str]:
        prompt = self._settings.prompts.get(role, "")
        return [prompt + text for text in texts]


def _open_session(path: Path, *, uri: str) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "onnx") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only: its warnings are about the graph's optimisation
    try:
        return onnxruntime.InferenceSession(
            str(path), sess_options=options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's errors have no common base of their own
        raise EncoderError(
            f"{uri} cannot be opened: {reason_of(error)}. Export the graph again."
        ) from error
