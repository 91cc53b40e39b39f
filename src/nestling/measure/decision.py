"""The answer to "how small may I go?", with the evidence it rests on: plain data."""

from dataclasses import asdict, dataclass
from typing import Any

from nestling.core import Dtype
from nestling.search.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One candidate that was tested, in the order of testing.

    Attributes:
        family: "prefix" (the cut alone) or "funnel" (the cut as head of a funnel).
        dim: Width of the cut.
        dtype: Number format of the cut.
        bytes_per_vector: Of the scanned tier.
        value: Mean of the metric on the certificate queries.
        kept: `value` as a share of the full-width mean; None if that mean is 0.
        loss: Full-width mean minus `value`, in points of the metric (0 to 1).
        loss_bound: Largest loss not excluded at the confidence, relative to the full-width mean
            if the tolerance is relative, else absolute.
        interval: Paired bootstrap interval of the loss, in the same unit as `loss_bound`; a plain
            figure beside the bound, not what the decision rests on.
        passed: Whether the loss is certified to be within the tolerance.
        queries_needed: If not passed: about how many queries of this kind would certify it; None
            if it passed or if the measured loss is above the tolerance, so that none would.
    """

    family: str
    dim: int
    dtype: Dtype
    bytes_per_vector: int
    value: float
    kept: float | None
    loss: float
    loss_bound: float
    interval: tuple[float, float]
    passed: bool
    queries_needed: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What `choose` decided.

    Attributes:
        verdict: One or two sentences for people.
        evidence: One line: queries, split, test, confidence, date.
        certified: Whether any cut (prefix or funnel) below the full width in float32 passed.
        plan: The funnel to deploy, or None if nothing passed.
        task: TASK.
        model: Model URI.
        metric: Metric the loss is counted in.
        max_loss: Tolerated loss.
        is_relative: Whether `max_loss` is a share of the full-width mean (else absolute points).
        confidence: Of each certificate.
        num_queries: Certificate queries.
        floor: Smallest absolute loss that any distribution-free test can certify with this many
            queries at this confidence: ln(1/(1-confidence)) / num_queries.
        full_value: Full-width float32 mean.
        steps: Every candidate tested.
        cut: The smallest certified prefix, or None.
        funnel: The smallest certified funnel head, or None.
        queries_needed: If nothing passed: the fewest that any step needs, as far as more would help.
    """

    verdict: str
    evidence: str
    certified: bool
    plan: Plan | None
    task: str
    model: str
    metric: str
    max_loss: float
    is_relative: bool
    confidence: float
    num_queries: int
    floor: float
    full_value: float
    steps: tuple[Step, ...]
    cut: Step | None
    funnel: Step | None
    queries_needed: int | None

    def to_json(self) -> dict[str, Any]:
        """Return plain data for `--json` and for the evidence in a plan file."""
        data = asdict(self)
        data["plan"] = None if self.plan is None else self.plan.to_json()
        return data
