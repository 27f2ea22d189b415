"""Tests for the rules of comparing that published code is known to break: 6 to 9 of the ten."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.optim.optimizer import register_optimizer_step_post_hook

from langmerge.experiments.board import Found, TargetBoard
from langmerge.experiments.grid import MethodChoice
from langmerge.experiments.places import Place, cell_of
from langmerge.experiments.study import row_of
from langmerge.experiments.verdict import verdict
from langmerge.models import encode, new_classifier
from langmerge.results import Row, Study
from langmerge.results.ensembles import ENSEMBLES
from langmerge.results.records import Run
from langmerge.tasks import paired_difference
from langmerge.training import train_expert
from tests.stand_ins import MERGES, ROWS, TARGET, TEST, answers, fake_board, fake_study
from tests.tiny_encoder import WORDS, write_tiny_encoder


def row(board: TargetBoard, kind: Any, mode: str = "ExcTar", k: int = 0) -> Row:
    """What stands in a place of the board."""
    choice = MethodChoice(method="linear") if kind == "merge" else None
    place = Place(kind, TARGET, mode, "measured" if k else None, k, choice)
    return row_of(board.outcome(cell_of(place, {}, seed=7, columns=()), place))


def test_rule_06_the_merging_effect_is_against_the_sources_merged(tmp_path: Path) -> None:
    board = fake_board(tmp_path)
    for mode, size in (("ExcTar", 2), ("IncTar", 2), ("ExcTar", 3), ("IncTar", 4)):
        found = row(board, "merge", mode, size)
        assert len(found.sources) == found.k == size
        assert (TARGET in found.sources) == (mode == "IncTar")
        mean = np.mean([TEST[source] for source in found.sources])
        assert found.effect is not None
        assert found.effect.points == pytest.approx(100 * (MERGES["test"]["linear"] - mean), abs=1e-9)


@pytest.mark.parametrize("kind", ["source_mean", *ENSEMBLES])
def test_rule_06_means_and_votes_are_of_the_sources_they_name(tmp_path: Path, kind: str) -> None:
    board = fake_board(tmp_path)
    ranked = {"ExcTar": ("fr-FR", "de-DE", "tr-TR"), "IncTar": (TARGET, "fr-FR", "de-DE")}
    for mode, sources in ranked.items():
        for size in (2, 3):
            found = row(board, kind, mode, size)
            assert found.sources == sources[:size]
            mean = np.mean([TEST[source] for source in found.sources])
            if kind == "source_mean":
                assert found.test == pytest.approx(mean, abs=1e-5)
            else:
                assert found.effect is not None
                assert found.effect.points == pytest.approx(100 * (found.test - mean), abs=1e-3)


def chosen_by(study: Study) -> list[Any]:
    """Everything in a study that is a choice, and nothing that is measured on test."""
    rows = [
        (row.kind, row.name, row.mode, row.sources, row.dev)
        for row in study.rows
        if row.kind != "best_in_hindsight"
    ]
    verdicts = [(one.mode, one.choice, one.reference, one.signature) for one in study.verdicts]
    return [rows, verdicts, study.matrix["values"]]


def test_rule_07_nothing_is_chosen_on_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every number on test turned around, all choices are the same."""
    first = fake_study(tmp_path / "first", monkeypatch)
    turned = {
        "dev": MERGES["dev"],
        "test": {name: 1 - accuracy for name, accuracy in MERGES["test"].items()},
    }
    second = fake_study(
        tmp_path / "second", monkeypatch, test={name: 1 - one for name, one in TEST.items()}, merges=turned
    )
    assert chosen_by(first) == chosen_by(second)
    assert [row.test for row in first.rows] != [row.test for row in second.rows]
    assert first.matrix["split"] == "dev"


