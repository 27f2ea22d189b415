"""Reports: pure functions of a study's stored rows."""

from langmerge.report.html_page import page
from langmerge.report.markdown_page import markdown
from langmerge.report.standings import Standing, standings
from langmerge.report.summary import SummaryRow, mean_gain, summary_rows
from langmerge.report.tables import Column, Table, standing_table, summary_tables

__all__ = [
    "Column",
    "Standing",
    "SummaryRow",
    "Table",
    "markdown",
    "mean_gain",
    "page",
    "standing_table",
    "standings",
    "summary_rows",
    "summary_tables",
]
