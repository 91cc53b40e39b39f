"""New vectors are compared with those at the fit: drift is found, chance is not taken for it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestling.core import Int8Codec, normalize
from nestling.data import SimilarityTask, open_corpus, open_task
from nestling.encode import open_encoder
from nestling.errors import DimensionError, FormatError, VectorError
from nestling.measure.cuts import Rotation
from nestling.measure.drift import DriftReference, measure_drift, without_own
from nestling.measure.drift_report import DriftReport, WidthDrift

DIMS = (4, 8, 16)
EMBED_DIM = 32


def draw(
    num_rows: int, *, seed: int, decay: float = 1.0, basis_seed: int | None = None
) -> np.ndarray:
    """Unit rows whose coordinates shrink; with a basis seed in another basis."""
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((num_rows, EMBED_DIM))
    rows /= np.arange(1, EMBED_DIM + 1) ** decay
    if basis_seed is not None:
        other = np.random.default_rng(basis_seed).standard_normal((EMBED_DIM, EMBED_DIM))
        rows = rows @ np.linalg.qr(other)[0]
    return np.asarray(normalize(rows), dtype=np.float32)


def find(report: DriftReport, dim: int) -> WidthDrift:
    return next(width for width in report.widths if width.dim == dim)


def slow_overlap(rows: np.ndarray, dim: int) -> float:
    """The ten nearest neighbours, row by row."""

    def nearest(width: int, row: int) -> set[int]:
        prefix = normalize(rows[:, :width].astype(np.float64))
        scores = prefix @ prefix[row]
        scores[row] = -np.inf
        return set(np.argsort(-scores, kind="stable")[:10].tolist())

    shares = [len(nearest(dim, row) & nearest(rows.shape[1], row)) / 10 for row in range(len(rows))]
    return float(np.mean(shares))


def test_reference_agrees_with_the_slow_truth() -> None:
    rows = draw(250, seed=0)
    reference = DriftReference.of(rows, DIMS, seed=0)
    assert reference.dims == (*DIMS, EMBED_DIM)
    for column, dim in enumerate(reference.dims):
        energies = [float((row[:dim].astype(np.float64) ** 2).sum()) for row in rows]
        assert reference.energy.mean[column] == pytest.approx(np.mean(energies), abs=1e-6)
        assert reference.energy.spread[column] == pytest.approx(np.std(energies, ddof=1), abs=1e-6)
        # 250 rows are the whole sample.
        assert reference.overlaps[250].mean[column] == pytest.approx(slow_overlap(rows, dim))
    assert reference.overlaps[250].mean[-1] == 1.0
    assert reference.int8_scale == pytest.approx(np.abs(rows).max(axis=0) / 127)


def test_what_a_row_finds_of_itself_is_left_out() -> None:
    found = np.array([[0, 3, 2], [2, 1, 0], [4, 5, 6], [7, 8, 3]])
    own = np.array([0, 1, 2, -2])
    # The third is among many equal rows and not listed, the last is none of those sought among.
    assert without_own(found, own).tolist() == [[3, 2], [2, 0], [4, 5], [7, 8]]


def test_clipped_values_are_those_the_codec_clips() -> None:
    rows, new = draw(60, seed=0), draw(80, seed=1, decay=0.7)
    reference = DriftReference.of(rows, DIMS, seed=0)
    codec = Int8Codec.calibrate(rows)
    report = measure_drift(reference, new)
    for width in report.widths:
        _, num_clipped = codec.take_prefix(width.dim).encode(normalize(new)[:, : width.dim])
        assert width.clipped_now == pytest.approx(num_clipped / (len(new) * width.dim))
        assert width.clipped_then == pytest.approx(1 / 61)
    assert find(report, EMBED_DIM).clipped_now > 0


def test_neighbours_are_sought_in_samples_of_one_size() -> None:
    rows = draw(1200, seed=0)
    assert set(DriftReference.of(rows, DIMS, seed=0).overlaps) == {250, 500, 1000}
    assert set(DriftReference.of(rows[:249], DIMS, seed=0).overlaps) == set()
    reference = DriftReference.of(rows, DIMS, seed=0)
    # Fewer candidates are easier to tell apart, so unequal samples would look like drift.
    sizes = [reference.overlaps[size].mean[0] for size in (250, 500, 1000)]
    assert sizes[0] > sizes[1] > sizes[2]
    for num_rows, size in ((249, None), (250, 250), (999, 500), (1200, 1000)):
        report = measure_drift(reference, draw(num_rows, seed=1))
        assert report.num_overlap_rows == size
        assert (find(report, 4).overlap_now is None) is (size is None)


def test_equal_rows_show_no_change_at_all() -> None:
    rows = draw(600, seed=0)
    report = measure_drift(DriftReference.of(rows, DIMS, seed=0), rows)
    assert report.verdict == "fits"
    for width in report.widths:
        assert width.energy_now == width.energy_then
        assert width.overlap_now == width.overlap_then
        assert width.clipped_now == 0.0


@pytest.mark.parametrize("num_new", [40, 250, 500])
def test_a_fresh_sample_of_the_same_kind_fits(num_new: int) -> None:
    """No false alarm in 60 draws; at a true rate of 5% that would happen once in twenty tries."""
    verdicts = []
    for seed in range(60):
        reference = DriftReference.of(draw(500, seed=1000 + seed), DIMS, seed=seed)
        verdicts.append(measure_drift(reference, draw(num_new, seed=seed)).verdict)
    assert verdicts.count("refit") == 0


@pytest.mark.parametrize("num_new", [40, 250, 500])
def test_rows_in_another_basis_are_always_noticed(num_new: int) -> None:
    for seed in range(20):
        reference = DriftReference.of(draw(500, seed=1000 + seed), DIMS, seed=seed)
        report = measure_drift(reference, draw(num_new, seed=seed, basis_seed=seed))
        assert report.verdict == "refit"
        assert set(report.reasons) == (
            {"energy", "clipping"} if num_new == 40 else {"energy", "overlap", "clipping"}
        )


def test_neighbours_alone_may_drift() -> None:
    """The energy in the prefix is the same, but what tells rows apart has moved out of it."""
    generator = np.random.default_rng(0)

    def rows(spread_before: float, spread_behind: float) -> np.ndarray:
        before = np.ones((500, 16)) + spread_before * generator.standard_normal((500, 16))
        behind = np.ones((500, 16)) + spread_behind * generator.standard_normal((500, 16))
        halves = (normalize(before), normalize(behind))
        return np.asarray(np.hstack(halves) / np.sqrt(2), dtype=np.float32)

    report = measure_drift(DriftReference.of(rows(0.3, 0.1), (16,), seed=0), rows(0.1, 0.3))
    assert "overlap" in report.reasons
    assert "energy" not in report.reasons
    assert find(report, 16).energy_now == pytest.approx(0.5, abs=1e-6)


def test_ranges_alone_may_drift() -> None:
    """A few rows far outside the ranges; the rest is as before."""
    rows, new = draw(5000, seed=0), draw(2000, seed=1)
    outliers = np.zeros((40, EMBED_DIM), dtype=np.float32)
    outliers[:, EMBED_DIM // 2 :] = np.random.default_rng(0).choice([-0.25, 0.25], (40, 16))
    report = measure_drift(DriftReference.of(rows, DIMS, seed=0), np.vstack([new, outliers]))
    assert set(report.reasons) == {"clipping"}
    assert [width.dim for width in report.widths if width.is_clipped] == [EMBED_DIM]
    assert report.advice.startswith(
        "Refit the adapter, or build the index again on such vectors, which calibrates int8 anew: its map still "
        "fits, but int8 clips more than 0.1% of the values too many at 32 dims ("
    )


def test_ranges_of_few_rows_are_expected_to_be_left_now_and_then() -> None:
    """The largest of 20 rows is passed by one new row in 21: far above 0.1%, and no drift."""
    clipped, expected = [], 0.0
    for seed in range(200):
        reference = DriftReference.of(draw(20, seed=1000 + seed), DIMS, seed=0)
        report = measure_drift(reference, draw(40, seed=seed))
        assert "clipping" not in report.reasons
        width = find(report, EMBED_DIM)
        clipped.append(width.clipped_now)
        expected = width.clipped_then
    assert expected == pytest.approx(1 / 21)
    # Half a step beyond the range is still rounded into it.
    assert 0.9 * expected < np.mean(clipped) < 1.02 * expected


def test_gains_are_no_reason_to_refit() -> None:
    reference = DriftReference.of(draw(500, seed=0, decay=0.5), DIMS, seed=0)
    report = measure_drift(reference, draw(500, seed=1, decay=1.0))
    assert find(report, 8).energy_now > 1.1 * find(report, 8).energy_then
    assert not {"energy", "overlap"} & set(report.reasons)


WIDTH = WidthDrift(
    dim=16,
    energy_then=0.5,
    energy_now=0.5,
    energy_error=0.001,
    clipped_then=0.0005,
    clipped_now=0.0005,
    clipped_error=0.0001,
    overlap_then=0.6,
    overlap_now=0.6,
    overlap_error=0.001,
)


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({"energy_now": 0.448}, set()),
        ({"energy_now": 0.446}, {"energy"}),
        ({"energy_now": 0.446, "energy_error": 0.01}, set()),
        ({"overlap_now": 0.548}, set()),
        ({"overlap_now": 0.546}, {"overlap"}),
        ({"overlap_now": 0.546, "overlap_error": 0.01}, set()),
        ({"clipped_now": 0.0017}, set()),
        ({"clipped_now": 0.0019}, {"clipping"}),
        ({"clipped_now": 0.0019, "clipped_error": 0.001}, set()),
        ({"overlap_then": None, "overlap_now": None, "overlap_error": None}, set()),
    ],
)
def test_a_change_counts_if_it_is_large_and_no_chance(
    changes: dict[str, Any], reasons: set[str]
) -> None:
    report = report_of(replace(WIDTH, **changes))
    assert set(report.reasons) == reasons
    assert report.verdict == ("refit" if reasons else "fits")
    assert report.to_json()["verdict"] == report.verdict


def report_of(*widths: WidthDrift, num_overlap_rows: int | None = 500) -> DriftReport:
    return DriftReport(
        num_rows=500, num_fit_rows=500, num_overlap_rows=num_overlap_rows, widths=widths
    )


def test_advice_names_widths_reasons_and_the_worst() -> None:
    drifted = {"energy_now": 0.4, "overlap_now": 0.5, "clipped_now": 0.01}
    report = report_of(
        replace(WIDTH, dim=4),
        replace(WIDTH, dim=8, **drifted),
        replace(WIDTH, dim=16, **drifted | {"energy_now": 0.3, "overlap_now": 0.45}),
        replace(WIDTH, dim=32, **drifted | {"clipped_now": 0.02}),
    )
    assert report.advice == (
        "Refit the adapter on vectors like these: the energy of the prefix fell by more than 10% at 8, 16 and 32 "
        "dims (from 0.500 to 0.300 at 16); the prefix finds fewer of the ten nearest neighbours, by more than 5 "
        "points, at 8, 16 and 32 dims (from 60.0% to 45.0% at 16); int8 clips more than 0.1% of the values too "
        "many at 8, 16 and 32 dims (2.00% at 32, where 0.05% is to be expected)."
    )


def test_advice_when_all_is_well() -> None:
    assert report_of(WIDTH).advice == (
        "The adapter fits these vectors: no prefix has drifted in energy, neighbours or int8 ranges beyond the bounds."
    )
    assert report_of(WIDTH, num_overlap_rows=None).advice == (
        "The adapter fits these vectors: no prefix has drifted in energy or int8 ranges beyond the bounds. Neighbours "
        "were not compared: that takes at least 250 new vectors, and 250 held-out ones at the fit."
    )


@given(num_rows=st.integers(2, 600), seed=st.integers(0, 5))
def test_a_reference_survives_a_json_file(num_rows: int, seed: int) -> None:
    reference = DriftReference.of(draw(num_rows, seed=seed), DIMS, seed=seed)
    assert DriftReference.from_json(json.loads(json.dumps(reference.to_json()))) == reference


def test_same_seed_same_bits() -> None:
    rows = draw(600, seed=0)
    same = [DriftReference.of(rows, DIMS, seed=3) for _ in range(2)]
    assert same[0] == same[1]
    assert DriftReference.of(rows, DIMS, seed=4).overlaps != same[0].overlaps


def test_rows_of_any_length_are_taken_as_unit_rows() -> None:
    rows = draw(300, seed=0)
    lengths = np.random.default_rng(0).choice([0.5, 2.0, 4.0], (300, 1)).astype(np.float32)
    assert DriftReference.of(rows * lengths, DIMS, seed=0).energy.mean == pytest.approx(
        DriftReference.of(rows, DIMS, seed=0).energy.mean
    )


def test_duplicates_are_no_neighbours_of_themselves() -> None:
    rows = np.repeat(draw(1, seed=0), 300, axis=0)
    reference = DriftReference.of(rows, DIMS, seed=0)
    assert measure_drift(reference, rows).verdict == "fits"


@pytest.mark.parametrize("damage", ["dims", "energy", "int8_scale", "overlaps", "seed"])
def test_a_damaged_reference_is_refused(damage: str) -> None:
    data = DriftReference.of(draw(300, seed=0), DIMS, seed=0).to_json()
    for broken in (
        {name: value for name, value in data.items() if name != damage},
        {**data, damage: None},
        {**data, damage: []},
    ):
        with pytest.raises(
            FormatError, match="`reference` must be what the fit of an adapter wrote"
        ):
            DriftReference.from_json(broken)
    with pytest.raises(FormatError, match="different lengths"):
        DriftReference.from_json({**data, "int8_scale": data["int8_scale"][1:]})


def test_rows_that_cannot_be_compared_are_refused() -> None:
    reference = DriftReference.of(draw(300, seed=0), DIMS, seed=0)
    with pytest.raises(VectorError, match="`rows` must be 32 wide like those at the fit, got 16"):
        measure_drift(reference, draw(300, seed=0)[:, :16].copy())
    with pytest.raises(VectorError, match="at least two rows to tell how they spread, got 1"):
        measure_drift(reference, draw(1, seed=0))
    bad = draw(5, seed=0)
    bad[1], bad[3, 2] = 0.0, np.nan
    with pytest.raises(VectorError, match="finite and not all zero, got 2 bad of 5"):
        measure_drift(reference, bad)
    with pytest.raises(DimensionError):
        DriftReference.of(draw(300, seed=0), (64,), seed=0)


@pytest.mark.data
def test_sentences_are_unlike_the_docstrings_that_a_map_was_fitted_on(nestling_data: Path) -> None:
    encoder = open_encoder("static:wordllama")
    documents = open_corpus("builtin").texts[:3000]
    pairs = open_task(f"sts:{nestling_data / 'stsb' / 'stsb-en-test.tsv.gz'}")
    assert isinstance(pairs, SimilarityTask)
    docstrings, sentences = (
        encoder.encode(list(dict.fromkeys(texts)), role="document")
        for texts in (documents, [*pairs.left, *pairs.right])
    )
    order = np.random.default_rng(0).permutation(len(docstrings))
    fit, seen, fresh = np.array_split(docstrings[order], 3)
    turn = Rotation.fit_pca(fit)
    reference = DriftReference.of(turn(seen), (16, 32, 64), seed=0)
    assert measure_drift(reference, turn(fresh)).verdict == "fits"
    report = measure_drift(reference, turn(sentences))
    assert set(report.reasons) == {"energy", "overlap", "clipping"}
    # The rows that a map was fitted on look better than any others: no reference.
    flattered = DriftReference.of(turn(fit), (16, 32, 64), seed=0)
    assert flattered.energy.mean[1] > 1.05 * reference.energy.mean[1]
