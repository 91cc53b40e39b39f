from dataclasses import replace

import numpy as np
import pytest

from nestling.core import Dtype
from nestling.errors import EvidenceError
from nestling.measure.candidates import find_candidates, split_into_chains, values_per_query
from nestling.measure.results import Results, Row
from tests.measure.handmade import EMBED_DIM, make_results, make_row

FULL = np.linspace(0.2, 1.0, 20)
F32, F16, INT8, INT4 = Dtype.FLOAT32, Dtype.FLOAT16, Dtype.INT8, Dtype.INT4
BINARY, ROTATED = Dtype.BINARY, Dtype.ROTATED_BINARY


def find(results: Results) -> list[Row]:
    return find_candidates(results, results.reference())


def test_chains_go_by_width_then_bytes_with_sign_bits_apart():
    rows = [
        make_row("prefix", dim, dtype, FULL)
        for dim in (64, 1024, 256)
        for dtype in (ROTATED, BINARY, INT4, INT8, F32, F16)
        if (dim, dtype) != (EMBED_DIM, F32)
    ]
    wider, binary, rotated = split_into_chains(rows)
    assert [(row.dim, row.dtype) for row in wider] == [
        (1024, F16),
        (1024, INT8),
        (1024, INT4),
        *[(dim, dtype) for dim in (256, 64) for dtype in (F32, F16, INT8, INT4)],
    ]
    for chain, dtype in ((binary, BINARY), (rotated, ROTATED)):
        assert [(row.dim, row.dtype) for row in chain] == [(1024, dtype), (256, dtype), (64, dtype)]


def test_the_order_does_not_depend_on_the_values_or_on_the_order_of_the_rows():
    # At 4 dims float16 and int8 take 8 bytes both.
    cuts = [(dim, dtype) for dim in (512, 4) for dtype in (F32, F16, INT8, INT4)]
    generator = np.random.default_rng(0)
    orders = set()
    for _ in range(20):
        rows = [make_row("prefix", *cut, generator.random(20)) for cut in cuts]
        (chain,) = split_into_chains([rows[place] for place in generator.permutation(8)])
        orders.add(tuple((row.dim, row.dtype) for row in chain))
    assert orders == {tuple(cuts)}


def test_an_absent_chain_is_left_out():
    assert split_into_chains([]) == []
    assert len(split_into_chains([make_row("prefix", 64, BINARY, FULL)])) == 1


def test_baselines_other_metrics_and_the_uncut_width_are_no_candidates():
    results = make_results(
        FULL,
        {
            ("prefix", 64, INT8): FULL,
            ("pca", 64, INT8): FULL,
            ("random", 64, INT8): FULL,
            ("funnel", EMBED_DIM, F32): FULL,
            ("funnel", 64, INT8): FULL,
        },
    )
    other = make_row("prefix", 32, INT8, FULL, metric="mrr_at_10")
    results = replace(results, rows=[*results.rows, other])
    assert [(row.family, row.dim) for row in find(results)] == [("prefix", 64), ("funnel", 64)]


def test_values_just_outside_the_unit_interval_are_let_in():
    row = make_row("prefix", 64, INT8, [1.0 + 2e-16, -1e-12, 0.5, 1.5])
    np.testing.assert_array_equal(values_per_query([row]), [[1.0, 0.0, 0.5, 1.5]])


def test_refuses_results_with_nothing_to_choose():
    with pytest.raises(EvidenceError, match=r"must hold a cut to choose, got only.*--dims"):
        find(make_results(FULL, {("pca", 64, INT8): FULL}))


def test_refuses_a_metric_without_values_per_query():
    results = make_results(None, {("prefix", 64, INT8): None}, metric="spearman")
    with pytest.raises(
        EvidenceError, match=r"`spearman` is one number for the whole task.*Read the curve"
    ):
        find(results)


def test_names_the_metrics_that_have_values_per_query():
    results = make_results(None, {("prefix", 64, INT8): None}, metric="map_of_all")
    other = make_row("prefix", 64, INT8, FULL, metric="mrr_at_10")
    results = replace(results, rows=[*results.rows, other])
    with pytest.raises(EvidenceError, match=r"`map_of_all`.*a metric that has: mrr_at_10\."):
        find(results)


def test_refuses_too_few_queries():
    results = make_results(FULL[:9], {("prefix", 64, INT8): FULL[:9]})
    with pytest.raises(EvidenceError, match=r"at least 10 queries to choose by, got 9\..*150"):
        find(results)


def test_refuses_a_full_width_of_zero():
    zero = np.zeros(20)
    with pytest.raises(EvidenceError, match="0 for every query, so there is nothing to lose"):
        find(make_results(zero, {("prefix", 64, INT8): FULL}))


def test_refuses_a_metric_that_is_constant_everywhere():
    ones = np.ones(20)
    with pytest.raises(EvidenceError, match=r"is 1 for every query and every cut.*stricter metric"):
        find(make_results(ones, {("prefix", 64, INT8): ones, ("funnel", 64, INT8): ones}))


def test_a_full_width_that_is_constant_by_definition_is_fine():
    results = make_results(np.ones(20), {("prefix", 64, INT8): FULL}, metric="overlap_at_10")
    assert len(find(results)) == 1


def test_refuses_a_candidate_given_twice():
    results = make_results(FULL, {("funnel", 64, INT8): FULL})
    again = make_row("funnel", 64, INT8, FULL, shortlist_size=20)
    results = replace(results, rows=[*results.rows, again])
    with pytest.raises(EvidenceError, match="got funnel 64-d int8 twice"):
        find(results)


def test_refuses_rows_of_another_task():
    results = make_results(FULL, {})
    other = make_row("prefix", 64, INT8, FULL, task="sts:x.tsv")
    results = replace(results, rows=[*results.rows, other])
    with pytest.raises(EvidenceError, match=r"one model and one task.*beir:handmade.*sts:x\.tsv"):
        find(results)


def test_refuses_rows_that_were_cut_short():
    with pytest.raises(EvidenceError, match="got 19 in prefix 64-d int8 for 20 queries"):
        find(make_results(FULL, {("prefix", 64, INT8): FULL[:19]}))


def test_refuses_a_funnel_without_a_shortlist():
    results = make_results(FULL, {("funnel", 64, INT8): FULL})
    rows = [replace(row, shortlist_size=None) for row in results.rows]
    with pytest.raises(EvidenceError, match="`shortlist_size` must be given for a funnel"):
        find(replace(results, rows=rows))
