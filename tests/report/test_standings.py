from dataclasses import replace

from langmerge.report import standings
from langmerge.results.study import Study


def test_every_target_and_mode_has_one(study: Study) -> None:
    found = [(standing.target, standing.mode) for standing in standings(study)]
    assert found == [("sq-AL", "ExcTar"), ("sq-AL", "IncTar"), ("sw-KE", "ExcTar"), ("sw-KE", "IncTar")]


def test_rows_stand_by_test_accuracy_however_they_are_stored(study: Study) -> None:
    backwards = replace(study, rows=tuple(reversed(study.rows)))
    for one in (study, backwards):
        for standing in standings(one):
            scores = [row.test for row in standing.rows]
            assert scores == sorted(scores, reverse=True)
    first = {(s.target, s.mode): s.rows for s in standings(study)}
    assert {(s.target, s.mode): s.rows for s in standings(backwards)} == first


def test_single_experts_stand_in_both_modes_and_the_rest_in_its_own(study: Study) -> None:
    exc, inc = (s for s in standings(study) if s.target == "sq-AL")
    for standing in (exc, inc):
        assert standing.of_kind("best_zero_shot") is not None
        assert standing.of_kind("best_in_hindsight") is not None
        assert standing.of_kind("self") is not None
    assert len(exc.rows) == 8
    assert len(inc.rows) == 6
    assert all(row.mode == "IncTar" for row in inc.rows if row.kind in ("merge", "soft_vote", "source_mean"))


def test_the_reference_is_that_of_the_mode(study: Study) -> None:
    exc, inc = (s for s in standings(study) if s.target == "sw-KE")
    assert exc.reference is not None
    assert exc.reference.kind == "best_zero_shot"
    assert inc.reference is not None
    assert inc.reference.kind == "self"


def test_only_the_verdicts_merge_is_chosen(study: Study) -> None:
    chosen = {(s.target, s.mode): [r.name for r in s.rows if s.is_chosen(r)] for s in standings(study)}
    assert chosen == {
        ("sq-AL", "ExcTar"): ["task_arithmetic"],
        ("sq-AL", "IncTar"): ["task_arithmetic"],
        ("sw-KE", "ExcTar"): ["ties(density=0.2)"],
        ("sw-KE", "IncTar"): [],
    }


def test_a_study_of_references_alone_still_has_standings(study: Study) -> None:
    alone = replace(study, rows=study.rows[:2], verdicts=())
    assert [(s.mode, len(s.rows), s.verdict) for s in standings(alone)] == [("ExcTar", 2, None)]
