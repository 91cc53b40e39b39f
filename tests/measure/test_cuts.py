import numpy as np
import pytest

from nestling.core import (
    CODECS,
    Dtype,
    cosine_scores,
    normalize,
    pack_signs,
    random_rotation,
    unpack_signs,
)
from nestling.measure import cuts as cuts_module
from nestling.measure.cuts import (
    NUM_RANDOM_DRAWS,
    Cut,
    Rotation,
    Shuffle,
    clipping_notes,
    make_cuts,
    round_to_float16,
    sample_rows,
    take_signs,
)
from nestling.search import derive_tier
from nestling.search.engines.flat import FlatEngine

DIMS = (8, 16, 64)


def find(cuts: list[Cut], family: str, dtype: Dtype, draw: int = 0) -> Cut:
    (found,) = [cut for cut in cuts if (cut.family, cut.dtype, cut.draw) == (family, dtype, draw)]
    return found


def test_every_family_is_there_and_the_reference_comes_first(nested_vectors):
    cuts = make_cuts(nested_vectors, dims=DIMS, dtypes=[Dtype.INT8], seed=0)
    assert [(cut.family, str(cut.dtype), cut.draw, cut.dims) for cut in cuts] == [
        ("prefix", "float32", 0, DIMS),
        ("prefix", "int8", 0, DIMS),
        ("prefix", "binary", 0, (64,)),
        ("pca", "float32", 0, DIMS),
        ("pca", "int8", 0, DIMS),
        *(("random", "float32", draw, DIMS[:-1]) for draw in range(NUM_RANDOM_DRAWS)),
    ]
    assert len({cut.name for cut in cuts}) == len(cuts)


def test_int4_and_rotated_binary_come_with_prefix_and_pca(nested_vectors):
    dtypes = [Dtype.INT4, Dtype.ROTATED_BINARY]
    cuts = make_cuts(nested_vectors, dims=DIMS, dtypes=dtypes, seed=0)
    per_width = [(dim,) for dim in DIMS]
    assert [(cut.family, str(cut.dtype), cut.dims) for cut in cuts if cut.family != "random"] == [
        ("prefix", "float32", DIMS),
        ("prefix", "int4", DIMS),
        *(("prefix", "rotated-binary", dims) for dims in per_width),
        ("prefix", "int8", (64,)),
        ("prefix", "binary", (64,)),
        ("pca", "float32", DIMS),
        ("pca", "int4", DIMS),
        *(("pca", "rotated-binary", dims) for dims in per_width),
    ]
    assert len({cut.name for cut in cuts}) == len(cuts)


def test_nothing_is_beside_the_prefixes_without_baselines(nested_vectors):
    cuts = make_cuts(nested_vectors, dims=DIMS, dtypes=list(Dtype), seed=0, baselines=False)
    assert {cut.family for cut in cuts} == {"prefix"}
    assert [cut.dtype for cut in cuts if cut.dims == DIMS] == list(Dtype)[:-1]


def test_full_width_baselines_are_there_even_if_not_asked_for(nested_vectors):
    cuts = make_cuts(nested_vectors, dims=DIMS, dtypes=[Dtype.FLOAT32], seed=0)
    assert find(cuts, "prefix", Dtype.INT8).dims == (64,)
    assert find(cuts, "prefix", Dtype.BINARY).dims == (64,)
    assert not [cut for cut in cuts if (cut.family, cut.dtype) == ("pca", Dtype.INT8)]


def test_full_width_alone_has_no_random_choice(nested_vectors):
    cuts = make_cuts(nested_vectors, dims=(64,), dtypes=[], seed=0)
    assert "random" not in {cut.family for cut in cuts}


@pytest.mark.parametrize("family", ["pca", "random"])
def test_turning_both_sides_keeps_full_width_scores(family, nested_vectors, nested_queries):
    cut = find(make_cuts(nested_vectors, dims=DIMS, dtypes=[], seed=0), family, Dtype.FLOAT32)
    turned = cosine_scores(cut.query_side(nested_queries), cut.corpus_side(nested_vectors), 64)
    np.testing.assert_allclose(turned, cosine_scores(nested_queries, nested_vectors, 64), atol=1e-5)


