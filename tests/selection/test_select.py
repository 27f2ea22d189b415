import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langmerge.errors import SelectionError
from langmerge.selection import (
    SELECTORS,
    WEIGHTINGS,
    SimilarityMatrix,
    TransferMatrix,
    check_selector,
    rank_sources,
    select_sources,
    sinkhorn,
    source_weights,
    weighted,
)

SCORES = {"de-DE": 0.5, "fr-FR": 0.7, "sw-KE": 0.6, "tr-TR": 0.1}
MATRIX = TransferMatrix(
    tuple(SCORES), ("sw-KE",), np.array([[score] for score in SCORES.values()]), "dev", metric="accuracy"
)

NAMES = st.sampled_from(["af-ZA", "cy-GB", "de-DE", "en-US", "sw-KE", "tr-TR"])
OF_SCORES = [how for how in WEIGHTINGS if how != "sinkhorn"]
"""Those that need no more than the scores of the chosen."""
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
@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=9), st.sampled_from(OF_SCORES), st.floats(0.001, 10))
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
        (
            [0.1],
            "magic",
            0.1,
            "unknown weighting 'magic': there are uniform, proportional, softmax, sinkhorn",
        ),
        (
            [0.1],
            "sinkhorn",
            0.1,
            "sinkhorn weights look at all targets at once: give the matrix to select_so",
        ),
        ([0.1], "softmax", 0.0, "^temperature is 0.0, it must be above 0"),
        ([0.1], "softmax", math.nan, "^temperature is nan"),
        ([0.1], "softmax", math.inf, "^temperature is inf"),
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
    for name in SELECTORS:
        check_selector(name)
    with pytest.raises(SelectionError, match="unknown selector 'magic': there are measured, typology, stren"):
        check_selector("magic")


def scored(by: str = "typology", **changes: np.ndarray) -> SimilarityMatrix:
    names = ("de-DE", "fr-FR", "sw-KE", "tr-TR")
    values = np.array(
        [[0.9, 0.5, 0.4, 0.3], [0.6, 0.9, 0.7, 0.2], [0.5, 0.4, 0.95, 0.6], [0.2, 0.1, 0.5, 0.9]]
    )
    return SimilarityMatrix(by, names, (*names[:3], "cy-GB"), changes.get("values", values))


def test_any_selectors_scores_are_chosen_by() -> None:
    chosen = select_sources(scored(), "sw-KE", k=2, weights="proportional")
    assert chosen.scores == {"fr-FR": 0.7, "tr-TR": 0.5}
    assert chosen.left_out == {}
    provenance = chosen.coefficients.provenance
    assert (provenance["selector"], provenance["k"], provenance["mode"]) == ("typology", 2, "ExcTar")


@pytest.mark.parametrize("k", [1, 2, 3])
def test_inctar_is_the_target_and_the_best_others(k: int) -> None:
    others = select_sources(scored(), "sw-KE", k=k).sources
    included = select_sources(scored(), "sw-KE", k=k + 1, include_target=True)
    assert included.sources == ("sw-KE", *others)
    assert included.scores["sw-KE"] == 0.95


def test_a_source_without_a_score_is_left_out_and_said_to_be() -> None:
    values = scored().values.copy()
    values[1, 2] = np.nan
    holed = SimilarityMatrix(
        "typology", scored().sources, scored().targets, values, {"fr-FR": "family not known"}
    )
    chosen = select_sources(holed, "sw-KE", k=None)
    assert chosen.sources == ("tr-TR", "de-DE")
    assert chosen.left_out == {"fr-FR": "family not known"}
    with pytest.raises(SelectionError, match="k is 3, but sw-KE has 2 sources"):
        select_sources(holed, "sw-KE", k=3)


def test_a_cell_that_was_not_measured_is_no_reason_to_leave_a_source_out() -> None:
    values = MATRIX.values.copy()
    values[1, 0] = np.nan
    with pytest.raises(SelectionError, match="column 'sw-KE' lacks fr-FR: run langmerge matrix again"):
        select_sources(TransferMatrix(MATRIX.sources, MATRIX.targets, values, "dev"), "sw-KE", k=1)


@pytest.mark.parametrize(
    ("by", "temperature"), [("typology", 0.1), ("measured", 0.1), ("strength", 0.02), ("composite", 1.0)]
)
@pytest.mark.parametrize("weights", ["softmax", "sinkhorn"])
def test_the_temperature_is_in_the_selectors_unit(by: str, temperature: float, weights: str) -> None:
    chosen = select_sources(scored(by), "sw-KE", k=2, weights=weights).coefficients
    assert chosen.provenance["temperature"] == temperature
    given_it = select_sources(scored(), "sw-KE", k=2, weights=weights, temperature=temperature).coefficients
    assert chosen.values == given_it.values


