import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nestling.core import Dtype, Fingerprint, Space, take_prefix
from nestling.data import Corpus
from nestling.data.training_pairs import make_pairs
from nestling.encode import encode_corpus, open_encoder
from nestling.encode.nest_manifest import NestManifest
from nestling.encode.vector_map import deviation_from_orthogonal
from nestling.errors import DataError, DimensionError, TrainingError, VectorError, WriteError
from nestling.measure.drift import DriftReference, measure_drift
from nestling.train.adapter import (
    AdapterRecipe,
    FitSource,
    encode_pairs,
    encode_source,
    read_source,
    train_adapter,
)
from nestling.train.adapter.learn import RotationOptions

QUICK = RotationOptions(num_steps=10, seeds_per_batch=16)
TEXTS = [
    f"{noun} {verb} {number}"
    for noun in ("river", "guitar", "doctor")
    for verb in ("opens", "falls")
    for number in range(60)
]


@pytest.fixture(scope="module", autouse=True)
def short_perceptrons():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nestling.train.adapter.residual.NUM_STEPS", 10)
        yield


def open_adapter(out: Path) -> Any:
    return open_encoder(f"nest:{out}")


def recipe_of(*dims, **options):
    return AdapterRecipe(nesting_dims=dims, rotation=QUICK, **options)


@pytest.fixture(scope="module")
def source(nested_vectors):
    """Vectors that a random rotation has taken the nesting from."""
    turn = np.linalg.qr(np.random.default_rng(5).standard_normal((64, 64)))[0]
    space = Space(model="mine", revision="1", pooling="p", normalization="l2", embed_dim=64)
    rows = (nested_vectors[:700] @ turn).astype(np.float32)
    return FitSource(
        vectors=rows,
        ids=[str(row) for row in range(700)],
        parent=Fingerprint(space=space, encoder={"backend": "test"}),
        name="turned vectors",
        corpus_hash="1234",
    )


@pytest.fixture(scope="module")
def fitted(source, tmp_path_factory, on_cpu):
    out = tmp_path_factory.mktemp("adapter") / "nested"
    record = train_adapter(source, recipe_of(8, 16), out=out, command="nestling train adapter ...")
    return out, record


def test_what_was_lost_by_turning_is_found_again(fitted):
    _, record = fitted
    values = {line.name: line.values[Dtype.FLOAT32] for line in record.table}
    assert record.method in ("pca", "rotation")
    assert values[record.winner][8] > values["identity"][8] + 0.2
    assert values[record.winner][64] == pytest.approx(1, abs=2e-3)
    assert record.verdict.startswith("At ")
    assert "of the ten nearest neighbours, before" in record.verdict


def test_the_folder_opens_and_full_width_scores_are_unchanged(fitted, source):
    out, record = fitted
    encoder = open_adapter(out)
    assert encoder.nesting_dims == (8, 16, 64)
    assert encoder.parent == source.parent
    space = encoder.fingerprint.space
    assert space.adapter.startswith(f"{record.method}-")
    assert replace(space, adapter=None) == source.parent.space
    rows = source.vectors
    adapted = encoder.map(rows)
    np.testing.assert_allclose(adapted @ adapted.T, rows @ rows.T, atol=1e-5)
    assert not (out / "checkpoints").exists()


def test_the_matrix_is_orthogonal_after_saving_and_is_the_map(fitted, source):
    out, _ = fitted
    matrix = np.load(out / "rotation.npy")
    assert matrix.dtype == np.float32
    assert deviation_from_orthogonal(matrix) < 1e-6
    mapped = open_adapter(out).map(source.vectors)
    np.testing.assert_allclose(mapped, source.vectors @ matrix, atol=1e-6)


