"""Sets of sources, by hand."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langmerge.errors import SelectionError
from langmerge.selection import Step, best_prefix, diverse, greedy, soft_vote_accuracy, votes


def right(*shares: float) -> np.ndarray:
    """Probabilities of two classes, by that of the right one, 0."""
    return np.array([[share, 1 - share] for share in shares])


LABELS = np.zeros(4, dtype=np.int64)
MEMBERS = {
    "af-ZA": right(0.60, 0.60, 0.60, 0.10),  # 3 of 4 rows
    "bn-BD": right(0.90, 0.90, 0.20, 0.20),  # 2
    "cy-GB": right(0.20, 0.20, 0.95, 0.95),  # 2, the others
}


def test_votes_are_probabilities() -> None:
    found = votes({"de-DE": np.array([[np.log(3.0), 0.0]]), "fr-FR": np.array([[1e4, 0.0]])})
    np.testing.assert_allclose(found["de-DE"], [[0.75, 0.25]])
    np.testing.assert_allclose(found["fr-FR"], [[1, 0]])


def test_soft_votes_by_hand() -> None:
    found = {pair: soft_vote_accuracy(MEMBERS, pair, LABELS) for pair in itertools.combinations(MEMBERS, 2)}
    assert found == {
        ("af-ZA", "bn-BD"): 0.5,  # 1.50, 1.50, 0.80, 0.30 of 2
        ("af-ZA", "cy-GB"): 0.5,  # 0.80, 0.80, 1.55, 1.05
        ("bn-BD", "cy-GB"): 1.0,  # 1.10, 1.10, 1.15, 1.15
    }
    assert soft_vote_accuracy(MEMBERS, ["af-ZA"], LABELS) == 0.75


def test_greedy_begins_with_the_best_single_source_even_if_the_best_pair_is_without_it() -> None:
    found = greedy(MEMBERS, LABELS, k=3)
    # Both pairs with af-ZA are right about two rows; cy-GB's cross-entropy is the smaller (2.73 against 3.39, over 4).
    # All three: 1.70, 1.70, 1.75, 1.25 of 3.
    assert found == [Step("af-ZA", 0.75), Step("cy-GB", 0.5), Step("bn-BD", 0.75)]
    assert greedy(MEMBERS, LABELS, k=1) == found[:1]
    assert greedy(MEMBERS, LABELS, k=2) == found[:2]


def test_greedy_goes_on_from_what_is_in() -> None:
    found = greedy(MEMBERS, LABELS, k=2, start=["bn-BD"])
    assert found == [Step("bn-BD", 0.5), Step("cy-GB", 1.0)]
    everything = greedy(MEMBERS, LABELS, k=3, start=["bn-BD"])
    assert everything == [*found, Step("af-ZA", 0.75)]
    assert greedy(MEMBERS, LABELS, k=1, start=["cy-GB"]) == [Step("cy-GB", 0.5)]


def test_greedy_stops_by_itself_before_what_does_not_help() -> None:
    assert greedy(MEMBERS, LABELS, k=None) == [Step("af-ZA", 0.75)]
    assert greedy(MEMBERS, LABELS, k=None, start=["bn-BD"]) == [Step("bn-BD", 0.5), Step("cy-GB", 1.0)]
    assert greedy({"de-DE": right(0.1, 0.2, 0.3, 0.4)}, LABELS, k=None) == [Step("de-DE", 0.0)]


def test_among_equals_the_smaller_cross_entropy_then_the_name() -> None:
    members = {
        "sw-KE": right(0.6, 0.6, 0.6, 0.4),
        "fr-FR": right(0.9, 0.9, 0.9, 0.4),
        "de-DE": right(0.9, 0.9, 0.9, 0.4),
        "tr-TR": right(0.8, 0.8, 0.8, 0.4),
    }
    assert [step.source for step in greedy(members, LABELS, k=4)] == ["de-DE", "fr-FR", "tr-TR", "sw-KE"]


def test_a_probability_of_zero_is_only_a_large_cross_entropy() -> None:
    members = {"de-DE": right(0.9, 0.9, 0.0, 0.0), "fr-FR": right(0.9, 0.9, 0.1, 0.1)}
    assert [step.source for step in greedy(members, LABELS, k=2)] == ["fr-FR", "de-DE"]


def random_votes(seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(seed)
    members = votes({name: rng.normal(size=(12, 3)) for name in ("de-DE", "fr-FR", "sw-KE", "tr-TR")})
    return members, rng.integers(0, 3, 12)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_every_step_is_the_best_next_one(seed: int) -> None:
    members, labels = random_votes(seed)
    found = greedy(members, labels, k=4)
    names = [step.source for step in found]
    assert sorted(names) == sorted(members)
    for size, step in enumerate(found, 1):
        assert step.score == soft_vote_accuracy(members, names[:size], labels)
        for other in set(members) - set(names[: size - 1]):
            assert step.score >= soft_vote_accuracy(members, [*names[: size - 1], other], labels)
    assert greedy(dict(reversed(members.items())), labels, k=4) == found
    alone = greedy(members, labels, k=None)
    assert alone == found[: len(alone)]
    assert all(a.score < b.score for a, b in itertools.pairwise(alone))
    assert len(alone) == 4 or found[len(alone)].score <= alone[-1].score


@pytest.mark.parametrize("k", [0, -1, 4])
def test_a_k_that_cannot_be(k: int) -> None:
    message = f"k is {k}, but there are 3 sources: choose from 1 to 3, or auto"
    with pytest.raises(SelectionError, match=message):
        greedy(MEMBERS, LABELS, k=k)
    with pytest.raises(SelectionError, match=message):
        diverse(SCORES, lambda *_: 0.0, k=k)


def test_there_must_be_sources() -> None:
    with pytest.raises(SelectionError, match="there are 0 sources"):
        greedy({}, LABELS, k=None)
    with pytest.raises(SelectionError, match="there are 0 sources"):
        diverse({}, lambda *_: 0.0, k=1)


SCORES = {"af-ZA": 0.9, "bn-BD": 0.8, "cy-GB": 0.5}
"""Scaled: 1, 0.75, 0."""

LIKENESS = {("af-ZA", "bn-BD"): 0.9, ("af-ZA", "cy-GB"): 0.1, ("bn-BD", "cy-GB"): 0.2}


def alike(a: str, b: str) -> float:
    return LIKENESS[min(a, b), max(a, b)]


def test_diverse_by_hand() -> None:
    found = diverse(SCORES, alike, k=3)
    assert [step.source for step in found] == ["af-ZA", "cy-GB", "bn-BD"]
    # First by score alone; then 0.5 · 0 − 0.5 · 0.1 beats 0.5 · 0.75 − 0.5 · 0.9; last the likeness to the likest.
    assert [step.score for step in found] == pytest.approx([0.5, -0.05, -0.075])
    assert [step.source for step in diverse(SCORES, alike, k=2, trade=0.8)] == ["af-ZA", "bn-BD"]


def test_diverse_goes_on_from_what_is_in() -> None:
    found = diverse(SCORES, alike, k=2, start=["cy-GB"])
    assert [step.source for step in found] == ["cy-GB", "af-ZA"]
    assert found[1].score == pytest.approx(0.5 * 1 - 0.5 * 0.1)


TABLES = st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0, 1, width=32), min_size=1)


@settings(deadline=None, max_examples=50)
@given(TABLES)
def test_scores_alone_are_the_ranking(scores: dict[str, float]) -> None:
    chosen = [step.source for step in diverse(scores, lambda *_: 1.0, k=len(scores), trade=1.0)]
    assert chosen == sorted(scores, key=lambda source: (-scores[source], source))


def test_likeness_alone_avoids_duplicates() -> None:
    scores = {"af-ZA": 0.9, "bn-BD": 0.9, "cy-GB": 0.1, "de-DE": 0.0}

    def likeness(a: str, b: str) -> float:
        return 1.0 if {a, b} == {"af-ZA", "bn-BD"} else 0.3

    ranked = [step.source for step in diverse(scores, likeness, k=2, trade=1.0)]
    assert ranked == ["af-ZA", "bn-BD"]
    found = [step.source for step in diverse(scores, likeness, k=4, trade=0.0, start=["af-ZA"])]
    assert found == ["af-ZA", "cy-GB", "de-DE", "bn-BD"]


@pytest.mark.parametrize("trade", [-0.1, 1.1, float("nan")])
def test_a_trade_that_cannot_be(trade: float) -> None:
    with pytest.raises(SelectionError, match="must lie between 0 and 1"):
        diverse(SCORES, alike, k=2, trade=trade)


def test_a_likeness_that_is_not_known_is_an_error() -> None:
    with pytest.raises(SelectionError, match="how alike bn-BD is to the chosen sources is not known"):
        diverse(SCORES, lambda a, b: float("nan") if "bn-BD" in (a, b) else 0.5, k=2)


def rows(*lines: list[float]) -> list[np.ndarray]:
    return [np.array(line) for line in lines]


def test_the_fewest_within_one_standard_error_of_the_best() -> None:
    # Behind the third by 0.02 and 0.01 of two, se 0.005: the mean, 0.015, is more.
    assert best_prefix(rows([0.50, 0.60, 0.62], [0.50, 0.70, 0.71])) == 3
    # Behind by −0.01, 0.03 and 0: mean 0.0067, se 0.012.
    assert best_prefix(rows([0.50, 0.63, 0.62], [0.50, 0.68, 0.71], [0.50, 0.60, 0.60])) == 2
    # The first is the best.
    assert best_prefix(rows([0.70, 0.60, 0.62], [0.72, 0.61, 0.63])) == 1


def test_what_all_cases_have_in_common_is_no_error() -> None:
    """Locales differ by far more than prefixes do; the differences are always the same."""
    assert best_prefix(rows([0.10, 0.20, 0.21], [0.50, 0.60, 0.61], [0.85, 0.95, 0.96])) == 3


def test_one_case_has_no_error_and_the_first_best_is_taken() -> None:
    assert best_prefix(rows([0.5, 0.7, 0.7, 0.6])) == 2
    assert best_prefix(rows([0.5])) == 1


def test_correct_rows_may_be_cases() -> None:
    # The second prefix is right about one row of four more than the first, and wrong about none that this was right about.
    rows_right = rows([1.0, 1.0], [1.0, 1.0], [0.0, 1.0], [0.0, 0.0])
    assert best_prefix(rows_right) == 1  # 0.25, se 0.25
    assert best_prefix([*rows_right, *rows([0.0, 1.0], [0.0, 1.0])]) == 2  # 0.5, se 0.22


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 5))
def test_never_more_than_the_best(seed: int, cases: int, width: int) -> None:
    table = np.random.default_rng(seed).random((cases, width))
    found = best_prefix(list(table))
    assert 1 <= found <= 1 + int(table.mean(axis=0).argmax())
    assert best_prefix(list(table + 3)) == found