def test_sinkhorn_balances_without_the_diagonal_in_exctar() -> None:
    values = scored().values.copy()
    values[[0, 1, 2], [0, 1, 2]] = np.nan
    expected = sinkhorn(values, temperature=0.1)[:, 2]
    found = select_sources(scored(), "sw-KE", k=None, weights="sinkhorn").coefficients.values["model"]
    assert found == pytest.approx({"fr-FR": expected[1], "tr-TR": expected[3], "de-DE": expected[0]})
    assert list(found) == ["fr-FR", "tr-TR", "de-DE"]  # by score
    assert sum(found.values()) == pytest.approx(1)
    # Whatever the experts do on their own locales.
    values[[0, 1, 2], [0, 1, 2]] = [0.0, 1.0, 5.0]
    other = scored(values=values)
    again = select_sources(other, "sw-KE", k=None, weights="sinkhorn").coefficients.values["model"]
    assert again == pytest.approx(found)
    two = select_sources(scored(), "sw-KE", k=2, weights="sinkhorn").coefficients.values["model"]
    share = expected[1] + expected[3]
    assert two == pytest.approx({"fr-FR": expected[1] / share, "tr-TR": expected[3] / share})


def test_sinkhorn_lets_the_target_take_part_for_itself_alone_in_inctar() -> None:
    values = scored().values.copy()
    values[[0, 1], [0, 1]] = np.nan
    expected = sinkhorn(values, temperature=0.1)[:, 2]
    included = select_sources(scored(), "sw-KE", k=3, include_target=True, weights="sinkhorn")
    assert included.sources == ("sw-KE", "fr-FR", "tr-TR")
    share = expected[2] + expected[1] + expected[3]
    assert included.coefficients.values["model"] == pytest.approx(
        {source: expected[row] / share for source, row in (("sw-KE", 2), ("fr-FR", 1), ("tr-TR", 3))}
    )


def test_sinkhorn_passes_over_what_nothing_is_known_of() -> None:
    values = scored().values.copy()
    values[0, :] = values[:, 3] = np.nan
    found = select_sources(scored(values=values), "sw-KE", k=None, weights="sinkhorn")
    values[[1, 2], [1, 2]] = np.nan
    expected = sinkhorn(values[1:, :3], temperature=0.1)[:, 2]
    assert found.coefficients.values["model"] == pytest.approx({"fr-FR": expected[0], "tr-TR": expected[2]})
    assert found.left_out == {"de-DE": "typology has no score for it"}


def test_a_set_that_was_not_ranked_says_how_it_was_chosen() -> None:
    chosen = weighted(scored(), "sw-KE", {"de-DE": 0.4, "fr-FR": 0.7}, weights="uniform", joint="greedy")
    assert chosen.sources == ("de-DE", "fr-FR")
    assert chosen.coefficients.values == {"model": {"de-DE": 0.5, "fr-FR": 0.5}}
    assert chosen.coefficients.provenance["joint"] == "greedy"
    assert "joint" not in select_sources(scored(), "sw-KE", k=2).coefficients.provenance


def test_an_own_share_leaves_the_others_in_their_proportions() -> None:
    plain = select_sources(MATRIX, "sw-KE", k=3, include_target=True, weights="proportional")
    shared = select_sources(MATRIX, "sw-KE", k=3, include_target=True, weights="proportional", own=0.9)
    before, after = (one.coefficients.values["model"] for one in (plain, shared))
    assert after["sw-KE"] == 0.9
    assert sum(after.values()) == pytest.approx(1)
    others = [name for name in before if name != "sw-KE"]
    assert after[others[0]] / after[others[1]] == pytest.approx(before[others[0]] / before[others[1]])
    assert select_sources(MATRIX, "sw-KE", k=1, include_target=True, own=0.9).coefficients.values[
        "model"
    ] == {"sw-KE": 1}
    # Without the target there is no own expert to give a share to.
    assert (
        select_sources(MATRIX, "sw-KE", k=2, own=0.9).coefficients
        == select_sources(MATRIX, "sw-KE", k=2).coefficients
    )
    with pytest.raises(SelectionError, match=r"the own share is 1\.5"):
        select_sources(MATRIX, "sw-KE", k=2, include_target=True, own=1.5)
