import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling.errors import DimensionError
from nestling.train.models.resnet import ResNetShape, SmallResNet

SMALL = ResNetShape(embed_dim=12, widths=(4, 8))


def make(shape: ResNetShape = SMALL, *, seed: int = 0) -> SmallResNet:
    """A network whose running statistics are not those of a fresh one."""
    torch.manual_seed(seed)
    network = SmallResNet(shape)
    for _ in range(3):
        network(torch.rand(8, 20, 20))
    return network.eval()


@settings(max_examples=10)
@given(height=st.integers(1, 105), width=st.integers(1, 105), stem_stride=st.sampled_from([1, 2]))
def test_images_of_any_size(height: int, width: int, stem_stride: int) -> None:
    network = make(ResNetShape(embed_dim=5, widths=(2, 3, 4), stem_stride=stem_stride))
    with torch.no_grad():
        assert network(torch.rand(2, height, width)).shape == (2, 5)


def test_an_image_does_not_see_its_neighbours() -> None:
    network, images = make(), torch.rand(6, 28, 28)
    with torch.no_grad():
        together = network(images)
        alone = torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)


def test_the_order_in_memory_changes_nothing() -> None:
    network, images = make(), torch.rand(4, 17, 23)
    with torch.no_grad():
        fast = network(images)
        slow = network.to(memory_format=torch.contiguous_format)(images)
    torch.testing.assert_close(fast, slow, atol=1e-6, rtol=1e-5)


def test_embeddings_are_centred_and_alike_in_scale() -> None:
    torch.manual_seed(0)
    embeddings = SmallResNet(SMALL)(torch.rand(64, 28, 28)).detach()
    torch.testing.assert_close(embeddings.mean(dim=0), torch.zeros(12), atol=1e-4, rtol=0)
    assert (embeddings < 0).float().mean() > 0.3


def test_depth_and_widths() -> None:
    deep = SmallResNet(ResNetShape(embed_dim=3, widths=(2, 4, 6), blocks_per_stage=2))
    assert [block.conv1.in_channels for block in deep.blocks] == [2, 2, 2, 4, 4, 6]
    assert [block.conv1.stride[0] for block in deep.blocks] == [1, 1, 2, 1, 2, 1]
    has_shortcut = [block.shortcut is not None for block in deep.blocks]
    assert has_shortcut == [False, False, True, False, True, False]


def test_shape_survives_json() -> None:
    shape = ResNetShape(embed_dim=7, widths=(3, 5), blocks_per_stage=2, stem_stride=1)
    assert ResNetShape.from_json(shape.to_json()) == shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embed_dim": 0}, r"`dim` must be at least 1, got 0"),
        ({"widths": ()}, r"`widths` must be channels from 1 up, one per stage, got \(\)\. E\.g\."),
        ({"widths": (4, 0)}, r"`widths` must be channels .* got \(4, 0\)"),
        ({"blocks_per_stage": 0}, r"`blocks_per_stage` must be at least 1, got 0"),
        ({"stem_stride": 3}, r"`stem_stride` must be 1 or 2, got 3\. Take 1 for images under 16"),
    ],
)
def test_bad_shapes(options: dict[str, object], message: str) -> None:
    with pytest.raises(DimensionError, match=message):
        ResNetShape(**{"embed_dim": 8, **options})  # type: ignore[arg-type]
