"""Walk from the widest cut down, and certify each step or stop.

Fixed-sequence testing in the manner of Learn then Test (Angelopoulos et al. 2021, arXiv:2110.01052):
candidates stand in an order fixed before any value is looked at, each is tested at the full level,
and the first failure ends the walk. For any certificate to be wrong, the first candidate in the
order that loses too much must have passed its own test; so all that passed hold together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int

from nestling.measure.candidates import values_per_query
from nestling.measure.certify import certifies, loss_bound, queries_needed
from nestling.measure.decision import Step
from nestling.measure.intervals import bootstrap_loss_intervals
from nestling.measure.results import Row

Tested = tuple[Row, Step]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked of every candidate.

    Attributes:
        max_loss: Tolerated loss.
        relative: Whether `max_loss` is a share of the full-width mean, else absolute.
        confidence: Of a family's certificate.
        seed: Of the order of the queries and of the intervals.
        order: Places of the queries, in the order of testing.
        full: Value of the full width per query, in that order.
    """

    max_loss: float
    relative: bool
    confidence: float
    seed: int
    order: Int[np.ndarray, " queries"]
    full: Float64[np.ndarray, " queries"]


def walk_family(chains: Sequence[Sequence[Row]], question: Question) -> list[Tested]:
    """Return the steps tested in the chains of one family, its delta split equally over them."""
    delta = 1.0 - question.confidence
    return [
        tested
        for chain in chains
        for tested in _walk_chain(chain, question, confidence=1.0 - delta / len(chains))
    ]


def _walk_chain(chain: Sequence[Row], question: Question, *, confidence: float) -> list[Tested]:
    """Return the steps of one chain up to and including the first that fails.

    Args:
        chain: In the order of testing.
        question: What is asked.
        confidence: This chain's share of it.
    """
    cuts = values_per_query(chain)[:, question.order]
    full = np.broadcast_to(question.full, cuts.shape)
    passed = certifies(
        full, cuts, max_loss=question.max_loss, relative=question.relative, confidence=confidence
    )
    num_tested = len(chain) if passed.all() else int(passed.argmin()) + 1
    cuts, full = cuts[:num_tested], full[:num_tested]
    bounds = loss_bound(full, cuts, relative=question.relative, confidence=confidence)
    intervals = bootstrap_loss_intervals(
        question.full,
        cuts,
        relative=question.relative,
        confidence=question.confidence,
        seed=question.seed,
    )
    full_value = float(question.full.mean())
    return [
        (
            row,
            Step(
                family=row.family,
                dim=row.dim,
                dtype=row.dtype,
                bytes_per_vector=row.bytes_per_vector,
                value=float(cut.mean()),
                kept=float(cut.mean()) / full_value,
                loss=full_value - float(cut.mean()),
                loss_bound=float(bound),
                interval=(float(interval[0]), float(interval[1])),
                passed=bool(has_passed),
                queries_needed=None if has_passed else _more_queries(cut, question, confidence),
            ),
        )
        for row, cut, bound, interval, has_passed in zip(
            chain[:num_tested], cuts, bounds, intervals, passed[:num_tested], strict=True
        )
    ]


def _more_queries(
    cut: Float64[np.ndarray, " queries"], question: Question, confidence: float
) -> int | None:
    """Return about how many queries would certify what these did not."""
    needed = queries_needed(
        question.full,
        cut,
        max_loss=question.max_loss,
        relative=question.relative,
        confidence=confidence,
    )
    # An unlucky order can fail with as many as would usually do: it still takes more.
    return None if needed is None else max(needed, len(cut) + 1)
