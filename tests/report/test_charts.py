import re
from dataclasses import replace

import altair
import pytest

from langmerge.report import standings
from langmerge.report.charts import CHOSEN, OUTLINE, SELF, ZERO_SHOT, accuracy_bars, transfer_heat_map
from langmerge.results.study import Study


def texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_bars_stand_in_the_tables_order_with_their_numbers(study: Study) -> None:
    found = texts(accuracy_bars(standings(study)[0]))
    names = [text for text in found if ":" in text or ", k=" in text]
    assert names[:3] == ["self: sq-AL", "task_arithmetic, k=3", "soft vote, k=3"]
    assert "best in hindsight (on test): fr-FR" in names
    assert {"72.2", "63.5", "58.4"} <= set(found)


def test_reference_lines_and_the_chosen_merge_have_their_colours(study: Study) -> None:
    exc = standings(study)[0]
    svg = accuracy_bars(exc)
    assert all(svg.count(f'"{colour}"') == 1 for colour in (ZERO_SHOT, SELF, CHOSEN))
    alone = accuracy_bars(replace(exc, rows=tuple(r for r in exc.rows if r.kind != "self"), verdict=None))
    assert SELF not in alone
    assert CHOSEN not in alone


def test_two_rows_of_one_name_are_two_bars(study: Study) -> None:
    exc = standings(study)[0]
    twin = replace(exc.rows[1], signature="twin", test=0.3)
    found = texts(accuracy_bars(replace(exc, rows=(*exc.rows, twin))))
    assert "task_arithmetic, k=3 (twin)" in found
    assert {"63.5", "30.0"} <= set(found)


def test_cells_hold_numbers_and_the_diagonal_is_outlined(study: Study) -> None:
    svg = transfer_heat_map(study.matrix)
    assert texts(svg).count("85") >= 5
    assert svg.count(f'stroke="{OUTLINE}"') == 5


@pytest.mark.parametrize("empty", [None, float("nan")])
def test_what_was_not_measured_is_left_empty(study: Study, empty: float | None) -> None:
    values = [[empty, 0.5], [0.6, 0.7]]
    svg = transfer_heat_map({"sources": ["a", "b"], "targets": ["a", "b"], "values": values})
    assert svg.count(f'stroke="{OUTLINE}"') == 1
    assert "NaN" not in svg
    assert "null" not in svg


@pytest.mark.parametrize(("columns", "numbered"), [(20, True), (21, False)])
def test_a_wide_matrix_has_no_numbers(columns: int, numbered: bool) -> None:
    targets = [f"l{n}" for n in range(columns)]
    svg = transfer_heat_map({"sources": ["a"], "targets": targets, "values": [[0.123] * columns]})
    # The legend has one of its own.
    assert (texts(svg).count("12") >= columns) is numbered


def test_a_large_matrix_is_drawn_whole() -> None:
    # Altair refuses data of more than 5000 rows unless they are inline.
    names = [f"l{n}" for n in range(72)]
    svg = transfer_heat_map({"sources": names, "targets": names, "values": [[0.5] * 72] * 72})
    assert svg.count(f'stroke="{OUTLINE}"') == 72


def test_the_callers_theme_changes_nothing(study: Study) -> None:
    plain = transfer_heat_map(study.matrix)
    altair.theme.register("roomy", enable=False)(lambda: altair.theme.ThemeConfig(padding=99))
    try:
        with altair.theme.enable("roomy"):
            assert transfer_heat_map(study.matrix) == plain
            assert altair.theme.active == "roomy"
    finally:
        altair.theme.unregister("roomy")
