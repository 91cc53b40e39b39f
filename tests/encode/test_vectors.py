import numpy as np
import pytest

from nestling.core import normalize
from nestling.encode import embed, encode_corpus, open_encoder
from nestling.errors import DataError, EncoderError, FingerprintError, VectorError
from tests.encode.fakes import FakeEncoder, make_corpus, make_texts

VECTORS = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
IDS = ["a", "b", "c", "d", "e"]
TEXTS = ["any", "thing", "at", "all", "here"]


@pytest.fixture
def with_ids(tmp_path):
    np.savez(tmp_path / "v.npz", vectors=VECTORS, ids=np.array(IDS))
    return tmp_path / "v.npz"


def test_rows_are_found_by_id_in_any_order(with_ids):
    encoder = open_encoder(f"vectors:{with_ids}")
    made = encoder.encode(["x", "y", "z"], role="query", ids=["d", "a", "d"])
    np.testing.assert_allclose(made, normalize(VECTORS[[3, 0, 3]]))
    assert made.dtype == np.float32
    assert encoder.embed_dim == 4
    assert (encoder.max_tokens, encoder.nesting_dims) == (None, None)
    assert encoder.count_tokens(["x", "y"]) == [0, 0]


def test_ids_without_a_vector_are_named(with_ids):
    encoder = open_encoder(f"vectors:{with_ids}")
    with pytest.raises(DataError, match=r"in .*v\.npz, got none for 2 of 3: 'q', 'r'\. Encode"):
        encoder.encode(["x", "y", "z"], role="query", ids=["q", "a", "r"])
    with pytest.raises(DataError, match="got none for 2 of 2: '0', '1'"):
        encoder.encode(["x", "y"], role="query")


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_a_file_without_ids_takes_row_i_for_input_i(dtype, tmp_path):
    np.save(tmp_path / "v.npy", VECTORS.astype(dtype))
    encoder = open_encoder(f"vectors:{tmp_path}/v.npy")
    made = encoder.encode(TEXTS, role="document", ids=IDS)
    np.testing.assert_allclose(made, normalize(VECTORS.astype(dtype).astype(np.float32)), rtol=1e-6)
    with pytest.raises(DataError, match="got 5 rows for 4 inputs"):
        encoder.encode(TEXTS[:4], role="document", ids=IDS[:4])


