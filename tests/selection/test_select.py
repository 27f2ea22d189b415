import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langmerge.errors import SelectionError
from langmerge.selection import (
    WEIGHTINGS,
    TransferMatrix,
    check_selector,
    rank_sources,
    select_sources,
    source_weights,
)

SCORES = {"de-DE": 0.5, "fr-FR": 0.7, "sw-KE": 0.6, "tr-TR": 0.1}
MATRIX = TransferMatrix(
    tuple(SCORES), ("sw-KE",), np.array([[score] for score in SCORES.values()]), "dev", metric="accuracy"
)

NAMES = st.sampled_from(["af-ZA", "cy-GB", "de-DE", "en-US", "sw-KE", "tr-TR"])
TABLES = st.dictionaries(NAMES, st.floats(0, 1, width=32), min_size=2)


def test_sources_are_ranked_without_the_target() -> None:
    assert rank_sources(SCORES, "sw-KE") == ["fr-FR", "de-DE", "tr-TR"]
    assert rank_sources(SCORES, "cy-GB") == ["fr-FR", "sw-KE", "de-DE", "tr-TR"]


def test_the_targets_own_expert_comes_first_when_included() -> None:
    assert rank_sources(SCORES, "tr-TR", include_target=True) == ["tr-TR", "fr-FR", "sw-KE", "de-DE"]
    with pytest.raises(SelectionError, match="'cy-GB' has no expert, so it cannot be included"):
        rank_sources(SCORES, "cy-GB", include_target=True)


@settings(deadline=None, max_examples=50)
@given(TABLES)
def test_a_ranking_is_by_score_then_by_name_whatever_the_order(table: dict[str, float]) -> None:
    ranked = rank_sources(table, "sw-KE")
    assert sorted(ranked) == sorted(set(table) - {"sw-KE"})
    assert ranked == rank_sources(dict(reversed(table.items())), "sw-KE")
    for better, worse in itertools.pairwise(ranked):
        assert (-table[better], better) < (-table[worse], worse)


def test_weights_by_hand() -> None:
    assert source_weights([0.2, 0.6]) == [0.5, 0.5]
    assert source_weights([0.2, 0.6], "proportional") == pytest.approx([0.25, 0.75])
    odds = math.exp(0.4 / 0.5)
    assert source_weights([0.2, 0.6], "softmax", temperature=0.5) == pytest.approx(
        [1 / (1 + odds), odds / (1 + odds)]
    )


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.floats(0.01, 1), min_size=1, max_size=9), st.sampled_from(WEIGHTINGS), st.floats(0.001, 10)
)
def test_weights_sum_to_one_and_keep_the_order(scores: list[float], how: str, temperature: float) -> None:
    weights = source_weights(scores, how, temperature=temperature)
    assert sum(weights) == pytest.approx(1)
    assert min(weights) >= 0
    by_score = [weights[place] for place in np.argsort(scores, kind="stable")]
    assert all(low <= high + 1e-12 for low, high in itertools.pairwise(by_score))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=5), st.floats(-3, 3))
def test_softmax_looks_at_differences_alone(scores: list[float], shift: float) -> None:
    moved = source_weights([score + shift for score in scores], "softmax")
    assert moved == pytest.approx(source_weights(scores, "softmax"), abs=1e-9)


def test_temperature_goes_from_the_best_to_uniform() -> None:
    assert source_weights([0.5, 0.6], "softmax", temperature=1e-4) == pytest.approx([0, 1])
    assert source_weights([0.5, 0.6], "softmax", temperature=1e4) == pytest.approx([0.5, 0.5], abs=1e-4)


@pytest.mark.parametrize(
    ("scores", "how", "temperature", "message"),
    [
        ([0.1], "sinkhorn", 0.1, "unknown weighting 'sinkhorn': there are uniform, proportional, softmax"),
        ([0.1], "softmax", 0.0, "softmax temperature is 0.0, it must be above 0"),
        ([0.1], "softmax", math.nan, "softmax temperature is nan"),
        ([0.1, -0.1], "proportional", 0.1, "not negative and not all zero"),
        ([0.0, 0.0], "proportional", 0.1, "not negative and not all zero"),
    ],
)
def test_weights_that_make_no_sense(scores: list[float], how: str, temperature: float, message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        source_weights(scores, how, temperature=temperature)


def test_the_best_k_are_selected_best_first() -> None:
    chosen = select_sources(MATRIX, "sw-KE", k=2, weights="proportional")
    assert chosen.target == "sw-KE"
    assert list(chosen.scores.items()) == [("fr-FR", 0.7), ("de-DE", 0.5)]
    assert chosen.sources == ("fr-FR", "de-DE")
    assert chosen.coefficients.values == {"model": pytest.approx({"fr-FR": 7 / 12, "de-DE": 5 / 12})}
    assert chosen.coefficients.sources == chosen.sources
    assert chosen.coefficients.target == "sw-KE"


def test_the_choice_says_what_it_was_made_by() -> None:
    excluded = select_sources(MATRIX, "sw-KE", k=2).coefficients.provenance
    assert excluded == {
        "selector": "measured", "split": "dev", "metric": "accuracy", "k": 2, "mode": "ExcTar",
        "weights": "uniform", "temperature": None, "scores": {"fr-FR": 0.7, "de-DE": 0.5},
    }  # fmt: skip
    included = select_sources(MATRIX, "sw-KE", k=2, include_target=True, weights="softmax", temperature=0.3)
    provenance = included.coefficients.provenance
    assert (provenance["mode"], provenance["weights"], provenance["temperature"]) == (
        "IncTar",
        "softmax",
        0.3,
    )


def test_all_sources_and_the_default_of_five() -> None:
    assert select_sources(MATRIX, "sw-KE", k=None).sources == ("fr-FR", "de-DE", "tr-TR")
    assert select_sources(MATRIX, "sw-KE", k=None, include_target=True).sources[0] == "sw-KE"
    with pytest.raises(SelectionError, match="k is 5, but sw-KE has 3 sources: choose k from 1 to 3, or all"):
        select_sources(MATRIX, "sw-KE")


@pytest.mark.parametrize(("k", "include"), [(0, False), (-1, False), (4, False), (5, True)])
def test_a_k_that_cannot_be(k: int, include: bool) -> None:
    with pytest.raises(SelectionError, match=rf"k is {k}, but sw-KE has {4 if include else 3} sources"):
        select_sources(MATRIX, "sw-KE", k=k, include_target=include)


def test_an_unmeasured_target_cannot_be_chosen_for() -> None:
    with pytest.raises(SelectionError, match="no column 'cy-GB'"):
        select_sources(MATRIX, "cy-GB")


def test_selectors() -> None:
    check_selector("measured")
    with pytest.raises(SelectionError, match="unknown selector 'magic': there are measured"):
        check_selector("magic")