def test_the_record_is_in_the_folder(fitted, source):
    out, record = fitted
    manifest = NestManifest.load(out)
    assert (manifest.kind, manifest.model) == ("adapter", "mine, nested")
    assert manifest.training == json.loads(json.dumps(record.to_json()))
    training = manifest.training
    assert (training["fitted_on"], training["corpus_hash"]) == ("turned vectors", "1234")
    assert (training["num_fit_rows"], training["num_held_out"]) == (560, 140)
    assert training["recipe"]["nesting_dims"] == [8, 16, 64]
    assert training["environment"]["seed"] == 0
    reference = DriftReference.from_json(training["reference"])
    adapted = open_adapter(out).map(source.vectors)
    assert measure_drift(reference, adapted).verdict == "fits"


def test_the_card_shows_every_candidate_and_how_to_use_the_map(fitted):
    out, record = fitted
    card = (out / "README.md").read_text()
    for line in record.table:
        values = " | ".join(f"{line.values[Dtype.FLOAT32][dim]:.1%}" for dim in (8, 16, 64))
        assert f"| {values} | {line.shortfall:.1%} |" in card
    assert f"| **{record.winner}** |" in card
    for said in (
        "vectors of mine, 64 numbers each",
        "Full-width scores stay what they were.",
        'vectors @ np.load("path/to/this/folder/rotation.npy")',
        "Dense.load(",
        "nestling encode --model nest:path/to/this/folder --vectors",
        "nestling train adapter ...",
        "560 distinct vectors of turned vectors, corpus_hash 1234",
        "Adapted vectors and original ones cannot be mixed",
    ):
        assert said in card


def test_sentence_transformers_loads_the_dense_module(fitted, source):
    pytest.importorskip("sentence_transformers", reason="the extra st is not installed")
    from sentence_transformers.sentence_transformer.modules import Dense

    out, _ = fitted
    dense = Dense.load(str(out / "Dense"))
    rows = torch.from_numpy(source.vectors)
    with torch.no_grad():
        theirs = dense({"sentence_embedding": rows})["sentence_embedding"].numpy()
    np.testing.assert_allclose(theirs, open_adapter(out).map(source.vectors), atol=1e-6)


def test_the_whole_of_plain_sentence_transformers_does_as_we_do(source, tmp_path, on_cpu):
    pytest.importorskip("sentence_transformers", reason="the extra st is not installed")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = sorted({word for text in TEXTS for word in text.split()})
    tokenizer = Tokenizer(
        models.WordLevel({word: row for row, word in enumerate(words)}, unk_token=words[0])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    table = np.random.default_rng(0).standard_normal((len(words), 32)).astype(np.float32)
    model = SentenceTransformer(
        modules=[StaticEmbedding(tokenizer, embedding_weights=table), Normalize()]
    )
    model.save(str(tmp_path / "model"))
    encoder = open_encoder(f"st:{tmp_path / 'model'}")
    corpus = Corpus(doc_ids=[str(row) for row in range(len(TEXTS))], texts=TEXTS, source="texts")
    made = encode_source(encoder, corpus, sample_rows=20_000, seed=0, cache=None)
    train_adapter(made, recipe_of(8, method="pca"), out=tmp_path / "nested")
    ours = open_adapter(tmp_path / "nested").encode(TEXTS, role="document")
    plain = SentenceTransformer(str(tmp_path / "model"))
    plain.append(Dense.load(str(tmp_path / "nested" / "Dense")))
    theirs = plain.encode(TEXTS, truncate_dim=8, normalize_embeddings=True)
    np.testing.assert_allclose(theirs, take_prefix(ours, 8, renormalize=True), atol=1e-5)


def test_same_seed_same_bits(source, fitted, tmp_path):
    out, record = fitted
    train_adapter(source, recipe_of(8, 16), out=tmp_path / "again")
    other = train_adapter(source, recipe_of(8, 16, seed=1), out=tmp_path / "other")
    files = [
        (folder / "adapter.safetensors").read_bytes()
        for folder in (out, tmp_path / "again", tmp_path / "other")
    ]
    assert files[0] == files[1] != files[2]
    assert other.table[0].values != record.table[0].values


def test_vectors_that_are_nested_already_are_left_as_they_are(tmp_path, on_cpu):
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((400, 32)) * np.geomspace(1, 0.01, 32)
    path = tmp_path / "nested.npy"
    np.save(path, rows.astype(np.float32))
    record = train_adapter(
        read_source(path), recipe_of(8), out=tmp_path / "out", warn=lambda note: None
    )
    assert record.method == "identity"
    assert "the adapter leaves them as they are" in record.verdict
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "rotation.npy"), np.eye(32))