def test_pca_puts_the_most_energy_in_front_without_centring(nested_vectors):
    # A shared offset is most of the energy here; centring would hide it from the first axis.
    shifted = nested_vectors + np.float32(1.0) * np.eye(64, dtype=np.float32)[63]
    rotated = Rotation.fit_pca(shifted)(normalize(shifted))
    energy = (rotated**2).sum(axis=0)
    assert (np.diff(energy) <= 1e-3).all()
    first_axis = Rotation.fit_pca(shifted).basis[:, 0]
    assert abs(first_axis[63]) > 0.95


def test_pca_weighs_long_rows_like_short_ones(nested_vectors):
    lengths = np.random.default_rng(0).uniform(0.1, 10.0, (len(nested_vectors), 1))
    scaled = (nested_vectors * lengths).astype(np.float32)
    aligned = Rotation.fit_pca(scaled).basis[:, 0] @ Rotation.fit_pca(nested_vectors).basis[:, 0]
    assert abs(aligned) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("dtype", CODECS)
def test_codes_are_decoded_and_the_query_stays_float(dtype, nested_vectors, nested_queries):
    cut = find(make_cuts(nested_vectors, dims=DIMS, dtypes=[dtype], seed=0), "prefix", dtype)
    codec = CODECS[dtype].calibrate(nested_vectors)
    np.testing.assert_array_equal(
        cut.corpus_side(nested_vectors), codec.decode(codec.encode(nested_vectors)[0])
    )
    assert cut.query_side(nested_queries) is nested_queries


def test_pca_int8_is_calibrated_after_the_rotation(nested_vectors):
    cuts = make_cuts(nested_vectors, dims=DIMS, dtypes=[Dtype.INT8], seed=0)
    float32, int8 = find(cuts, "pca", Dtype.FLOAT32), find(cuts, "pca", Dtype.INT8)
    rotated = float32.corpus_side(nested_vectors)
    half_step = np.abs(rotated).max(axis=0) / 127 / 2
    assert (np.abs(int8.corpus_side(nested_vectors) - rotated) <= half_step * 1.001).all()


@pytest.mark.parametrize("dtype", CODECS)
def test_prefixes_are_calibrated_on_the_whole_corpus_as_an_index_is(dtype, nested_vectors):
    sample = nested_vectors[:50]
    cuts = make_cuts(sample, dims=DIMS, dtypes=[dtype], seed=0, corpus=nested_vectors)
    codec = CODECS[dtype].calibrate(nested_vectors)
    expected = codec.decode(codec.encode(nested_vectors)[0])
    np.testing.assert_array_equal(find(cuts, "prefix", dtype).corpus_side(nested_vectors), expected)


@pytest.mark.parametrize("family", ["prefix", "pca"])
def test_rotated_binary_takes_signs_inside_the_prefix(family, nested_vectors, nested_queries):
    cuts = make_cuts(nested_vectors, dims=DIMS, dtypes=[Dtype.ROTATED_BINARY], seed=0)
    (basis,) = [cut.turn.basis for cut in cuts if isinstance(cut.turn, Rotation)][:1]
    if family == "prefix":
        basis = np.eye(64)
    for dim in DIMS:
        (cut,) = [
            cut
            for cut in cuts
            if (cut.family, cut.dims, cut.dtype.value) == (family, (dim,), "rotated-binary")
        ]
        rows = (nested_vectors @ basis)[:, :dim] @ random_rotation(dim)
        queries = (nested_queries @ basis)[:, :dim] @ random_rotation(dim)
        signs = cut.corpus_side(nested_vectors)[:, :dim]
        clear = np.abs(rows) > 1e-6
        np.testing.assert_array_equal(signs[clear], np.where(rows > 0, 1, -1)[clear])
        np.testing.assert_allclose(cut.query_side(nested_queries)[:, :dim], queries, atol=1e-6)
        assert cut.query_side(nested_queries).shape == nested_queries.shape