def test_rule_07_the_choices_are_devs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On test another source and another merge are the best ones."""
    study = fake_study(tmp_path, monkeypatch)
    by_kind = {row.kind: row for row in study.rows if row.kind != "merge"}
    assert by_kind["best_zero_shot"].name == "fr-FR"
    assert by_kind["best_in_hindsight"].name == "de-DE"
    excluded, included = study.verdicts
    assert (excluded.mode, excluded.choice, excluded.reference) == ("ExcTar", "ties, k=2", "fr-FR")
    assert (included.mode, included.choice, included.reference) == ("IncTar", "ties, k=2", TARGET)
    assert excluded.gain.points == pytest.approx(100 * (MERGES["test"]["ties"] - TEST["fr-FR"]))
    assert included.gain.points == pytest.approx(100 * (MERGES["test"]["ties"] - TEST[TARGET]))


def test_rule_08_steps_are_optimiser_steps(tmp_path: Path) -> None:
    model, tokenizer = new_classifier(write_tiny_encoder(tmp_path / "base"), ("alarm", "music"), seed=0)
    texts = [WORDS[row % 9] for row in range(10)]
    encoded, labels = encode(tokenizer, texts), np.arange(10, dtype=np.int64) % 2
    taken = []
    hook = register_optimizer_step_post_hook(lambda *_: taken.append(1))
    try:
        record = train_expert(
            model, encoded, labels, encoded, labels, epochs=3, batch_size=4, patience=9, bf16=False
        )
    finally:
        hook.remove()
    assert record.steps == len(taken) == 9


def test_rule_08_differences_are_in_points(tmp_path: Path) -> None:
    """0.50 against 0.45 is 5 points: neither 0.05 nor 11 per cent."""
    right = np.arange(100)
    assert paired_difference(right < 50, right < 45).points == pytest.approx(5.0)
    board = fake_board(tmp_path)
    ties = answers("ties", TARGET, "test", 0.50)
    found = Found(
        Run("", "ties", TARGET, "", "", ("fr-FR", "de-DE"), 7, ()), ties.correct.astype(float), ties
    )
    assert board.gain(found, "ExcTar").points == pytest.approx(100 * (0.50 - TEST["fr-FR"]))
    assert board.effect(found).points == pytest.approx(100 * (0.50 - (0.45 + 0.70) / 2))
    for kind, k in (("best_in_hindsight", 0), ("source_mean", 2), ("soft_vote", 2)):
        one = row(board, kind, k=k)
        assert one.gain is not None
        assert one.gain.points == pytest.approx(100 * (one.test - TEST["fr-FR"]), abs=1e-3)


def test_rule_09_every_row_has_its_interval_and_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = fake_study(tmp_path, monkeypatch)
    assert {row.kind for row in study.rows} == {
        "merge", "best_zero_shot", "best_in_hindsight", "source_mean", "self", *ENSEMBLES,
    }  # fmt: skip
    for row in study.rows:
        assert row.seed == 7
        assert row.rows == ROWS
        assert len(row.signature) == 12
        assert row.low < row.test < row.high, row
        assert 0.02 < row.high - row.low < 0.4


def test_rule_09_every_difference_has_an_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = fake_study(tmp_path, monkeypatch)
    references = {verdict.mode: verdict.reference for verdict in study.verdicts}

    def is_reference(row: Row) -> bool:
        return row.name == references[row.mode]

    for row in study.rows:
        assert (row.gain is None) is is_reference(row), row
        assert (row.effect is None) is (row.kind not in ("merge", *ENSEMBLES)), row
        for difference in (row.gain, row.effect):
            if difference is not None:
                assert difference.low <= difference.points <= difference.high
                # A majority of two may say in every row what one of them says.
                same = row.kind in ENSEMBLES and difference.points == 0
                assert same or 1 < difference.high - difference.low < 60
        if row.kind == "merge":
            assert row.gain is not None
            assert row.gain.p_value is not None
            assert 0 <= row.gain.p_value <= 1
    for said in study.verdicts:
        gain = said.gain
        assert f"95 % interval {gain.low:+.1f} to {gain.high:+.1f}" in said.text


def test_rule_09_an_interval_that_holds_zero_is_no_success(tmp_path: Path) -> None:
    scores = {"dev": {"linear": 0.6}, "test": {"linear": TEST["fr-FR"] + 1 / ROWS}}
    board = fake_board(tmp_path, merges=scores)
    merged = row(board, "merge", k=2)
    assert merged.gain is not None
    assert merged.gain.points > 0 > merged.gain.low
    found = verdict([row(board, "best_zero_shot"), merged], TARGET, "ExcTar")
    assert found is not None
    assert "merging did not clearly help" in found.text
    assert "the interval contains 0" in found.text