def test_a_method_that_is_named_wins_and_a_residual_map_leaves_no_matrix(source, tmp_path, on_cpu):
    out = tmp_path / "out"
    record = train_adapter(source, recipe_of(8, method="variance"), out=out)
    assert (record.method, [line.name for line in record.table]) == (
        "variance",
        ["identity", "pca", "variance"],
    )
    assert [cut.baseline for cut in record.below] == ["pca"]
    record = train_adapter(source, recipe_of(8, method="residual"), out=out, overwrite=True)
    assert "this map changes full-width scores" in record.verdict
    names = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
    assert names == ["README.md", "adapter.safetensors", "nestling.json"]
    assert "rotation.npy" not in (out / "README.md").read_text()
    assert not open_adapter(out).map.is_lossless


def test_codes_are_fitted_to_and_judged_in(source, tmp_path, on_cpu):
    record = train_adapter(
        source, recipe_of(16, method="rotation", dtypes=(Dtype.BINARY,)), out=tmp_path / "out"
    )
    assert record.dtypes == (Dtype.FLOAT32, Dtype.BINARY)
    assert record.recipe["dtypes"] == (Dtype.BINARY,)
    values = {line.name: line.values[Dtype.BINARY][16] for line in record.table}
    assert record.judged(record.winner).shortfall == pytest.approx(
        max(
            0.0,
            *(
                best.values[Dtype.BINARY][dim]
                - record.judged(record.winner).values[Dtype.BINARY][dim]
                for best in record.table
                for dim in (16, 64)
            ),
        )
    )
    assert values["rotation"] < 1
    assert re.search(r"in binary now keep|: in binary they", record.verdict)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "## Neighbours kept by width, in binary" in card


def test_shortfalls_stand_where_they_are_judged_and_all_formats_are_spoken_of(
    source, tmp_path, on_cpu
):
    dtypes = (Dtype.INT8, Dtype.BINARY)
    record = train_adapter(source, recipe_of(16, method="pca", dtypes=dtypes), out=tmp_path / "out")
    assert record.judged_dtypes == dtypes
    card = (tmp_path / "out" / "README.md").read_text()
    parts = card.split("## Neighbours kept by width, in ")
    heads = [next(line for line in part.splitlines() if line[:5] == "| map") for part in parts[1:]]
    assert heads == [
        "| map | 16 | 64 |",
        "| map | 16 | 64 | shortfall over int8, binary |",
        "| map | 16 | 64 | shortfall over int8, binary |",
    ]
    for dtype in dtypes:
        kept, was = (record.judged(name).values[dtype][16] for name in (record.winner, "identity"))
        assert re.search(
            rf"at 16 dims.* in {dtype}( now keep)? {kept:.1%}.*, before {was:.1%}", record.verdict
        )
    assert "float32" not in record.verdict


def test_the_card_prints_what_was_asked_once(fitted):
    out, record = fitted
    card = (out / "README.md").read_text()
    for name in ("seed", "dtypes", "spread_out_weight"):
        assert name in record.recipe
        assert name not in record.recipe["rotation"]
        assert card.count(f'"{name}"') == 0


