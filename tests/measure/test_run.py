import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from nestling.core import Dtype, Int4Codec, Int8Codec, bytes_per_vector, random_rotation
from nestling.data import RetrievalTask, SelfTask
from nestling.encode import AdaptedEncoder, Encoder, adapt_vectors, encode_corpus, open_encoder
from nestling.errors import (
    DataError,
    DimensionError,
    EncoderError,
    FingerprintError,
    VectorError,
)
from nestling.measure import Results, measure
from nestling.measure.cuts import NUM_RANDOM_DRAWS, Rotation
from nestling.measure.results import Row
from tests.encode.adapters import save_adapter
from tests.measure.small_tasks import (
    TableEncoder,
    classification_task,
    corpus,
    pair_task,
    retrieval_task,
    self_task,
    sentences,
    sts_task,
)

DIMS = (16, 64, 256)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return open_encoder("static:wordllama")


@pytest.fixture(scope="module")
def retrieval_results(encoder) -> Results:
    # Binary only at full width: 16 signs of float16 weights tie too often to compare rankings.
    dtypes = (Dtype.FLOAT32, Dtype.FLOAT16, Dtype.INT8, Dtype.INT4, Dtype.ROTATED_BINARY)
    return measure(encoder, retrieval_task(), dims=DIMS, dtypes=dtypes, shortlist_size=30)


class Scratch:
    """Everything once more from scratch: one width at a time, in float64, query by query."""

    def __init__(self, documents: np.ndarray, queries: np.ndarray) -> None:
        self.documents = documents
        self.queries = queries
        codec = Int8Codec.calibrate(documents)
        values, vectors = np.linalg.eigh((documents.T @ documents).astype(np.float64))
        self.basis = vectors[:, np.argsort(-values)]
        rotated = (documents @ self.basis).astype(np.float32)
        pca_codec = Int8Codec.calibrate(rotated)
        int4, pca_int4 = Int4Codec.calibrate(documents), Int4Codec.calibrate(rotated)
        self.coded = {
            ("prefix", "float32"): documents,
            ("prefix", "float16"): documents.astype(np.float16),
            ("prefix", "int8"): codec.decode(codec.encode(documents)[0]),
            ("prefix", "binary"): np.where(documents > 0, 1, -1),
            ("pca", "float32"): rotated,
            ("pca", "int8"): pca_codec.decode(pca_codec.encode(rotated)[0]),
            ("prefix", "int4"): int4.decode(int4.encode(documents)[0]),
            ("pca", "int4"): pca_int4.decode(pca_int4.encode(rotated)[0]),
        }

    def rank(self, family: str, dtype: str, dim: int, columns: Any = None) -> np.ndarray:
        if dtype == "rotated-binary":
            # An eigenvector may point either way, and which way it does changes these bits.
            basis = Rotation.fit_pca(self.documents).basis if family == "pca" else np.eye(256)
            turn = basis[:, :dim] @ random_rotation(dim)
            signs = np.where(self.documents @ turn > 0, 1, -1)
            return self._order(signs, self.queries @ turn, dim)
        documents = self.coded["prefix" if columns is not None else family, dtype]
        queries = self.queries @ self.basis if family == "pca" else self.queries
        if columns is not None:
            documents, queries = documents[:, columns], queries[:, columns]
        return self._order(documents, queries, dim)

    def funnel(self, dtype: str, dim: int, shortlist_size: int) -> np.ndarray:
        head = self.rank("prefix", dtype, dim)[:, :shortlist_size]
        full = self.rank("prefix", "float32", 256)
        return np.array(
            [
                [row for row in order if row in shortlist]
                for order, shortlist in zip(full.tolist(), map(set, head.tolist()), strict=True)
            ]
        )

    @staticmethod
    def _order(documents: np.ndarray, queries: np.ndarray, dim: int) -> np.ndarray:
        left, right = (side[:, :dim].astype(np.float64) for side in (queries, documents))
        left /= np.linalg.norm(left, axis=1, keepdims=True)
        right /= np.linalg.norm(right, axis=1, keepdims=True)
        # Rounded, so that documents of equal signs tie, and the lower row comes first.
        return np.argsort(-np.round(left @ right.T, 10), axis=1, kind="stable")


def ndcg_at_10(order: list[int], grades: Mapping[str, int]) -> float:
    def dcg(gains: list[int]) -> float:
        return float(sum(gain / np.log2(rank + 2) for rank, gain in enumerate(gains[:10])))

    return dcg([grades.get(f"d{row}", 0) for row in order]) / dcg(sorted(grades.values())[::-1])


