"""Metrics, sweeps over prefixes and number formats, baselines, and the certified choice."""

from nestling.measure.choose import choose
from nestling.measure.decision import Decision, Step
from nestling.measure.report import render_report, write_report
from nestling.measure.results import Results, Row
from nestling.measure.run import measure

__all__ = [
    "Decision",
    "Results",
    "Row",
    "Step",
    "choose",
    "measure",
    "render_report",
    "write_report",
]
