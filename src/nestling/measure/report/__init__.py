"""The reports: HTML files that open anywhere and ask nothing of the network."""

from nestling.measure.report.page import render_report, write_report
from nestling.measure.report.plan_page import render_plan_report, write_plan_report

__all__ = ["render_plan_report", "render_report", "write_plan_report", "write_report"]
