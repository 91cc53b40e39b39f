import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from nestling.core import normalize
from nestling.encode import open_encoder
from nestling.encode.nest_manifest import NestManifest
from nestling.errors import FormatError, MissingExtraError, TrainingError
from nestling.train.export import load_classifier, make_graph, save_classifier
from nestling.train.model_card import Quality
from nestling.train.models.classifier import NestedClassifier
from nestling.train.models.nested_head import NestedHead
from nestling.train.models.resnet import ResNetShape, SmallResNet
from nestling.train.record import EpochRecord, TrainingRecord

DIMS = (2, 4, 10)
IMAGES = np.random.default_rng(0).integers(0, 256, (9, 11, 14), dtype=np.uint8)
SHAPES = (
    ResNetShape(embed_dim=10, widths=(3, 4, 6), stem_stride=1),
    ResNetShape(embed_dim=10, widths=(4, 4), blocks_per_stage=2),
    ResNetShape(embed_dim=1, widths=(16, 32, 64, 128)),
)


def make_backbone(shape: ResNetShape) -> SmallResNet:
    """A network with running statistics, scales and shifts that a wrong fold would show."""
    torch.manual_seed(0)
    backbone = SmallResNet(shape)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    for _ in range(5):
        backbone(torch.rand(16, 20, 20))
    return backbone.eval()


def make_classifier(*, tied: bool = True) -> NestedClassifier:
    backbone = make_backbone(SHAPES[0])
    return NestedClassifier(backbone, NestedHead(DIMS, 3, tied=tied), class_names=["a", "ü", "c"])


def make_record() -> TrainingRecord:
    by_dim = dict.fromkeys(DIMS, 0.5)
    epoch = EpochRecord(
        epoch=1, loss=1.0, loss_by_dim=dict(by_dim), validation_by_dim=by_dim, seconds=2.0
    )
    return TrainingRecord(
        settings={"job": "images"},
        options={"num_epochs": 1},
        nesting_dims=DIMS,
        num_parameters=7,
        epochs=(epoch,),
        num_steps=3,
        num_resumes=0,
        stopped_early=False,
        best_epoch=None,
        environment={},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_classifier(make_classifier(), tmp_path / "nest", record=make_record())
    return tmp_path / "nest"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (28, 28), (33, 105)])
def test_the_graph_equals_torch(shape: ResNetShape, size: tuple[int, int]) -> None:
    backbone = make_backbone(shape)
    session = onnxruntime.InferenceSession(make_graph(backbone), providers=["CPUExecutionProvider"])
    pixels = torch.rand(5, *size)
    with torch.no_grad():
        wanted = backbone(pixels).numpy()
    (made,) = session.run(["embedding"], {"pixels": pixels.numpy()})
    np.testing.assert_allclose(made, wanted, atol=1e-5, rtol=1e-5)
    (alone,) = session.run(["embedding"], {"pixels": pixels[:1].numpy()})
    np.testing.assert_allclose(alone, wanted[:1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_what_is_saved_comes_back(tmp_path: Path, tied: bool) -> None:
    classifier = make_classifier(tied=tied).eval()
    save_classifier(classifier, tmp_path, record=make_record())
    loaded = load_classifier(tmp_path)
    assert not loaded.training
    assert loaded.class_names == ("a", "ü", "c")
    assert loaded.nesting_dims == DIMS
    for name, tensor in classifier.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert torch.equal(loaded.embed(IMAGES), classifier.embed(IMAGES))
    assert torch.equal(loaded.predict(IMAGES, dim=4), classifier.predict(IMAGES, dim=4))


def test_the_encoder_makes_what_the_classifier_embeds(folder: Path) -> None:
    encoder = open_encoder(f"nest:{folder}")
    made = encoder.encode(IMAGES, role="document")
    wanted = normalize(load_classifier(folder).embed(IMAGES).numpy())
    np.testing.assert_allclose(made, wanted, atol=1e-5)
    assert encoder.nesting_dims == DIMS


def test_the_manifest(folder: Path) -> None:
    manifest = NestManifest.load(folder)
    assert (manifest.kind, manifest.model, manifest.embed_dim) == ("images", "nest", 10)
    assert (manifest.nesting_dims, manifest.normalization) == (DIMS, "l2")
    assert manifest.fingerprint is not None
    assert manifest.fingerprint.space == open_encoder(f"nest:{folder}").fingerprint.space
    assert TrainingRecord.from_json(manifest.training) == make_record()


def test_the_model_card(tmp_path: Path) -> None:
    quality = Quality(metric="accuracy", measured_on="some images", by_dim={2: 0.25, 10: 0.5})
    save_classifier(
        make_classifier(),
        tmp_path,
        record=make_record(),
        quality=quality,
        training_data="Many letters.",
        command="nestling train images",
    )
    card = (tmp_path / "README.md").read_text()
    for part in ("accuracy on some images", "| 2 | 0.2500 | 50.0% |", "Many letters.", "images```"):
        assert part in card.replace("images\n```", "images```")


def test_another_backbone_has_no_graph(tmp_path: Path) -> None:
    classifier = NestedClassifier(nn.Linear(3, 10), NestedHead(DIMS, 2, tied=True))
    with pytest.raises(
        TrainingError, match=r"`backbone` must be a SmallResNet .*, got Linear\. Sa"
    ):
        save_classifier(classifier, tmp_path, record=make_record())
    assert list(tmp_path.iterdir()) == []


def test_without_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"`onnx`.*nestling\[train\]"):
        save_classifier(make_classifier(), tmp_path, record=make_record())


def test_damaged_folders(folder: Path) -> None:
    described = folder / "classifier.json"
    whole = described.read_text()
    described.write_text(whole.replace('"tied": true', '"tied": false'))
    with pytest.raises(FormatError, match=r"classifier\.json is damaged.*Train the model again"):
        load_classifier(folder)
    described.unlink()
    with pytest.raises(FormatError, match=r"no file .*classifier\.json"):
        load_classifier(folder)
    described.write_text(whole)
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    with pytest.raises(FormatError, match=r"model\.safetensors does not hold the weights that"):
        load_classifier(folder)
    weights.unlink()
    with pytest.raises(FormatError, match=r"model\.safetensors does not hold the weights that"):
        load_classifier(folder)


def test_weights_of_another_model(folder: Path, tmp_path: Path) -> None:
    save_classifier(make_classifier(tied=False), tmp_path / "other", record=make_record())
    (tmp_path / "other" / "model.safetensors").replace(folder / "model.safetensors")
    with pytest.raises(
        FormatError, match=r"does not hold the weights that classifier\.json describ"
    ):
        load_classifier(folder)


def test_a_newer_version(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nestling.train.export.CLASSIFIER_VERSION", 0)
    with pytest.raises(FormatError, match=r"has version 1, newer than 0, .* Upgrade nestling"):
        load_classifier(folder)


def test_saving_over_an_earlier_model(folder: Path) -> None:
    before = NestManifest.load(folder)
    save_classifier(make_classifier(tied=False), folder, record=replace(make_record(), num_steps=4))
    assert NestManifest.load(folder).training["num_steps"] == 4 != before.training["num_steps"]
    assert not load_classifier(folder).head.tied
