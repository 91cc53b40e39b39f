"""Choosing how to search, by measurement: dims x bits x engine x shortlist."""

from nestling.measure.planner.choice import PlanChoice, PlanPoint, pareto_front
from nestling.measure.planner.cost_model import CostModel
from nestling.measure.planner.explore import plan_search
from nestling.measure.planner.goal import PlanBudget, PlanGoal
from nestling.measure.planner.sample import Sample

__all__ = [
    "CostModel",
    "PlanBudget",
    "PlanChoice",
    "PlanGoal",
    "PlanPoint",
    "Sample",
    "pareto_front",
    "plan_search",
]
