import numpy as np
import pytest

from nestling.encode import cache_folder, cache_root, embed
from nestling.errors import DataError, VectorError
from tests.encode.fakes import FakeEncoder, make_corpus, make_texts

TEXTS = make_texts(30)


@pytest.mark.parametrize("role", ["query", "document"])
def test_the_cache_changes_nothing_but_the_work(role, tmp_path):
    plain = embed(FakeEncoder(), TEXTS, role=role)
    first, second = FakeEncoder(), FakeEncoder()
    cold = embed(first, TEXTS, role=role, cache=tmp_path)
    warm = embed(second, TEXTS, role=role, cache=tmp_path)
    for made in (plain, cold, warm):
        assert made.kept.tolist() == list(range(30))
        assert made.vectors.dtype == np.float32
    np.testing.assert_array_equal(cold.vectors, plain.vectors)
    np.testing.assert_array_equal(warm.vectors, plain.vectors)
    assert len(first.asked) == 30
    assert second.asked == []


@pytest.mark.parametrize(
    ("change", "is_cached"),
    [
        ({}, True),
        ({"role": "document"}, False),
        ({"inputs": TEXTS[::-1]}, False),
        ({"ids": [f"id {number}" for number in range(30)]}, False),
        ({"encoder": FakeEncoder(model="other")}, False),
        ({"encoder": FakeEncoder(prompt="other")}, False),
    ],
    ids=["same", "role", "inputs", "ids", "space", "settings"],
)
def test_the_cache_is_keyed_by_space_settings_role_and_content(change, is_cached, tmp_path):
    embed(FakeEncoder(), TEXTS, role="query", cache=tmp_path)
    wanted = {"encoder": FakeEncoder(), "inputs": TEXTS, "role": "query", **change}
    encoder, inputs = wanted.pop("encoder"), wanted.pop("inputs")
    encoder.asked.clear()
    embed(encoder, inputs, cache=tmp_path, **wanted)
    assert (encoder.asked == []) == is_cached


def test_a_damaged_cache_is_mended(tmp_path):
    embed(FakeEncoder(), TEXTS, role="query", cache=tmp_path)
    (vectors,) = tmp_path.rglob("vectors.bin")
    vectors.write_bytes(vectors.read_bytes()[:-1])
    encoder = FakeEncoder()
    made = embed(encoder, TEXTS, role="query", cache=tmp_path)
    np.testing.assert_array_equal(made.vectors, embed(FakeEncoder(), TEXTS, role="query").vectors)
    assert len(encoder.asked) == 30  # the only block is damaged


@pytest.mark.parametrize("is_cached", [False, True])
def test_images_are_embedded_like_texts(is_cached, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (7, 3, 2), dtype=np.uint8)
    images[4] = images[1]
    encoder = FakeEncoder()
    cache = tmp_path if is_cached else None
    made = embed(encoder, images, role="document", cache=cache)
    expected = FakeEncoder().encode(images, role="document", ids=["x"] * 7)
    np.testing.assert_array_equal(made.vectors, expected)
    assert len(encoder.asked) == (6 if is_cached else 7)
    turned = np.ascontiguousarray(images.reshape(7, 2, 3))
    other = FakeEncoder()
    embed(other, turned, role="document", cache=cache)
    assert other.asked, "images of the same bytes in another shape are other images"


@pytest.mark.parametrize("is_cached", [False, True])
def test_bad_rows_are_named_or_dropped(is_cached, tmp_path):
    texts, cache = ["one", "nan", "two", "zero"], tmp_path if is_cached else None
    with pytest.raises(VectorError, match="got 2 bad of 4: 'b', 'd'"):
        embed(FakeEncoder(), texts, role="query", ids=list("abcd"), cache=cache)
    made = embed(FakeEncoder(), texts, role="query", ids=list("abcd"), cache=cache, bad_rows="drop")
    assert made.kept.tolist() == [0, 2]
    assert made.vectors.shape == (2, 8)
    with pytest.raises(VectorError, match="got 2 bad of 4"):
        embed(FakeEncoder(), texts, role="query", ids=list("abcd"), cache=cache)
    for _ in range(2):  # the second time from the cache
        with pytest.raises(VectorError, match="got 1 bad of 1"):
            embed(FakeEncoder(), ["zero"], role="query", cache=cache, bad_rows="drop")
    if is_cached:
        encoder = FakeEncoder()
        embed(encoder, texts, role="query", ids=list("abcd"), cache=cache, bad_rows="drop")
        assert encoder.asked == []


def test_progress_is_told_with_a_name_for_the_role(tmp_path):
    calls = []
    embed(FakeEncoder(), TEXTS, role="query", progress=lambda *call: calls.append(call))
    assert calls == [("encoding queries", 0, 30), ("encoding queries", 30, 30)]


@pytest.mark.parametrize("is_cached", [False, True])
def test_inputs_that_cannot_be_encoded_are_refused(is_cached, tmp_path):
    cache = tmp_path if is_cached else None
    with pytest.raises(DataError, match="encoding queries: there must be at least one input"):
        embed(FakeEncoder(), [], role="query", cache=cache)
    with pytest.raises(DataError, match="got 1 ids for 2 inputs"):
        embed(FakeEncoder(), ["a", "b"], role="query", ids=["x"], cache=cache)
    with pytest.raises(DataError, match="ids in encoding queries must be unique"):
        embed(FakeEncoder(), ["a", "b"], role="query", ids=["x", "x"], cache=cache)


def test_the_cache_lives_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("NESTLING_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
    fingerprint = FakeEncoder().fingerprint
    folder = cache_folder(fingerprint, make_corpus(TEXTS).corpus_hash, "query")
    assert folder.parent == tmp_path / "vectors"
    assert folder == cache_folder(
        fingerprint, make_corpus(TEXTS).corpus_hash, "query", root=tmp_path
    )
    monkeypatch.delenv("NESTLING_CACHE")
    assert cache_root().parts[-2:] == (".cache", "nestling")
