"""Is the mean loss of a cut within a tolerance? A one-sided betting test on paired losses.

The test of Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by
betting" (arXiv:2010.09686). Per query i, with both values in [0, 1] and tolerance t,

    relative:  Z_i = (1 - t) * full_i - cut_i   in [-1, 1 - t]
    absolute:  Z_i = full_i - cut_i - t         in [-1 - t, 1 - t]

and the loss is within the tolerance exactly when E[Z] <= 0. (Dividing by the sample mean of
`full` instead would leave a ratio that is not bounded, and no certificate.) Suppose E[Z] >= 0. A
gambler who starts with 1 and stakes lambda_i in [0, 1/(1 - t)), chosen before query i is looked
at, holds prod(1 - lambda_i * Z_i): never negative, and not expected to grow. By Ville's inequality
this wealth ever reaches 1/delta with a probability of at most delta, so once it does, the loss is
certified with confidence 1 - delta, whatever the distribution. Queries must come in an order that
does not depend on their values, and stand for the queries of the future (independent draws).

Stakes are written as a share of the largest safe one, lambda_i = share_i / (1 - t), and the shares
do not depend on t. Each factor is then monotone in t, so a larger tolerance never turns a pass into
a fail, and the test can be inverted by bisection.
"""

import math

import numpy as np
from jaxtyping import Bool, Float

from nestling.errors import EvidenceError

MAX_SHARE = 0.85
"""Cap of a share. 1 needs the fewest queries if nothing is ever lost, and is ruined by a single query
that is lost whole; 0.85 needs at most a fifth more than the best cap of each simulated kind of loss."""

FIRST_SQUARE = 0.25
"""Squared difference of an imagined query 0, so that the first stakes are small."""

SPREADS_BELOW = 0.6
"""How many standard deviations below its mean `queries_needed` takes the final log wealth to be.

0.84 would be the normal quantile of a chance of 0.8. Wealth that falls short at the end may have
reached its target on the way, though, and 0.6 gave chances around 0.8 over simulated losses.
"""

NUM_BISECTIONS = 24
"""Halvings of [0, 1] by `loss_bound`: a resolution of 6e-8."""

MOST_QUERIES = 2**40
"""A loss that needs more than this many is taken to be no smaller than the tolerance."""


def certificate_floor(num_queries: int, confidence: float) -> float:
    """Return about the smallest absolute loss that any distribution-free test can certify.

    ln(1/delta) / n: if each query were lost whole with this probability, n queries in a row would
    show no loss at all with a probability of delta. A cut that beats the full width can be
    certified below it; a cut that merely equals it cannot.
    """
    return math.log(1.0 / (1.0 - confidence)) / num_queries


def certifies(
    full: Float[np.ndarray, "series queries"],
    cut: Float[np.ndarray, "series queries"],
    *,
    max_loss: float,
    relative: bool,
    confidence: float,
) -> Bool[np.ndarray, " series"]:
    """Return for which series the mean loss is certified to be within the tolerance.

    Each series is a test of its own; nothing is corrected for testing several.

    Args:
        full: Metric of the full width per query, in [0, 1], in the order of testing.
        cut: Metric of the cut for the same queries.
        max_loss: In (0, 1): a share of the mean of `full` if `relative`, else absolute.
        relative: What `max_loss` is counted in.
        confidence: 1 - delta.

    Raises:
        EvidenceError: If a value is outside [0, 1], or `max_loss` or `confidence` is out of range.
    """
    _check(full, cut, confidence=confidence)
    check_max_loss(max_loss)
    wealth = log_wealth(full, cut, max_loss=max_loss, relative=relative, confidence=confidence)
    return wealth.max(axis=-1) >= _log_target(confidence)


def loss_bound(
    full: Float[np.ndarray, "series queries"],
    cut: Float[np.ndarray, "series queries"],
    *,
    relative: bool,
    confidence: float,
) -> Float[np.ndarray, " series"]:
    """Return the largest loss that is not excluded at the confidence, in [0, 1].

    The inverse of `certifies`: every tolerance from the bound up would be certified. Rounded up by
    at most 6e-8, and 1 where nothing can be excluded. A bound on one series picked in advance; it
    is not adjusted for picking the series by its result.

    Args:
        full: As in `certifies`.
        cut: As in `certifies`.
        relative: Whether the bound is a share of the mean of `full`, else absolute.
        confidence: As in `certifies`.

    Raises:
        EvidenceError: As in `certifies`.
    """
    _check(full, cut, confidence=confidence)
    excluded = np.ones((len(full), 1))
    allowed = np.zeros((len(full), 1))
    for _ in range(NUM_BISECTIONS):
        middle = (allowed + excluded) / 2.0
        wealth = log_wealth(full, cut, max_loss=middle, relative=relative, confidence=confidence)
        passed = wealth.max(axis=-1, keepdims=True) >= _log_target(confidence)
        excluded = np.where(passed, middle, excluded)
        allowed = np.where(passed, allowed, middle)
    return excluded[:, 0]