def naive(metric: str, order: list[int], grades: Mapping[str, int], reference: list[int]) -> float:
    relevant = [grades.get(f"d{row}", 0) > 0 for row in order]
    total = sum(grade > 0 for grade in grades.values())
    if metric == "ndcg_at_10":
        return ndcg_at_10(order, grades)
    if metric == "ndcg_at_10_binary":
        return ndcg_at_10(order, {name: int(grade > 0) for name, grade in grades.items()})
    if metric == "mrr_at_10":
        return 1 / (relevant.index(True) + 1) if any(relevant[:10]) else 0.0
    if metric == "map_at_100":
        hits = [rank for rank, hit in enumerate(relevant[:100], start=1) if hit]
        return sum(number / rank for number, rank in enumerate(hits, start=1)) / total
    if metric == "overlap_at_10":
        return len(set(order[:10]) & set(reference)) / 10
    depth = {"recall_at_10": 10, "recall_at_100": 100}[metric]
    return sum(relevant[:depth]) / total


def expected_order(scratch: Scratch, row: Row) -> np.ndarray:
    if row.family == "funnel":
        assert row.shortlist_size is not None
        return scratch.funnel(row.dtype, row.dim, row.shortlist_size)
    return scratch.rank(row.family, row.dtype, row.dim)


def test_every_row_equals_an_evaluation_from_scratch(encoder, retrieval_results):
    task = retrieval_task()
    scratch = Scratch(
        encoder.encode(task.corpus.texts, role="document"),
        encoder.encode(task.queries, role="query"),
    )
    reference = scratch.rank("prefix", "float32", 256)[:, :10].tolist()
    generator = np.random.default_rng(0)
    draws = [generator.permutation(256) for _ in range(NUM_RANDOM_DRAWS)]
    orders_of = {}
    for row in retrieval_results.rows:
        cut = (row.family, row.dim, row.dtype)
        if cut not in orders_of and row.family == "random":
            orders_of[cut] = [scratch.rank("random", "float32", row.dim, draw) for draw in draws]
        elif cut not in orders_of:
            orders_of[cut] = [expected_order(scratch, row)]
        values = [
            np.mean(
                [
                    naive(row.metric, order[query].tolist(), task.qrels[name], reference[query])
                    for order in orders_of[cut]
                ]
            )
            for query, name in enumerate(task.query_ids)
        ]
        # A rotated value on the edge between two codes may fall to either side.
        is_on_edge = row.dtype in (Dtype.INT8, Dtype.INT4) and row.family == "pca"
        tolerance = 5e-3 if is_on_edge else 1e-6
        assert row.per_query is not None
        np.testing.assert_allclose(
            row.per_query, values, rtol=0, atol=tolerance, err_msg=f"{cut} {row.metric}"
        )
        assert row.value == pytest.approx(np.mean(values), abs=tolerance)
        assert row.bytes_per_vector == bytes_per_vector(row.dtype, row.dim)


def test_what_is_in_the_table(retrieval_results):
    found = {(row.family, row.dim, str(row.dtype)) for row in retrieval_results.rows}
    formats = ("float32", "float16", "int8", "int4", "rotated-binary")
    expected = {("prefix", 256, "binary"), ("funnel", 256, "binary")}
    expected |= {("prefix", dim, dtype) for dim in DIMS for dtype in formats}
    expected |= {("funnel", dim, dtype) for dim in DIMS for dtype in formats}
    expected |= {("pca", dim, dtype) for dim in DIMS for dtype in formats if dtype != "float16"}
    expected |= {("random", dim, "float32") for dim in DIMS[:-1]}
    assert found == expected - {("funnel", 256, "float32")}
    assert {row.metric for row in retrieval_results.rows} == {
        "ndcg_at_10",
        "ndcg_at_10_binary",
        "mrr_at_10",
        "recall_at_10",
        "recall_at_100",
        "map_at_100",
        "overlap_at_10",
    }


def test_results_say_what_was_measured(retrieval_results, encoder):
    task = retrieval_task()
    results = retrieval_results
    assert results.main_metric == "ndcg_at_10"
    assert results.query_ids == task.query_ids
    assert results.embed_dim == 256
    assert results.fingerprint == encoder.fingerprint
    assert results.corpus_hash == task.corpus.corpus_hash
    assert results.num_documents == 300
    assert results.environment["seed"] == 0
    assert results.notes[0] == "made for a test"
    assert (
        results.reference().value
        == results.find(family="prefix", dim=256, dtype=Dtype.FLOAT32).value
    )
    assert {(row.model, row.task) for row in results.rows} == {
        ("wordllama-l2-supercat-256", "tiny")
    }


