"""A study as one HTML page that needs nothing else: no scripts, no files, no network."""

import json
from collections.abc import Sequence
from html import escape

from langmerge.report import charts
from langmerge.report.standings import Standing, standings
from langmerge.report.style import STYLE
from langmerge.report.tables import Column, Table, standing_table, summary_tables
from langmerge.report.words import GLOSSARY, duration, percent
from langmerge.results.study import Difference, Study

LONG_LIST = 8
"""A longer list of sources is folded."""

# Even if something given got past the escaping, the browser would run and load nothing.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(study: Study) -> str:
    """The study as one self-contained page: verdicts, what was done, tables, charts, words.

    The same study gives the same page.

    Raises:
        MissingExtraError: Altair or vl-convert is not installed.
    """
    title = f"Did merging help? {study.task}"
    found = standings(study)
    return document(
        title,
        "langmerge study",
        [
            _verdicts(study),
            _what(study),
            _contents(found),
            *(
                f"<section><h2>{escape(table.title)}</h2>{table_html(table)}</section>"
                for table in summary_tables(study)
            ),
            *(_standing(number, standing) for number, standing in enumerate(found)),
            _matrix(study),
            _words(),
        ],
    )


def document(title: str, kind: str, sections: Sequence[str]) -> str:
    """A whole page with style and policy, and nothing that is loaded.

    Args:
        title: one line, escaped here.
        kind: what stands above it in small print, escaped here.
        sections: HTML.
    """
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>",
            f"<header><p class=soft>{escape(kind)}</p><h1>{escape(title)}</h1></header>",
            "<main>",
            *sections,
            "</main>",
            "</body>\n</html>\n",
        ]
    )


def figure(name: str, title: str, drawn: str, words: str, *, below: str = "") -> str:
    """A section with a drawing.

    Args:
        name: its anchor.
        title: not escaped yet, like the words.
        drawn: HTML.
        words: the caption.
        below: HTML.
    """
    figure = (
        f'<figure><div class="scroll">{drawn}</div><figcaption>{escape(words)}</figcaption></figure>{below}'
    )
    return section(name, title, figure)


def section(name: str, title: str, content: str) -> str:
    """A section; name and content are HTML, the title is not."""
    return f'<section id="{name}"><h2>{escape(title)}</h2>{content}</section>'


def _verdicts(study: Study) -> str:
    if not study.verdicts:
        return "<p>This study has no verdicts: nothing was merged.</p>"
    lines = []
    for verdict in study.verdicts:
        tone, mark = _tone(verdict.gain)
        lines.append(f'<li class="{tone}"><b>{mark}</b> <span>{escape(verdict.text)}</span></li>')
    return f'<ul class="verdicts">{"".join(lines)}</ul>'


def _tone(gain: Difference) -> tuple[str, str]:
    if gain.low > 0:
        return "helped", "▲ helped"
    return ("hurt", "▼ hurt") if gain.high < 0 else ("unclear", "○ unclear")


def _what(study: Study) -> str:
    grid = study.grid
    facts = {
        "task": study.task,
        "base": study.base,
        "data": study.revision,
        "sources": ", ".join(grid.get("sources", ())),
        "targets": ", ".join(grid.get("targets", ())),
        "training seeds": ", ".join(str(seed) for seed in sorted({row.seed for row in study.rows})),
        "transfer matrix": f"{study.matrix['signature']} ({study.matrix.get('split', 'dev')})",
        "duration": f"{duration(study.seconds)}, of the last call; what earlier calls had finished was kept",
    }
    listed = "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    whole = escape(json.dumps(grid, indent=1, ensure_ascii=False))
    return (
        f"<section><h2>What was done</h2><dl>{listed}</dl>"
        f"<details><summary>the whole grid</summary><pre>{whole}</pre></details></section>"
    )


def _contents(found: tuple[Standing, ...]) -> str:
    links = "".join(
        f'<li><a href="#s{number}">{escape(standing.target)} {escape(standing.mode)}</a></li>'
        for number, standing in enumerate(found)
    )
    return (
        f'<nav aria-label="targets"><ul>{links}<li><a href="#matrix">transfer matrix</a></li>'
        '<li><a href="#words">words</a></li></ul></nav>'
    )


def _standing(number: int, standing: Standing) -> str:
    table = standing_table(standing)
    return (
        f'<section id="s{number}"><h2>{escape(table.title)}</h2>'
        f'<figure><div class="scroll">{charts.accuracy_bars(standing)}</div>'
        f"<figcaption>{_bar_caption(standing)}</figcaption></figure>{table_html(table)}</section>"
    )


def _bar_caption(standing: Standing) -> str:
    parts = ["Test accuracy in %; whiskers are 95 % bootstrap intervals over test rows."]
    for colour, text in (
        (charts.CHOSEN, "the best merge on dev"),
        (charts.MERGE, "other merges"),
        (charts.REFERENCE, "references"),
    ):
        parts.append(f'<span class="item"><span class="key" style="background:{colour}"></span>{text}</span>')
    zero_shot, own = standing.of_kind("best_zero_shot"), standing.of_kind("self")
    for row, colour, line in ((zero_shot, charts.ZERO_SHOT, "solid"), (own, charts.SELF, "dashed")):
        if row is not None:
            name = "best zero-shot" if row is zero_shot else "self"
            parts.append(
                f'<span class="item"><span class="key rule {line}" style="border-color:{colour}"></span>'
                f"{line} line: {name}, {escape(row.sources[0])}, {percent(row.test)} %</span>"
            )
    return " ".join(parts)


def _matrix(study: Study) -> str:
    return (
        '<section id="matrix"><h2>Transfer matrix (dev)</h2>'
        f'<figure><div class="scroll">{charts.transfer_heat_map(study.matrix)}</div>'
        "<figcaption>Accuracy in % of each expert (row) on each locale (column); outlined: an expert on its own locale. "
        f"Signature <code>{escape(str(study.matrix['signature']))}</code>.</figcaption></figure></section>"
    )


def _words() -> str:
    listed = "".join(f"<dt>{escape(word)}</dt><dd>{escape(meaning)}</dd>" for word, meaning in GLOSSARY)
    return f'<section id="words"><h2>Words</h2><dl>{listed}</dl></section>'


def table_html(table: Table) -> str:
    """A table under its caption, everything in it escaped."""
    head = "".join(f'<th scope="col" class="{c.holds}">{escape(c.name)}</th>' for c in table.columns)
    rows = "".join(
        f'<tr class="{style}">{_cells(table, cells)}</tr>'
        for style, cells in zip(table.styles, table.rows, strict=True)
    )
    return (
        f'<p class="soft note">{escape(table.caption)}</p>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _cells(table: Table, cells: tuple[str, ...]) -> str:
    first, *rest = cells
    return f'<th scope="row">{escape(first)}</th>' + "".join(
        f'<td class="{column.holds}">{_cell(column, text)}</td>'
        for column, text in zip(table.columns[1:], rest, strict=True)
    )


def _cell(column: Column, text: str) -> str:
    if column.holds == "code":
        return f"<code>{escape(text)}</code>"
    if column.holds == "list":
        locales = text.split(", ")
        # A locale is not broken at its hyphen.
        listed = ", ".join(f"<span>{escape(locale)}</span>" for locale in locales)
        folded = f"<details><summary>{len(locales)} locales</summary>{listed}</details>"
        return folded if len(locales) > LONG_LIST else listed
    return escape(text)
