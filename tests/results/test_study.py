"""Differences."""

import pytest

from langmerge.results import Difference


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(0.1, 2.0, True), (-2.0, -0.1, True), (-0.1, 0.1, False), (0.0, 1.0, False)]
)
def test_a_difference_is_significant_where_its_interval_leaves_zero_out(
    low: float, high: float, expected: bool
) -> None:
    assert Difference(0.5, low, high).is_significant is expected


def test_a_difference_is_shown_with_its_interval() -> None:
    assert str(Difference(1.25, -0.5, 2.04)) == "+1.2 [-0.5, +2.0]"