def test_defaults_are_halving_widths_in_float32_int8_and_binary(encoder):
    results = measure(encoder, retrieval_task(60, 5), model="static:wordllama", command="typed")
    prefixes = {(row.dim, str(row.dtype)) for row in results.rows if row.family == "prefix"}
    widths = (8, 16, 32, 64, 128, 256)
    formats = ("float32", "int8", "binary")
    assert prefixes == {(dim, dtype) for dim in widths for dtype in formats}
    assert results.rows[0].model == "static:wordllama"
    assert results.environment["command"] == "typed"


def test_a_full_width_left_out_is_added(encoder):
    results = measure(encoder, retrieval_task(60, 5), dims=(32,), dtypes=())
    assert results.reference().dim == 256


def test_the_same_seed_gives_the_same_bits(encoder):
    def bits(seed: int) -> list[dict[str, Any]]:
        data = measure(encoder, retrieval_task(), dims=DIMS, seed=seed).to_json()
        return [{**row, "seconds": 0} for row in data["rows"]]

    first, again, other = bits(0), bits(0), bits(1)
    assert first == again
    differ = {row["family"] for row, changed in zip(first, other, strict=True) if row != changed}
    assert differ == {"random"}


def test_results_survive_a_file(retrieval_results, tmp_path):
    retrieval_results.save(tmp_path / "results.json", overwrite=False)
    loaded = Results.load(tmp_path / "results.json").to_json()
    assert loaded == json.loads(json.dumps(retrieval_results.to_json()))


def test_inputs_are_encoded_once(tmp_path):
    texts = sentences(50, seed=0)
    vectors = np.random.default_rng(0).standard_normal((50, 16))
    made = TableEncoder(dict(zip(texts, vectors, strict=True)))
    task = RetrievalTask(
        name="tiny",
        corpus=corpus(texts),
        query_ids=["q"],
        queries=texts[:1],
        qrels={"q": {"d0": 1}},
    )
    measure(made, task, cache=tmp_path)
    assert made.num_encoded == 51
    measure(made, task, dims=(2, 4), cache=tmp_path)
    assert made.num_encoded == 51


def test_dropped_documents_are_told_and_still_judged():
    texts = ["good", "bad", "fine"]
    vectors = {"good": np.array([1.0, 0.0]), "bad": np.zeros(2), "fine": np.array([0.0, 1.0])}
    task = RetrievalTask(
        name="tiny",
        corpus=corpus(texts),
        query_ids=["q"],
        queries=["good"],
        qrels={"q": {"d0": 1, "d1": 1}},
    )
    with pytest.raises(VectorError, match="'d1'"):
        measure(TableEncoder(vectors), task)
    results = measure(TableEncoder(vectors), task, bad_rows="drop")
    assert results.num_documents == 2
    assert results.reference("recall_at_10").value == 0.5
    assert results.notes == [
        "1 of 3 documents were left out: zero or not finite ('d1')",
        "the shortlist of 100 holds all 2 documents: funnels lose nothing here",
        "number of queries: 1. So few say little: read the intervals",
    ]


def test_sts_is_spearman_of_cosines(encoder):
    task = sts_task()
    results = measure(encoder, task, dims=DIMS)
    left, right = (encoder.encode(side, role="document") for side in (task.left, task.right))
    for dim in DIMS:
        a, b = (
            side[:, :dim] / np.linalg.norm(side[:, :dim], axis=1)[:, None] for side in (left, right)
        )
        expected = spearmanr((a * b).sum(axis=1), task.gold).statistic
        row = results.find(family="prefix", dim=dim, dtype=Dtype.FLOAT32)
        assert row.value == pytest.approx(expected, abs=1e-6)
        assert row.per_query is None
    assert results.main_metric == "spearman"
    assert len(results.query_ids) == len(task.left)
    assert results.num_documents == 0
    assert results.looks_nested is None
    assert "funnel" not in {row.family for row in results.rows}


def test_a_pair_with_a_bad_side_is_dropped():
    table = {name: np.random.default_rng(row).standard_normal(4) for row, name in enumerate("abcd")}
    table["zero"] = np.zeros(4)
    task = dataclasses.replace(
        sts_task(4),
        left=["a", "b", "zero", "c"],
        right=["b", "c", "d", "d"],
        gold=np.array([1.0, 3.0, 0.0, 2.0]),
    )
    with pytest.raises(VectorError, match="'left 2'"):
        measure(TableEncoder(table), task)
    results = measure(TableEncoder(table), task, bad_rows="drop")
    assert results.query_ids == ["0", "1", "3"]
    cosines = [
        table[a] @ table[b] / np.linalg.norm(table[a]) / np.linalg.norm(table[b])
        for a, b in ("ab", "bc", "cd")
    ]
    assert results.reference().value == pytest.approx(spearmanr(cosines, [1, 3, 2]).statistic)