def test_what_is_said_of_identity_is_true(source, tmp_path, on_cpu):
    named = train_adapter(source, recipe_of(8, method="identity"), out=tmp_path / "named")
    assert named.judged("identity").shortfall > 0.1
    kept = named.judged("identity").values[Dtype.FLOAT32][8]
    assert named.verdict == (
        f"The vectors stay as they are, as asked for with the method identity: at 8 dims they keep {kept:.1%} of the "
        f"ten nearest neighbours."
    )
    won = named.judged("identity")
    near = replace(
        named,
        recipe={**named.recipe, "method": "auto"},
        table=tuple(replace(line, shortfall=0.004) for line in (won, *named.table[1:])),
    )
    assert near.verdict == (
        "No map that may be chosen unasked is clearly better than the vectors as they are, so the adapter leaves them "
        "as they are: they fall short of the best lossless map by 0.4% at most."
    )
    tied = replace(near, table=tuple(replace(line, shortfall=0.0005) for line in near.table))
    assert tied.verdict.startswith("No lossless map keeps more neighbours than the vectors as they")
    assert "nested already" in tied.verdict


def test_a_named_map_that_loses_is_said_to_be_as_asked_for(source, tmp_path, on_cpu):
    record = train_adapter(source, recipe_of(8, method="random"), out=tmp_path / "out")
    assert record.verdict.startswith("As asked for with the method random: at 8 dims the first 8")


def test_bands_that_no_width_sees_are_refused_if_asked_for(source, tmp_path, on_cpu):
    out = tmp_path / "out"
    with pytest.raises(
        TrainingError,
        match=r"`method` banded needs at least two widths below the full one, or `dtypes`.* got 8 and 64.*Name "
        r"another width, codes with --quantize, or another method",
    ):
        train_adapter(source, recipe_of(8, method="banded"), out=out)
    assert not out.exists()
    coded = recipe_of(8, method="banded", dtypes=(Dtype.BINARY,))
    assert train_adapter(source, coded, out=out).winner == "banded 8"


