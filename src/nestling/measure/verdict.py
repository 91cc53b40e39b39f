"""A decision in sentences: what is claimed, how sure it is, and what it rests on."""

import math
from collections.abc import Mapping, Sequence

from nestling.measure.certify import certificate_floor
from nestling.measure.decision import Decision, Step
from nestling.measure.results import Results, Row


def write_verdict(decision: Decision, reference: Row, *, shortlist_size: int | None) -> str:
    """Return one or two sentences for people.

    The kept share is what was measured. The number behind "sure" is the tolerance that was tested,
    since that alone is certified for a size chosen by the test.

    Args:
        decision: Everything but the verdict and the plan.
        reference: Row of the full width in float32.
        shortlist_size: Of the chosen funnel, or None if there is none.
    """
    if not decision.certified:
        refusal = f"Nothing is certified: {_refusal(decision, reference, decision.steps)}."
        return " ".join([*_floor_first(decision), refusal])
    sentences = []
    if decision.cut is not None:
        sentences.append(_cut_sentence(decision, reference, decision.cut))
    if decision.funnel is not None:
        sentences.append(_funnel_sentence(decision, reference, decision.funnel, shortlist_size))
    for family, chosen, name in (
        ("prefix", decision.cut, "cut by itself"),
        ("funnel", decision.funnel, "two-stage search"),
    ):
        steps = [step for step in decision.steps if step.family == family]
        if steps and chosen is None:
            sentences.append(f"No {name} is certified: {_refusal(decision, reference, steps)}.")
    return " ".join(sentences)


def write_evidence(
    results: Results,
    reference: Row,
    *,
    confidence: float,
    seed: int,
    num_chains: Mapping[str, int],
) -> str:
    """Return the line that says what a verdict rests on.

    Args:
        results: What was measured.
        reference: Row of the full width in float32.
        confidence: Of each family.
        seed: Of the order of the queries.
        num_chains: Per family, the chains its delta is split over.
    """
    num_queries = len(results.query_ids)
    documents = f" over {results.num_documents:,} documents" if results.num_documents else ""
    shares = [
        f"{family} {_percent(confidence)} over {count} chain{'s' if count > 1 else ''}, "
        f"{_percent(1.0 - (1.0 - confidence) / count)} each"
        for family, count in num_chains.items()
        if count
    ]
    parts = [
        f"{num_queries:,} queries of {reference.task}{documents}",
        "betting test of the paired loss per query, widest cut first, up to the first failure",
        f"confidence: {'; '.join(shares)}",
        f"query order: seed {seed}",
        f"floor of any certificate: {_points(certificate_floor(num_queries, confidence))}",
    ]
    date = results.environment.get("date")
    return " | ".join(parts if date is None else [*parts, f"measured {str(date)[:10]}"])


def _cut_sentence(decision: Decision, reference: Row, step: Step) -> str:
    width = "all" if step.dim == reference.dim else f"{step.dim:,} of"
    outcome = _outcome(decision, step, "keep", "gain", "lose")
    smaller = _times(reference.bytes_per_vector / step.bytes_per_vector)
    dims = f"{width} {reference.dim:,} dims"
    return f"{dims[0].upper()}{dims[1:]} in {step.dtype} {outcome}, {smaller} smaller."


def _funnel_sentence(
    decision: Decision, reference: Row, step: Step, shortlist_size: int | None
) -> str:
    shortlist = "" if shortlist_size is None else f"keep {shortlist_size:,}, "
    outcome = _outcome(decision, step, "keeps", "gains", "loses")
    smaller = _times(reference.bytes_per_vector / step.bytes_per_vector)
    return (
        f"As a two-stage search, {step.dim:,}-d {step.dtype} ({shortlist}rerank at "
        f"{reference.dim:,}) {outcome}; the part every query scans is {smaller} smaller."
    )


def _outcome(decision: Decision, step: Step, keep: str, gain: str, lose: str) -> str:
    sure = f"{_percent(decision.confidence)} sure"
    detail = f"{decision.metric}; {sure}" if _is_self(decision) else sure
    if decision.is_relative:
        least = _percent(1.0 - decision.max_loss)
        return f"{keep} {step.value / decision.full_value:.1%} of {_what(decision)} ({detail}: at least {least})"
    verb = gain if step.loss < 0.0 else lose
    change, most = _points(abs(step.loss)), _points(decision.max_loss)
    return f"{verb} {change} of {_what(decision)} ({detail}: at most {most} lost)"


def _refusal(decision: Decision, reference: Row, steps: Sequence[Step]) -> str:
    """Say of the step that came closest why it failed."""
    closest = min(steps, key=lambda step: (step.queries_needed or math.inf, step.loss))
    name = f"{closest.dim:,}-d {closest.dtype}"
    if closest.family == "funnel":
        name += f" reranked at {reference.dim:,}"
    verb = "gains" if closest.loss < 0.0 else "loses"
    if decision.is_relative:
        change = f"{abs(closest.loss) / decision.full_value:.1%}"
        tolerance = _percent(decision.max_loss)
    else:
        change = _points(abs(closest.loss))
        tolerance = _points(decision.max_loss)
    seen = f"on these {decision.num_queries:,} queries {name} {verb} {change} of {_what(decision)}"
    if closest.queries_needed is None:
        return (
            f"{seen}, no less than the tolerated {tolerance}, and more queries like them would not "
            f"help"
        )
    return (
        f"not enough evidence, about {_about(closest.queries_needed):,} queries needed; {seen} "
        f"(tolerated: {tolerance})"
    )


def _floor_first(decision: Decision) -> list[str]:
    """Say that no test could have certified the tolerance, if so."""
    tolerance = decision.max_loss * (decision.full_value if decision.is_relative else 1.0)
    if tolerance >= decision.floor:
        return []
    fewest = math.ceil(certificate_floor(1, decision.confidence) / tolerance)
    return [
        (
            f"{decision.num_queries:,} queries cannot certify a loss below about "
            f"{_points(decision.floor)} of {decision.metric} ({_percent(decision.confidence)} sure), and "
            f"the tolerance is {_points(tolerance)}: at least {fewest:,} queries are needed."
        )
    ]


def _is_self(decision: Decision) -> bool:
    return decision.task.startswith("self:")


def _what(decision: Decision) -> str:
    return "the full-width ranking" if _is_self(decision) else decision.metric


def _percent(share: float) -> str:
    return f"{round(100.0 * share, 3):g}%"


def _points(loss: float) -> str:
    number = f"{round(100.0 * loss, 2):g}"
    return f"{number} point" if number == "1" else f"{number} points"


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}x" if ratio >= 10.0 else f"{ratio:.1f}x"


def _about(num_queries: int) -> int:
    """Round up to two digits: the estimate is no better than that."""
    unit = 10 ** max(0, len(str(num_queries)) - 2)
    return math.ceil(num_queries / unit) * unit