def test_pair_classification_is_average_precision(encoder):
    results = measure(encoder, pair_task(), dims=DIMS)
    assert results.main_metric == "average_precision"
    assert 0.8 < results.reference().value <= 1.0


def test_classification_has_values_per_test_input(encoder):
    task = classification_task()
    results = measure(encoder, task, dims=DIMS)
    assert results.main_metric == "accuracy_1nn"
    assert results.num_documents == len(task.train_inputs)
    row = results.reference()
    assert row.per_query is not None
    assert len(row.per_query) == len(results.query_ids) == len(task.test_inputs)
    assert set(row.per_query) <= {0.0, 1.0}
    assert row.value > 0.9
    assert results.reference("accuracy_logistic").value > 0.9
    assert results.query_ids[0] == "test 0"


def test_self_holds_queries_out_of_the_corpus(encoder):
    task = self_task()
    results = measure(encoder, task, dims=DIMS)
    assert results.main_metric == "overlap_at_10"
    assert {row.metric for row in results.rows} == {"overlap_at_10", "recall_at_10_of_full"}
    assert len(results.query_ids) == 30
    assert results.num_documents == 270
    assert results.reference().value == 1.0
    assert "30 documents, held out of the corpus, are the queries" in results.notes


def test_recall_of_full_is_what_a_funnel_of_a_hundred_can_reach(encoder):
    results = measure(encoder, self_task(), dims=(8, 256))
    head = results.find(family="prefix", dim=8, dtype=Dtype.INT8, metric="recall_at_10_of_full")
    funnel = results.find(family="funnel", dim=8, dtype=Dtype.INT8)
    assert head.per_query == funnel.per_query
    alone = results.find(family="prefix", dim=8, dtype=Dtype.INT8)
    assert alone.value < head.value < 1.0


def test_self_takes_queries_given_as_texts(encoder):
    results = measure(encoder, self_task(queries=sentences(7, seed=9)), dims=DIMS)
    assert len(results.query_ids) == 7
    assert results.num_documents == 300


def test_self_needs_no_encoder_for_vectors(tmp_path, nested_vectors, nested_queries):
    np.save(tmp_path / "corpus.npy", nested_vectors)
    np.save(tmp_path / "queries.npy", nested_queries)
    task = SelfTask(
        name="self:corpus.npy",
        corpus=None,
        vectors=tmp_path / "corpus.npy",
        query_vectors=tmp_path / "queries.npy",
    )
    results = measure(None, task, dims=(8, 64))
    assert (len(results.query_ids), results.num_documents) == (50, 2000)
    held_out = measure(None, dataclasses.replace(task, query_vectors=None), dims=(8, 64))
    assert (len(held_out.query_ids), held_out.num_documents) == (200, 1800)
    assert held_out.looks_nested is True


def test_queries_of_another_space_are_refused(tmp_path):
    texts = sentences(20, seed=0)
    vectors = np.random.default_rng(0).standard_normal((20, 8))
    table = dict(zip(texts, vectors, strict=True))
    encode_corpus(TableEncoder(table, space="one"), corpus(texts), tmp_path / "vectors")
    task = SelfTask(
        name="self:vectors", corpus=None, vectors=tmp_path / "vectors", queries=texts[:3]
    )
    results = measure(TableEncoder(table, space="one"), task)
    assert len(results.query_ids) == 3
    assert results.corpus_hash == corpus(texts).corpus_hash
    encode_corpus(TableEncoder(table, space="two"), corpus(texts), tmp_path / "queries")
    stored = dataclasses.replace(task, queries=None, query_vectors=tmp_path / "queries")
    with pytest.raises(
        FingerprintError, match="documents is 'one' and that of the queries is 'two'"
    ):
        measure(None, stored)


@pytest.mark.parametrize("queries", [None, ["river mountain", "engine violin"]])
def test_a_folder_is_not_measured_as_another_model(queries, tmp_path):
    texts = sentences(20, seed=0)
    vectors = np.random.default_rng(0).standard_normal((20, 8))
    table = dict(zip(texts, vectors, strict=True))
    encode_corpus(TableEncoder(table, space="one"), corpus(texts), tmp_path / "vectors")
    task = SelfTask(name="self:vectors", corpus=None, vectors=tmp_path / "vectors", queries=queries)
    with pytest.raises(
        FingerprintError,
        match=r"the folder .*/vectors is 'one' and the model named is 'two'.*"
        r"Leave the model out to measure the vectors as they are, or name the one that made them\.",
    ):
        measure(TableEncoder(table, space="two"), task)