def test_a_fit_that_is_cut_off_leaves_no_empty_folder(source, tmp_path, on_cpu, monkeypatch):
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nestling.train.adapter.adapter.choose", interrupted)
    (tmp_path / "there").mkdir()
    for name in ("new", "there"):
        with pytest.raises(KeyboardInterrupt):
            train_adapter(source, recipe_of(8, method="pca"), out=tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_supervised_rotation_learns_from_pairs(tmp_path, on_cpu):
    encoder = open_encoder("static:wordllama")
    corpus = Corpus(doc_ids=[str(row) for row in range(len(TEXTS))], texts=TEXTS, source="texts")
    source = encode_source(encoder, corpus, sample_rows=20_000, seed=0, cache=None)
    rows = [(f"where the {text}", text, "") for text in TEXTS]
    pairs = encode_pairs(encoder, make_pairs(rows, source="wheres"), most=1000, seed=0, cache=None)
    recipe = recipe_of(8, method="supervised")
    record = train_adapter(source, recipe, out=tmp_path / "out", pairs=pairs)
    assert (record.method, record.pairs) == ("supervised", "wheres")
    on_pairs = {line.name: dict(line.on_pairs or {}) for line in record.table}
    assert set(on_pairs["supervised"]) == {8, 256}
    assert on_pairs["supervised"][256] == pytest.approx(on_pairs["identity"][256], abs=1e-3)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "in groups or classes whose pairs no map was fitted on, of wheres" in card
    assert open_adapter(tmp_path / "out").fingerprint.space.adapter.startswith("supervised-")


def test_bad_input_is_refused_and_leaves_nothing_behind(source, tmp_path, on_cpu):
    out = tmp_path / "out"
    with pytest.raises(DimensionError, match=r"`dim` must lie in \[1, 64\].* got 128"):
        train_adapter(source, recipe_of(8, 128), out=out)
    with pytest.raises(
        DimensionError, match="must name a width below the full one, 64, got 64 alone"
    ):
        train_adapter(source, recipe_of(64), out=out)
    few = replace(source, vectors=source.vectors[:57], ids=source.ids[:57])
    with pytest.raises(DataError, match="at least 58 distinct vectors to fit 8 dims"):
        train_adapter(few, recipe_of(8), out=out)
    same = replace(source, vectors=np.repeat(source.vectors[:1], 700, axis=0))
    with pytest.raises(DataError, match="the same one 700 times"):
        train_adapter(same, recipe_of(8), out=out)
    broken = source.vectors.copy()
    broken[3] = np.nan
    with pytest.raises(VectorError, match="'3'"):
        train_adapter(replace(source, vectors=broken), recipe_of(8), out=out)
    with pytest.raises(DataError, match="`pairs` must be given to learn a supervised rotation"):
        train_adapter(source, recipe_of(8, method="supervised"), out=out)
    assert not out.exists()


def test_recipes_that_cannot_be_are_refused():
    with pytest.raises(TrainingError, match="`dtypes` must be among int8"):
        recipe_of(8, dtypes=(Dtype.FLOAT16,))
    with pytest.raises(DataError, match="`sample_rows` must be at least 1, got 0"):
        recipe_of(8, sample_rows=0)


def test_a_finished_adapter_is_refused_and_never_written_over_by_its_own_child(fitted, source):
    out, _ = fitted
    before = (out / "adapter.safetensors").read_bytes()
    with pytest.raises(WriteError, match="holds a finished model"):
        train_adapter(source, recipe_of(8), out=out)
    child = replace(source, parent=open_adapter(out).fingerprint)
    with pytest.raises(WriteError, match="must not be a model that the adapter is for"):
        train_adapter(child, recipe_of(8), out=out, overwrite=True)
    assert (out / "adapter.safetensors").read_bytes() == before


def test_no_adapter_is_written_over_by_a_child_of_its_child(fitted, source, tmp_path):
    out, _ = fitted
    before = (out / "adapter.safetensors").read_bytes()
    child = replace(source, parent=open_adapter(out).fingerprint)
    train_adapter(child, recipe_of(8, method="pca"), out=tmp_path / "child")
    grandchild = replace(source, parent=open_adapter(tmp_path / "child").fingerprint)
    with pytest.raises(
        WriteError,
        match=rf"must not be a model that the adapter is for.* got {out} for nest:\S+child, which needs it",
    ):
        train_adapter(grandchild, recipe_of(8, method="pca"), out=out, overwrite=True)
    assert (out / "adapter.safetensors").read_bytes() == before
    # Where the parent has gone, nothing can be known of its own parents.
    (tmp_path / "child").rename(tmp_path / "gone")
    train_adapter(grandchild, recipe_of(8, method="pca"), out=tmp_path / "third")


def test_an_adapter_of_an_adapter_names_both(fitted, source, tmp_path):
    out, _ = fitted
    first = open_adapter(out)
    child = replace(source, vectors=first.map(source.vectors), parent=first.fingerprint)
    train_adapter(child, recipe_of(8, method="pca"), out=tmp_path / "child")
    name = open_adapter(tmp_path / "child").fingerprint.space.adapter
    assert name.startswith(f"{first.fingerprint.space.adapter}+pca-")


def test_it_is_fitted_on_a_vector_folder_of_a_model_and_encodes_text(tmp_path, on_cpu):
    encoder = open_encoder("static:wordllama")
    corpus = Corpus(doc_ids=[str(row) for row in range(len(TEXTS))], texts=TEXTS, source="texts")
    encode_corpus(encoder, corpus, tmp_path / "vectors", dtype=Dtype.FLOAT16)
    train_adapter(
        read_source(tmp_path / "vectors"), recipe_of(8, method="pca"), out=tmp_path / "out"
    )
    adapted = open_adapter(tmp_path / "out").encode(TEXTS[:5], role="document")
    plain = encoder.encode(TEXTS[:5], role="document")
    np.testing.assert_allclose(adapted @ adapted.T, plain @ plain.T, atol=1e-5)
