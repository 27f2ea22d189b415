"""Estimates without labels: what takes part in them, and how wrong they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from langmerge.errors import SelectionError
from langmerge.estimates import Estimate, calibration, estimated
from langmerge.pool import Pool
from langmerge.results import Logits
from langmerge.selection.label_free import ESTIMATORS
from langmerge.similarities import PoolSelectors
from tests.tiny_pool import ABSENT, EXPERTS, write_tiny_pool

Cells = Mapping[str, Mapping[str, Logits]]
"""locale → expert → logits."""


@dataclass
class Given:
    """Stands for `PoolSelectors`."""

    cells: Cells
    locales: tuple[str, ...] = EXPERTS

    @property
    def pool(self) -> Any:
        return SimpleNamespace(locales=self.locales)

    def logits(self, target: str) -> Mapping[str, Logits]:
        return {expert: self.cells[target][expert] for expert in self.locales}


def found_by(given: Any, targets: Sequence[str], hows: Sequence[str], **options: Any) -> list[Estimate]:
    return estimated(given, targets, hows, **options)


def estimates(
    cells: Cells, targets: Sequence[str], hows: Sequence[str] = ESTIMATORS, **given: Any
) -> dict[tuple[str, str, str], float]:
    """By target, expert and estimator."""
    found = found_by(Given(cells, **given), targets, hows)
    return {(one.target, one.expert, one.how): one.estimated for one in found}


def drawn_cells() -> Cells:
    """Experts of different worth on locales of different hardness; sure where they are right."""
    random = np.random.default_rng(5)
    cells: dict[str, dict[str, Logits]] = {}
    for hard, locale in enumerate((*EXPERTS, ABSENT)):
        labels = random.integers(0, 3, 80)
        cells[locale] = {}
        for weak, expert in enumerate(EXPERTS):
            values = random.normal(size=(80, 3)) * 0.8
            values[np.arange(80), labels] += 2.2 - 0.25 * hard - 0.2 * weak
            ids = tuple(map(str, range(80)))
            cells[locale][expert] = Logits("s", ids, labels, values.astype(np.float32))
    return cells


CELLS = drawn_cells()
TARGET = "fr-FR"


def with_other_labels(locale: str) -> Cells:
    own = {expert: replace(cell, labels=(cell.labels + 1) % 3) for expert, cell in CELLS[locale].items()}
    return {**CELLS, locale: own}


def with_another_expert(expert: str) -> Cells:
    random = np.random.default_rng(11)
    return {
        locale: {
            **own,
            expert: replace(own[expert], values=random.normal(size=(80, 3)).astype(np.float32) * 4),
        }
        for locale, own in CELLS.items()
    }


CHANGES = {"labels": with_other_labels(TARGET), "expert": with_another_expert(TARGET)}


@pytest.mark.parametrize("change", CHANGES)
def test_a_target_is_left_out_of_its_own_estimates(change: str) -> None:
    """Neither its labels nor its own expert move them, on any row."""
    assert estimates(CHANGES[change], [TARGET]) == estimates(CELLS, [TARGET])


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("how", ESTIMATORS)
def test_the_same_change_moves_estimates_of_other_targets(change: str, how: str) -> None:
    before, after = (estimates(cells, ["de-DE"], [how]) for cells in (CELLS, CHANGES[change]))
    # Agreement asks for no label anywhere.
    assert (before == after) is (change == "labels" and how == "agreement")


def test_an_expert_learns_nothing_from_its_own_locale() -> None:
    """There it is no transfer: labels of German move no estimate of German's expert that is learned by expert."""
    changed = with_other_labels("de-DE")
    for how in ("confidence", "atc"):
        before, after = (estimates(cells, [TARGET], [how]) for cells in (CELLS, changed))
        assert before[TARGET, "de-DE", how] == after[TARGET, "de-DE", how]
        assert before[TARGET, "en-US", how] != after[TARGET, "en-US", how]


def test_who_is_estimated_and_on_what() -> None:
    found = found_by(Given(CELLS), ["sw-KE", ABSENT], ["agreement", "atc"])
    assert {(one.how, one.expert, one.target) for one in found} == {
        *((how, expert, ABSENT) for how in ("agreement", "atc") for expert in EXPERTS),
        *((how, expert, "sw-KE") for how in ("agreement", "atc") for expert in EXPERTS if expert != "sw-KE"),
    }
    assert len(found) == 2 * 4 + 2 * 3
    assert all(one.truth is None for one in found)


def test_truth_is_looked_up_only_when_it_is_asked_for() -> None:
    found = found_by(Given(CELLS), [TARGET], ["atc"], with_truth=True)
    for one in found:
        assert one.truth == float(CELLS[TARGET][one.expert].correct.mean())
        assert one.error == pytest.approx(100 * (one.estimated - one.truth))
    plain = found_by(Given(CELLS), [TARGET], ["atc"])
    assert [replace(one, truth=None) for one in found] == plain


