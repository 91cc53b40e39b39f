"""Thresholds of a cascade: the paper's greedy rule, a joint search that knows costs, and a certificate."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from nestling.errors import EvidenceError
from nestling.measure.cascade import Cascade, WidthAnswers, answers_correctly
from nestling.measure.cascade_grid import Levels, descend, make_grid, starts, to_cascade, total_of
from nestling.measure.certify import (
    certifies,
    check_confidence,
    check_max_loss,
    loss_bound,
    queries_needed,
)

CostCount = Literal["dim", "cumulative_dim"]
"""What a cascade is charged per input: the width at exit (tied heads, and the paper's count), or the
sum of the widths tried (untied heads)."""

GREEDY_GRID = np.linspace(0.0, 1.0, 100)
"""The paper's 100 thresholds."""

LOSS_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the tolerated loss that are spent while fitting, from the safest cascade to the cheapest."""

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class CertifiedCascade:
    """A cascade fitted on one half of a split and tested on the other.

    Attributes:
        cascade: The cheapest that passed; the widest width alone if none did.
        max_loss: Tolerated loss of accuracy against the widest width, absolute.
        confidence: Of the certificate.
        is_certified: Whether a cascade passed. The widest width alone loses nothing by definition.
        loss: Accuracy lost on the half it was tested on.
        loss_bound: Largest loss not excluded at the confidence, right for this cascade alone.
        num_tested: Inputs in that half.
        inputs_needed: About how many inputs the safest cascade would have needed in that half, if it
            failed; None if it passed, or if no number would do.
    """

    cascade: Cascade
    max_loss: float
    confidence: float
    is_certified: bool
    loss: float
    loss_bound: float
    num_tested: int
    inputs_needed: int | None


def fit_greedy_thresholds(answers: WidthAnswers) -> Cascade:
    """Fit thresholds by the rule of the paper, pair by pair.

    For each width and the next one: of 100 thresholds in [0, 1], the smallest at which "this width if
    confident, else the next" is most accurate on the split (Kusupati et al. 2022, Appendix D.1,
    arXiv:2205.13147; the published code starts its grid at 0.1).

    The rule knows no costs: it buys any gain in accuracy, however small, by going on. A pair takes
    the next width's answer as final, though that width may pass the input on. And where a wider
    prefix is hardly better, the best threshold is set by a few inputs. `Cascade.capped` gives the
    paper's cascades that stop at each size.
    """
    thresholds = []
    for place in range(len(answers.dims) - 1):
        now, later = answers.is_correct[place : place + 2].astype(np.int64)
        codes = np.searchsorted(GREEDY_GRID, answers.confidences[place], side="left")
        gains = np.bincount(codes, weights=now - later, minlength=len(GREEDY_GRID) + 1)
        # Whoever goes on at level l has a code of at most l.
        lost = np.cumsum(gains)[:-1]
        thresholds.append(float(GREEDY_GRID[lost.argmin()]))
    return Cascade(dims=answers.dims, thresholds=tuple(thresholds))


def fit_thresholds(
    answers: WidthAnswers,
    *,
    cost: CostCount,
    min_accuracy: float | None = None,
    max_loss: float | None = None,
) -> Cascade:
    """Fit all thresholds together: the least mean cost at an accuracy on the split.

    Exact moves of two neighbouring thresholds at a time, all others being held, until none improves;
    from the greedy cascade stopped at each size and from each width alone. With up to two thresholds
    that is the best of all grid points; with more it is a local optimum.

    The accuracy is that of the split the thresholds were picked on, and optimistic for that: on 2,000
    simulated inputs half a point allowed became 0.8 points lost on new ones. Leave room, or use
    `fit_certified_thresholds`.

    Args:
        answers: On a validation split, at least some thousand inputs.
        cost: What to minimise.
        min_accuracy: Accuracy to keep, in (0, 1]; or
        max_loss: accuracy that may be lost against the widest width, absolute, in [0, 1).

    Returns:
        A cascade that may skip widths (infinite threshold) and may end before the widest.

    Raises:
        EvidenceError: If not exactly one target is given, it is out of range, or no thresholds found
            reach it.
    """
    needed = _correct_needed(answers, min_accuracy, max_loss)
    greedy = fit_greedy_thresholds(answers)
    grid = make_grid(answers, greedy, is_cumulative=cost == "cumulative_dim")
    best: Levels = ()
    best_rank = (False, -math.inf, -math.inf)
    seen: set[Levels] = set()
    for start in starts(grid, greedy):
        levels = descend(grid, start, needed, seen)
        rank = total_of(grid, levels).rank(needed)
        if rank > best_rank:
            best, best_rank = levels, rank
    if not best_rank[0]:
        raise EvidenceError(
            f"`min_accuracy` must be reachable: {needed / answers.is_correct.shape[1]:.4f} was asked "
            f"for, and the best cascade found has {best_rank[1] / answers.is_correct.shape[1]:.4f}. "
            f"Ask for less, or give `max_loss`."
        )
    return to_cascade(grid, best)


def fit_certified_thresholds(
    answers: WidthAnswers, *, cost: CostCount, max_loss: float, confidence: float, seed: int
) -> CertifiedCascade:
    """Fit cascades on half of the split, and certify on the other half that little is lost.

    Candidates spend 0, 1/4, 1/2, 3/4 and all of the tolerated loss while fitting. They are tested in
    this order, and the first failure ends the walk, so that the last that passed holds at the
    confidence (fixed-sequence Learn then Test, as in `choose`; the test is that of `certify`).

    Args:
        answers: On a split that the heads were not trained on.
        cost: What to minimise.
        max_loss: Tolerated loss of accuracy against the widest width, absolute, in (0, 1).
        confidence: 1 - delta, in (0.5, 1).
        seed: Of the halves.

    Raises:
        EvidenceError: If `max_loss` or `confidence` is out of range, or there are under two inputs.
    """
    check_max_loss(max_loss)
    check_confidence(confidence)
    num_inputs = answers.is_correct.shape[1]
    if num_inputs < 2:
        raise EvidenceError(
            f"`answers` must hold at least two inputs, one to fit and one to test, got {num_inputs}."
        )
    order = np.random.default_rng(seed).permutation(num_inputs)
    fitted, tested = answers.take(order[: num_inputs // 2]), answers.take(order[num_inputs // 2 :])
    candidates = [
        fit_thresholds(fitted, cost=cost, max_loss=share * max_loss) for share in LOSS_SHARES
    ]
    full = tested.is_correct[-1:].astype(np.float64)
    cuts = np.array([answers_correctly(each, tested) for each in candidates], dtype=np.float64)
    passed = certifies(
        np.broadcast_to(full, cuts.shape),
        cuts,
        max_loss=max_loss,
        relative=False,
        confidence=confidence,
    )
    num_passed = len(passed) if passed.all() else int(passed.argmin())
    if num_passed:
        cascade, cut = candidates[num_passed - 1], cuts[num_passed - 1]
        bound = float(loss_bound(full, cut[None], relative=False, confidence=confidence)[0])
    else:
        cascade, cut, bound = Cascade(dims=answers.dims[-1:], thresholds=()), full[0], 0.0
    needed = queries_needed(
        full[0], cuts[0], max_loss=max_loss, relative=False, confidence=confidence
    )
    return CertifiedCascade(
        cascade=cascade,
        max_loss=max_loss,
        confidence=confidence,
        is_certified=num_passed > 0,
        loss=float(full.mean() - cut.mean()),
        loss_bound=bound,
        num_tested=len(cut),
        # An unlucky order can fail with as many as would usually do: it still takes more.
        inputs_needed=None if num_passed or needed is None else max(needed, len(cut) + 1),
    )


def _correct_needed(
    answers: WidthAnswers, min_accuracy: float | None, max_loss: float | None
) -> int:
    if (min_accuracy is None) == (max_loss is None):
        raise EvidenceError(
            f"exactly one of `min_accuracy` and `max_loss` must be given, got {min_accuracy} and "
            f"{max_loss}."
        )
    num_inputs = answers.is_correct.shape[1]
    if min_accuracy is not None:
        if not 0 < min_accuracy <= 1:
            raise EvidenceError(
                f"`min_accuracy` must lie in (0, 1], got {min_accuracy}. For 76% pass 0.76."
            )
        return math.ceil(min_accuracy * num_inputs - _ROUNDING)
    if max_loss is None or not 0 <= max_loss < 1:
        raise EvidenceError(
            f"`max_loss` must lie in [0, 1), got {max_loss}. For one point of accuracy pass 0.01."
        )
    return int(answers.is_correct[-1].sum()) - math.floor(max_loss * num_inputs + _ROUNDING)
