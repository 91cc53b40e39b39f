"""Tiny real ONNX graphs and tokenizers, built on the spot."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "b", "c", "d", "e", "query", "passage"]
WIDTH = 4
TABLE = np.random.default_rng(0).standard_normal((len(WORDS), WIDTH)).astype(np.float32)
TYPES = np.random.default_rng(1).standard_normal((2, WIDTH)).astype(np.float32)
IMAGE_WEIGHTS = np.random.default_rng(2).standard_normal((12, WIDTH)).astype(np.float32)

IMAGE_BIAS = np.array([0.5, -1.0, 0.0, 2.0], dtype=np.float32)


def save_tokenizer(folder: Path, *, special: bool = True, max_tokens: int | None = None) -> None:
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))  # noqa: S106
    tokenizer.pre_tokenizer = Whitespace()
    if special:
        tokenizer.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
        )
    if max_tokens is not None:
        tokenizer.enable_truncation(max_tokens)
        tokenizer.enable_padding(length=max_tokens)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))


def save_graph(folder: Path, nodes, inputs, outputs, constants) -> None:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(*each) for each in inputs],
        [helper.make_tensor_value_info(*each) for each in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "model.onnx")


def save_token_graph(folder: Path, *, integers: int = TensorProto.INT64) -> None:
    """A vector per token: its row of the table plus that of its type."""
    axes = ["rows", "tokens"]
    names = ("input_ids", "attention_mask", "token_type_ids")
    save_graph(
        folder,
        [
            helper.make_node("Gather", ["table", "input_ids"], ["words"]),
            helper.make_node("Gather", ["types", "token_type_ids"], ["kinds"]),
            helper.make_node("Add", ["words", "kinds"], ["last_hidden_state"]),
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        ],
        [(name, integers, axes) for name in names],
        [
            ("mask", TensorProto.FLOAT, axes),
            ("last_hidden_state", TensorProto.FLOAT, [*axes, WIDTH]),
        ],
        {"table": TABLE, "types": TYPES},
    )
    save_tokenizer(folder)


def save_bag_graph(folder: Path, *, special: bool = False) -> None:
    """A pooled vector per text, the mean over all tokens, without a mask."""
    save_graph(
        folder,
        [
            helper.make_node("Gather", ["table", "input_ids"], ["words"]),
            helper.make_node("ReduceMean", ["words"], ["sentence_embedding"], axes=[1], keepdims=0),
        ],
        [("input_ids", TensorProto.INT64, ["rows", "tokens"])],
        [("sentence_embedding", TensorProto.FLOAT, ["rows", WIDTH])],
        {"table": TABLE},
    )
    save_tokenizer(folder, special=special)


def save_image_graph(folder: Path, shape: list[str | int]) -> None:
    """An affine map of 3 x 4 pixels; of three channels, their mean."""
    nodes = [
        helper.make_node("Flatten", ["grey"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["embedding"]),
    ]
    if shape[1:2] == [3] and len(shape) == 4:
        nodes.insert(0, helper.make_node("ReduceMean", ["pixels"], ["grey"], axes=[1]))
    else:
        nodes.insert(0, helper.make_node("Identity", ["pixels"], ["grey"]))
    save_graph(
        folder,
        nodes,
        [("pixels", TensorProto.FLOAT, shape)],
        [("embedding", TensorProto.FLOAT, [shape[0], WIDTH])],
        {"weights": IMAGE_WEIGHTS, "bias": IMAGE_BIAS},
    )
