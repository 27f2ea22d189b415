"""Beliefs and choices, by hand."""

from typing import Any

import numpy as np
import pytest

from langmerge.auto.decision import MARGIN, Judged, halved, judged, simplest_best
from langmerge.auto.evidence import DOUBT, LEAST, Belief, Evidence, belief
from langmerge.auto.measured import STUDIES, TARGETS, measured
from langmerge.errors import InputError


def rows(better: int, worse: int, of: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Which rows a candidate and the reference have right: they differ in `better` and `worse` rows."""
    own, other = np.zeros(of, dtype=bool), np.zeros(of, dtype=bool)
    own[:better] = True
    other[better : better + worse] = True
    return own, other


def test_evidence_alone_and_labels_alone() -> None:
    prior = Evidence(3.0, 1.0, 4, "elsewhere")
    assert prior.deviation == pytest.approx(DOUBT * np.sqrt(1.25))
    assert belief(prior, None) == Belief(3.0, prior.deviation)
    assert belief(None, None) is None
    own, other = rows(30, 10, 400)
    difference = 100.0 * (own.astype(float) - other)
    found = belief(None, difference)
    assert found is not None
    assert found.mean == pytest.approx(5.0)
    # Var = 100² · (40/400 − 0.05²), over 400 rows.
    assert found.deviation == pytest.approx(np.sqrt(1e4 * (0.1 - 0.0025) / 399), rel=1e-6)


def test_both_weigh_by_their_precision() -> None:
    prior = Evidence(4.0, 1.0, 1_000_000, "elsewhere")
    own, other = rows(20, 20, 1000)
    found = belief(prior, 100.0 * (own.astype(float) - other))
    assert found is not None
    error = 1e4 * 0.04 / 999
    assert found.mean == pytest.approx((4.0 / 4.0) / (1 / 4.0 + 1 / error), rel=1e-4)
    assert found.deviation == pytest.approx(np.sqrt(1 / (1 / 4.0 + 1 / error)), rel=1e-6)


def test_few_labels_leave_the_evidence_as_it_is() -> None:
    """Twenty rows on which nothing differs are no proof that nothing does."""
    prior = Evidence(4.0, 1.0, 12, "elsewhere")
    few, many = (belief(prior, np.zeros(count)) for count in (20, 5000))
    assert few is not None
    assert many is not None
    assert few.mean > 3.0
    assert abs(many.mean) < 0.01


def test_evidence_from_cells() -> None:
    found = Evidence.of([1.0, 3.0, 5.0], [0.5, 0.5, 0.5], "here")
    assert (found.mean, found.targets) == (3.0, 3)
    assert found.spread == pytest.approx(np.sqrt(4.0 - 0.25))
    assert Evidence.of([1.0, 1.2], [2.0, 2.0], "here").spread == 0.0
    assert Evidence.of([1.0, 1.2], [2.0, 2.0], "here").deviation >= DOUBT * LEAST
    with pytest.raises(ValueError, match="two targets"):
        Evidence.of([1.0], [0.5], "here")


def believed(name: str, mean: float, out: str | None = None) -> Judged:
    return Judged(name, Belief(mean, 1.0), out=out)


@pytest.mark.parametrize(
    ("gains", "choice"),
    [
        ({"linear": 2.0, "wudi": 3.5}, "wudi"),
        ({"linear": 3.4, "wudi": 3.5}, "linear"),
        ({"linear": -2.0, "wudi": -1.0}, "single"),
        ({"linear": MARGIN / 2, "wudi": MARGIN}, "single"),
        ({"linear": 0.1, "wudi": MARGIN + 0.11}, "wudi"),
    ],
)
def test_the_simplest_beyond_which_nothing_brings_much(gains: dict[str, float], choice: str) -> None:
    found = [Judged("single", None), *(believed(name, gain) for name, gain in gains.items())]
    assert simplest_best(found).name == choice


def test_what_is_out_or_unknown_is_not_chosen() -> None:
    found = [
        Judged("single", None),
        believed("linear", 1.0),
        believed("wudi", 5.0, "broken"),
        Judged("new", None),
    ]
    assert simplest_best(found).name == "linear"
    with pytest.raises(InputError, match="no candidate"):
        simplest_best([])


def test_the_reference_has_no_gain_even_if_evidence_says_so() -> None:
    assert simplest_best([believed("single", 9.0), believed("linear", 1.0)]).name == "linear"


def test_halving_looks_at_more_rows_of_fewer() -> None:
    draw = np.random.default_rng(0)
    hard = draw.random(400)
    level = {"single": 0.5, "a": 0.2, "b": 0.55, "c": 0.6, "d": 0.9, "e": 0.3}
    asked: list[tuple[str, int]] = []

    def right(name: str, count: int) -> np.ndarray[Any, Any]:
        asked.append((name, count))
        return np.asarray(hard[:count] < level[name])

    rungs = halved(list(level), {}, right, 400)
    assert [rung.rows for rung in rungs] == [100, 200, 400]
    assert [[one.name for one in rung.judged] for rung in rungs] == [
        ["single", "a", "b", "c", "d", "e"], ["single", "b", "c", "d"], ["single", "c", "d"],
    ]  # fmt: skip
    assert ("a", 200) not in asked
    assert simplest_best(rungs[-1].judged).name == "d"
    assert rungs[-1].judged[-1].difference == pytest.approx(100 * ((hard < 0.9).mean() - (hard < 0.5).mean()))


def test_a_judged_candidate_without_labels_has_evidence_alone() -> None:
    prior = measured("ExcTar")["wudi"]
    found = judged("wudi", prior, None, None)
    assert (found.belief, found.accuracy, found.rows) == (belief(prior, None), None, 0)


def test_a_targets_own_gains_are_not_among_its_evidence() -> None:
    whole, without = measured("ExcTar")["ties"], measured("ExcTar", without="vi-VN")["ties"]
    # vi-VN is where TIES has lost most.
    assert without.mean > whole.mean
    assert (whole.targets, without.targets) == (12, 11)
    assert measured("ExcTar", without="de-DE") == measured("ExcTar")
    for mode, studies in STUDIES.items():
        assert set(studies) | {"learned", "refined"} >= set(measured(mode))
        assert all(len(one.gains) == len(TARGETS) for own in studies.values() for one in own)


def test_what_was_measured_prefers_wudi() -> None:
    for mode, choice in (("ExcTar", "wudi+head"), ("IncTar", "wudi")):
        found = [
            Judged("single", None),
            *(judged(name, one, None, None) for name, one in measured(mode).items() if name != "refined"),
        ]
        assert simplest_best(found).name == choice


def test_evidence_gives_way_where_labels_say_something_else_altogether() -> None:
    prior = Evidence(10.0, 0.0, 2, "elsewhere")
    own, other = rows(10, 90, 200)
    found = belief(prior, 100.0 * (own.astype(float) - other))
    assert found is not None
    # A normal prior of this width would still expect a gain of five points.
    assert found.mean < -30
    assert found.deviation < 5
