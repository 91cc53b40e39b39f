"""How small may I go? The smallest size whose loss is certified, or what is missing."""

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from nestling.core import Dtype
from nestling.measure.candidates import (
    FAMILIES,
    find_candidates,
    split_into_chains,
    values_per_query,
)
from nestling.measure.certify import certificate_floor, check_confidence, check_max_loss
from nestling.measure.decision import Decision
from nestling.measure.results import Results
from nestling.measure.verdict import write_evidence, write_verdict
from nestling.measure.walk import Question, Tested, walk_family
from nestling.search.plan import Plan, Stage


def choose(
    results: Results,
    *,
    max_loss: float = 0.02,
    relative: bool = True,
    confidence: float = 0.95,
    metric: str | None = None,
    seed: int = 0,
) -> Decision:
    """Return the smallest size whose loss is certified, with the evidence, or what is missing.

    Two families are decided, each at the stated confidence by itself: cuts alone ("prefix": what may
    be stored instead of the full width), and cuts as the head of a two-stage search ("funnel": what
    the index executes). A family's delta = 1 - confidence is split equally over its chains
    (Bonferroni; see `split_into_chains`), so that both families hold together with 1 - 2 delta. Of
    what is certified, the fewest bytes are chosen, and of equals the wider.

    What is certified of the chosen size is the tolerance that was tested. The `loss_bound` of a step,
    at its chain's confidence, is right for that step alone: it is not adjusted for having chosen it.

    A certificate needs all of this to be settled before the values are seen. To try seeds, metrics
    or tolerances until one passes undoes it, and so does testing again with queries added to a set
    that failed: take fresh ones.

    Args:
        results: What was measured, the full width in float32 included.
        max_loss: Tolerated mean loss, in (0, 1).
        relative: Whether `max_loss` is a share of the full-width mean, else absolute.
        confidence: Of each family's certificate, in (0.5, 1).
        metric: Metric to choose by; None for the task's main metric.
        seed: Of the order of the queries, and of the bootstrap intervals.

    Raises:
        EvidenceError: If an argument is out of range, the full width in float32 was not measured, a
            value is outside [0, 1], or the rows cannot carry a certificate (see `find_candidates`).
    """
    check_max_loss(max_loss)
    check_confidence(confidence)
    reference = results.reference(metric)
    candidates = find_candidates(results, reference)
    order = np.random.default_rng(seed).permutation(len(results.query_ids))
    question = Question(
        max_loss=max_loss,
        relative=relative,
        confidence=confidence,
        seed=seed,
        order=order,
        full=values_per_query([reference])[0, order],
    )
    chains = {
        family: split_into_chains([row for row in candidates if row.family == family])
        for family in FAMILIES
    }
    tested = {family: walk_family(chains[family], question) for family in FAMILIES}
    cut, funnel = _smallest(tested["prefix"]), _smallest(tested["funnel"])
    steps = tuple(step for family in FAMILIES for _, step in tested[family])
    certified = cut is not None or funnel is not None
    needed = [step.queries_needed for step in steps if step.queries_needed is not None]
    decision = Decision(
        verdict="",
        evidence=write_evidence(
            results,
            reference,
            confidence=confidence,
            seed=seed,
            num_chains={family: len(chains[family]) for family in FAMILIES},
        ),
        certified=certified,
        plan=None,
        task=reference.task,
        model=reference.model,
        metric=reference.metric,
        max_loss=max_loss,
        is_relative=relative,
        confidence=confidence,
        num_queries=len(order),
        floor=certificate_floor(len(order), confidence),
        full_value=float(question.full.mean()),
        steps=steps,
        cut=None if cut is None else cut[1],
        funnel=None if funnel is None else funnel[1],
        queries_needed=None if certified or not needed else min(needed),
    )
    shortlist_size = None if funnel is None else funnel[0].shortlist_size
    verdict = write_verdict(decision, reference, shortlist_size=shortlist_size)
    decision = replace(decision, verdict=verdict)
    return replace(decision, plan=_make_plan(decision, results, shortlist_size=shortlist_size))


def _smallest(tested: Sequence[Tested]) -> Tested | None:
    passed = [(row, step) for row, step in tested if step.passed]
    return min(passed, key=lambda pair: (pair[1].bytes_per_vector, -pair[1].dim), default=None)


def _make_plan(decision: Decision, results: Results, *, shortlist_size: int | None) -> Plan | None:
    """Return the funnel if one is certified, else the cut alone, else None."""
    head = decision.funnel or decision.cut
    if head is None:
        return None
    stages = [Stage(dim=head.dim, dtype=head.dtype, shortlist_size=shortlist_size)]
    if decision.funnel is not None:
        stages.append(Stage(dim=results.embed_dim, dtype=Dtype.FLOAT32))
    evidence = decision.to_json()
    del evidence["plan"]
    return Plan(
        stages=tuple(stages),
        embed_dim=results.embed_dim,
        space=results.fingerprint.space,
        # Through JSON, so that a plan read back from its file equals the one in memory.
        evidence=json.loads(json.dumps(evidence)),
    )
