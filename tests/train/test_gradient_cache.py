"""Gradients of a batch in chunks against those of the whole batch."""

import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn

from nestling.errors import DataError
from nestling.train.losses.gradient_cache import encode_in_chunks
from nestling.train.losses.nested_info_nce import NestedInfoNCE

DIMS = (2, 4, 8)


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors gain nothing from threads, and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Encoder(nn.Module):
    """Two layers with dropout between them; knows how many of its activations are alive."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(6, 16, dtype=torch.float64)
        self.second = nn.Linear(16, DIMS[-1], dtype=torch.float64)
        self.dropout = nn.Dropout(dropout)
        self.num_calls = 0

    def forward(self, rows: Tensor) -> Tensor:
        self.num_calls += 1
        return self.second(self.dropout(torch.tanh(self.first(rows))))


def make_batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    queries = torch.randn(12, 6, generator=generator, dtype=torch.float64)
    return queries, queries + torch.randn(12, 6, generator=generator, dtype=torch.float64)


def gradients(module: nn.Module, total: Tensor) -> list[Tensor]:
    module.zero_grad()
    total.backward()
    return [parameter.grad.clone() for parameter in module.parameters()]


def assert_all_close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("chunk_rows", [1, 5, 12])
def test_gradients_are_those_of_the_whole_batch(chunk_rows):
    encoder, loss = Encoder(), NestedInfoNCE(DIMS, symmetric=True)
    queries, documents = make_batch()
    whole = loss(encoder(queries), encoder(documents))
    expected = gradients(encoder, whole)
    sides = [encode_in_chunks(encoder, rows.split(chunk_rows)) for rows in (queries, documents)]
    cached = loss(*sides)
    torch.testing.assert_close(cached, whole, rtol=1e-12, atol=0)
    assert_all_close(gradients(encoder, cached), expected)


def test_dropout_is_the_same_both_times():
    encoder, loss = Encoder(dropout=0.5), NestedInfoNCE(DIMS)
    queries, documents = make_batch()
    chunks = [*queries.split(4), *documents.split(4)]
    torch.manual_seed(7)
    embeddings = torch.cat([encoder(chunk) for chunk in chunks])
    expected = gradients(encoder, loss(embeddings[:12], embeddings[12:]))
    torch.manual_seed(7)
    cached = loss(encode_in_chunks(encoder, chunks[:3]), encode_in_chunks(encoder, chunks[3:]))
    drawn = torch.get_rng_state()
    ours = gradients(encoder, cached)
    assert torch.equal(torch.get_rng_state(), drawn), "the caller's random numbers moved"
    assert_all_close(ours, expected)
    torch.manual_seed(8)
    other = loss(encode_in_chunks(encoder, chunks[:3]), encode_in_chunks(encoder, chunks[3:]))
    assert not torch.allclose(gradients(encoder, other)[0], expected[0])


def test_upstream_scale_and_parameters_of_the_loss():
    encoder, head = Encoder(), nn.Linear(DIMS[-1], 3, dtype=torch.float64)
    both, (queries, _) = nn.ModuleList([encoder, head]), make_batch()
    labels = torch.arange(12) % 3
    expected = gradients(both, 5 * nn.functional.cross_entropy(head(encoder(queries)), labels))
    embeddings = encode_in_chunks(encoder, queries.split(4))
    ours = gradients(both, 5 * nn.functional.cross_entropy(head(embeddings), labels))
    assert_all_close(ours, expected)


def test_autocast_is_the_same_both_times():
    encoder = Encoder().float()
    rows = make_batch()[0].float()
    seen = []

    def encode(chunk: Tensor) -> Tensor:
        hidden = encoder.first(chunk)
        seen.append(hidden.dtype)
        return encoder.second(torch.tanh(hidden))

    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings = encode_in_chunks(encode, rows.split(6))
    embeddings.float().square().sum().backward()
    assert seen == [torch.bfloat16] * 4


def most_activations_alive(cached: bool) -> int:
    """Train on four chunks; return how many chunks' activations were held at the same time."""
    encoder, alive, most = Encoder(), set(), 0

    def encode(chunk: Tensor) -> Tensor:
        nonlocal most
        hidden = torch.tanh(encoder.first(chunk))
        storage = hidden.untyped_storage()
        key = object()
        alive.add(key)
        most = max(most, len(alive))
        weakref.finalize(storage, alive.discard, key)
        return encoder.second(hidden)

    chunks = make_batch()[0].split(3)
    embeddings = encode_in_chunks(encode, chunks) if cached else torch.cat([*map(encode, chunks)])
    NestedInfoNCE(DIMS)(embeddings, embeddings.detach()).backward()
    assert not alive
    return most


def test_activations_of_one_chunk_are_held_at_a_time():
    assert most_activations_alive(cached=True) == 1
    assert most_activations_alive(cached=False) == 4, "the measure is blind"


def test_without_gradients_nothing_is_encoded_twice():
    encoder, (queries, _) = Encoder(), make_batch()
    with torch.no_grad():
        embeddings = encode_in_chunks(encoder, queries.split(4))
    assert encoder.num_calls == 3
    assert not embeddings.requires_grad
    torch.testing.assert_close(embeddings, encoder(queries).detach())


def test_chunks_may_be_anything():
    encoder, (queries, _) = Encoder(), make_batch()
    chunks = [{"rows": rows} for rows in queries.split(4)]
    embeddings = encode_in_chunks(lambda chunk: encoder(chunk["rows"]), chunks)
    torch.testing.assert_close(embeddings, encoder(queries))


def test_under_distributed_data_parallel(tmp_path: Path):
    """Several passes through one module and one reduction: DDP refuses what reduces twice."""
    encoder, loss, (queries, documents) = Encoder(), NestedInfoNCE(DIMS), make_batch()
    expected = gradients(encoder, loss(encoder(queries), encoder(documents)))
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        parallel = nn.parallel.DistributedDataParallel(encoder)
        sides = [encode_in_chunks(parallel, rows.split(5)) for rows in (queries, documents)]
        assert_all_close(gradients(encoder, loss(*sides)), expected)
    finally:
        distributed.destroy_process_group()


def test_no_chunks():
    with pytest.raises(
        DataError, match="`chunks` must hold at least one chunk to encode, got none"
    ):
        encode_in_chunks(Encoder(), [])
