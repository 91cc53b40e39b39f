"""A trained image classifier as a folder: weights, an ONNX graph, and what they are."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Float, Float64
from safetensors import SafetensorError
from torch import Tensor, nn

from nestling.core.files import read_json, seal, unseal, write_atomically, write_json
from nestling.encode.nest_manifest import NestManifest
from nestling.encode.onnx import GRAPH_FILE
from nestling.errors import FormatError, MissingExtraError, TrainingError
from nestling.train.model_card import Quality, write_model_card
from nestling.train.model_folder import stamp, start_replacing
from nestling.train.models.classifier import NestedClassifier
from nestling.train.models.nested_head import NestedHead
from nestling.train.models.resnet import ResNetShape, SmallResNet
from nestling.train.record import TrainingRecord

WEIGHTS_FILE = "model.safetensors"
CLASSIFIER_FILE = "classifier.json"
CLASSIFIER_VERSION = 1
"""What a model folder holds beside its manifest, which is written last."""

OPSET = 17
IR_VERSION = 9
INPUT_NAME = "pixels"
OUTPUT_NAME = "embedding"


def import_onnx() -> Any:
    """Return the package `onnx`.

    Raises:
        MissingExtraError: If it is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingExtraError("onnx", "train") from error
    return onnx


def save_classifier(
    classifier: NestedClassifier,
    folder: Path,
    *,
    record: TrainingRecord,
    quality: Quality | None = None,
    training_data: str | None = None,
    command: str | None = None,
) -> NestManifest:
    """Write a `nest:` folder that `load_classifier` and `open_encoder` read.

    Args:
        classifier: With a `SmallResNet` as its backbone.
        folder: Made if it is not there; files of an earlier model are replaced.
        record: How it was trained.
        quality: For the table of the model card; by default the validation values of the record.
        training_data: What it was trained on, a sentence or two for the model card.
        command: That trained it, for the model card.

    Raises:
        TrainingError: If the backbone is another.
        MissingExtraError: If `onnx` or `onnxruntime` is missing.
        WriteError: If the folder cannot be written.
    """
    backbone = classifier.backbone
    if not isinstance(backbone, SmallResNet):
        raise TrainingError(
            f"`backbone` must be a SmallResNet to be written with its graph, got {type(backbone).__name__}. "
            f"Save its state_dict, and export a graph of your own: onnx:<dir> opens it."
        )
    start_replacing(folder)
    write_atomically(folder / GRAPH_FILE, make_graph(backbone))
    tensors = {name: tensor.contiguous() for name, tensor in classifier.state_dict().items()}
    write_atomically(folder / WEIGHTS_FILE, safetensors.torch.save(tensors))
    described = {
        "classifier_version": CLASSIFIER_VERSION,
        "backbone": backbone.shape.to_json(),
        "nesting_dims": list(classifier.nesting_dims),
        "tied": classifier.head.tied,
        "class_names": list(classifier.class_names),
    }
    write_json(folder / CLASSIFIER_FILE, seal(described))
    manifest = NestManifest(
        kind="images",
        model=folder.resolve().name,
        embed_dim=backbone.shape.embed_dim,
        nesting_dims=classifier.nesting_dims,
        training=record.to_json(),
    )
    manifest = stamp(folder, manifest)
    write_model_card(
        folder, manifest, quality=quality, training_data=training_data, command=command
    )
    manifest.save(folder)
    return manifest


def load_classifier(folder: Path) -> NestedClassifier:
    """Read what `save_classifier` wrote; in evaluation mode, on the CPU.

    Raises:
        FormatError: If a file is missing, damaged, or of a newer version.
    """
    path = folder / CLASSIFIER_FILE
    data = unseal(read_json(path), source=str(path), advice="Train the model again.")
    if data["classifier_version"] > CLASSIFIER_VERSION:
        raise FormatError(
            f"{path} has version {data['classifier_version']}, newer than {CLASSIFIER_VERSION}, the newest "
            f"that this nestling reads. Upgrade nestling."
        )
    names = data["class_names"]
    head = NestedHead(data["nesting_dims"], len(names), tied=data["tied"])
    backbone = SmallResNet(ResNetShape.from_json(data["backbone"]))
    classifier = NestedClassifier(backbone, head, class_names=names)
    weights = folder / WEIGHTS_FILE
    try:
        classifier.load_state_dict(safetensors.torch.load_file(weights))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise FormatError(
            f"{weights} does not hold the weights that {path.name} describes: {error}. Train the model again."
        ) from error
    return classifier.eval()


