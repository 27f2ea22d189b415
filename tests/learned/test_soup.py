"""Greedy soup on a table of scores."""

import math
from collections.abc import Mapping

import pytest

from langmerge.coefficients import Coefficients
from langmerge.errors import SelectionError
from langmerge.learned.soup import greedy_soup

ACCURACIES = {"tr-TR": 0.3, "de-DE": 0.6, "fr-FR": 0.5, "en-US": 0.5}
"""Order: de-DE, then en-US before fr-FR by name, then tr-TR."""


def scored(table: Mapping[str, float], asked: list[str]) -> object:
    """A score that looks soups up by their sources' first letters, in order of addition."""

    def score(coefficients: Coefficients) -> float:
        key = "".join(source[0] for source in coefficients.sources)
        weights = list(coefficients.values["model"].values())
        assert weights == pytest.approx([1 / len(weights)] * len(weights))
        asked.append(key)
        return table[key]

    return score


def test_a_source_stays_if_the_average_is_no_worse() -> None:
    asked: list[str] = []
    table = {"d": 0.60, "de": 0.55, "df": 0.60, "dft": 0.70}
    soup = greedy_soup(ACCURACIES, scored(table, asked), target="sw-KE")  # type: ignore[arg-type]
    assert asked == ["d", "de", "df", "dft"]
    third = 1 / 3
    assert soup.values == {"model": {"de-DE": third, "fr-FR": third, "tr-TR": third}}
    assert soup.target == "sw-KE"
    said = soup.provenance
    assert (said["score"], said["tried"]) == (0.70, 4)
    assert [(one["source"], one["before"], one["score"], one["added"]) for one in said["trace"]] == [
        ("de-DE", None, 0.60, True),
        ("en-US", 0.60, 0.55, False),
        ("fr-FR", 0.60, 0.60, True),
        ("tr-TR", 0.60, 0.70, True),
    ]


def test_the_best_alone_where_nothing_helps() -> None:
    soup = greedy_soup(ACCURACIES, scored({"d": 0.6, "de": 0.5, "df": 0.59, "dt": math.nan}, []))  # type: ignore[arg-type]
    assert soup.values == {"model": {"de-DE": 1.0}}
    assert soup.provenance["trace"][-1]["score"] is None


def test_soups_that_cannot_be_made() -> None:
    with pytest.raises(SelectionError, match="none were given"):
        greedy_soup({}, lambda _: 1.0)
    with pytest.raises(SelectionError, match="accuracy of b is not known"):
        greedy_soup({"a": 0.5, "b": math.nan}, lambda _: 1.0)
    with pytest.raises(SelectionError, match="the best source alone, a, has no score"):
        greedy_soup({"a": 0.5, "b": 0.4}, lambda _: math.nan)