def test_vectors_are_measured_with_an_adapter_once_they_are_mapped(tmp_path):
    texts = sentences(40, seed=0)
    parent = open_encoder("static:wordllama")
    encode_corpus(parent, corpus(texts), tmp_path / "vectors")
    adapter = open_encoder(save_adapter(tmp_path / "adapter", parent.fingerprint))
    assert isinstance(adapter, AdaptedEncoder)
    task = SelfTask(name="self:vectors", corpus=None, vectors=tmp_path / "vectors")
    with pytest.raises(
        FingerprintError,
        match=rf"Map the vectors first: nestling encode --model {adapter.uri} --vectors "
        rf"{tmp_path}/vectors --out ADAPTED, and measure those\.",
    ):
        measure(adapter, task, dims=(64,))
    adapt_vectors(adapter, tmp_path / "vectors", tmp_path / "adapted")
    mapped = dataclasses.replace(task, vectors=tmp_path / "adapted")
    assert measure(adapter, mapped, dims=(64,)).fingerprint.space == adapter.fingerprint.space
    with pytest.raises(FingerprintError, match=r"differ in adapter 'random-\w+' against None"):
        measure(parent, mapped, dims=(64,))
    # A plain file tells no space: it is taken for what it is said to be.
    np.save(tmp_path / "v.npy", np.random.default_rng(0).standard_normal((40, 256)))
    plain = dataclasses.replace(task, vectors=tmp_path / "v.npy")
    assert measure(adapter, plain, dims=(64,), model=adapter.uri).rows[0].model == adapter.uri


def test_texts_without_an_encoder_are_refused():
    with pytest.raises(DataError, match=r"`encoder` must be given for self:tiny, .* got None"):
        measure(None, self_task())


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ((64, 32), "`dims` must ascend"),
        ((32, 512), r"`dim` must lie in \[1, 256\]"),
        ((), "`dims` must name at least one width"),
    ],
)
def test_wrong_widths_are_refused_before_anything_is_encoded(encoder, dims, message):
    class Untouched(TableEncoder):
        def encode(self, inputs: Any, **options: Any) -> np.ndarray:
            raise AssertionError("encoded before the widths were checked")

    with pytest.raises(DimensionError, match=message):
        measure(Untouched({"a": np.ones(256)}), retrieval_task(), dims=dims)


def test_an_encoder_that_returns_another_width_is_refused():
    made = TableEncoder({text: np.ones(8) for text in sentences(300, seed=6)})
    made.table = {text: np.ones(4) for text in made.table}
    with pytest.raises(EncoderError, match=r"shape \(300, 8\), got \(300, 4\)"):
        measure(made, self_task())


def test_judgements_that_cannot_judge_are_refused_before_the_encoding():
    untouched = TableEncoder({"a": np.ones(8)})
    sts = dataclasses.replace(sts_task(3), gold=np.ones(3))
    with pytest.raises(DataError, match="`gold` must hold at least two different scores"):
        measure(untouched, sts)
    pairs = dataclasses.replace(pair_task(3), is_match=np.ones(3, dtype=bool))
    with pytest.raises(DataError, match="`is_match` must hold pairs that match"):
        measure(untouched, pairs)
    labels = dataclasses.replace(classification_task(3, 1), train_labels=["x", "x", "x"])
    with pytest.raises(DataError, match="`train_labels` must hold at least two classes"):
        measure(untouched, labels)
    assert untouched.num_encoded == 0


def test_an_empty_shortlist_is_refused(encoder):
    with pytest.raises(DataError, match="`shortlist_size` must be at least 1, got 0"):
        measure(encoder, retrieval_task(), shortlist_size=0)


def test_images_are_classified():
    generator = np.random.default_rng(0)
    labels = ["dark", "light"] * 20
    images = np.array(
        [generator.integers(0, 100, (4, 4)) + 155 * (label == "light") for label in labels],
        dtype=np.uint8,
    )

    class PixelEncoder(TableEncoder):
        def encode(self, inputs: Any, **options: Any) -> np.ndarray:
            return (inputs.reshape(len(inputs), -1).astype(np.float32) - 127.5) / 255

    task = dataclasses.replace(
        classification_task(),
        train_inputs=images[:30],
        train_labels=labels[:30],
        test_inputs=images[30:],
        test_labels=labels[30:],
    )
    results = measure(PixelEncoder({"": np.ones(16)}, max_tokens=1), task, dims=(4, 16))
    assert results.reference().value == 1.0
