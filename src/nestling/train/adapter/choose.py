"""Which whole map is best, judged on documents that none was fitted on."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int

from nestling.core import Dtype
from nestling.errors import TrainingError
from nestling.measure.cuts import make_cuts
from nestling.measure.intervals import bootstrap_mean_interval
from nestling.measure.metrics import overlap
from nestling.train.adapter.candidates import BASELINES, Candidate, Method
from nestling.train.adapter.neighbours import nearest_others
from nestling.train.adapter.pairs import HeldOutPairs

CONFIDENCE = 0.95

TIE = 1e-3
"""Shortfalls that differ by less than a tenth of a point of 100 do not differ, whatever their error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Below:
    """A cut at which the chosen map is worse than a baseline.

    Attributes:
        dim: Width.
        dtype: Number format.
        baseline: The better of identity and pca there.
        difference: Its value less that of the chosen map.
        low: Lower end of the 95% interval of the difference.
        high: Upper end.
    """

    dim: int
    dtype: Dtype
    baseline: str
    difference: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What a candidate is worth on the held-out rows.

    A value is the mean overlap of the ten nearest neighbours at a cut with the ten nearest at the
    full width in float32 of the original vectors.

    Attributes:
        name: Of the candidate.
        method: Its kind.
        is_lossless: Whether it keeps the full-width scores.
        seconds: That fitting took.
        values: By number format and width.
        shortfall: Largest amount by which a value is below that of the best lossless candidate,
            over the formats and widths that are judged.
        on_pairs: nDCG@10 by width on held-out pairs, in float32; None without pairs.
    """

    name: str
    method: Method
    is_lossless: bool
    seconds: float
    values: Mapping[Dtype, Mapping[int, float]]
    shortfall: float
    on_pairs: Mapping[int, float] | None

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        values = {str(dtype): _named(by_dim) for dtype, by_dim in self.values.items()}
        pairs = None if self.on_pairs is None else _named(self.on_pairs)
        return {**asdict(self), "values": values, "on_pairs": pairs}


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The map that won, and the table it won in.

    Attributes:
        winner: The candidate.
        table: All candidates.
        below: Where it is worse than the better of identity and pca.
        num_held_out: Rows that they were judged by.
    """

    winner: Candidate
    table: tuple[Judged, ...]
    below: tuple[Below, ...]
    num_held_out: int


Cut = tuple[Dtype, int]
Overlaps = Float64[np.ndarray, " rows"]


def choose(
    candidates: Sequence[Candidate],
    *,
    fit_rows: Float32[np.ndarray, "fit embed_dim"],
    held_out: Float32[np.ndarray, "held_out embed_dim"],
    dims: Sequence[int],
    dtypes: Sequence[Dtype],
    allowed: Sequence[Method],
    pairs: HeldOutPairs | None,
    seed: int,
) -> Choice:
    """Choose the candidate with the smallest shortfall; the first of those that may be as good.

    Each held-out row seeks its ten nearest others among all rows, as a query would in the index, at
    every width and in every format, and is judged by those that it has at the full width of the
    original vectors. A shortfall is the largest difference, over the widths and `dtypes`, from the
    best of the lossless candidates at the same cut: a map that is best at most widths and bad at one
    does not win. A simpler map is preferred while its shortfall is above the smallest by no more than one standard error of
    the difference, over the held-out rows, from the best at its worst cut (the rule of Breiman et al.
    1984, Classification and Regression Trees, section 3.4.3).

    Args:
        candidates: The simpler ones first; identity and pca among them.
        fit_rows: Unit rows that the candidates were fitted on; codes are calibrated on them, too.
        held_out: Unit rows, at least two, that no candidate was fitted on.
        dims: Ascending widths, the last the full one.
        dtypes: Number formats that the choice looks at; float32 is in the table in any case.
        allowed: Methods that may win.
        pairs: Shown in the table; the choice does not look at them.
        seed: Of the bootstrap.

    Raises:
        TrainingError: If no candidate may win.
    """
    formats = list(dict.fromkeys([Dtype.FLOAT32, *dtypes]))
    full = held_out.shape[1]
    own = np.arange(len(held_out))
    reference = nearest_others(held_out, np.concatenate([held_out, fit_rows]), [full], own=own)[
        full
    ]
    found = {
        candidate.name: _overlaps(candidate, fit_rows, held_out, reference, dims, formats)
        for candidate in candidates
    }
    means = {
        name: {cut: float(values.mean()) for cut, values in by_cut.items()}
        for name, by_cut in found.items()
    }
    judged_cuts = [(dtype, dim) for dtype in dtypes for dim in dims]
    lossless = [candidate.name for candidate in candidates if candidate.map.is_lossless]
    best = {cut: max(means[name][cut] for name in lossless) for cut in judged_cuts}
    worst_cuts = {
        name: max(judged_cuts, key=lambda cut: best[cut] - by_cut[cut])
        for name, by_cut in means.items()
    }
    shortfalls = {name: best[cut] - means[name][cut] for name, cut in worst_cuts.items()}
    errors = {
        name: _standard_error(
            found[max(lossless, key=lambda other: means[other][cut])][cut] - found[name][cut]
        )
        for name, cut in worst_cuts.items()
    }
    winner = _first_of_the_best(candidates, shortfalls, errors, allowed)
    table = tuple(
        Judged(
            name=candidate.name,
            method=candidate.method,
            is_lossless=candidate.map.is_lossless,
            seconds=candidate.seconds,
            values={
                dtype: {dim: means[candidate.name][dtype, dim] for dim in dims} for dtype in formats
            },
            shortfall=shortfalls[candidate.name],
            on_pairs=None if pairs is None else pairs.values(candidate.map, tuple(dims)),
        )
        for candidate in candidates
    )
    return Choice(
        winner=winner,
        table=table,
        below=tuple(_below_baseline(winner.name, found, judged_cuts, seed=seed)),
        num_held_out=len(held_out),
    )


