"""Rules of decision on cells that are written by hand."""

from dataclasses import replace

import numpy as np
import pytest

from langmerge.auto.evidence import Evidence
from langmerge.auto.hindsight import RULES, cases, judge, rules_for
from langmerge.auto.stored import cells_of, evidence_from, evidence_of
from langmerge.errors import InputError
from langmerge.results.records import Cell, Outcome, Run, Scored
from langmerge.results.study import Difference, Kind

ROWS = {"dev": 200, "test": 400}
WUDI, HEAD = "wudi", "wudi(head=regmean)"


def scored(split: str, share: float) -> Scored:
    """The first rows are right."""
    rows = ROWS[split]
    right = np.arange(rows) < round(share * rows)
    return Scored(
        split, f"{split} {share}", rows, share, share, share, ids=split, right=np.packbits(right).tobytes()
    )


def outcome(
    target: str, kind: Kind, name: str, dev: float, test: float, *, gain: float | None = None, seed: int = 0, mode: str = "ExcTar",
) -> Outcome:  # fmt: skip
    run = Run(
        f"{target} {name} {seed} {test}", name, target, "task", "1", ("de-DE",), seed, (scored("dev", dev), scored("test", test))
    )  # fmt: skip
    k = 0 if kind in ("best_zero_shot", "self") else 5
    cell = Cell(f"{target} {kind} {name} {seed} {test}", kind, target, mode, "measured", k, name, seed)
    found = None if gain is None else Difference(gain, gain - 1, gain + 1)
    return Outcome(cell, run, None, found)


def store(dev: float = 0.55, bad: float = 0.3) -> list[Outcome]:
    """Two targets on which wudi brings ten points, and one on which it takes ten."""
    found = []
    for target, brings in (("cy-GB", 10.0), ("sw-KE", 10.0), ("vi-VN", -10.0)):
        found += [
            outcome(target, "best_zero_shot", "de-DE", 0.5, 0.5),
            outcome(target, "source_mean", "mean of the sources", 0.4, 0.4),
            outcome(target, "soft_vote", "soft vote", 0.5, 0.52),
            outcome(target, "merge", "linear", 0.45, 0.5, gain=0.0),
            outcome(target, "merge", WUDI, dev if brings > 0 else bad, 0.5 + brings / 100, gain=brings),
        ]
    return found


def test_gain_regret_and_choices_are_those_of_the_cells() -> None:
    found = judge("best on dev", cases(store(), "ExcTar"), "ExcTar")
    # wudi, wudi and, where it is bad on dev, the single expert.
    assert found.gain.points == pytest.approx(20 / 3)
    assert found.regret == pytest.approx(0)
    assert found.chosen == {"wudi": pytest.approx(2 / 3), "single": pytest.approx(1 / 3)}
    assert found.over_vote is not None
    assert found.over_vote.points == pytest.approx((8 + 8 - 2) / 3)
    assert (found.rows, found.cases, found.below) == (200, 3, ())


def free(known: list[Outcome]) -> list[Outcome]:
    """With what would have been merged without labels: the same."""
    found = list(known)
    for one in known:
        if one.run is None or one.cell.kind not in ("best_zero_shot", "merge"):
            continue
        kind: Kind = "first_source" if one.cell.kind == "best_zero_shot" else "merge"
        name = "first source" if kind == "first_source" else one.cell.name
        cell = replace(
            one.cell, signature=f"{one.cell.signature} free", kind=kind, name=f"{name}, by composite"
        )
        found.append(replace(one, cell=cell))
    return found


def test_evidence_of_a_target_is_that_of_the_others() -> None:
    found = judge("auto, no labels", cases(free(store()), "ExcTar"), "ExcTar")
    # vi-VN's own loss is not known to its decision: the others' gains are, and it is merged to its cost. Of cy-GB and
    # sw-KE the others have gained and lost as much: nothing is expected of wudi there.
    assert found.chosen == {"single": pytest.approx(2 / 3), "wudi": pytest.approx(1 / 3)}
    assert found.gain.points == pytest.approx(-10 / 3)
    assert found.below == ("vi-VN",)
    assert found.regret == pytest.approx((10 + 10 + 10) / 3)


