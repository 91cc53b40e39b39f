"""The table in which `nestling doctor` shows an adapter beside new vectors."""

from rich.table import Table

from nestling.measure.drift_report import DriftReport, WidthDrift


def drift_table(report: DriftReport) -> Table:
    """Return every width, then and now."""
    title = f"{report.num_rows:,} vectors beside {report.num_fit_rows:,} at the fit"
    if report.num_overlap_rows:
        title += f"; neighbours among {report.num_overlap_rows:,} of each"
    table = Table(title=title)
    for name in ("dims", "energy", "now", "neighbours", "now", "int8 clips", "now", "drifted"):
        table.add_column(name, justify="left" if name == "drifted" else "right")
    for width in report.widths:
        table.add_row(
            f"{width.dim:,}",
            f"{width.energy_then:.3f}",
            f"{width.energy_now:.3f}",
            _share(width.overlap_then),
            _share(width.overlap_now),
            f"{width.clipped_then:.2%}",
            f"{width.clipped_now:.2%}",
            ", ".join(_drifted(width)),
        )
    return table


def _drifted(width: WidthDrift) -> list[str]:
    judged = {
        "energy": width.has_lost_energy,
        "neighbours": width.has_lost_overlap,
        "int8": width.is_clipped,
    }
    return [name for name, has_drifted in judged.items() if has_drifted]


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"