@pytest.mark.parametrize("dtype", [dtype for dtype in Dtype if dtype is not Dtype.FLOAT16])
@pytest.mark.parametrize("dim", [8, 15, 64])
def test_a_cut_scores_as_a_tier_does(nested_vectors, nested_queries, dtype, dim):
    dims = tuple(sorted({dim, 64}))
    cuts = make_cuts(nested_vectors[:99], dims=dims, dtypes=[dtype], seed=0, corpus=nested_vectors)
    (cut,) = [
        cut for cut in cuts if (cut.family, cut.dtype) == ("prefix", dtype) and dim in cut.dims
    ]
    measured = cosine_scores(cut.query_side(nested_queries), cut.corpus_side(nested_vectors), dim)
    tier = derive_tier(nested_vectors, dim=dim, dtype=dtype)
    engine = FlatEngine.build(tier, nested_vectors, settings={})
    found = engine.search(nested_queries, 50, settings={}).best
    np.testing.assert_allclose(
        found.scores, np.take_along_axis(measured, found.rows, axis=1), atol=1e-6
    )


def test_int4_clips_by_design_and_tells_nobody(nested_vectors):
    cuts = make_cuts(nested_vectors, dims=DIMS, dtypes=[Dtype.INT4], seed=0)
    cut = find(cuts, "prefix", Dtype.INT4)
    cut.corpus_side(100.0 * nested_vectors)
    assert cut.num_clipped == 0
    assert clipping_notes(cuts) == []


def test_clipped_values_are_counted_and_told(nested_vectors):
    cuts = make_cuts(nested_vectors, dims=DIMS, dtypes=[Dtype.INT8], seed=0)
    outlier = np.zeros((1, 64), dtype=np.float32)
    outlier[0, :3] = 100.0
    cut = find(cuts, "prefix", Dtype.INT8)
    cut.corpus_side(nested_vectors)
    assert clipping_notes(cuts) == []
    cut.corpus_side(outlier)
    assert clipping_notes(cuts) == ["prefix int8 clipped 3 values outside the calibrated range"]


def test_float16_rounds_vectors_of_any_scale(nested_vectors):
    rounded = round_to_float16(nested_vectors * np.float32(1e6))
    np.testing.assert_allclose(rounded, normalize(nested_vectors), atol=1e-3)
    np.testing.assert_array_equal(rounded, rounded.astype(np.float16).astype(np.float32))


def test_signs_are_what_stored_bits_decode_to(nested_vectors):
    rows = nested_vectors.copy()
    rows[0, :5] = 0.0
    np.testing.assert_array_equal(take_signs(rows), unpack_signs(pack_signs(rows), 64))


def test_sample_of_a_small_corpus_is_all_of_it(nested_vectors):
    np.testing.assert_array_equal(sample_rows(nested_vectors, seed=0), nested_vectors)


def test_sample_is_seeded_and_in_corpus_order(nested_vectors, monkeypatch):
    monkeypatch.setattr(cuts_module, "SAMPLE_ROWS", 100)
    numbered = nested_vectors.copy()
    numbered[:, 0] = np.arange(len(numbered))
    first, again, other = (sample_rows(numbered, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert (np.diff(first[:, 0]) > 0).all()
    assert len(first) == 100


def test_random_draws_differ_and_are_seeded(nested_vectors):
    def orders(seed: int) -> list[list[int]]:
        made = make_cuts(nested_vectors, dims=DIMS, dtypes=[], seed=seed)
        return [cut.turn.order.tolist() for cut in made if isinstance(cut.turn, Shuffle)]

    first, again, other = orders(0), orders(0), orders(1)
    assert first == again
    assert first != other
    assert len({tuple(order) for order in first}) == NUM_RANDOM_DRAWS
