"""Metrics, sweeps over prefixes and number formats, baselines, and the certified choice."""

from nestling.measure.adaptive_retrieval import (
    RetrievalRow,
    chain,
    measure_adaptive_retrieval,
    paper_chains,
)
from nestling.measure.cascade import (
    Cascade,
    CascadeOutcome,
    FixedWidth,
    WidthAnswers,
    equal_fixed_width,
    evaluate_cascade,
)
from nestling.measure.cascade_fit import (
    CertifiedCascade,
    fit_certified_thresholds,
    fit_greedy_thresholds,
    fit_thresholds,
)
from nestling.measure.choose import choose
from nestling.measure.decision import Decision, Step
from nestling.measure.few_shot import FewShot, few_shot_all_classes, few_shot_episodes
from nestling.measure.interpolation import InterpolatedWidth, check_interpolation
from nestling.measure.planner import (
    CostModel,
    PlanBudget,
    PlanChoice,
    PlanGoal,
    PlanPoint,
    Sample,
    pareto_front,
    plan_search,
)
from nestling.measure.report import render_report, write_report
from nestling.measure.results import Results, Row
from nestling.measure.run import measure

__all__ = [
    "Cascade",
    "CascadeOutcome",
    "CertifiedCascade",
    "CostModel",
    "Decision",
    "FewShot",
    "FixedWidth",
    "InterpolatedWidth",
    "PlanBudget",
    "PlanChoice",
    "PlanGoal",
    "PlanPoint",
    "Results",
    "RetrievalRow",
    "Row",
    "Sample",
    "Step",
    "WidthAnswers",
    "chain",
    "check_interpolation",
    "choose",
    "equal_fixed_width",
    "evaluate_cascade",
    "few_shot_all_classes",
    "few_shot_episodes",
    "fit_certified_thresholds",
    "fit_greedy_thresholds",
    "fit_thresholds",
    "measure",
    "measure_adaptive_retrieval",
    "paper_chains",
    "pareto_front",
    "plan_search",
    "render_report",
    "write_report",
]