def queries_needed(
    full: Float[np.ndarray, " queries"],
    cut: Float[np.ndarray, " queries"],
    *,
    max_loss: float,
    relative: bool,
    confidence: float,
) -> int | None:
    """Return about how many queries like these would certify the loss, four times in five.

    The growth of log wealth per query, and its spread, are taken from the queries at hand; so is
    the size of the stakes. The number is for a fresh set: to enlarge a set that failed and test it
    again would be a second test, at a second delta.

    Args:
        full: As in `certifies`, for one series.
        cut: As in `certifies`, for one series.
        max_loss: As in `certifies`.
        relative: As in `certifies`.
        confidence: As in `certifies`.

    Returns:
        None if the measured loss is not below the tolerance: wealth then shrinks at any stake, and
        more of the same would not help.

    Raises:
        EvidenceError: As in `certifies`.
    """
    _check(full, cut, confidence=confidence)
    check_max_loss(max_loss)
    shortfalls = scaled_shortfalls(full, cut, max_loss=max_loss, relative=relative)
    mean_square = float(np.mean((full - cut) ** 2))

    def is_enough(num_queries: int) -> bool:
        square = (FIRST_SQUARE + num_queries * mean_square) / (num_queries + 1)
        share = _shares(np.array([square]), num_queries=num_queries, confidence=confidence)
        gains = np.log1p(-share * shortfalls)
        expected = num_queries * gains.mean()
        spread = math.sqrt(num_queries) * gains.std()
        return bool(expected - SPREADS_BELOW * spread >= _log_target(confidence))

    enough = 1
    while not is_enough(enough):
        enough *= 2
        if enough > MOST_QUERIES:
            return None
    too_few = enough // 2
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        too_few, enough = (too_few, middle) if is_enough(middle) else (middle, enough)
    return enough


def log_wealth(
    full: Float[np.ndarray, "series queries"],
    cut: Float[np.ndarray, "series queries"],
    *,
    max_loss: float | Float[np.ndarray, "series 1"],
    relative: bool,
    confidence: float,
) -> Float[np.ndarray, "series queries"]:
    """Return the logarithm of the wealth after each query; arguments as in `certifies`.

    `max_loss` may also be one value per series.
    """
    shares = stake_shares(full, cut, confidence=confidence)
    shortfalls = scaled_shortfalls(full, cut, max_loss=max_loss, relative=relative)
    return np.cumsum(np.log1p(-shares * shortfalls), axis=-1)


def stake_shares(
    full: Float[np.ndarray, "series queries"],
    cut: Float[np.ndarray, "series queries"],
    *,
    confidence: float,
) -> Float[np.ndarray, "series queries"]:
    """Return what is staked on each query, as a share of the largest safe stake.

    sqrt(2 ln(1/delta) / (n * m)) where m is the mean squared difference of the queries before, and
    at most `MAX_SHARE`: the predictable plug-in of Waudby-Smith and Ramdas for a sample size n
    known in advance, which makes a bound as narrow as it can be after n queries. The second moment
    stands in for their variance, since a loss worth certifying is small beside its spread.
    """
    num_queries = full.shape[-1]
    squares = np.cumsum((full - cut) ** 2, axis=-1)
    before = np.concatenate([np.zeros_like(squares[:, :1]), squares[:, :-1]], axis=-1)
    mean_squares = (FIRST_SQUARE + before) / np.arange(1, num_queries + 1)
    return _shares(mean_squares, num_queries=num_queries, confidence=confidence)


def scaled_shortfalls(
    full: Float[np.ndarray, "*series queries"],
    cut: Float[np.ndarray, "*series queries"],
    *,
    max_loss: float | Float[np.ndarray, "*series 1"],
    relative: bool,
) -> Float[np.ndarray, "*series queries"]:
    """Return Z / (1 - max_loss) per query: at most 1, and above 0 on average if too much is lost."""
    if relative:
        return full - cut / (1.0 - max_loss)
    return (full - cut - max_loss) / (1.0 - max_loss)


def check_max_loss(max_loss: float) -> None:
    """Refuse a tolerance of no loss, or of everything.

    Raises:
        EvidenceError: If `max_loss` is outside (0, 1).
    """
    if not 0.0 < max_loss < 1.0:
        raise EvidenceError(
            f"`max_loss` must lie between 0 and 1, both excluded, got {max_loss}. For 2% pass 0.02; "
            f"no finite number of queries certifies a loss of exactly 0."
        )


def check_confidence(confidence: float) -> None:
    """Refuse a confidence that is no better than a coin, or that is certainty.

    Raises:
        EvidenceError: If `confidence` is outside (0.5, 1).
    """
    if not 0.5 < confidence < 1.0:
        raise EvidenceError(
            f"`confidence` must lie between 0.5 and 1, both excluded, got {confidence}. "
            f"For 95% pass 0.95."
        )


def _check(
    full: Float[np.ndarray, "*series queries"],
    cut: Float[np.ndarray, "*series queries"],
    *,
    confidence: float,
) -> None:
    check_confidence(confidence)
    if full.shape[-1] == 0:
        raise EvidenceError("`full` must hold at least one query, got none. Measure some first.")
    for name, values in (("full", full), ("cut", cut)):
        outside = ~((values >= 0.0) & (values <= 1.0))
        if outside.any():
            raise EvidenceError(
                f"`{name}` must hold values of a metric in [0, 1], since the test bets on bounded "
                f"losses, got {values[outside][0]}. Choose by a metric with that range."
            )


def _shares(
    mean_squares: Float[np.ndarray, "*series queries"], *, num_queries: int, confidence: float
) -> Float[np.ndarray, "*series queries"]:
    best = np.sqrt(2.0 * _log_target(confidence) / (num_queries * mean_squares))
    return np.minimum(MAX_SHARE, best)


def _log_target(confidence: float) -> float:
    return math.log(1.0 / (1.0 - confidence))