def test_agreement_by_hand() -> None:
    """On four rows: German and English agree on 3, German and French on 2, English and French on 3."""
    predictions = {"de-DE": [0, 0, 0, 0], "en-US": [0, 0, 0, 1], "fr-FR": [0, 0, 1, 1]}
    own = {
        expert: Logits("s", tuple("abcd"), np.zeros(4, dtype=np.int64), np.eye(2, dtype=np.float32)[rows])
        for expert, rows in predictions.items()
    }
    locales = tuple(predictions)
    found = estimates(dict.fromkeys((*locales, ABSENT), own), [ABSENT], ["agreement"], locales=locales)
    assert found == {
        (ABSENT, "de-DE", "agreement"): pytest.approx((3 / 4 + 2 / 4) / 2),
        (ABSENT, "en-US", "agreement"): pytest.approx(3 / 4),
        (ABSENT, "fr-FR", "agreement"): pytest.approx((2 / 4 + 3 / 4) / 2),
    }


def test_estimates_come_near_the_truth() -> None:
    """Where the other locales behave alike; a constant guess of 1/3 would be wrong by 40 points and more."""
    found = found_by(Given(CELLS), list(EXPERTS), ["entropy", "confidence", "atc"], with_truth=True)
    for one in calibration(found):
        assert one.mean_absolute_error < 12
        assert one.targets == 4


def test_what_there_is_too_little_for() -> None:
    with pytest.raises(SelectionError, match="unknown estimate 'taste': there are entropy, confidence, atc"):
        estimates(CELLS, [TARGET], ["taste"])
    with pytest.raises(SelectionError, match="agreement_line needs"):
        estimates(CELLS, [TARGET], ["agreement_line"], locales=("de-DE", "en-US", TARGET))
    with pytest.raises(SelectionError, match="agreement needs two experts"):
        estimates(CELLS, [TARGET], ["agreement"], locales=("de-DE", TARGET))
    with pytest.raises(SelectionError, match="neither the target nor de-DE"):
        estimates(CELLS, [TARGET], ["atc"], locales=("de-DE", TARGET))


def test_an_error_needs_the_truth() -> None:
    assert Estimate("atc", "de-DE", "sw-KE", 0.75, 0.5).error == pytest.approx(25.0)
    with pytest.raises(SelectionError, match="the accuracy of de-DE on sw-KE is not known"):
        _ = Estimate("atc", "de-DE", "sw-KE", 0.75).error


def test_calibration_by_hand() -> None:
    """Errors of +10 and −20 points on one target, +2 and +4 on another; the other estimator is right."""
    wrong = {
        ("sw-KE", "de-DE"): 0.6,
        ("sw-KE", "fr-FR"): 0.3,
        (ABSENT, "de-DE"): 0.52,
        (ABSENT, "fr-FR"): 0.54,
    }
    found = [Estimate("atc", expert, target, value, 0.5) for (target, expert), value in wrong.items()]
    found += [Estimate("entropy", expert, target, 0.5, 0.5) for target, expert in wrong]
    first, second = calibration(found)
    assert (first.how, first.targets, second.how) == ("atc", 2, "entropy")
    # Means by target: 15 and 3, without sign; −5 and 3 with it. Two draws of two: 15, 9, 9, 3.
    assert first.mean_absolute_error == pytest.approx(9)
    assert (first.low, first.high) == (pytest.approx(3), pytest.approx(15))
    assert first.bias == pytest.approx(-1)
    assert (second.mean_absolute_error, second.low, second.high, second.bias) == (0, 0, 0, 0)


def test_a_target_with_more_experts_counts_no_more() -> None:
    found = [Estimate("atc", expert, "sw-KE", 0.7, 0.5) for expert in ("a", "b", "c")]
    found.append(Estimate("atc", "a", ABSENT, 0.4, 0.5))
    (one,) = calibration(found)
    assert one.mean_absolute_error == pytest.approx((20 + 10) / 2)
    assert one.bias == pytest.approx((20 - 10) / 2)


def test_intervals_are_the_same_every_time_and_lie_around_the_mean() -> None:
    targets = [f"t{number}" for number in range(12)]
    found = [Estimate("atc", "a", target, 0.5 + 0.02 * i, 0.5) for i, target in enumerate(targets)]
    (one,), (again,) = calibration(found), calibration(found)
    assert one == again
    assert one.mean_absolute_error == pytest.approx(11)
    assert 5 < one.low < 11 < one.high < 17
    (other,) = calibration(found, seed=1)
    assert other.mean_absolute_error == one.mean_absolute_error
    assert (other.low, other.high) != (one.low, one.high)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Read-only."""
    return write_tiny_pool(tmp_path_factory.mktemp("estimates"))


def test_a_real_pool(pool: Pool) -> None:
    selectors = PoolSelectors(pool)
    found = estimated(selectors, list(EXPERTS), ESTIMATORS, with_truth=True)
    assert len(found) == len(ESTIMATORS) * 4 * 3
    assert all(0 <= one.estimated <= 1 for one in found)
    transfer = selectors.transfer()
    for one in found:
        assert one.truth == pytest.approx(transfer.score(one.expert, one.target), abs=1e-6)
    assert [one.how for one in calibration(found)] == list(ESTIMATORS)
    absent = estimated(selectors, [ABSENT], ESTIMATORS)
    assert {one.expert for one in absent} == set(EXPERTS)
    assert len({round(one.estimated, 3) for one in absent}) > 5
