"""The report: one HTML file that opens anywhere and asks nothing of the network."""

from nestling.measure.report.page import render_report, write_report

__all__ = ["render_report", "write_report"]
