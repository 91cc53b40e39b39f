import numpy as np
import pytest
import torch

from nestling.core import cosine_scores
from nestling.measure.metrics import overlap
from nestling.train.adapter import residual
from nestling.train.adapter.neighbours import nearest_others
from nestling.train.adapter.residual import ResidualAdaptor, learn_residual

DIMS = (4, 8, 16)


@pytest.fixture(scope="module")
def rows():
    """Unit rows whose signal is in the last coordinates."""
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((300, 16)) * np.geomspace(0.1, 1, 16)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_it_starts_as_the_identity_and_numpy_applies_what_torch_fitted(rows):
    adaptor = ResidualAdaptor(16, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(adaptor.export()(rows), rows, atol=1e-6)
    with torch.no_grad():
        for weight in adaptor.parameters():
            weight.normal_(generator=torch.Generator().manual_seed(1))
        ours = torch.nn.functional.normalize(adaptor(torch.from_numpy(rows)), dim=1)
    np.testing.assert_allclose(adaptor.export()(rows), ours.numpy(), atol=1e-5)


def kept(adapted, originals, dim):
    own = np.arange(len(originals))
    wanted = nearest_others(originals, originals, [16], own=own)[16]
    return overlap(nearest_others(adapted, adapted, [dim], own=own)[dim], wanted).mean()


@pytest.mark.parametrize("loss", ["listwise", "published"])
def test_prefixes_keep_more_neighbours(rows, loss):
    adapted = learn_residual(rows, DIMS, loss=loss, seed=0)(rows)
    assert kept(adapted, rows, 8) > kept(rows, rows, 8) + 0.1


def test_same_seed_same_bits_and_the_callers_generator_is_left_alone(rows, monkeypatch):
    monkeypatch.setattr(residual, "NUM_STEPS", 3)
    state = torch.get_rng_state()
    first, again, other = (
        learn_residual(rows, DIMS, loss="listwise", seed=seed).weights["outer"].tobytes()
        for seed in (0, 0, 1)
    )
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)


def slow_published(originals, adapted, dims):
    """Sum the three losses pair by pair."""
    total, num_rows = 0.0, len(originals)
    full = originals @ originals.T
    for row in range(num_rows):
        others = [other for other in range(num_rows) if other != row]
        nearest = sorted(others, key=lambda other: -full[row, other])
        total += np.abs(originals[row] - adapted[row]).sum()
        for dim in dims:
            cosines = cosine_scores(adapted, adapted, dim)
            gaps = {other: abs(full[row, other] - cosines[row, other]) for other in others}
            total += sum(gaps.values())
            total += sum(gaps[other] for other in nearest[: residual.NEIGHBOURS_PER_SEED])
    return total / num_rows


def slow_listwise(originals, adapted, dims):
    total, num_rows = 0.0, len(originals)
    for row in range(num_rows):
        others = np.arange(num_rows) != row
        target = softmax((originals @ originals.T)[row, others])
        for dim in dims:
            share = softmax(cosine_scores(adapted, adapted, dim)[row, others])
            total += (target * np.log(target / share)).sum()
    return total / num_rows


def softmax(cosines):
    shares = np.exp(cosines.astype(np.float64) / residual.TEMPERATURE)
    return shares / shares.sum()


@pytest.mark.parametrize(
    ("fast", "slow"), [("_published", slow_published), ("_listwise", slow_listwise)]
)
def test_the_losses_are_what_they_say(rows, fast, slow):
    originals = rows[:12]
    adapted = originals + 0.1 * np.random.default_rng(2).standard_normal((12, 16)).astype("f4")
    value = getattr(residual, fast)(torch.from_numpy(originals), torch.from_numpy(adapted), DIMS)
    assert float(value) == pytest.approx(slow(originals, adapted, DIMS), rel=1e-4)