def _named(by_dim: Mapping[int, float]) -> dict[str, float]:
    return {str(dim): value for dim, value in by_dim.items()}


def _first_of_the_best(
    candidates: Sequence[Candidate],
    shortfalls: Mapping[str, float],
    errors: Mapping[str, float],
    allowed: Sequence[Method],
) -> Candidate:
    able = [candidate for candidate in candidates if candidate.method in allowed]
    if not able:
        raise TrainingError(
            f"`allowed` must name the method of a candidate, got {', '.join(allowed)} for the candidates "
            f"{', '.join(candidate.name for candidate in candidates)}. Fit one of them, or allow another."
        )
    least = min(shortfalls[candidate.name] for candidate in able)
    return next(
        candidate
        for candidate in able
        if shortfalls[candidate.name] <= least + max(TIE, errors[candidate.name])
    )


def _standard_error(differences: Overlaps) -> float:
    return float(differences.std() / np.sqrt(len(differences)))


def _below_baseline(
    winner: str,
    found: Mapping[str, Mapping[Cut, Overlaps]],
    cuts: Sequence[Cut],
    *,
    seed: int,
) -> list[Below]:
    below = []
    for cut in cuts:
        baseline = max(BASELINES, key=lambda name: found[name][cut].mean())
        lost = found[baseline][cut] - found[winner][cut]
        if lost.mean() <= 0:
            continue
        low, high = bootstrap_mean_interval(lost, confidence=CONFIDENCE, seed=seed)
        below.append(
            Below(
                dtype=cut[0],
                dim=cut[1],
                baseline=baseline,
                difference=float(lost.mean()),
                low=low,
                high=high,
            )
        )
    return below


def _overlaps(
    candidate: Candidate,
    fit_rows: Float32[np.ndarray, "fit embed_dim"],
    held_out: Float32[np.ndarray, "held_out embed_dim"],
    reference: Int[np.ndarray, "held_out k"],
    dims: Sequence[int],
    formats: Sequence[Dtype],
) -> dict[Cut, Overlaps]:
    queries, fitted = candidate.map(held_out), candidate.map(fit_rows)
    documents, own = np.concatenate([queries, fitted]), np.arange(len(queries))
    values: dict[Cut, Overlaps] = {}
    for cut in make_cuts(fitted, dims=dims, dtypes=formats, seed=0, baselines=False):
        found = nearest_others(
            cut.query_side(queries), cut.corpus_side(documents), cut.dims, own=own
        )
        values |= {(cut.dtype, dim): overlap(found[dim], reference) for dim in cut.dims}
    return values
