import numpy as np
import pytest

from nestling.core import Fingerprint, Space
from nestling.data import Corpus
from nestling.encode import encode_corpus, open_encoder
from nestling.errors import DataError, FingerprintError, VectorError
from nestling.train.adapter.samples import FitSource, draw_sample, encode_source, read_source


def source_of(vectors):
    space = Space(
        model="m", revision="r", pooling="p", normalization="l2", embed_dim=vectors.shape[1]
    )
    return FitSource(
        vectors=vectors,
        ids=[f"d{row}" for row in range(len(vectors))],
        parent=Fingerprint(space=space, encoder={}),
        name="some vectors",
        corpus_hash="h",
    )


def draw(vectors, widest_dim=8, sample_rows=20_000, seed=0, **options):
    return draw_sample(
        source_of(vectors), widest_dim=widest_dim, sample_rows=sample_rows, seed=seed, **options
    )


@pytest.mark.parametrize(("rows", "num_held_out"), [(60, 50), (500, 100), (2000, 400)])
def test_a_fifth_is_held_out_but_fifty_at_least(nested_vectors, rows, num_held_out):
    sample = draw(nested_vectors[:rows])
    assert (len(sample.fit), len(sample.held_out)) == (rows - num_held_out, num_held_out)


def test_never_more_than_two_thousand_are_held_out():
    vectors = np.random.default_rng(0).standard_normal((12_000, 4)).astype(np.float32)
    sample = draw(vectors, widest_dim=2)
    assert (len(sample.fit), len(sample.held_out)) == (10_000, 2_000)


def test_rows_are_unit_and_no_row_is_in_both_parts(nested_vectors):
    doubled = np.concatenate([nested_vectors[:300], nested_vectors[:300]]) * np.float32(3)
    sample = draw(doubled)
    rows = np.concatenate([sample.fit, sample.held_out])
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-6)
    assert len(rows) == len(np.unique(rows, axis=0)) == 300


@pytest.mark.parametrize("factor", [2, 3, 0.7])
def test_rows_equal_up_to_their_length_count_once(nested_vectors, factor):
    longer = np.concatenate([nested_vectors[:300], nested_vectors[:300] * np.float32(factor)])
    sample = draw(longer)
    assert len(sample.fit) + len(sample.held_out) == 300
    assert (sample.fit @ sample.held_out.T).max() < 1 - 1e-5


def test_a_part_that_is_cut_off_is_cut_anywhere():
    # Every row twice, so that a second part is needed to make up for the first.
    rows = np.random.default_rng(0).standard_normal((500, 16)).astype(np.float32)
    places = np.repeat(np.arange(500), 2)
    angles = np.linspace(0, 3, 500, dtype=np.float32)
    rows[:, 0], rows[:, 1] = 30 * np.cos(angles), 30 * np.sin(angles)
    sample = draw(rows[places], sample_rows=450)
    drawn = np.concatenate([sample.fit, sample.held_out])
    # The angle says where a row stood: those at the end are as likely to be there as others.
    found = np.arctan2(drawn[:, 1], drawn[:, 0])
    shares = np.histogram(found, bins=5, range=(0, 3))[0] / 100
    assert len(drawn) == 450
    assert shares.min() > 0.8


def test_the_seed_alone_decides(nested_vectors):
    first, again, other = (
        draw(nested_vectors, sample_rows=500, seed=seed).fit for seed in (1, 1, 2)
    )
    assert first.tobytes() == again.tobytes() != other.tobytes()


def test_duplicates_are_made_up_for_by_further_rows(nested_vectors):
    crowded = np.concatenate([np.repeat(nested_vectors[:1], 5000, axis=0), nested_vectors[1:]])
    sample = draw(crowded, sample_rows=600)
    assert len(sample.fit) + len(sample.held_out) == 600


@pytest.mark.parametrize(
    ("rows", "widest_dim", "needed"), [(57, 8, 58), (318, 256, 319), (320, 257, 321)]
)
def test_too_few_rows_are_refused_and_one_more_would_do(rows, widest_dim, needed):
    vectors = np.random.default_rng(0).standard_normal((needed, 300)).astype(np.float32)
    with pytest.raises(
        DataError,
        match=rf"`fit_on` must hold at least {needed} distinct vectors to fit {widest_dim} dims.* got {rows} of "
        rf"{rows} rows in some vectors\. Fit on more documents, or ask for narrower widths",
    ):
        draw(vectors[:rows], widest_dim=widest_dim)
    assert len(draw(vectors, widest_dim=widest_dim).fit) >= widest_dim


def test_duplicates_alone_are_refused(nested_vectors):
    with pytest.raises(DataError, match="got the same one 1,000 times in some vectors"):
        draw(np.repeat(nested_vectors[:1], 1000, axis=0))


def test_a_sample_that_is_too_small_for_the_width_is_refused(nested_vectors):
    with pytest.raises(
        DataError, match=r"`sample_rows` must be at least 58 to fit 8 dims.* got 57"
    ):
        draw(nested_vectors, sample_rows=57)


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_bad_rows_are_named_or_left_out(nested_vectors, bad):
    vectors = nested_vectors[:200].copy()
    vectors[7] = bad
    with pytest.raises(VectorError, match=r"got 1 bad of 200: 'd7'.*--bad-rows drop"):
        draw(vectors)
    sample = draw(vectors, bad_rows="drop")
    assert len(sample.fit) + len(sample.held_out) == 199
    assert sample.notes == ("left out 1 zero, NaN or infinite rows",)


def test_a_plain_file_is_taken_at_its_word(nested_vectors, tmp_path):
    path = tmp_path / "mine.npy"
    np.save(path, nested_vectors)
    source = read_source(path)
    assert source.parent.space.model == "mine.npy"
    assert "it is taken at its word" in source.notes[0]
    encoder = open_encoder("static:wordllama")
    with pytest.raises(VectorError, match="which are 256 wide, got 64"):
        read_source(path, made_by=encoder)
    np.save(path, np.ones((3, 256), np.float32))
    assert read_source(path, made_by=encoder).parent == encoder.fingerprint


def test_a_folder_says_what_made_it_and_must_agree(tmp_path):
    encoder = open_encoder("static:wordllama")
    corpus = Corpus(doc_ids=["a", "b"], texts=["one", "two"], source="two words")
    encode_corpus(encoder, corpus, tmp_path / "vectors")
    source = read_source(tmp_path / "vectors")
    assert (source.parent, source.ids, source.corpus_hash) == (
        encoder.fingerprint,
        ["a", "b"],
        corpus.corpus_hash,
    )
    other = tmp_path / "other.npy"
    np.save(other, np.ones((2, 256), np.float32))
    with pytest.raises(FingerprintError, match="the model named"):
        read_source(tmp_path / "vectors", made_by=open_encoder(f"vectors:{other}"))


def test_of_many_texts_a_sample_of_the_distinct_ones_is_encoded():
    texts = [*["same"] * 50, *(f"text number {row}" for row in range(30))]
    corpus = Corpus(doc_ids=[str(row) for row in range(80)], texts=texts, source="texts")
    encoder = open_encoder("static:wordllama")
    source = encode_source(encoder, corpus, sample_rows=31, seed=0, cache=None)
    assert sorted(source.ids, key=int) == ["0", *(str(row) for row in range(50, 80))]
    assert source.corpus_hash == corpus.corpus_hash
