import pytest

from langmerge.report.words import difference, duration, p_value, percent, points
from langmerge.results.study import Difference


@pytest.mark.parametrize(
    ("value", "text"), [(1.26, "+1.3"), (-1.26, "-1.3"), (-0.04, "-0.04"), (0.0, "+0.0")]
)
def test_points_keep_their_sign(value: float, text: str) -> None:
    assert points(value) == text


@pytest.mark.parametrize(("p", "text"), [(0.0009, "p < 0.001"), (0.0234, "p = 0.023"), (1.0, "p = 1.00")])
def test_p_value(p: float, text: str) -> None:
    assert p_value(p) == text


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (None, "—"),
        (Difference(2.0, 0.5, 3.5), "▲ +2.0 (+0.5 to +3.5)"),
        (Difference(-2.0, -3.5, -0.5, 0.004), "▼ -2.0 (-3.5 to -0.5), p = 0.004"),
        (Difference(2.0, -0.5, 4.5, 0.2), "+2.0 (-0.5 to +4.5), p = 0.20"),
        (Difference(2.0, 0.0, 4.0), "+2.0 (+0.0 to +4.0)"),
    ],
)
def test_a_mark_stands_only_where_the_interval_leaves_zero_out(found: Difference | None, text: str) -> None:
    assert difference(found) == text


def test_percent() -> None:
    assert percent(0.6129) == "61.3"


@pytest.mark.parametrize(
    ("seconds", "text"), [(59.4, "59.4 s"), (60, "1 min 0 s"), (754.0, "12 min 34 s"), (7322, "2 h 2 min")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
