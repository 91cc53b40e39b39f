import numpy as np
import pytest

from nestling.core import normalize
from nestling.encode import encode_corpus, open_encoder, open_stored
from nestling.errors import FingerprintError, VectorError
from tests.encode.fakes import FakeEncoder, make_corpus, make_texts

VECTORS = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)


def test_a_vector_folder_is_opened_where_it_is(tmp_path):
    encode_corpus(FakeEncoder(), make_corpus(make_texts(5)), tmp_path / "v")
    assert open_stored(tmp_path / "v", cache=tmp_path / "cache").folder.path == tmp_path / "v"
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("ids", [None, ["a", "b", "c", "d", "e"]])
def test_a_vector_file_is_copied_into_the_cache_once(ids, tmp_path):
    path = tmp_path / "v.npz"
    if ids is None:
        np.savez(path, vectors=VECTORS)
    else:
        np.savez(path, vectors=VECTORS, ids=np.array(ids))
    folder = open_stored(path, cache=tmp_path / "cache").folder
    np.testing.assert_allclose(folder.vectors, normalize(VECTORS), rtol=1e-6)
    assert folder.doc_ids == (ids or ["0", "1", "2", "3", "4"])
    assert open_stored(path, cache=tmp_path / "cache").folder.path == folder.path


def test_bad_rows_of_a_file_are_named_or_left_out(tmp_path):
    vectors = VECTORS.copy()
    vectors[2] = 0.0
    np.save(tmp_path / "v.npy", vectors)
    with pytest.raises(VectorError, match="got 1 bad of 5: '2'"):
        open_stored(tmp_path / "v.npy", cache=tmp_path / "cache")
    opened = open_stored(tmp_path / "v.npy", cache=tmp_path / "cache", bad_rows="drop")
    assert opened.folder.doc_ids == ["0", "1", "3", "4"]
    assert opened.dropped_ids == ("2",)


def test_a_file_takes_the_space_of_the_model_that_made_it(tmp_path):
    encoder = FakeEncoder()
    for name, shift in (("one.npy", 1.0), ("two.npy", 2.0)):
        np.save(
            tmp_path / name,
            np.full((3, encoder.embed_dim), shift) * np.arange(1, encoder.embed_dim + 1) + shift,
        )
    one, two = (
        open_stored(tmp_path / name, cache=tmp_path / "cache", made_by=encoder).folder
        for name in ("one.npy", "two.npy")
    )
    assert one.fingerprint.space == encoder.fingerprint.space
    assert one.path != two.path
    np.save(tmp_path / "wide.npy", np.ones((3, encoder.embed_dim + 1), dtype=np.float32))
    with pytest.raises(VectorError, match="as wide as those of"):
        open_stored(tmp_path / "wide.npy", cache=tmp_path / "cache", made_by=encoder)


def test_a_folder_of_another_model_is_refused(tmp_path):
    encode_corpus(FakeEncoder(), make_corpus(make_texts(3)), tmp_path / "v")
    with pytest.raises(FingerprintError, match="two spaces"):
        open_stored(tmp_path / "v", cache=tmp_path, made_by=open_encoder("static:wordllama"))
