import re
import sys
from collections import Counter
from html import escape

import numpy as np
import pytest

from langmerge.errors import MissingExtraError
from langmerge.locales import MASSIVE_LOCALES
from langmerge.report.language_charts import similarity_heat_map
from langmerge.report.languages import languages_page
from langmerge.selection import typology
from tests.report.drawn import FOUR, VALUES, check_alone, matrix_of, section, texts, tree, words
from tests.report.test_html_page import HOSTILE


@pytest.fixture(scope="module")
def html() -> str:
    return languages_page(typology(FOUR, FOUR))


def test_the_page_needs_nothing_else_and_has_three_drawings(html: str) -> None:
    assert check_alone(html).tags["svg"] == 3


def test_no_drawing_fixes_black_or_white_where_the_page_may_be_either(html: str) -> None:
    for name in ("tree", "map"):
        colours = set(re.findall(r'(?:fill|stroke)="([^"]*)"', section(html, name)))
        assert "currentColor" in colours
        assert colours <= {"currentColor", "#2f6fc0", "none", "transparent"}, name


def test_the_same_matrix_gives_the_same_page(html: str) -> None:
    similarity_heat_map(matrix_of(VALUES))
    assert languages_page(typology(FOUR, FOUR)) == html


def test_the_caption_names_selector_and_provenance_in_short() -> None:
    provenance = {
        "features": {"syntax": 1.0, "family": 0.5},
        "data": "x" * 500,
        "limit": None,
        "seeds": [1, 2],
    }
    found = words(languages_page(matrix_of(VALUES, by="composite", provenance=provenance)))
    assert "Scores by composite of each source" in found
    assert "features: syntax=1.0, family=0.5; data: " in found
    assert "limit: null; seeds: [1, 2]." in found
    assert "x" * 79 + "…" in found
    assert "x" * 80 not in found


def test_what_is_missing_is_listed(html: str) -> None:
    noted = section(
        languages_page(matrix_of(VALUES, missing={"fr-FR": "family not known", "eo": "no data"})), "missing"
    )
    assert re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", noted) == [
        ("fr-FR", "family not known"),
        ("eo", "no data"),
    ]
    assert "Nothing was noted" in section(languages_page(matrix_of(VALUES)), "missing")


def test_everything_given_is_escaped() -> None:
    names = (HOSTILE, "b</text><script>", "c", "d")
    matrix = matrix_of(
        VALUES,
        names,
        by=HOSTILE,
        missing={HOSTILE: HOSTILE},
        provenance={HOSTILE: {HOSTILE: [HOSTILE]}, "data": HOSTILE},
    )
    html = languages_page(matrix)
    found = check_alone(html)
    assert escape(HOSTILE) in section(html, "missing")
    for name in ("values", "tree"):
        assert HOSTILE in texts(section(html, name)), "it must be shown, not dropped"
    assert any("<script>" in word for word in found.words)
    gap = np.where(np.eye(4, k=1), np.nan, VALUES)
    without = section(languages_page(matrix_of(gap, names)), "tree")
    assert f"the first is that of {escape(HOSTILE)} for" in without


def test_all_of_massive() -> None:
    matrix = typology(MASSIVE_LOCALES, MASSIVE_LOCALES)
    html = languages_page(matrix)
    assert check_alone(html).tags["svg"] == 3
    assert section(html, "values").count('aria-roledescription="rect mark"') == 52 * 52
    assert Counter(t for t in texts(section(html, "tree")) if t in MASSIVE_LOCALES) == Counter(
        MASSIVE_LOCALES
    )
    assert sum(t.count("-") for t in texts(section(html, "map"))) == 52


def test_cells_stand_in_the_trees_order_with_two_decimals() -> None:
    html = languages_page(matrix_of(VALUES))
    found = texts(section(html, "values"))
    names = [text for text in found if text in FOUR]
    leaves = list(tree(VALUES).leaves)
    assert names == [*leaves, *leaves]
    assert Counter(text for text in found if text in ("1.00", "0.90", "0.35")) == {"1.00": 4, "0.90": 3}
    assert "tree's order" in words(html)


