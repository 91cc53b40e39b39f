"""An adapter is proposed where it helps, with what it would keep and with what to type."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nestling.core import Dtype
from nestling.measure.proposal import AdapterProposal, propose_adapter
from nestling.measure.results import Results, Row
from tests.measure.handmade import EMBED_DIM, make_results

QUERIES = 300
PROMISE = (
    "An adapter is fitted without labels, is chosen by what it keeps on held-out vectors, and leaves full-width "
    "scores as they are."
)


def measured(
    prefix: Mapping[int, float], pca: Mapping[int, float], *, noise: float = 0.0, **changes: Any
) -> Results:
    """Results at full width 0.6 whose cuts keep these shares of it; not nested."""
    generator = np.random.default_rng(0)
    cuts = {
        (family, dim, Dtype.FLOAT32): 0.6 * share + noise * generator.standard_normal(QUERIES)
        for family, shares in (("prefix", prefix), ("pca", pca))
        for dim, share in shares.items()
    }
    results = make_results(np.full(QUERIES, 0.6), cuts, **changes)
    return replace(results, looks_nested=False)


def proposed(results: Results) -> AdapterProposal:
    proposal = propose_adapter(results)
    assert proposal is not None
    return proposal


def test_it_says_what_a_rotation_keeps_and_what_to_type() -> None:
    proposal = proposed(measured({64: 0.51, 128: 0.80}, {64: 0.78, 128: 0.9049}))
    assert proposal.text == (
        f"{PROMISE} A rotation fitted on these documents (PCA) already keeps 78.0% of ndcg_at_10 instead of 51.0% at 64 dims, "
        f"90.5% instead of 80.0% at 128."
    )
    assert proposal.command == (
        "nestling train adapter --model static:handmade --fit-on beir:handmade --dims 64,128 --out adapter"
    )
    best = proposal.best
    assert best is not None
    assert best.dim == 64


def test_only_clear_gains_are_spoken_of() -> None:
    proposal = proposed(measured({16: 0.40, 64: 0.51}, {16: 0.405, 64: 0.78}))
    assert [gain.dim for gain in proposal.gains] == [64]
    assert proposal.command.endswith("--dims 16,64 --out adapter")
    loud = proposed(measured({64: 0.500}, {64: 0.515}, noise=2.0))
    assert loud.gains == ()
    assert loud.best is None
    assert loud.text == PROMISE


def test_without_the_baseline_it_only_promises() -> None:
    assert proposed(measured({64: 0.51}, {})).text == PROMISE


@pytest.mark.parametrize("looks_nested", [True, None])
def test_a_model_that_looks_nested_or_may_be_needs_none(looks_nested: bool | None) -> None:
    results = replace(measured({64: 0.51}, {64: 0.78}), looks_nested=looks_nested)
    assert propose_adapter(results) is None


def test_vectors_with_an_adapter_get_no_other() -> None:
    results = measured({64: 0.51}, {64: 0.78})
    space = replace(results.fingerprint.space, adapter="pca-0123456789abcdef")
    adapted = replace(results, fingerprint=replace(results.fingerprint, space=space))
    assert propose_adapter(adapted) is None


def test_none_where_pca_is_nowhere_better() -> None:
    assert propose_adapter(measured({32: 0.4, 64: 0.51}, {32: 0.4, 64: 0.50})) is None


def test_none_where_nothing_was_cut() -> None:
    assert propose_adapter(measured({}, {})) is None


def test_a_metric_without_values_per_query_has_no_clear_gains() -> None:
    results = measured({64: 0.51}, {64: 0.78})
    rows = [replace(row, per_query=None) for row in results.rows]
    assert proposed(replace(results, rows=rows)).gains == ()


@pytest.mark.parametrize(
    ("model", "task", "source"),
    [
        (
            "st:./my model",
            "beir:./scifact#dev",
            "--model 'st:./my model' --fit-on 'beir:./scifact#dev'",
        ),
        ("st:./m", "builtin", "--model st:./m --fit-on builtin"),
        ("st:./m", "builtin#train", "--model st:./m --fit-on 'builtin#train'"),
        ("st:./m", "builtin:wide", "--model st:./m --fit-on builtin:wide"),
        ("st:./m", "builtin:wide#train", "--model st:./m --fit-on 'builtin:wide#train'"),
        ("onnx:./m", "builtin:digits", "--model onnx:./m --fit-on DOCUMENTS"),
        ("st:./m", "self:notes", "--model st:./m --fit-on notes"),
        ("st:./m", "labels:intents.tsv", "--model st:./m --fit-on DOCUMENTS"),
        ("m", "self:my vectors.npy", "--fit-on 'my vectors.npy'"),
        ("vectors:v.npy", "beir:./scifact", "--fit-on v.npy"),
    ],
)
def test_the_command_names_what_was_measured(model: str, task: str, source: str) -> None:
    results = measured({64: 0.51}, {64: 0.78}, model=model, task=task)
    assert proposed(results).command == (f"nestling train adapter {source} --dims 64 --out adapter")


def test_the_text_speaks_of_what_there_is() -> None:
    for task in ("images:digits", "builtin:digits"):
        images = measured({64: 0.51}, {64: 0.78}, task=task)
        assert "A rotation fitted on these vectors (PCA)" in proposed(images).text
    ranking = measured({64: 0.51}, {64: 0.78}, task="self:notes")
    assert "keeps 78.0% of the full-width ranking instead of" in proposed(ranking).text


def test_the_command_opens_the_model_as_it_was_measured() -> None:
    results = measured({64: 0.51}, {64: 0.78}, model="openai:m")
    fingerprint = replace(
        results.fingerprint,
        encoder={"max_tokens": "128"},
        origin={"model": "openai:m", "base_url": "http://localhost:8000/v1"},
    )
    assert proposed(replace(results, fingerprint=fingerprint)).command == (
        "nestling train adapter --model openai:m --base-url http://localhost:8000/v1 --max-tokens 128 "
        "--fit-on beir:handmade --dims 64 --out adapter"
    )


def test_of_many_widths_eight_are_asked_for() -> None:
    shares = dict.fromkeys(range(1, EMBED_DIM), 0.5)
    proposal = proposed(measured(shares, {64: 0.78}))
    dims = proposal.command.split("--dims ")[1].split()[0].split(",")
    assert len(dims) == 8
    assert (dims[0], dims[-1]) == ("1", str(EMBED_DIM - 1))


def test_another_metric_may_be_spoken_of() -> None:
    results = measured({64: 0.51}, {64: 0.78})

    def worse(row: Row) -> Row:
        return replace(row, metric="mrr_at_10", value=row.value / 2)

    both = replace(results, rows=[*results.rows, *map(worse, results.rows)])
    proposal = propose_adapter(both, metric="mrr_at_10")
    assert proposal is not None
    assert proposal.best is not None
    assert proposal.best.rotated == pytest.approx(0.78)
