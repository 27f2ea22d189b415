import re
import sys
from collections.abc import Sequence
from html import escape
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langmerge.errors import MissingExtraError
from langmerge.estimates import Calibration, Estimate
from langmerge.locales import MASSIVE_LOCALES
from langmerge.report.language_charts import BRIGHTNESS, calibration_scatter, colour, luminance, marks_of
from langmerge.report.languages import calibration_page
from tests.report.drawn import FOUR, check_alone, described, section, texts, words
from tests.report.test_html_page import HOSTILE


def estimates(how: Sequence[str] = ("atc", "entropy"), targets: Sequence[str] = FOUR) -> list[Estimate]:
    """Expert e on target t: the truth is 0.5 + 0.01 t, the estimate 0.1 e above it."""
    return [
        Estimate(one, expert, target, 0.5 + 0.1 * e + 0.01 * t, 0.5 + 0.01 * t)
        for one in how
        for t, target in enumerate(targets)
        for e, expert in enumerate(FOUR)
        if expert != target
    ]


def errors() -> list[Calibration]:
    return [Calibration("atc", 4.25, 3.14, 5.96, -1.25, 4), Calibration("entropy", 6.0, 5.0, 7.0, 0.04, 4)]


def test_the_table_of_errors_has_interval_bias_and_targets() -> None:
    html = section(calibration_page(estimates(), errors()), "errors")
    cells = re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", html)
    assert cells == [
        *("estimate", "mean absolute error (95 % interval)", "bias", "targets"),
        *("atc", "4.2 (3.1 to 6.0)", "-1.2", "4"),
        *("entropy", "6.0 (5.0 to 7.0)", "+0.04", "4"),
    ]


def test_an_estimator_has_a_facet_with_a_point_for_each_expert_and_target() -> None:
    found = check_alone(html := calibration_page(estimates(), errors()))
    assert found.tags["svg"] == 2
    assert re.findall(r"<h3>(.*?)</h3>", html) == ["atc", "entropy"]
    for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        assert len(described(svg)) == 12


def test_points_lie_at_estimate_across_and_truth_up_about_the_diagonal() -> None:
    svg = re.findall(r"<svg.*?</svg>", calibration_page(estimates(("atc",)), []), re.DOTALL)[0]
    drawn = described(svg)
    # From 50 to 83 %: axes from 50 to 90, 270 pixels wide. nl-NL (e = 2) on es-ES (t = 3).
    where = drawn["nl-NL on es-ES: estimate 73.0 %, accuracy 53.0 %"]
    assert where == pytest.approx((270 * 23 / 40, 270 * (1 - 3 / 40)), abs=0.01)
    # de-DE (e = 0) is right everywhere: on the line from the lower left to the upper right.
    assert all(
        x + y == pytest.approx(270, abs=0.01) for what, (x, y) in drawn.items() if what.startswith("de-DE")
    )
    assert 'transform="translate(0,270)" x2="270" y2="-270"' in svg


def test_targets_have_one_colour_everywhere_and_a_key() -> None:
    html = calibration_page(estimates(), errors())
    key = re.findall(r'<span style="color:(#\w{6})">(.)</span> ([\w-]+)<', html)
    assert [target for _, _, target in key] == list(dict.fromkeys(one.target for one in estimates()))
    assert len({shown for shown, _, _ in key}) == 4
    for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        for own, _, target in key:
            marks = re.findall(rf'aria-label="[^"]* on {target}:[^"]*"[^>]*fill="([^"]*)"', svg)
            assert marks == [own] * 3


@given(st.floats(0, 1, exclude_max=True))
@settings(deadline=None)
def test_colours_stand_out_from_a_white_page_and_from_a_dark_one(hue: float) -> None:
    text = colour(hue)
    own = luminance([int(text[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    assert own == pytest.approx(BRIGHTNESS, abs=0.01)
    dark = luminance([int("1b1f24"[place : place + 2], 16) / 255 for place in (0, 2, 4)])
    assert (1 + 0.05) / (own + 0.05) > 3
    assert (own + 0.05) / (dark + 0.05) > 3


def test_luminance_by_hand() -> None:
    assert luminance([1, 1, 1]) == pytest.approx(1)
    assert luminance([0, 1, 0]) == pytest.approx(0.7152)
    assert luminance([0.5, 0, 0]) == pytest.approx(0.2126 * 0.21404, rel=1e-4)


def test_marks_of_all_of_massive_are_all_different() -> None:
    found = marks_of(MASSIVE_LOCALES)
    assert len({(mark.colour, mark.shape) for mark in found.values()}) == 52
    names = list(found)
    assert all(found[a].shape != found[b].shape for a, b in pairwise(names))


def test_estimates_without_a_truth_are_counted() -> None:
    bare = [Estimate("atc", "de-DE", "sw-KE", 0.4)]
    both = calibration_page([*estimates(), *bare], errors())
    assert "Not drawn, because their truth is not known: 1." in words(both)
    assert "sw-KE" not in both
    none = calibration_page(bare, [])
    assert "<svg" not in none
    assert words(none).count("the truth is not known") == 2


@pytest.mark.parametrize(("share", "axis"), [(0.0, ("0", "10")), (1.0, ("90", "100")), (0.5, ("40", "50"))])
def test_a_single_point_still_has_axes(share: float, axis: tuple[str, str]) -> None:
    found = texts(calibration_page([Estimate("atc", "de-DE", "sw-KE", share, share)], []))
    assert set(axis) <= set(found)


def test_calibration_escapes_and_is_the_same_again() -> None:
    hostile = [Estimate(HOSTILE, HOSTILE, HOSTILE, 0.5, 0.25)]
    wrong = [Calibration(HOSTILE, 25.0, 25.0, 25.0, 25.0, 1)]
    html = calibration_page(hostile, wrong)
    check_alone(html)
    assert html.count(escape(HOSTILE)) >= 3
    calibration_scatter([], 0, 100)
    assert calibration_page(hostile, wrong) == html


@pytest.mark.parametrize("module", ["altair", "vl_convert"])
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"langmerge\[report\]"):
        calibration_page(estimates(), errors())