def test_evidence_without_labels_is_of_merges_without_labels() -> None:
    """Where sources are chosen by composite linear brings five points and wudi takes five; by labels it is the other way."""
    found = []
    for target in ("cy-GB", "sw-KE", "vi-VN"):
        found += [
            outcome(target, "best_zero_shot", "de-DE", 0.5, 0.5),
            outcome(target, "first_source", "first source, by composite", 0.5, 0.5),
            outcome(target, "merge", "linear", 0.4, 0.45, gain=-5.0),
            outcome(target, "merge", WUDI, 0.6, 0.55, gain=5.0),
            outcome(target, "merge", "linear, by composite", 0.5, 0.55, gain=5.0),
            outcome(target, "merge", f"{WUDI}, by composite", 0.5, 0.45, gain=-5.0),
        ]
    among = cases(found, "ExcTar")
    assert judge("auto, no labels", among, "ExcTar").chosen == {"linear": 1.0}
    assert judge("auto, labels", among, "ExcTar").chosen == {"wudi": 1.0}
    told = {"task": "task", "target": "sw-KE", "mode": "ExcTar", "origin": "here"}
    for by, best in (("composite", "linear"), ("measured", "wudi"), ("strength", "wudi")):
        evidence = evidence_from(found, by=by, **told)
        assert max(evidence, key=lambda name: evidence[name].mean) == best
    assert evidence_from(found, by="strength", **told)["wudi"].origin == "here, sources chosen by labels"


def test_evidence_from_elsewhere_stands_in_for_the_others() -> None:
    among = cases(free(store()), "ExcTar")
    # The store's own cells say something else of two targets or of one, whatever is known elsewhere.
    known = {"wudi": Evidence(-3.0, 1.0, 12, "elsewhere")}
    told = judge("auto, no labels", among, "ExcTar", known=lambda _: known)
    assert told.chosen == {"single": 1.0}
    other = {"wudi": Evidence(3.0, 1.0, 12, "elsewhere")}
    assert judge("auto, no labels", among, "ExcTar", known=lambda _: other).chosen == {"wudi": 1.0}


def test_halving_looks_at_rows_in_no_order_of_a_file() -> None:
    """wudi is far better, and only on what stands last in a file that is sorted by topic."""
    later = np.arange(200) >= 120
    found = []
    for target in ("cy-GB", "sw-KE"):
        for kind, name, right in (
            ("best_zero_shot", "de-DE", ~later),
            ("merge", "linear", ~later | (np.arange(200) < 2)),
            ("merge", "ties(density=0.2, scope=model)", ~later | (np.arange(200) < 4)),
            ("merge", WUDI, (np.arange(200) >= 20) & (np.arange(200) < 196)),
        ):
            one = outcome(target, kind, name, 0.5, 0.5, gain=None if kind == "best_zero_shot" else 0.0)  # type: ignore[arg-type]
            assert one.run is not None
            scores = tuple(
                replace(s, right=np.packbits(right).tobytes()) if s.split == "dev" else s
                for s in one.run.scores
            )
            found.append(replace(one, run=replace(one.run, scores=scores)))
    told = judge("auto, labels", cases(found, "ExcTar"), "ExcTar", draws=10)
    assert told.chosen["wudi"] > 0.9


def test_labels_move_what_evidence_says() -> None:
    found = judge("auto, labels", cases(store(bad=0.1), "ExcTar"), "ExcTar")
    assert found.chosen == {"wudi": pytest.approx(2 / 3), "single": pytest.approx(1 / 3)}


def test_merges_chosen_without_labels_stand_in_for_a_rule_that_sees_none() -> None:
    known = [one for one in store() if one.cell.target != "vi-VN"]
    # No label may choose the single expert either.
    assert "auto, no labels" not in rules_for(cases(known, "ExcTar"))
    # A third and fourth of their kind: evidence needs two others.
    for copy in ("az-AZ", "hi-IN"):
        known += [
            outcome(
                copy,
                o.cell.kind,
                o.cell.name,
                o.run.scores[0].accuracy,
                o.run.scores[1].accuracy,
                gain=o.gain and o.gain.points,
            )
            for o in store()
            if o.cell.target == "cy-GB" and o.run
        ]
    for target in ("cy-GB", "sw-KE", "az-AZ", "hi-IN"):
        known.append(outcome(target, "merge", "wudi, by composite", 0.5, 0.57, gain=7.0))
        known.append(outcome(target, "first_source", "first source, by composite", 0.5, 0.47))
    found = judge("auto, no labels", cases(known, "ExcTar"), "ExcTar")
    assert found.gain.points == pytest.approx(7)
    # Against the best of all candidates, which labels would have found.
    assert found.regret == pytest.approx(3)
    assert found.chosen == {"wudi": 1.0}


