"""Accuracy without labels, where the answer is known."""

import inspect
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr, ndtri

from langmerge.errors import SelectionError
from langmerge.estimates import estimated
from langmerge.results import Logits
from langmerge.selection.label_free import (
    ESTIMATORS,
    FIT_ROWS,
    Labelled,
    above_threshold,
    accuracy_on_line,
    agreements,
    best_temperature,
    confidence_threshold,
    estimate,
    mean_confidence,
    mean_entropy,
)
from langmerge.selection.selectors import probabilities

SEEDS = st.integers(0, 2**32 - 1)
EVERY = pytest.mark.parametrize("how", ESTIMATORS)


def sampled(seed: int, rows: int, temperature: float = 1.0, classes: int = 4) -> Labelled:
    """Logits whose labels are drawn from softmax(z / T)."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(rows, classes))
    shares = probabilities(logits, temperature).cumsum(axis=1)
    return Labelled(logits, (rng.random((rows, 1)) > shares).sum(axis=1))


def of(accuracy: float, rows: int = 20, sure: float = 3.0) -> Labelled:
    """Right about a share of rows, and as sure of all of them."""
    labels = np.arange(rows, dtype=np.int64) % 2
    said = np.where(np.arange(rows) < round(accuracy * rows), labels, 1 - labels)
    return Labelled(sure * np.eye(2)[said], labels)


def test_accuracy() -> None:
    assert of(0.7).accuracy == 0.7
    assert Labelled(np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), np.array([0, 1, 1])).accuracy == 2 / 3


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_a_known_temperature_is_recovered(temperature: float) -> None:
    known = sampled(1, 20_000, temperature)
    assert best_temperature(known.logits, known.labels) == pytest.approx(temperature, rel=0.05)


def test_the_temperature_scales_with_the_logits_and_is_the_best_there_is() -> None:
    known = sampled(2, 2_000, 1.5)
    found = best_temperature(known.logits, known.labels)
    assert best_temperature(4 * known.logits, known.labels) == pytest.approx(4 * found, rel=1e-3)

    def loss(temperature: float) -> float:
        shares = probabilities(known.logits, temperature)
        return float(-np.log(shares[np.arange(2_000), known.labels]).mean())

    for factor in (0.95, 1.05):
        assert loss(found) < loss(factor * found)


def test_confidence_and_entropy_by_hand() -> None:
    logits = np.array([[np.log(3.0), 0.0], [0.0, 0.0]])
    assert mean_confidence(logits) == pytest.approx((0.75 + 0.5) / 2)
    assert mean_confidence(logits, 2.0) == pytest.approx((3**0.5 / (1 + 3**0.5) + 0.5) / 2)
    entropy = -0.75 * np.log(0.75) - 0.25 * np.log(0.25)
    assert mean_entropy(logits) == pytest.approx((entropy + np.log(2)) / 2)
    assert mean_entropy(np.array([[2000.0, 0.0]])) == 0


def test_the_threshold_by_hand() -> None:
    # Confidences 0.9, 0.8, 0.7, 0.6, the third is wrong: one row has to stay below.
    shares = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.6, 0.4]])
    known = Labelled(np.log(shares), np.array([0, 1, 1, 0]))
    assert confidence_threshold(known) == pytest.approx(0.6)
    assert above_threshold(known.logits, confidence_threshold(known)) == 0.75
    assert above_threshold(np.log(shares[:1]), 0.85) == 1
    assert above_threshold(np.log(shares), 0.85) == 0.25
    right, wrong = (Labelled(np.log(shares), np.array(labels)) for labels in ([0, 1, 0, 0], [1, 0, 1, 1]))
    assert above_threshold(right.logits, confidence_threshold(right)) == 1
    assert above_threshold(wrong.logits, confidence_threshold(wrong)) == 0


@settings(deadline=None, max_examples=25)
@given(SEEDS, st.integers(1, 300), st.floats(0.3, 5))
def test_atc_on_the_same_rows_is_their_accuracy(seed: int, rows: int, temperature: float) -> None:
    known = sampled(seed, rows, temperature)
    found = estimate("atc", {"de-DE": {"fr-FR": known}}, {"de-DE": known.logits})
    assert found["de-DE"] == pytest.approx(known.accuracy, abs=1 / rows + 1e-12)


def test_confidence_is_calibrated_on_labelled_rows() -> None:
    """Twice too sure there, twice too sure on the target: the estimate is right all the same."""
    target = sampled(4, 5_000, 2.0)
    assert mean_confidence(target.logits) > target.accuracy + 0.1
    found = estimate("confidence", {"de-DE": {"fr-FR": sampled(3, 4_000, 2.0)}}, {"de-DE": target.logits})
    assert found["de-DE"] == pytest.approx(target.accuracy, abs=0.02)


def test_no_more_rows_are_fitted_than_are_needed() -> None:
    """Of twice as many every second is taken: the others are nonsense here."""
    known = sampled(5, FIT_ROWS)
    logits, labels = np.zeros((2 * FIT_ROWS, 4)), np.zeros(2 * FIT_ROWS, dtype=np.int64)
    logits[::2], labels[::2] = known.logits, known.labels
    target = {"de-DE": sampled(6, 100).logits}
    for how in ("atc", "confidence"):
        found = estimate(how, {"de-DE": {"fr-FR": Labelled(logits, labels)}}, target)
        assert found == estimate(how, {"de-DE": {"fr-FR": known}}, target)


def entropic(unsure: float, accuracy: float, rows: int = 20) -> Labelled:
    """Of two classes: ln 2 is the entropy of a share of rows, 0 that of the others."""
    known = np.arange(rows) >= round(unsure * rows)
    logits = np.where(known[:, None], [2000.0, 0.0], 0.0)
    return Labelled(logits, (np.arange(rows) >= round(accuracy * rows)).astype(np.int64))


def test_the_line_from_entropy_to_accuracy_by_hand() -> None:
    # Entropies 0.2 and 0.6 of ln 2 with accuracies 0.9 and 0.5: accuracy is 1.1 − entropy.
    labelled = {"de-DE": {"fr-FR": entropic(0.2, 0.9)}, "tr-TR": {"fr-FR": entropic(0.6, 0.5)}}
    targets = {"de-DE": entropic(0.5, 1.0).logits, "tr-TR": entropic(0.0, 1.0).logits}
    found = estimate("entropy", labelled, targets)
    # Beyond 1 there is nothing.
    assert found == pytest.approx({"de-DE": 0.6, "tr-TR": 1.0})


def test_without_a_slope_the_entropy_line_is_the_mean() -> None:
    labelled = {"de-DE": {"fr-FR": entropic(0.5, 0.9), "sw-KE": entropic(0.5, 0.4)}}
    assert estimate("entropy", labelled, {"de-DE": entropic(0.1, 1.0).logits}) == pytest.approx(
        {"de-DE": 0.65}
    )


def test_agreements_by_hand() -> None:
    found = agreements([np.array([0, 1, 2, 0]), np.array([0, 1, 1, 1]), np.array([1, 1, 2, 2])])
    assert found.tolist() == [[1, 0.5, 0.5], [0.5, 1, 0.25], [0.5, 0.25, 1]]


def test_agreement_is_the_mean_over_the_others() -> None:
    said = {"de-DE": [0, 1, 2, 0], "fr-FR": [0, 1, 1, 1], "tr-TR": [1, 1, 2, 2]}
    unlabelled = {name: np.eye(3)[own] for name, own in said.items()}
    found = estimate("agreement", {name: {} for name in said}, unlabelled)
    assert found == pytest.approx({"de-DE": 0.5, "fr-FR": 0.375, "tr-TR": 0.375})


SHARES = st.floats(0.05, 0.95)


@settings(deadline=None, max_examples=50)
@given(SEEDS, st.integers(3, 6), st.floats(0.3, 1.5), st.floats(-1, 0.5))
def test_agreement_line_is_exact_in_a_probit_world(
    seed: int, experts: int, slope: float, shift: float
) -> None:
    rng = np.random.default_rng(seed)
    known = rng.uniform(0.3, 0.9, experts)
    agreed = rng.uniform(0.3, 0.9, (experts, experts))
    agreed_there = ndtr(slope * ndtri(agreed) + shift)
    found = accuracy_on_line(known, agreed, agreed_there)
    np.testing.assert_allclose(found, ndtr(slope * ndtri(known) + shift), atol=1e-9)


def test_agreement_line_without_a_slope_is_the_mean_of_agreements() -> None:
    agreed, there = np.full((3, 3), 0.7), np.full((3, 3), 0.6)
    np.testing.assert_allclose(accuracy_on_line(np.array([0.5, 0.6, 0.9]), agreed, there), 0.6)


def test_agreement_line_keeps_off_the_ends() -> None:
    agreed, there = np.array([[1.0, 1.0, 0.6], [1.0, 1.0, 0.7], [0.6, 0.7, 1.0]]), np.full((3, 3), 1.0)
    found = accuracy_on_line(np.array([1.0, 0.0, 0.5]), agreed, there)
    np.testing.assert_allclose(found, 0.999)


def test_agreement_line_of_a_locale_for_itself_is_its_accuracy() -> None:
    cells = {name: sampled(seed, 400) for seed, name in enumerate(("de-DE", "fr-FR", "tr-TR", "sw-KE"))}
    labels = cells["de-DE"].labels
    same = {name: Labelled(cell.logits, labels) for name, cell in cells.items()}
    found = estimate(
        "agreement_line",
        {name: {"cy-GB": cell} for name, cell in same.items()},
        {name: cell.logits for name, cell in same.items()},
    )
    assert found == pytest.approx({name: cell.accuracy for name, cell in same.items()})


EXPERTS = ("de-DE", "fr-FR", "tr-TR")
LOCALES = (*EXPERTS, "cy-GB")


def labelled_cells() -> dict[str, dict[str, Labelled]]:
    return {
        expert: {locale: sampled(10 * i + j, 60) for j, locale in enumerate(LOCALES)}
        for i, expert in enumerate(EXPERTS)
    }


def unlabelled_cells() -> dict[str, np.ndarray]:
    return {expert: sampled(90 + i, 50).logits for i, expert in enumerate(EXPERTS)}


@EVERY
def test_estimates_are_shares_for_every_expert_in_any_order(how: str) -> None:
    labelled, unlabelled = labelled_cells(), unlabelled_cells()
    found = estimate(how, labelled, unlabelled)
    assert list(found) == list(EXPERTS)
    assert all(0 <= value <= 1 for value in found.values())
    turned = estimate(how, dict(reversed(labelled.items())), dict(reversed(unlabelled.items())))
    assert turned == pytest.approx(found, abs=1e-9)


@EVERY
def test_an_experts_own_locale_takes_no_part(how: str) -> None:
    labelled = labelled_cells()
    before = estimate(how, labelled, unlabelled_cells())
    for expert in EXPERTS:
        labelled[expert][expert] = of(1.0, 60)
    assert estimate(how, labelled, unlabelled_cells()) == before
    for expert in EXPERTS:
        del labelled[expert][expert]
    if how != "agreement_line":  # it compares experts on the same rows
        assert estimate(how, labelled, unlabelled_cells()) == before


@EVERY
def test_labelled_rows_matter_where_they_are_said_to(how: str) -> None:
    labelled = labelled_cells()
    before = estimate(how, labelled, unlabelled_cells())
    for place, expert in enumerate(EXPERTS):
        labelled[expert]["cy-GB"] = sampled(200 + place, 60, 0.1)
    assert (estimate(how, labelled, unlabelled_cells()) == before) == (how == "agreement")


def test_no_estimate_is_given_labels_of_the_target() -> None:
    assert list(inspect.signature(estimate).parameters) == ["how", "labelled", "unlabelled"]
    assert all(isinstance(cell, np.ndarray) for cell in unlabelled_cells().values())


class Pooled:
    """Stands for `PoolSelectors`: experts whose logits are given."""

    def __init__(self, labels: dict[str, np.ndarray]) -> None:
        self.pool = SimpleNamespace(locales=LOCALES)
        self.labels = labels

    def logits(self, target: str) -> dict[str, Logits]:
        made = {}
        for place, expert in enumerate(LOCALES):
            values = sampled(100 * place + LOCALES.index(target), 40).logits.astype(np.float32)
            ids = tuple(map(str, range(40)))
            made[expert] = Logits(f"{expert} {target}", ids, self.labels[target], values)
        return made


def test_labels_of_the_target_change_no_estimate_on_a_pool() -> None:
    labels = {locale: sampled(place, 40).labels for place, locale in enumerate(LOCALES)}
    turned = {**labels, "tr-TR": (labels["tr-TR"] + 1) % 4}

    def found(those: dict[str, np.ndarray], target: str) -> list[Any]:
        return estimated(cast(Any, Pooled(those)), [target], ESTIMATORS, with_truth=True)

    before, after = found(labels, "tr-TR"), found(turned, "tr-TR")
    assert {one.expert for one in before} == {"de-DE", "fr-FR", "cy-GB"}
    assert [one.how for one in before] == [how for how in ESTIMATORS for _ in range(3)]
    assert [one.estimated for one in before] == [one.estimated for one in after]
    assert [one.truth for one in before] != [one.truth for one in after]
    # For another target tr-TR's labels are among what is learned from.
    assert [one.estimated for one in found(labels, "de-DE")] != [
        one.estimated for one in found(turned, "de-DE")
    ]


def test_estimates_that_cannot_be_made() -> None:
    labelled, unlabelled = labelled_cells(), unlabelled_cells()
    with pytest.raises(SelectionError, match="unknown estimate 'magic': there are entropy, confidence, atc"):
        estimate("magic", labelled, unlabelled)
    own = {expert: {expert: labelled[expert][expert]} for expert in EXPERTS}
    for how in ESTIMATORS:
        if how != "agreement":
            with pytest.raises(
                SelectionError,
                match=f"{how} needs labelled rows of a locale that is neither the target nor de",
            ):
                estimate(how, own, unlabelled)


def test_agreement_needs_others() -> None:
    labelled, unlabelled = labelled_cells(), unlabelled_cells()
    one, two = ({expert: unlabelled[expert] for expert in EXPERTS[:count]} for count in (1, 2))
    for how in ("agreement", "agreement_line"):
        with pytest.raises(SelectionError, match="agreement needs two experts or more"):
            estimate(how, labelled, one)
    assert len(estimate("agreement", labelled, two)) == 2
    with pytest.raises(SelectionError, match="agreement_line needs three experts or more, found 2"):
        estimate("agreement_line", labelled, two)


def test_agreement_line_needs_a_locale_in_common() -> None:
    cells = labelled_cells()
    apart = {
        expert: {locale: cells[expert][locale]}
        for expert, locale in zip(EXPERTS, ("cy-GB", "de-DE", "de-DE"), strict=True)
    }
    with pytest.raises(SelectionError, match="needs a labelled locale on which every expert was run"):
        estimate("agreement_line", apart, unlabelled_cells())
    for shared in (("de-DE",), ("de-DE", "fr-FR")):
        some = {expert: {locale: cells[expert][locale] for locale in shared} for expert in EXPERTS}
        # So that each of them has a locale that is not its own.
        some["de-DE"]["cy-GB"] = cells["de-DE"]["cy-GB"]
        with pytest.raises(SelectionError, match="needs a labelled locale that is neither de-DE nor fr-FR"):
            estimate("agreement_line", some, unlabelled_cells())
