from dataclasses import replace

from langmerge.report import Table, standing_table, standings, summary_tables
from langmerge.results.study import Study


def cell(table: Table, model: str, column: str) -> str:
    position = [c.name for c in table.columns].index(column)
    (row,) = (cells for cells in table.rows if cells[0].startswith(model))
    return row[position]


def test_a_row_says_everything_about_a_merge(study: Study) -> None:
    table = standing_table(standings(study)[0])
    assert table.rows[1] == (
        "task_arithmetic ← best merge on dev",
        "3",
        "62.5",
        "63.5 (61.5 to 65.5)",
        "58.5",
        "▲ +2.3 (+0.9 to +3.7), p < 0.001",
        "▲ +5.1 (+4.2 to +6.0)",
        "de-DE, fr-FR, en-US",
        study.rows[5].signature,
    )
    assert table.styles[1] == "chosen"


def test_hindsight_is_labelled_as_no_choice(study: Study) -> None:
    for table in map(standing_table, standings(study)):
        (row,) = (cells for cells in table.rows if cells[0].startswith("best in hindsight"))
        assert row[0].endswith("(chosen on test: not a choice)")
    for table in summary_tables(study):
        assert any(cells[0] == "best in hindsight (chosen on test: not a choice)" for cells in table.rows)


def test_the_reference_is_named_and_differs_by_mode(study: Study) -> None:
    exc, inc = (standing_table(s) for s in standings(study)[:2])
    gain = "gain in points (95 % interval)"
    assert cell(exc, "best zero-shot", gain) == "reference"
    assert cell(exc, "self", gain) == "—"
    assert cell(inc, "self", gain) == "reference"
    assert cell(inc, "best zero-shot", gain) == "—"
    # Measured against the best zero-shot expert, so it has no place where gains are against self.
    assert cell(exc, "best in hindsight", gain).startswith("+0.4")
    assert cell(inc, "best in hindsight", gain) == "—"


def test_hindsight_that_is_the_reference_is_said_so(study: Study) -> None:
    agreeing = replace(study.rows[1], name="de-DE", sources=("de-DE",), gain=None)
    table = standing_table(standings(replace(study, rows=(study.rows[0], agreeing, *study.rows[2:])))[0])
    assert cell(table, "best in hindsight", "gain in points (95 % interval)") == "the reference's expert"


def test_the_summary_has_a_column_for_each_target(study: Study) -> None:
    exc, inc = summary_tables(study)
    assert [c.name for c in exc.columns][2:4] == ["sq-AL", "sw-KE"]
    assert cell(exc, "ties", "sq-AL") == "59.6 (▼-1.6)"
    assert cell(exc, "ties", "mean accuracy %") == "53.9"
    assert cell(inc, "best zero-shot", "sq-AL") == "61.2"
    assert "not training seeds" in exc.caption


def test_a_target_without_a_row_is_left_empty_and_counted(study: Study) -> None:
    rows = tuple(r for r in study.rows if (r.target, r.name) != ("sw-KE", "slerp"))
    exc, _ = summary_tables(replace(study, rows=rows))
    assert exc.rows[-1][0] == "slerp"
    assert cell(exc, "slerp", "sw-KE") == "—"
    assert cell(exc, "slerp", "mean accuracy %") == "61.6 (of 1)"
