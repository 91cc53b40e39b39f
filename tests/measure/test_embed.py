from pathlib import Path

import numpy as np
import pytest

from nestling.core import BadRowPolicy
from nestling.core.progress import silent
from nestling.encode import encode_corpus
from nestling.errors import DataError, FingerprintError, VectorError
from nestling.measure.embed import Side, check_comparable, encode_side, hash_inputs, read_side
from tests.measure.small_tasks import TableEncoder, corpus, sentences

TEXTS = sentences(20, seed=0)
IDS = [f"d{row}" for row in range(20)]


def encoder(*, bad: tuple[int, ...] = (), max_tokens: int | None = None, space: str = "table"):
    vectors = np.random.default_rng(0).standard_normal((20, 8)).astype(np.float32)
    vectors[list(bad)] = 0.0
    return TableEncoder(dict(zip(TEXTS, vectors, strict=True)), max_tokens=max_tokens, space=space)


def side(
    made: TableEncoder, *, bad_rows: BadRowPolicy = "error", cache: Path | None = None
) -> Side:
    return encode_side(
        made,
        TEXTS,
        IDS,
        name="documents",
        role="document",
        cache=cache,
        bad_rows=bad_rows,
        progress=silent,
    )


def test_a_bad_row_is_refused_by_name():
    with pytest.raises(VectorError, match="got 1 bad of 20: 'd3'"):
        side(encoder(bad=(3,)))


@pytest.mark.parametrize("is_cached", [False, True])
def test_a_bad_row_is_dropped_and_told(is_cached, tmp_path):
    found = side(encoder(bad=(3, 7)), bad_rows="drop", cache=tmp_path if is_cached else None)
    assert found.ids == [name for name in IDS if name not in ("d3", "d7")]
    assert found.kept.tolist() == [row for row in range(20) if row not in (3, 7)]
    assert found.notes == ("2 of 20 documents were left out: zero or not finite ('d3', 'd7')",)


def test_the_cache_saves_the_second_encoding(tmp_path):
    first, second = encoder(), encoder()
    one, two = side(first, cache=tmp_path), side(second, cache=tmp_path)
    np.testing.assert_array_equal(one.vectors, two.vectors)
    assert (first.num_encoded, second.num_encoded) == (20, 0)


def test_cut_inputs_are_counted():
    # Every sentence has seven words.
    assert side(encoder(max_tokens=7)).notes == ()
    (note,) = side(encoder(max_tokens=6)).notes
    assert note == (
        "20 of 20 documents are longer than the 6 tokens that the model reads: what comes after "
        "is left out"
    )


def test_a_vector_folder_brings_its_ids_and_its_space(tmp_path):
    made = encoder()
    encode_corpus(made, corpus(TEXTS), tmp_path / "vectors")
    found = read_side(tmp_path / "vectors", name="documents", bad_rows="error")
    assert found.ids == IDS
    assert found.fingerprint == made.fingerprint
    assert found.has_known_space


def test_a_plain_file_has_numbers_for_ids_and_no_space(tmp_path):
    vectors = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    np.save(tmp_path / "v.npy", vectors)
    found = read_side(tmp_path / "v.npy", name="documents", bad_rows="error")
    assert found.ids == ["0", "1", "2", "3", "4"]
    assert not found.has_known_space
    np.testing.assert_array_equal(found.vectors, vectors)


def test_bad_rows_of_a_file(tmp_path):
    vectors = np.ones((3, 4), dtype=np.float32)
    vectors[1, 2] = np.nan
    np.savez(tmp_path / "v.npz", vectors=vectors, ids=np.array(["a", "b", "c"]))
    with pytest.raises(VectorError, match="got 1 bad of 3: 'b'"):
        read_side(tmp_path / "v.npz", name="queries", bad_rows="error")
    found = read_side(tmp_path / "v.npz", name="queries", bad_rows="drop")
    assert found.ids == ["a", "c"]
    assert found.notes == ("1 of 3 queries were left out: zero or not finite ('b')",)


def test_a_file_of_bad_rows_only_is_refused(tmp_path):
    np.save(tmp_path / "v.npy", np.zeros((2, 4), dtype=np.float32))
    with pytest.raises(VectorError, match=r"got 2 bad of 2 in .*v\.npy"):
        read_side(tmp_path / "v.npy", name="documents", bad_rows="drop")


def test_two_spaces_are_refused_by_name():
    with pytest.raises(
        FingerprintError,
        match="the space of the documents is 'one' and that of the queries is 'two'",
    ):
        check_comparable(
            side(encoder(space="one")),
            side(encoder(space="two")).take(np.array([0]), name="queries"),
        )


def test_two_widths_are_refused(tmp_path):
    for width in (4, 8):
        np.save(tmp_path / f"{width}.npy", np.ones((3, width), dtype=np.float32))
    documents, queries = (
        read_side(tmp_path / f"{width}.npy", name=name, bad_rows="error")
        for width, name in ((4, "documents"), (8, "queries"))
    )
    with pytest.raises(DataError, match="documents and queries must be equally wide, got 4 and 8"):
        check_comparable(documents, queries)


def test_the_hash_of_inputs_is_that_of_a_corpus_and_sees_every_pixel():
    assert hash_inputs(TEXTS, IDS) == corpus(TEXTS).corpus_hash
    images = np.zeros((2, 3, 3), dtype=np.uint8)
    first = hash_inputs(images, ["a", "b"])
    images[1, 2, 2] = 1
    assert hash_inputs(images, ["a", "b"]) != first