def test_without_a_tree_the_order_is_as_given() -> None:
    matrix = matrix_of([[0.1, 0.9], [0.8, 0.2], [0.5, 0.6]], ["sw-KE", "de-DE", "am-ET"], ["th-TH", "cy-GB"])
    html = languages_page(matrix)
    found = [text for text in texts(section(html, "values")) if "-" in text]
    assert found == ["th-TH", "cy-GB", "sw-KE", "de-DE", "am-ET"]
    assert "tree's order" not in words(html)


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([[0.0, 0.256], [1.0, -0.004]], {"0.00": 2, "0.26": 1, "1.00": 1}),
        ([[-0.25, 0.004], [1 + 1e-12, 0.04]], {"-0.25": 1, "0.00": 1, "1.00": 1, "0.04": 1}),
        ([[0.0, 25.64], [1.0, -0.04]], {"0.0": 2, "25.6": 1, "1.0": 1}),
        ([[-1.5, 0.3], [0.25, 2.0]], {"-1.5": 1, "0.3": 1, "0.2": 1, "2.0": 1}),
    ],
)
def test_decimals_follow_the_unit(values: list[list[float]], shown: dict[str, int]) -> None:
    svg = similarity_heat_map(matrix_of(values, FOUR[:2]))
    cells = svg[svg.rindex('class="mark-text role-mark') : svg.index("role-legend")]
    assert Counter(texts(cells)) == shown


def test_unknown_cells_are_empty_and_their_languages_stay() -> None:
    values = VALUES.copy()
    values[1] = values[:, 1] = np.nan
    html = languages_page(matrix_of(values))
    svg = section(html, "values")
    assert svg.count('aria-roledescription="rect mark"') == 9
    assert texts(svg).count("fr-FR") == 2
    assert "7 of 16 cells are empty" in words(html)
    assert "nan" not in svg.lower()
    assert "null" not in svg.lower()


def test_a_languages_value_for_itself_does_not_hide_the_others_colours() -> None:
    near = np.array([[1.0, 0.10], [0.14, 1.0]])
    fills = re.findall(
        r'aria-roledescription="rect mark"[^>]*fill="([^"]*)"', similarity_heat_map(matrix_of(near, FOUR[:2]))
    )
    assert len(fills) == 4
    # Both 1 and the largest of a pair have the brightest colour, the smallest of a pair the darkest.
    assert Counter(fills).most_common(1)[0][1] == 3


def test_nothing_known_draws_no_heat_map() -> None:
    html = languages_page(matrix_of(np.full((4, 4), np.nan)))
    assert "There is no heat map" in section(html, "values")
    assert "16 of 16 cells are empty" in words(html)


def test_one_language_for_itself() -> None:
    html = languages_page(matrix_of([[1.0]], ["sw-KE"]))
    # The cell, and a legend that spans something.
    assert Counter(texts(section(html, "values")))["1.00"] == 2
    assert {"0.00", "0.50"} <= set(texts(section(html, "values")))
    assert texts(section(html, "map")).count("sw-KE") == 1


def test_a_wide_matrix_has_no_numbers_and_says_so() -> None:
    values = np.full((1, 21), 0.123)
    html = languages_page(matrix_of(values, ["de-DE"], MASSIVE_LOCALES[:21]))
    assert texts(section(html, "values")).count("0.12") <= 2
    assert "cells hold no numbers" in words(html)
    narrow = languages_page(matrix_of(values[:, :20], ["de-DE"], MASSIVE_LOCALES[:20]))
    assert texts(section(narrow, "values")).count("0.12") >= 20
    assert "cells hold no numbers" not in words(narrow)


@pytest.mark.parametrize(("module", "package"), [("altair", "altair"), ("vl_convert", "vl-convert-python")])
def test_a_missing_package_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, module: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"'{package}'.*langmerge\[report\]"):
        languages_page(matrix_of(VALUES))
