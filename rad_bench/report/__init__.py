"""Statistics, tables, plots and the page."""

from rad_bench.report.brief import write_report

__all__ = ["write_report"]