def test_published_rules() -> None:
    among = cases(store(), "ExcTar")
    # linear is above the sources' mean on dev, and below the single expert: the published pilot does not ask that.
    assert judge("published: average if above the sources' mean", among, "ExcTar").chosen == {"linear": 1.0}
    assert "published: TIES if above the best source" not in rules_for(among)
    assert set(RULES) - set(rules_for(among)) == {
        "published: TIES if above the best source",
        "auto, no labels",
    }
    # The sources' mean is known of all rows alone.
    assert "published: average if above the sources' mean" not in rules_for(among, rows=20)


def test_fewer_rows_are_drawn() -> None:
    found = judge("best on dev", cases(store(), "ExcTar"), "ExcTar", rows=20, draws=7)
    assert found.rows == 20
    assert sum(found.chosen.values()) == pytest.approx(1)
    # 20 of 200 rows cannot tell 0.55 from 0.5 every time.
    assert found.regret > 0


def test_two_pools_with_one_seed_are_not_taken_for_one() -> None:
    twice = [*store(), outcome("cy-GB", "merge", WUDI, 0.5, 0.4, gain=-10.0)]
    with pytest.raises(
        InputError, match="cy-GB, seed 0, has several cells called wudi: name sweeps with --sweep"
    ):
        cases(twice, "ExcTar")


def test_one_target_has_no_others() -> None:
    with pytest.raises(InputError, match="two targets or more"):
        judge("best on dev", cases(store()[:5], "ExcTar"), "ExcTar")


def test_stored_evidence_leaves_the_target_out() -> None:
    found = evidence_from(store(), task="task", target="vi-VN", mode="ExcTar", origin="here")
    assert (found["wudi"].mean, found["wudi"].targets, found["wudi"].origin) == (10.0, 2, "here")
    assert evidence_from(store(), task="task", target="cy-GB", mode="ExcTar", origin="here")["wudi"].mean == 0
    assert set(found) == {"linear", "wudi"}


def test_a_store_without_cells_says_what_to_do() -> None:
    for changes in ({"task": "other"}, {"mode": "IncTar"}):
        with pytest.raises(
            InputError, match=r"here has no cells of auto's candidates .*examples/deciding.yaml"
        ):
            evidence_from(
                store(), **{"task": "task", "target": "x", "mode": "ExcTar", "origin": "here", **changes}
            )


def test_seeds_of_one_target_are_one_language() -> None:
    gains = [Difference(points, points - 0.02, points + 0.02) for points in (1.0, 3.0, 2.0)]
    assert evidence_of([("wudi", "sw-KE", one) for one in gains], "x") == {}
    two = [
        ("wudi", "sw-KE", gains[0]),
        ("wudi", "sw-KE", gains[1]),
        ("wudi", "cy-GB", Difference(6.0, 5.98, 6.02)),
    ]
    found = evidence_of(two, "x")["wudi"]
    # 2 and 6.
    assert (found.mean, found.targets) == (4.0, 2)
    assert found.spread == pytest.approx(8**0.5, rel=1e-4)


def test_a_store_of_two_pools_is_no_evidence_without_a_sweep() -> None:
    twice = [*store(), outcome("cy-GB", "merge", WUDI, 0.5, 0.4, gain=-10.0)]
    with pytest.raises(InputError, match=r"several cells called wudi .*: name one sweep"):
        evidence_from(twice, task="task", target="sw-KE", mode="ExcTar", origin="here")


def test_candidates_are_called_as_sweeps_call_them() -> None:
    assert cells_of("ExcTar") == {
        "linear": "linear", "ties(density=0.2, scope=model)": "ties", WUDI: "wudi", HEAD: "wudi+head",
    }  # fmt: skip
    assert cells_of("IncTar") == {
        "linear(own=0.9)": "linear", "wudi(own=0.9)": "wudi", "wudi(own=0.5)": "wudi-half", WUDI: "wudi-equal",
    }  # fmt: skip
