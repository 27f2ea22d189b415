"""Self-distillation on a tiny model: what is learned, what stays, and what is measured."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from langmerge.errors import TrainingError
from langmerge.models import encode, load_classifier, load_tokenizer, predict_logits
from langmerge.tasks import Unlabelled
from langmerge.training import Refinement, refine_classifier, soft_labels
from langmerge.training.diagnostics import collapse_notes, divergence, spread
from tests.training.half_trained import (
    FAST,
    SETTINGS,
    STILL,
    changed,
    drawn,
    encoded,
    saying,
    weights,
    without_dropout,
)

# Soft labels.


def test_soft_labels_are_the_mean_of_the_teachers_probabilities() -> None:
    one, other = np.log([[0.5, 0.5], [0.9, 0.1]]) + 3, np.log([[0.1, 0.9], [0.7, 0.3]]) - 2
    assert soft_labels([one, other], 1.0) == pytest.approx(np.array([[0.3, 0.7], [0.8, 0.2]]))


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, 0.8), (2.0, 2 / 3), (0.5, 16 / 17)])
def test_the_temperature_softens(temperature: float, expected: float) -> None:
    # Odds 4 : 1; at T they are 4^(1/T) : 1.
    assert soft_labels([np.log([[4.0, 1.0]])], temperature)[0, 0] == pytest.approx(expected)


def test_a_broken_teacher_is_an_error() -> None:
    with pytest.raises(TrainingError, match="gives NaN or infinity"):
        soft_labels([np.array([[0.0, np.nan]])], 1.0)


# Learning.


def test_labels_are_taken_once_and_before_anything_is_learned(folder: Path, text: Unlabelled) -> None:
    model = load_classifier(folder)
    before, calls = weights(model), []

    def teach() -> list[np.ndarray]:
        calls.append(changed(before, model))
        return [predict_logits(model, encoded(folder, text), bf16=False)]

    went = refine_classifier(
        model,
        encoded(folder, text),
        teach,
        refinement=SETTINGS.model_copy(update={"epochs": 3, "patience": 3}),
    )
    assert calls == [set()]
    assert [(e["round"], e["epoch"]) for e in went.history] == [(1, 1), (1, 2), (1, 3)]
    assert changed(before, model)
    assert not model.training


def test_the_model_itself_is_the_default_teacher(folder: Path, text: Unlabelled) -> None:
    rows = encoded(folder, text)
    by_default, told = load_classifier(folder), load_classifier(folder)
    logits = predict_logits(told, rows, bf16=False)
    asked = SETTINGS.model_copy(update={"temperature": 2.0})
    assert (
        refine_classifier(by_default, rows, refinement=asked).history
        == refine_classifier(told, rows, lambda: [logits], refinement=asked).history
    )
    assert not changed(weights(by_default), told)


def test_a_teacher_is_learned_from(folder: Path, text: Unlabelled) -> None:
    """A teacher that calls everything music; the student comes to do so."""
    model, rows = load_classifier(folder), encoded(folder, text)
    music = np.tile(np.float32([0.05, 0.95]), (len(rows), 1))
    before = predict_logits(model, rows, bf16=False).argmax(axis=1).mean()
    asked = Refinement(lr=5e-3, head_lr=2e-2, batch_size=8, epochs=6, patience=6, bf16=False)
    went = refine_classifier(model, rows, saying(music), refinement=asked)
    assert before < 0.8
    assert predict_logits(model, rows, bf16=False).argmax(axis=1).mean() == 1.0
    assert went.history[-1]["cross_entropy"] < went.history[0]["cross_entropy"]
    assert went.history[-1]["excess"] >= 0


def test_a_confident_teacher_that_is_the_model_teaches_nothing(folder: Path, text: Unlabelled) -> None:
    model = without_dropout(load_classifier(folder))
    with torch.no_grad():
        model.classifier.out_proj.weight.mul_(1e6)
        model.classifier.out_proj.bias.mul_(1e6)
    rows, before = encoded(folder, text), weights(model)
    assert set(np.unique(soft_labels([predict_logits(model, rows, bf16=False)], 1.0))) == {0.0, 1.0}
    went = refine_classifier(model, rows, refinement=STILL)
    assert not changed(before, model)
    assert [(e["loss"], e["cross_entropy"], e["flips"], e["agreement"]) for e in went.history] == [
        (0, 0, 0, 1)
    ] * 2
    assert went.notes == (
        "the model has no dropout: it is its own teacher already, and learns little from itself",
    )


def test_what_is_fixed_stays(folder: Path, text: Unlabelled) -> None:
    model = load_classifier(folder)
    before = weights(model)
    refine_classifier(model, encoded(folder, text), refinement=STILL)
    moved = changed(before, model)
    last = f"roberta.encoder.layer.{model.config.num_hidden_layers - 1}."
    assert "roberta.embeddings.word_embeddings.weight" not in moved
    assert not {name for name in moved if name.startswith((last, "classifier.dense"))}
    assert {"classifier.out_proj.weight", "roberta.encoder.layer.0.output.dense.weight"} <= moved
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_embeddings_train_when_asked(folder: Path, text: Unlabelled) -> None:
    model = load_classifier(folder)
    before = weights(model)
    asked = SETTINGS.model_copy(update={"freeze_embeddings": False})
    refine_classifier(model, encoded(folder, text), refinement=asked)
    assert "roberta.embeddings.word_embeddings.weight" in changed(before, model)


def test_held_out_rows_are_not_trained_on(folder: Path, text: Unlabelled) -> None:
    """Whatever the teacher says of held-out rows, the weights are the same."""
    rows = encoded(folder, text)
    held = np.sort(np.random.default_rng([0, 0]).permutation(40)[:4])
    found = []
    for share in (0.1, 0.9):
        model = load_classifier(folder)
        labels = np.tile(np.float32([0.3, 0.7]), (40, 1))
        labels[held] = [share, 1 - share]
        asked = SETTINGS.model_copy(update={"epochs": 1})
        went = refine_classifier(model, rows, saying(labels), refinement=asked)
        assert (went.rounds[0]["trained_rows"], went.rounds[0]["held_out_rows"]) == (36, 4)
        found.append((weights(model), went.history[0]["cross_entropy"]))
    assert not [name for name in found[0][0] if not torch.equal(found[0][0][name], found[1][0][name])]
    assert found[0][1] != found[1][1]


def test_it_stops_when_held_out_text_gets_worse(folder: Path, text: Unlabelled) -> None:
    """The teacher says of the held-out rows the opposite of the rest: each epoch is worse, the first is kept."""
    rows = encoded(folder, text)
    held = np.sort(np.random.default_rng([0, 0]).permutation(40)[:4])
    labels = np.tile(np.float32([0.05, 0.95]), (40, 1))
    labels[held] = [0.95, 0.05]

    def after(**changes: Any) -> tuple[Any, Any]:
        model = load_classifier(folder)
        asked = SETTINGS.model_copy(update={"warmup": 0.0, "lr": 2e-3, "head_lr": 1e-2, **changes})
        return model, refine_classifier(model, rows, saying(labels), refinement=asked)

    model, went = after(epochs=9)
    assert [e["epoch"] for e in went.history] == [1, 2]
    assert went.history[1]["cross_entropy"] > went.history[0]["cross_entropy"]
    assert went.rounds[0]["kept_epoch"] == 1
    found = divergence(labels[held], predict_logits(model, [rows[i] for i in held], bf16=False), 1.0)
    assert found["cross_entropy"] == pytest.approx(went.history[0]["cross_entropy"], rel=1e-6)


def test_dev_labels_choose_the_epoch_and_undo_a_round_that_harms(folder: Path, text: Unlabelled) -> None:
    model, rows = load_classifier(folder), encoded(folder, text)
    before = weights(model)
    texts, _ = drawn(40, 5)
    dev = encode(load_tokenizer(folder), texts)
    own = predict_logits(model, dev, bf16=False).argmax(axis=1)
    # The start is perfect by these labels, and the teacher says the opposite of it.
    taught = -predict_logits(model, rows, bf16=False)
    asked = Refinement(**{**FAST, "lr": 5e-3}, rounds=3)  # type: ignore[arg-type]
    went = refine_classifier(model, rows, lambda: [taught], refinement=asked, dev=(dev, own))
    assert went.chosen_by == "dev accuracy"
    assert [one["kept_epoch"] for one in went.rounds] == [0]
    assert went.rounds[0]["score"] == 1.0
    assert [e["epoch"] for e in went.history] == [1, 2]
    assert max(e["dev_accuracy"] for e in went.history) < 1
    assert not changed(before, model)
    other = load_classifier(folder)
    turned = refine_classifier(other, rows, lambda: [taught], refinement=asked, dev=(dev, 1 - own))
    assert turned.rounds[0]["kept_epoch"] > 0
    assert turned.rounds[0]["score"] == max(e["dev_accuracy"] for e in turned.history if e["round"] == 1)


def test_a_second_round_learns_from_the_first(folder: Path, text: Unlabelled) -> None:
    rows = encoded(folder, text)
    once, twice = load_classifier(folder), load_classifier(folder)
    first = refine_classifier(once, rows, refinement=SETTINGS)
    both = refine_classifier(twice, rows, refinement=SETTINGS.model_copy(update={"rounds": 2}))
    assert both.history[: len(first.history)] == first.history
    held = np.sort(np.random.default_rng([0, 0]).permutation(40)[:4])
    taught = soft_labels([predict_logits(once, [rows[i] for i in held], bf16=False)], 1.0)
    assert both.rounds[1]["teacher"] == pytest.approx(spread(taught), rel=1e-6)
    assert changed(weights(once), twice)


def test_after_the_first_round_the_model_teaches_itself(folder: Path, text: Unlabelled) -> None:
    labels, calls = np.tile(np.float32([0.05, 0.95]), (40, 1)), []

    def teach() -> list[np.ndarray]:
        calls.append(1)
        return [np.log(labels)]

    asked = SETTINGS.model_copy(update={"rounds": 3})
    went = refine_classifier(load_classifier(folder), encoded(folder, text), teach, refinement=asked)
    assert calls == [1]
    assert went.rounds[0]["teacher"]["mean_entropy"] == pytest.approx(
        -(0.05 * np.log(0.05) + 0.95 * np.log(0.95)), rel=1e-5
    )
    assert len({one["teacher"]["mean_entropy"] for one in went.rounds}) == 3


def test_a_loss_that_is_not_finite_names_the_step(folder: Path, text: Unlabelled) -> None:
    model = load_classifier(folder)
    labels = np.full((40, 2), 0.5, dtype=np.float32)
    asked = Refinement(lr=1e30, head_lr=1e30, batch_size=8, warmup=0.0, bf16=False)
    with pytest.raises(TrainingError, match=r"(loss is nan at step [2-5]|after step [1-5] of round 1)"):
        refine_classifier(model, encoded(folder, text), saying(labels), refinement=asked)


@pytest.mark.parametrize(
    ("count", "shape", "says"), [(1, (1, 2), "2 texts or more.*found 1"), (3, (3, 4), r"\(3, 4\)")]
)
def test_bad_rows(folder: Path, text: Unlabelled, count: int, shape: tuple[int, int], says: str) -> None:
    labels = np.full(shape, 0.25, dtype=np.float32)
    with pytest.raises(TrainingError, match=says):
        refine_classifier(
            load_classifier(folder), encoded(folder, text)[:count], saying(labels), refinement=SETTINGS
        )


def test_the_loss_is_taken_at_the_temperature(folder: Path, text: Unlabelled) -> None:
    """With nothing that moves and no dropout: T² · mean cross-entropy of softmax(z / T) over the trained rows."""
    model, rows = without_dropout(load_classifier(folder)), encoded(folder, text)
    logits = predict_logits(model, rows, bf16=False).astype(np.float64) / 3
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    labels = np.tile(np.float32([0.2, 0.8]), (len(rows), 1))
    asked = Refinement(lr=0, head_lr=0, temperature=3, epochs=1, bf16=False)
    went = refine_classifier(model, rows, saying(labels, 3), refinement=asked)
    order = np.random.default_rng([0, 0]).permutation(40)
    loss = -(labels * log_p).sum(axis=1)
    assert went.history[0]["loss"] == pytest.approx(9 * loss[order[4:]].mean(), rel=1e-5)
    assert went.history[0]["cross_entropy"] == pytest.approx(loss[order[:4]].mean(), rel=1e-5)


def test_rounds_draw_otherwise(folder: Path, text: Unlabelled) -> None:
    """A second round from a start that has not moved, by the same labels, has other dropout and another order."""
    still = Refinement(lr=0, head_lr=0, batch_size=8, epochs=1, rounds=2, bf16=False)
    went = refine_classifier(load_classifier(folder), encoded(folder, text), refinement=still)
    first, second = went.history
    assert first["cross_entropy"] == second["cross_entropy"]
    assert first["loss"] != second["loss"]


# Diagnostics, worked by hand.


def test_divergence() -> None:
    teacher = np.array([[0.5, 0.5], [1.0, 0.0]])
    logits = np.log(np.array([[0.25, 0.75], [0.5, 0.5]]))
    found = divergence(teacher, logits, 1.0)
    expected = (-(0.5 * np.log(0.25) + 0.5 * np.log(0.75)) - np.log(0.5)) / 2
    assert found["cross_entropy"] == pytest.approx(expected)
    assert found["excess"] == pytest.approx(expected - np.log(2) / 2)
    assert (found["agreement"], found["flips"]) == (0.5, 1)


def test_spread_and_collapse() -> None:
    found = spread(np.array([[0.8, 0.2, 0.0], [0.6, 0.4, 0.0], [0.1, 0.9, 0.0]]))
    assert (found["classes"], found["largest_share"]) == (2, pytest.approx(2 / 3))
    assert found["mean_entropy"] == pytest.approx(np.log(2))
    rounds = [{"round": 1, "kept_epoch": 2, "teacher": {"classes": 5}}]
    history = [{"round": 1, "epoch": 1, "classes": 1}, {"round": 1, "epoch": 2, "classes": 2}]
    assert collapse_notes(history, rounds) == [
        "class collapse in round 1: 2 classes are predicted on held-out text, the teacher predicts 5"
    ]
    assert collapse_notes([{"round": 1, "epoch": 2, "classes": 3}], rounds) == []