def test_fvecs_and_parquet_are_read_too(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = np.concatenate([np.full((5, 1), 4, "<i4").view("<f4"), VECTORS], axis=1)
    rows.astype("<f4").tofile(tmp_path / "v.fvecs")
    table = pyarrow.table({"id": IDS, "vector": VECTORS.tolist()})
    parquet.write_table(table, tmp_path / "v.parquet")
    for name in ("v.fvecs", "v.parquet"):
        encoder = open_encoder(f"vectors:{tmp_path}/{name}")
        made = encoder.encode(TEXTS, role="document", ids=IDS)
        np.testing.assert_allclose(made, normalize(VECTORS), rtol=1e-6)


def test_a_vector_folder_keeps_the_fingerprint_of_the_model_that_made_it(tmp_path):
    maker = FakeEncoder()
    encode_corpus(maker, make_corpus(TEXTS), tmp_path / "v")
    encoder = open_encoder(f"vectors:{tmp_path}/v")
    assert encoder.fingerprint == maker.fingerprint
    made = encoder.encode(TEXTS[1:2], role="query", ids=["doc 1"])
    np.testing.assert_allclose(
        made, maker.encode(TEXTS[1:2], role="document", ids=["doc 1"]), atol=1e-6
    )


def test_a_folder_of_two_sides_has_one_for_each_role(tmp_path):
    np.save(tmp_path / "corpus.npy", VECTORS)
    np.savez(tmp_path / "queries.npz", vectors=VECTORS[::-1], ids=np.array(IDS))
    encoder = open_encoder(f"vectors:{tmp_path}")
    documents = encoder.encode(TEXTS, role="document", ids=IDS)
    queries = encoder.encode(TEXTS, role="query", ids=IDS)
    np.testing.assert_allclose(documents, normalize(VECTORS), rtol=1e-6)
    np.testing.assert_allclose(queries, documents[::-1], rtol=1e-6)
    np.save(tmp_path / "corpus.npy", VECTORS[:, :2])
    with pytest.raises(VectorError, match=r"got 2 in .*corpus\.npy and 4 in .*queries\.npz"):
        open_encoder(f"vectors:{tmp_path}")


def test_a_folder_of_two_vector_folders_must_be_of_one_space(tmp_path):
    encode_corpus(FakeEncoder(), make_corpus(TEXTS), tmp_path / "both" / "corpus")
    encode_corpus(FakeEncoder(), make_corpus(TEXTS), tmp_path / "both" / "queries")
    encoder = open_encoder(f"vectors:{tmp_path}/both")
    assert encoder.fingerprint == FakeEncoder().fingerprint
    encode_corpus(FakeEncoder(model="other"), make_corpus(TEXTS), tmp_path / "mixed" / "queries")
    encode_corpus(FakeEncoder(), make_corpus(TEXTS), tmp_path / "mixed" / "corpus")
    with pytest.raises(FingerprintError, match=r"corpus is 'fake' and .*queries is 'other'"):
        open_encoder(f"vectors:{tmp_path}/mixed")


def test_a_folder_that_misses_a_side_or_has_it_twice_is_refused(tmp_path):
    np.save(tmp_path / "corpus.npy", VECTORS)
    with pytest.raises(DataError, match=r"must hold one vector file or folder named queries\.\*"):
        open_encoder(f"vectors:{tmp_path}")
    np.savez(tmp_path / "corpus.npz", vectors=VECTORS)
    with pytest.raises(DataError, match=r"named corpus\.\*, got corpus\.npy, corpus\.npz"):
        open_encoder(f"vectors:{tmp_path}")


def test_the_space_of_plain_files_follows_their_bytes(tmp_path):
    np.save(tmp_path / "v.npy", VECTORS)
    before = open_encoder(f"vectors:{tmp_path}/v.npy").fingerprint.space
    assert before == open_encoder(f"vectors:{tmp_path}/v.npy").fingerprint.space
    np.save(tmp_path / "v.npy", VECTORS + 1)
    assert open_encoder(f"vectors:{tmp_path}/v.npy").fingerprint.space != before


def test_lookups_go_through_blocks_by_place_and_are_never_cached(tmp_path):
    """Equal texts may have different vectors, and rows of a file without ids count from its start."""
    vectors = np.random.default_rng(1).standard_normal((2500, 4)).astype(np.float32)
    np.save(tmp_path / "v.npy", vectors)
    encoder = open_encoder(f"vectors:{tmp_path}/v.npy")
    corpus = make_corpus(["the same"] * 2500)
    made = embed(encoder, corpus.texts, role="document", ids=corpus.doc_ids, cache=tmp_path / "c")
    np.testing.assert_allclose(made.vectors, normalize(vectors), rtol=1e-6)
    assert not (tmp_path / "c").exists()
    encoded = encode_corpus(encoder, corpus, tmp_path / "folder", block_rows=100)
    np.testing.assert_allclose(encoded.folder.vectors, normalize(vectors), rtol=1e-6)


def test_bad_rows_of_a_file_are_named(tmp_path):
    vectors = VECTORS.copy()
    vectors[1], vectors[3, 2] = 0.0, np.nan
    np.save(tmp_path / "v.npy", vectors)
    encoder = open_encoder(f"vectors:{tmp_path}/v.npy")
    with pytest.raises(VectorError, match="got 2 bad of 5: 'b', 'd'"):
        embed(encoder, TEXTS, role="document", ids=IDS)
    kept = embed(encoder, TEXTS, role="document", ids=IDS, bad_rows="drop")
    assert kept.kept.tolist() == [0, 2, 4]


def test_max_tokens_does_not_fit():
    with pytest.raises(EncoderError, match=r"does not fit vectors:v\.npy, which reads no text"):
        open_encoder("vectors:v.npy", max_tokens=3)


def test_a_missing_file_is_named():
    with pytest.raises(DataError, match=r"gone\.npy"):
        open_encoder("vectors:/gone.npy")


def test_texts_are_not_read(with_ids):
    encoder = open_encoder(f"vectors:{with_ids}")
    first = encoder.encode(make_texts(5), role="query", ids=IDS)
    np.testing.assert_array_equal(first, encoder.encode([""] * 5, role="document", ids=IDS))
