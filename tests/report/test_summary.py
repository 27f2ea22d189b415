from dataclasses import replace

import pytest

from langmerge.errors import DataError
from langmerge.report import SummaryRow, mean_gain, summary_rows
from langmerge.results.study import Difference, Study
from tests.report.conftest import MakeRow


def found(study: Study, mode: str, method: str) -> SummaryRow:
    (one,) = (row for row in summary_rows(study) if (row.mode, row.method) == (mode, method))
    return one


def test_mean_gain_by_hand() -> None:
    # Half widths 3 and 4: √(3² + 4²) / 2 = 2.5 around (1 + 3) / 2.
    mean = mean_gain([Difference(1.0, -2.0, 4.0, 0.4), Difference(3.0, -1.0, 7.0, 0.1)])
    assert (mean.points, mean.low, mean.high, mean.p_value) == (2.0, -0.5, 4.5, None)


def test_one_targets_mean_gain_is_its_gain() -> None:
    assert mean_gain([Difference(1.0, -2.0, 4.0)]) == Difference(1.0, -2.0, 4.0)


def test_accuracy_and_gain_of_each_target_and_their_means(study: Study) -> None:
    one = found(study, "ExcTar", "task_arithmetic")
    assert one.accuracy == pytest.approx({"sq-AL": 0.635, "sw-KE": 0.521})
    assert one.mean_accuracy == pytest.approx(0.578)
    assert one.k == "3"
    assert one.mean_gain is not None
    assert one.mean_gain.points == pytest.approx(2.3)
    assert one.mean_gain.high - one.mean_gain.low == pytest.approx(2.8 / 2**0.5)
    assert one.is_complete


def test_methods_come_best_first_and_incomplete_ones_last(study: Study, make_row: MakeRow) -> None:
    one_sided = make_row(
        "sq-AL", "merge", "lucky", ("de-DE", "fr-FR", "en-US"), 0.99, gain=Difference(9.0, 8.0, 10.0)
    )
    rows = [
        row for row in summary_rows(replace(study, rows=(*study.rows, one_sided))) if row.mode == "ExcTar"
    ]
    assert rows[-1].method == "lucky"
    assert not rows[-1].is_complete
    means = [row.mean_accuracy for row in rows[:-1]]
    assert means == sorted(means, reverse=True)


def test_a_gain_is_not_shown_against_another_modes_reference(study: Study) -> None:
    assert found(study, "ExcTar", "best in hindsight").mean_gain is not None
    assert found(study, "IncTar", "best in hindsight").mean_gain is None
    assert found(study, "ExcTar", "self").mean_gain is None
    assert found(study, "ExcTar", "best zero-shot").mean_gain is None


def test_hindsight_that_agrees_with_dev_counts_as_zero(study: Study) -> None:
    agreeing = replace(study.rows[1], name="de-DE", sources=("de-DE",), gain=None)
    one = found(
        replace(study, rows=(study.rows[0], agreeing, *study.rows[2:])), "ExcTar", "best in hindsight"
    )
    assert one.mean_gain is not None
    assert one.mean_gain.points == pytest.approx(0.2)
    assert one.mean_gain.high - one.mean_gain.low == pytest.approx(1.0)


def test_a_mean_gain_needs_every_target(study: Study) -> None:
    rows = tuple(replace(r, gain=None) if (r.target, r.name) == ("sq-AL", "slerp") else r for r in study.rows)
    one = found(replace(study, rows=rows), "ExcTar", "slerp")
    assert one.gains == {"sq-AL": None, "sw-KE": Difference(0.4, -0.6, 1.4, 0.43)}
    assert one.mean_gain is None


def test_all_sources_are_one_row_though_targets_have_different_numbers(
    study: Study, make_row: MakeRow
) -> None:
    # Four sources: all four for sq-AL, three for sw-KE, which is one of them.
    rows = (
        make_row("sq-AL", "merge", "linear", ("en-US", "de-DE", "fr-FR", "sw-KE"), 0.6),
        make_row("sw-KE", "merge", "linear", ("en-US", "de-DE", "fr-FR"), 0.5),
    )
    asked = replace(study, rows=rows, verdicts=(), grid={**study.grid, "k": ["all"]})
    (one,) = summary_rows(asked)
    assert (one.k, one.accuracy) == ("all", {"sq-AL": 0.6, "sw-KE": 0.5})


def test_numbers_of_sources_that_come_to_the_same_are_one_row(study: Study, make_row: MakeRow) -> None:
    rows = (make_row("sw-KE", "merge", "linear", ("en-US", "de-DE", "fr-FR"), 0.5),)
    asked = replace(study, rows=rows, verdicts=(), grid={**study.grid, "k": [3, 10, "all"]})
    assert [one.k for one in summary_rows(asked)] == ["3"]


def test_two_rows_for_one_place_are_an_error(study: Study) -> None:
    twice = replace(study, rows=(*study.rows, replace(study.rows[5], seed=1, signature="another")))
    with pytest.raises(DataError, match=r"two ExcTar rows of task_arithmetic, k=3, for sq-AL .*another"):
        summary_rows(twice)
