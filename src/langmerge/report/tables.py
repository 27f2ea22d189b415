"""Tables of strings, the same for a page, for Markdown and for a terminal."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from langmerge.report.standings import Standing, modes, targets
from langmerge.report.summary import SummaryRow, summary_rows
from langmerge.report.words import (
    NOTHING,
    difference,
    direction,
    label,
    percent,
    points,
)
from langmerge.results.study import SINGLE_EXPERTS, Row, Study

CHOSEN = "← best merge on dev"

AGAINST: Mapping[str, str] = {
    "ExcTar": "best zero-shot (the best expert of another locale, chosen on dev)",
    "IncTar": "self (the target's own expert)",
}


@dataclass(frozen=True)
class Column:
    """A column's heading, and what stands in it."""

    name: str
    holds: Literal["text", "number", "list", "code"] = "text"


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: one line.
        caption: how to read it.
        columns: one for each cell of a row.
        rows: cells, not escaped for anything.
        styles: one for each row: `merge`, `chosen` or `reference`.
    """

    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    styles: tuple[str, ...]


STANDING_COLUMNS = (
    Column("model"),
    Column("k", "number"),
    Column("dev %", "number"),
    Column("test accuracy % (95 % interval)", "number"),
    Column("macro-F1 %", "number"),
    Column("gain in points (95 % interval)", "number"),
    Column("merging effect in points (95 % interval)", "number"),
    Column("sources", "list"),
    Column("signature", "code"),
)


def standing_table(standing: Standing) -> Table:
    """Merges and references of one target and mode, by test accuracy, best first."""
    rows = sorted({row.rows for row in standing.rows})
    return Table(
        title=f"{standing.target}, {standing.mode}",
        caption=(
            f"Sorted by accuracy on {' or '.join(map(str, rows))} test rows; choices were made on dev. Gain is against "
            f"{AGAINST.get(standing.mode, 'the reference')}; merging effect is against the mean of the same sources. "
            "▲ the whole interval is above zero, ▼ below. Intervals and p are for one comparison each, "
            "not corrected for how many there are."
        ),
        columns=STANDING_COLUMNS,
        rows=tuple(_cells(standing, row) for row in standing.rows),
        styles=tuple(
            "chosen" if standing.is_chosen(row) else "merge" if row.kind == "merge" else "reference"
            for row in standing.rows
        ),
    )


def summary_tables(study: Study) -> tuple[Table, ...]:
    """For each mode: methods × targets, with the mean over targets."""
    found = summary_rows(study)
    return tuple(
        _summary_table(study, mode, [row for row in found if row.mode == mode]) for mode in modes(study)
    )


def _cells(standing: Standing, row: Row) -> tuple[str, ...]:
    return (
        f"{label(row)} {CHOSEN}" if standing.is_chosen(row) else label(row),
        "" if row.kind in SINGLE_EXPERTS else str(len(row.sources)),
        percent(row.dev),
        f"{percent(row.test)} ({percent(row.low)} to {percent(row.high)})",
        NOTHING if row.macro_f1 is None else percent(row.macro_f1),
        _gain_cell(standing, row),
        difference(row.effect),
        ", ".join(row.sources),
        row.signature,
    )


def _gain_cell(standing: Standing, row: Row) -> str:
    reference = standing.reference
    if row.kind in SINGLE_EXPERTS and reference is not None and row.sources == reference.sources:
        return "reference" if row is reference else "the reference's expert"
    # A single expert's gain is against its own mode's reference: shown elsewhere it would be read against another.
    return difference(row.gain) if row.mode == standing.mode else NOTHING


def _summary_table(study: Study, mode: str, rows: list[SummaryRow]) -> Table:
    locales = targets(study)
    return Table(
        title=f"All targets, {mode}",
        caption=(
            f"Test accuracy in %, and in parentheses the gain in points against {AGAINST.get(mode, 'the reference')}; "
            "▲ its whole 95 % interval is above zero, ▼ below. The mean gain's interval combines the targets' intervals "
            "as if their test rows were independent (standard errors added in squares): it covers the draw of test "
            "rows, not training seeds and not the choice of languages, and is too narrow where targets share "
            "translations of the same sentences. k is the number of sources asked for; a target that has fewer takes all."
        ),
        columns=(
            Column("method"),
            Column("k", "number"),
            *(Column(locale, "number") for locale in locales),
            Column("mean accuracy %", "number"),
            Column("mean gain in points (95 % interval)", "number"),
        ),
        rows=tuple(_summary_cells(row, locales) for row in rows),
        styles=tuple("merge" if row.kind == "merge" else "reference" for row in rows),
    )


def _summary_cells(row: SummaryRow, locales: tuple[str, ...]) -> tuple[str, ...]:
    method = f"{row.method} (chosen on test: not a choice)" if row.kind == "best_in_hindsight" else row.method
    mean = percent(row.mean_accuracy)
    return (
        method,
        row.k,
        *(_target_cell(row, locale) for locale in locales),
        mean if row.is_complete else f"{mean} (of {len(row.accuracy)})",
        difference(row.mean_gain),
    )


def _target_cell(row: SummaryRow, locale: str) -> str:
    if locale not in row.accuracy:
        return NOTHING
    gain = row.gains[locale]
    text = percent(row.accuracy[locale])
    return text if gain is None else f"{text} ({direction(gain)}{points(gain.points)})"
