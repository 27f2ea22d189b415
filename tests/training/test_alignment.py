"""A prior: the bias that reaches it, where it goes, and what a refinement does with it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax

from langmerge.errors import CheckpointError, InputError, TrainingError
from langmerge.models import load_classifier, predict_logits
from langmerge.tasks import Unlabelled
from langmerge.training import Refinement, alignment, refine_classifier, soft_labels
from langmerge.training.alignment import (
    TEMPERATURE,
    aligning_bias,
    distance,
    head_bias,
    ordered_prior,
)
from tests.training.half_trained import FAST, changed, drawn, encoded, saying, weights

ALARMS = {"alarm": 0.8, "music": 0.2}


def drawn_logits(rows: int = 300, labels: int = 7, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2, (rows, labels)) + np.arange(labels) / 3


def mean_at(logits: np.ndarray) -> np.ndarray:
    return np.asarray(softmax(logits / TEMPERATURE, axis=1).mean(0))


def test_one_row_by_hand() -> None:
    """One row, two labels: T log odds of the prior is what the logits must differ by; b makes up for the rest."""
    bias = aligning_bias(np.array([[1.0, 0.0]]), np.array([0.2, 0.8]), 1.0)
    assert bias == pytest.approx(
        [(TEMPERATURE * np.log(0.25) - 1) / 2, -(TEMPERATURE * np.log(0.25) - 1) / 2], abs=1e-5
    )


@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_at_full_strength_the_mean_prediction_is_the_prior(scale: float) -> None:
    logits = scale * drawn_logits()
    prior = np.random.default_rng(1).dirichlet(np.ones(7))
    bias = aligning_bias(logits, prior, 1.0)
    assert mean_at(logits + bias) == pytest.approx(prior, abs=2e-5)
    assert bias.mean() == pytest.approx(0, abs=1e-12)
    assert distance(logits + bias, prior) < 1e-4 < distance(logits, prior)


def test_half_the_strength_is_the_geometric_mean() -> None:
    logits, prior = drawn_logits(), np.random.default_rng(1).dirichlet(np.ones(7))
    goal = np.sqrt(mean_at(logits) * prior)
    assert mean_at(logits + aligning_bias(logits, prior, 0.5)) == pytest.approx(goal / goal.sum(), abs=1e-3)


def test_a_model_that_is_there_stays() -> None:
    logits = drawn_logits()
    assert aligning_bias(logits, mean_at(logits), 1.0) == pytest.approx(np.zeros(7), abs=2e-3)


def test_logits_of_any_offset_and_a_label_that_is_never_predicted() -> None:
    logits, prior = drawn_logits(), np.full(7, 1 / 7)
    other = logits + np.random.default_rng(2).normal(0, 5, (len(logits), 1))
    assert aligning_bias(other, prior, 1.0) == pytest.approx(aligning_bias(logits, prior, 1.0), abs=1e-3)
    logits[:, 3] -= 60
    assert mean_at(logits + aligning_bias(logits, prior, 1.0)) == pytest.approx(prior, abs=1e-3)


def test_the_prior_follows_the_models_labels() -> None:
    assert ordered_prior({"b": 3, "a": 1}, ["a", "b"]) == pytest.approx([0.25, 0.75])


@pytest.mark.parametrize(
    ("prior", "says"),
    [
        ({"a": 1.0}, "b .the first is only in the model"),
        ({"a": 1.0, "b": 1.0, "c": 1.0}, "c .the first is only in the prior"),
        ({"a": 1.0, "b": 0.0}, "positive and finite"),
        ({"a": 1.0, "b": float("nan")}, "positive and finite"),
    ],
)
def test_bad_priors(prior: dict[str, float], says: str) -> None:
    with pytest.raises(InputError, match=says):
        ordered_prior(prior, ["a", "b"])


def test_no_bias_without_predictions() -> None:
    logits = drawn_logits()
    logits[3, 2] = np.nan
    with pytest.raises(TrainingError, match="NaN or infinity"):
        aligning_bias(logits, np.full(7, 1 / 7), 0.5)


def test_a_minimum_that_is_not_found_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment, "STEPS", 2)
    with pytest.raises(TrainingError, match="no bias reaches the prior"):
        aligning_bias(8 * drawn_logits(), np.random.default_rng(1).dirichlet(np.ones(7)), 1.0)


# Where it goes.


def test_the_heads_bias_is_found_by_its_gradient(folder: Path, text: Unlabelled) -> None:
    model, rows = load_classifier(folder), encoded(folder, text)
    assert head_bias(model, rows[0]) is model.classifier.out_proj.bias
    model.requires_grad_(False)
    assert head_bias(model, rows[0]) is model.classifier.out_proj.bias
    assert not any(parameter.requires_grad for parameter in model.parameters())
    before = predict_logits(model, rows, bf16=False)
    with torch.no_grad():
        head_bias(model, rows[0]).add_(torch.tensor([-0.75, 0.75]))
    assert predict_logits(model, rows, bf16=False) - before == pytest.approx(
        np.tile([-0.75, 0.75], (len(rows), 1)), abs=1e-5
    )


def test_a_head_without_a_bias_is_told_of(folder: Path, text: Unlabelled) -> None:
    model = load_classifier(folder)
    model.classifier.out_proj.bias = None
    with pytest.raises(CheckpointError, match="adds no bias"):
        head_bias(model, encoded(folder, text)[0])


# In a refinement.


def aligned(rounds: int, **changes: Any) -> Refinement:
    return Refinement(**{**FAST, "rounds": rounds, "prior": ALARMS, "strength": 1.0, **changes})  # type: ignore[arg-type]


def test_without_rounds_only_the_heads_bias_moves(folder: Path, text: Unlabelled) -> None:
    model, rows = load_classifier(folder), encoded(folder, text)
    before, logits = weights(model), predict_logits(model, rows, bf16=False)
    went = refine_classifier(model, rows, refinement=aligned(0))
    assert changed(before, model) == {"classifier.out_proj.bias"}
    assert (went.history, went.rounds, went.steps) == ((), (), 0)
    assert mean_at(predict_logits(model, rows, bf16=False)) == pytest.approx([0.8, 0.2], abs=1e-4)
    assert went.alignment is not None
    assert went.alignment["distance"] == pytest.approx([distance(logits, np.array([0.8, 0.2])), 0], abs=1e-4)
    moved = model.classifier.out_proj.bias - before["classifier.out_proj.bias"]
    assert list(went.alignment["bias"].values()) == pytest.approx(moved.tolist(), abs=1e-6)


def test_every_rounds_teacher_is_aligned_and_so_is_the_result(folder: Path, text: Unlabelled) -> None:
    """The same as by hand: a round on aligned labels, and then the bias."""
    rows = encoded(folder, text)
    by_hand, told = load_classifier(folder), load_classifier(folder)
    prior = np.array([0.8, 0.2])
    logits = predict_logits(by_hand, rows, bf16=False)
    labels = soft_labels([logits + aligning_bias(logits, prior, 1.0)], 1.0)
    plain = Refinement(**{**FAST, "rounds": 1})  # type: ignore[arg-type]
    refine_classifier(by_hand, rows, saying(labels.astype(np.float64)), refinement=plain)
    bias = aligning_bias(predict_logits(by_hand, rows, bf16=False), prior, 1.0)
    with torch.no_grad():
        by_hand.classifier.out_proj.bias.add_(torch.from_numpy(bias))
    went = refine_classifier(told, rows, refinement=aligned(1))
    held = np.random.default_rng([0, 0]).permutation(40)[:4]
    for name, value in weights(by_hand).items():
        torch.testing.assert_close(told.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    assert went.rounds[0]["teacher"]["classes"] == len(set(labels[held].argmax(1)))


def test_dev_labels_leave_out_an_alignment_that_harms(folder: Path, text: Unlabelled) -> None:
    model, rows = load_classifier(folder), encoded(folder, text)
    dev, _ = drawn(40, 5)
    texts = encoded(folder, Unlabelled(tuple(dev), tuple(map(str, range(40))), "drawn", "sw-KE", "0"))
    own = predict_logits(model, texts, bf16=False).argmax(1)
    before = weights(model)
    went = refine_classifier(
        model, rows, refinement=aligned(0, prior={"alarm": 0.999, "music": 0.001}), dev=(texts, own)
    )
    assert went.alignment is not None
    assert (went.alignment["kept"], went.alignment["dev_accuracy"][0]) == (False, 1.0)
    assert not changed(before, model)


@pytest.mark.parametrize("rounds", [0, 1])
def test_a_broken_model_is_told_of(folder: Path, text: Unlabelled, rounds: int) -> None:
    model, rows = load_classifier(folder), encoded(folder, text)
    with torch.no_grad():
        model.classifier.out_proj.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="weights are broken"):
        refine_classifier(model, rows, refinement=aligned(rounds))


def test_nothing_to_do_and_other_labels(folder: Path, text: Unlabelled) -> None:
    model, rows = load_classifier(folder), encoded(folder, text)
    with pytest.raises(InputError, match="nothing to do"):
        refine_classifier(model, rows, refinement=Refinement(rounds=0))
    with pytest.raises(InputError, match="prior and model have other labels: alarm, music, sport"):
        refine_classifier(model, rows, refinement=aligned(1, prior={"sport": 1.0}))