class _Affine(NamedTuple):
    """A convolution or a linear map with its batch normalisation folded in."""

    kernel: Float64[np.ndarray, "..."]
    bias: Float64[np.ndarray, " out"]


def make_graph(backbone: SmallResNet) -> bytes:
    """Return an ONNX graph of a network as it evaluates, batch normalisation folded into the maps before it.

    It takes `pixels`, float32 grey values in [0, 1] of shape (batch, height, width), all three free,
    and gives `embedding`, float32, not normalised. Written node by node: the exporters of
    PyTorch need further packages or are deprecated.

    Raises:
        MissingExtraError: If `onnx` is not installed.
    """
    onnx = import_onnx()
    helper = onnx.helper
    nodes: list[Any] = []
    constants: dict[str, np.ndarray] = {"channel_axis": np.array([1], np.int64)}

    def add(operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        name = f"{operator.lower()}_{len(nodes)}"
        nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def convolve(taken: str, convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> str:
        folded = _fold(convolution.weight, norm)
        names = f"kernel_{len(nodes)}", f"bias_{len(nodes)}"
        constants.update(zip(names, folded, strict=True))
        padding = convolution.padding[0]
        return add(
            "Conv", [taken, *names], strides=list(convolution.stride), pads=4 * [int(padding)]
        )

    taken = add("Unsqueeze", [INPUT_NAME, "channel_axis"])
    taken = add("Relu", [convolve(taken, backbone.stem, backbone.stem_norm)])
    for block in backbone.blocks:
        kept = taken
        if block.shortcut is not None and block.shortcut_norm is not None:
            kept = convolve(taken, block.shortcut, block.shortcut_norm)
        taken = add("Relu", [convolve(taken, block.conv1, block.norm1)])
        taken = convolve(taken, block.conv2, block.norm2)
        taken = add("Relu", [add("Add", [taken, kept])])
    taken = add("Flatten", [add("GlobalAveragePool", [taken])])
    projection = _fold(backbone.project.weight, backbone.project_norm)
    constants.update(projection=projection.kernel, projection_bias=projection.bias)
    nodes.append(
        helper.make_node("Gemm", [taken, "projection", "projection_bias"], [OUTPUT_NAME], transB=1)
    )
    graph = helper.make_graph(
        nodes,
        "images",
        [_describe(onnx, INPUT_NAME, ["batch", "height", "width"])],
        [_describe(onnx, OUTPUT_NAME, ["batch", backbone.shape.embed_dim])],
        [
            onnx.numpy_helper.from_array(
                values if values.dtype == np.int64 else values.astype(np.float32), name
            )
            for name, values in constants.items()
        ],
    )
    # Old versions of both, so that an old onnxruntime reads it.
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def _describe(onnx: Any, name: str, shape: Sequence[str | int]) -> Any:
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)


def _fold(weight: Float[Tensor, "out ..."], norm: nn.BatchNorm1d | nn.BatchNorm2d) -> _Affine:
    """Return the map that weight and normalisation come to together, in evaluation mode."""
    with torch.no_grad():
        wide = weight.double().cpu().contiguous()
        scale = norm.weight.double().cpu() / torch.sqrt(norm.running_var.double().cpu() + norm.eps)
        bias = norm.bias.double().cpu() - norm.running_mean.double().cpu() * scale
        kernel = wide * scale.reshape(-1, *[1] * (wide.ndim - 1))
        return _Affine(kernel.numpy(), bias.numpy())
