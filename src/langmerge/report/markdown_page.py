"""A study's tables in Markdown."""

import re

from langmerge.report.standings import standings
from langmerge.report.tables import Column, Table, standing_table, summary_tables
from langmerge.results.study import Study


def markdown(study: Study) -> str:
    """The verdicts, a summary (methods × targets), and a table for each target and mode, as Markdown.

    Every row of the tables by target ends with its signature.
    """
    parts = [f"# Results: {_plain(study.task)}", _what(study)]
    if study.verdicts:
        parts += ["## Verdicts", "\n".join(f"- {_plain(verdict.text)}" for verdict in study.verdicts)]
    parts += ["## Summary", *(_table(table) for table in summary_tables(study))]
    parts += ["## By target", *(_table(standing_table(standing)) for standing in standings(study))]
    return "\n\n".join(parts) + "\n"


def _what(study: Study) -> str:
    seeds = ", ".join(str(seed) for seed in sorted({row.seed for row in study.rows})) or "none"
    return (
        f"Base: {_plain(study.base)}. Data: {_plain(study.revision)}. Training seeds: {seeds}. "
        f"Transfer matrix: {_code(str(study.matrix['signature']))}."
    )


def _table(table: Table) -> str:
    lines = [
        _line([_plain(column.name) for column in table.columns]),
        _line(["---:" if column.holds == "number" else "---" for column in table.columns]),
        *(
            _line([_cell(column, text) for column, text in zip(table.columns, cells, strict=True)])
            for cells in table.rows
        ),
    ]
    return "\n\n".join([f"### {_plain(table.title)}", _plain(table.caption), "\n".join(lines)])


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(column: Column, text: str) -> str:
    return _code(text) if column.holds == "code" else _plain(text)


def _plain(text: str) -> str:
    """Text that Markdown shows as it is: on one line, with nothing that is markup in a table."""
    return re.sub(r"([\\`*\[\]>|&#~]|<(?!\s)|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    # A backslash is no escape inside backticks, so only what cannot end the code stands there.
    return f"`{text}`" if re.fullmatch(r"[\w.-]+", text) else _plain(text)
