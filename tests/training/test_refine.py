"""Self-distillation on a tiny model: what is learned, what stays, and that an interrupt changes nothing."""

import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from langmerge.errors import CheckpointError, MissingExtraError, OutputError, TrainingError
from langmerge.models import (
    encode,
    load_classifier,
    load_tokenizer,
    new_classifier,
    predict_logits,
    save_classifier,
)
from langmerge.progress import Advance
from langmerge.tasks import Examples, Unlabelled, file_text
from langmerge.training import (
    RECEIPT,
    DevLabels,
    Refinement,
    refine_classifier,
    refine_folder,
    soft_labels,
    train_expert,
)
from langmerge.training.diagnostics import collapse_notes, divergence, spread
from langmerge.training.kept_state import load_state, save_state
from tests.tiny_encoder import WORDS, write_tiny_encoder

LABELS = ("alarm", "music")
FAST = {"lr": 1e-3, "head_lr": 5e-3, "batch_size": 8, "bf16": False}
SETTINGS = Refinement(**FAST)  # type: ignore[arg-type]
STILL = Refinement(**FAST, weight_decay=0.0)  # type: ignore[arg-type]


def drawn(count: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Texts whose label is whether "music" occurs."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 2, count)
    others = [word for word in WORDS if word != "music"]
    texts = [
        " ".join(draw.permutation([*draw.choice(others, draw.integers(1, 5)), *["music"] * label]))
        for label in labels
    ]
    return texts, labels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier that is half trained."""
    root = tmp_path_factory.mktemp("refine")
    model, tokenizer = new_classifier(write_tiny_encoder(root / "encoder"), LABELS, seed=0)
    texts, labels = drawn(96, 1)
    dev, dev_labels = drawn(32, 2)
    train_expert(
        model, encode(tokenizer, texts), labels, encode(tokenizer, dev), dev_labels,
        epochs=5, patience=5, lr=5e-3, head_lr=2e-2, batch_size=8, bf16=False,
    )  # fmt: skip
    save_classifier(model, tokenizer, root / "model")
    return root / "model"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Unlabelled:
    """Forty texts of a file."""
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("\n".join(drawn(40, 3)[0]), encoding="utf-8")
    return file_text(file, locale="sw-KE")


def encoded(folder: Path, texts: Unlabelled) -> list[list[int]]:
    return encode(load_tokenizer(folder), texts.texts)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(before: dict[str, torch.Tensor], model: Any) -> set[str]:
    return {name for name, value in model.state_dict().items() if not torch.equal(before[name], value)}


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if not path.name.startswith(".")}


def without_dropout(model: Any) -> Any:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


class Interrupting:
    """A progress that is interrupted after some steps of the training."""

    def __init__(self, after: int) -> None:
        self.left = after

    @contextmanager
    def __call__(self, description: str, total: int) -> Iterator[Advance]:  # noqa: ARG002
        def advance(finished: int) -> None:
            if description == "refine":
                self.left -= finished
                if self.left == 0:
                    raise KeyboardInterrupt

        yield advance


# Soft labels.


def test_soft_labels_are_the_mean_of_the_teachers_probabilities() -> None:
    one, other = np.log([[0.5, 0.5], [0.9, 0.1]]) + 3, np.log([[0.1, 0.9], [0.7, 0.3]]) - 2
    assert soft_labels([one, other], 1.0) == pytest.approx(np.array([[0.3, 0.7], [0.8, 0.2]]))


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, 0.8), (2.0, 2 / 3), (0.5, 16 / 17)])
def test_the_temperature_softens(temperature: float, expected: float) -> None:
    # Odds 4 : 1; at T they are 4^(1/T) : 1.
    assert soft_labels([np.log([[4.0, 1.0]])], temperature)[0, 0] == pytest.approx(expected)


def test_a_broken_teacher_is_an_error() -> None:
    with pytest.raises(TrainingError, match="teacher gives NaN"):
        soft_labels([np.array([[0.0, np.nan]])], 1.0)


# Learning.


def test_labels_are_taken_once_and_before_anything_is_learned(folder: Path, text: Unlabelled) -> None:
    model = load_classifier(folder)
    before, calls = weights(model), []

    def teach() -> np.ndarray:
        calls.append(changed(before, model))
        return soft_labels([predict_logits(model, encoded(folder, text), bf16=False)], 1.0)

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
    labels = soft_labels([predict_logits(told, rows, bf16=False)], 2.0)
    asked = SETTINGS.model_copy(update={"temperature": 2.0})
    assert (
        refine_classifier(by_default, rows, refinement=asked).history
        == refine_classifier(told, rows, lambda: labels, refinement=asked).history
    )
    assert not changed(weights(by_default), told)


def test_a_teacher_is_learned_from(folder: Path, text: Unlabelled) -> None:
    """A teacher that calls everything music; the student comes to do so."""
    model, rows = load_classifier(folder), encoded(folder, text)
    music = np.tile(np.float32([0.05, 0.95]), (len(rows), 1))
    before = predict_logits(model, rows, bf16=False).argmax(axis=1).mean()
    asked = Refinement(lr=5e-3, head_lr=2e-2, batch_size=8, epochs=6, patience=6, bf16=False)
    went = refine_classifier(model, rows, lambda: music, refinement=asked)
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
        went = refine_classifier(model, rows, lambda labels=labels: labels, refinement=asked)  # type: ignore[misc]
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
        return model, refine_classifier(model, rows, lambda: labels, refinement=asked)

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
    taught = soft_labels([-predict_logits(model, rows, bf16=False)], 1.0)
    asked = Refinement(**{**FAST, "lr": 5e-3}, rounds=3)  # type: ignore[arg-type]
    went = refine_classifier(model, rows, lambda: taught, refinement=asked, dev=(dev, own))
    assert went.chosen_by == "dev accuracy"
    assert [one["kept_epoch"] for one in went.rounds] == [0]
    assert went.rounds[0]["score"] == 1.0
    assert [e["epoch"] for e in went.history] == [1, 2]
    assert max(e["dev_accuracy"] for e in went.history) < 1
    assert not changed(before, model)
    other = load_classifier(folder)
    turned = refine_classifier(other, rows, lambda: taught, refinement=asked, dev=(dev, 1 - own))
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


def test_a_loss_that_is_not_finite_names_the_step(folder: Path, text: Unlabelled) -> None:
    model = load_classifier(folder)
    labels = np.full((40, 2), 0.5, dtype=np.float32)
    asked = Refinement(lr=1e30, head_lr=1e30, batch_size=8, warmup=0.0, bf16=False)
    with pytest.raises(TrainingError, match=r"(loss is nan at step [2-5]|after step [1-5] of round 1)"):
        refine_classifier(model, encoded(folder, text), lambda: labels, refinement=asked)


@pytest.mark.parametrize(
    ("count", "shape", "says"), [(1, (1, 2), "2 texts or more.*found 1"), (3, (3, 4), r"\(3, 4\)")]
)
def test_bad_rows(folder: Path, text: Unlabelled, count: int, shape: tuple[int, int], says: str) -> None:
    labels = np.full(shape, 0.25, dtype=np.float32)
    with pytest.raises(TrainingError, match=says):
        refine_classifier(
            load_classifier(folder), encoded(folder, text)[:count], lambda: labels, refinement=SETTINGS
        )


def test_the_loss_is_taken_at_the_temperature(folder: Path, text: Unlabelled) -> None:
    """With nothing that moves and no dropout: T² · mean cross-entropy of softmax(z / T) over the trained rows."""
    model, rows = without_dropout(load_classifier(folder)), encoded(folder, text)
    logits = predict_logits(model, rows, bf16=False).astype(np.float64) / 3
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    labels = np.tile(np.float32([0.2, 0.8]), (len(rows), 1))
    asked = Refinement(lr=0, head_lr=0, temperature=3, epochs=1, bf16=False)
    went = refine_classifier(model, rows, lambda: labels, refinement=asked)
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


# Folders.


def test_same_seed_same_bytes_and_a_receipt(folder: Path, text: Unlabelled, tmp_path: Path) -> None:
    torch.manual_seed(1)
    made = refine_folder(folder, text, tmp_path / "a", refinement=SETTINGS)
    torch.manual_seed(2)
    refine_folder(folder, text, tmp_path / "b", refinement=SETTINGS)
    other = refine_folder(folder, text, tmp_path / "c", refinement=SETTINGS.model_copy(update={"seed": 1}))
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert files(tmp_path / "a")["model.safetensors"] != files(other.out)["model.safetensors"]
    record = json.loads((tmp_path / "a" / RECEIPT).read_text())
    assert record == made.record
    assert record["text"] == {
        "origin": text.origin, "locale": "sw-KE", "rows": 40, "signature": text.signature,
        "overlap": 0, "notes": [],
    }  # fmt: skip
    assert (record["teachers"], record["dev"]) == ("the model itself", None)
    assert record["settings"]["seed"] == 0
    assert record["chosen_by"] == "held-out cross-entropy to the teacher"
    assert record["signature"] != other.record["signature"]
    assert [path.name for path in tmp_path.iterdir() if "refining" in path.name] == []
    assert load_classifier(tmp_path / "a").config.id2label == {0: "alarm", 1: "music"}


@pytest.mark.parametrize("after", [1, 5, 6, 10, 13, 19])
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    folder: Path, text: Unlabelled, tmp_path: Path, after: int
) -> None:
    """Two rounds of two epochs of five steps, interrupted within and between epochs and rounds."""
    asked = SETTINGS.model_copy(update={"rounds": 2, "patience": 2})
    whole = refine_folder(folder, text, tmp_path / "whole", refinement=asked)
    assert whole.steps == 20
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        refine_folder(folder, text, out, refinement=asked, save_every=0.0, progress=Interrupting(after))
    assert not out.exists()
    assert (tmp_path / ".out.refining").is_file()
    found = refine_folder(folder, text, out, refinement=asked)
    assert found.steps == 20 - after + (after % 5 == 0)
    assert files(out) == files(tmp_path / "whole")
    assert not (tmp_path / ".out.refining").exists()


def test_without_a_saved_step_it_goes_on_from_the_epoch(
    folder: Path, text: Unlabelled, tmp_path: Path
) -> None:
    asked = SETTINGS.model_copy(update={"patience": 2})
    refine_folder(folder, text, tmp_path / "whole", refinement=asked)
    with pytest.raises(KeyboardInterrupt):
        refine_folder(folder, text, tmp_path / "out", refinement=asked, progress=Interrupting(7))
    assert refine_folder(folder, text, tmp_path / "out", refinement=asked).steps == 5
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_another_runs_state_is_not_continued(folder: Path, text: Unlabelled, tmp_path: Path) -> None:
    refine_folder(folder, text, tmp_path / "whole", refinement=SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        refine_folder(
            folder, text, tmp_path / "out", refinement=SETTINGS.model_copy(update={"seed": 4}),
            save_every=0.0, progress=Interrupting(7),
        )  # fmt: skip
    refine_folder(folder, text, tmp_path / "out", refinement=SETTINGS)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_state_is_whole_or_nothing(tmp_path: Path) -> None:
    file = tmp_path / "below" / "state"
    assert load_state(file, "a") is None
    save_state(file, "a", {"step": 3})
    assert load_state(file, "a") == {"signature": "a", "step": 3}
    assert load_state(file, "b") is None
    file.write_bytes(file.read_bytes()[:200])
    assert load_state(file, "a") is None
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        save_state(tmp_path / "file" / "state", "a", {})


def test_labels_of_a_file_decide_nothing(folder: Path, tmp_path: Path) -> None:
    texts, labels = drawn(24, 6)
    found = []
    for name, given in (("a", labels), ("b", 1 - labels)):
        file = tmp_path / "text.csv"
        rows = [f"{line},{label}" for line, label in zip(texts, given, strict=True)]
        file.write_text("\n".join(["text,label", *rows]), encoding="utf-8")
        refine_folder(folder, file_text(file, locale="sw-KE"), tmp_path / name, refinement=SETTINGS)
        found.append(files(tmp_path / name))
    assert found[0] == found[1]
    assert json.loads(found[0][RECEIPT])["text"]["notes"] == ["labels in the file were not read: label"]


def test_what_is_there_is_kept_and_anything_else_is_not_overwritten(
    folder: Path, text: Unlabelled, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = refine_folder(folder, text, out, refinement=SETTINGS)
    before = files(out)
    again = refine_folder(folder, text, out, refinement=SETTINGS, overwrite=True)
    assert (first.kept, again.kept, again.record) == (False, True, first.record)
    other = SETTINGS.model_copy(update={"seed": 1})
    with pytest.raises(OutputError, match="exists already"):
        refine_folder(folder, text, out, refinement=other)
    assert files(out) == before
    damaged = bytearray(before["model.safetensors"])
    damaged[-1] ^= 1
    (out / "model.safetensors").write_bytes(damaged)
    with pytest.raises(OutputError, match="exists already"):
        refine_folder(folder, text, out, refinement=SETTINGS)
    refine_folder(folder, text, out, refinement=SETTINGS, overwrite=True)
    assert files(out) == before


def test_the_output_may_not_be_an_input(folder: Path, text: Unlabelled) -> None:
    with pytest.raises(OutputError, match="holds the input"):
        refine_folder(folder, text, folder, refinement=SETTINGS, overwrite=True)
    with pytest.raises(OutputError, match="holds the input"):
        refine_folder(folder, text, folder.parent, refinement=SETTINGS, overwrite=True)


@pytest.fixture(scope="module")
def turned(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with its two classes written in the other order."""
    model = load_classifier(folder)
    with torch.no_grad():
        for parameter in model.classifier.out_proj.parameters():
            parameter.copy_(parameter.flip(0))
    model.config.id2label, model.config.label2id = {0: "music", 1: "alarm"}, {"music": 0, "alarm": 1}
    out = tmp_path_factory.mktemp("turned") / "model"
    save_classifier(model, load_tokenizer(folder), out)
    return out


def test_a_teachers_labels_are_matched_by_name(
    folder: Path, turned: Path, text: Unlabelled, tmp_path: Path
) -> None:
    own = refine_folder(folder, text, tmp_path / "own", refinement=SETTINGS)
    for name, teachers in (("one", [turned]), ("two", [turned, folder])):
        made = refine_folder(folder, text, tmp_path / name, refinement=SETTINGS, teachers=teachers)
        assert made.record["history"][0]["flips"] == own.record["history"][0]["flips"]
        assert made.record["history"][0]["loss"] == pytest.approx(own.record["history"][0]["loss"], rel=1e-5)
        assert [one["folder"] for one in made.record["teachers"]] == [str(one) for one in teachers]


def test_dev_labels_are_matched_by_name(folder: Path, turned: Path, text: Unlabelled, tmp_path: Path) -> None:
    texts, labels = drawn(40, 5)
    rows = Examples("sw-KE", "dev", tuple(map(str, range(40))), tuple(texts), labels.astype(np.int64))
    found = []
    for name, model in (("a", folder), ("b", turned)):
        made = refine_folder(
            model, text, tmp_path / name, refinement=SETTINGS, dev=DevLabels(rows, LABELS), teachers=[folder]
        )
        found.append([entry["dev_accuracy"] for entry in made.record["history"]])
        assert made.record["chosen_by"] == "dev accuracy"
        assert made.record["dev"]
    assert found[0] == found[1]
    with pytest.raises(CheckpointError, match="no output for the labels weather"):
        refine_folder(folder, text, tmp_path / "c", dev=DevLabels(rows, (*LABELS, "weather")))


def test_a_teacher_for_another_task(folder: Path, text: Unlabelled, tmp_path: Path) -> None:
    model, tokenizer = new_classifier(folder.parent / "encoder", ("alarm", "weather"), seed=0)
    save_classifier(model, tokenizer, tmp_path / "other")
    with pytest.raises(CheckpointError, match="has other labels than the model: music, weather"):
        refine_folder(folder, text, tmp_path / "out", teachers=[tmp_path / "other"])
    assert not (tmp_path / "out").exists()


# Adapters.


@pytest.fixture(scope="module")
def adapter(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LoRA on the classifier's queries, its head saved with it; both moved off their start."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=2, lora_alpha=4, target_modules=["query"], modules_to_save=["classifier"]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = peft.get_peft_model(load_classifier(folder, device="cpu"), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.5, generator=torch.Generator().manual_seed(0))
    out = tmp_path_factory.mktemp("adapter") / "adapter"
    model.save_pretrained(out)
    return out


def test_an_adapter_is_refined_into_an_adapter(
    folder: Path, adapter: Path, text: Unlabelled, tmp_path: Path
) -> None:
    from peft import PeftModel
    from safetensors.torch import load_file

    base = files(folder)
    made = refine_folder(adapter, text, tmp_path / "out", refinement=STILL)
    before = load_file(adapter / "adapter_model.safetensors")
    after = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert any("lora_A" in name for name in moved)
    assert any("classifier.out_proj" in name for name in moved)
    # The pooling layer and the head's dense layer stay as they are, in an adapter too.
    last = f"layer.{load_classifier(folder).config.num_hidden_layers - 1}."
    assert not {name for name in moved if last in name or "classifier.dense" in name}
    assert files(folder) == base
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert refine_folder(adapter, text, tmp_path / "out", refinement=STILL).kept
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        loaded = PeftModel.from_pretrained(load_classifier(folder), str(tmp_path / "out")).eval()
    assert np.isfinite(predict_logits(loaded, encoded(folder, text), bf16=False)).all()
    assert made.record["history"][0]["agreement"] > 0.5


def test_an_interrupted_adapter_goes_on_to_the_same_bytes(
    adapter: Path, text: Unlabelled, tmp_path: Path
) -> None:
    refine_folder(adapter, text, tmp_path / "whole", refinement=SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        refine_folder(
            adapter, text, tmp_path / "out", refinement=SETTINGS, save_every=0.0, progress=Interrupting(7)
        )
    refine_folder(adapter, text, tmp_path / "out", refinement=SETTINGS)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_without_peft_the_command_for_it_is_said(
    adapter: Path, text: Unlabelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'langmerge\[adapters\]'"):
        refine_folder(adapter, text, tmp_path / "out", refinement=SETTINGS)


def test_an_adapters_base_can_be_named(folder: Path, adapter: Path, text: Unlabelled, tmp_path: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    lost = tmp_path / "lost"
    lost.mkdir()
    (lost / "adapter_model.safetensors").write_bytes((adapter / "adapter_model.safetensors").read_bytes())
    (lost / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(CheckpointError, match="names no base: give one with --base"):
        refine_folder(lost, text, tmp_path / "out", refinement=SETTINGS)
    refine_folder(lost, text, tmp_path / "out", refinement=SETTINGS, base=folder)
    said = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert said["base_model_name_or_path"] == str(folder)
    refine_folder(adapter, text, tmp_path / "plain", refinement=SETTINGS)
    weights_of = "adapter_model.safetensors"
    assert files(tmp_path / "out")[weights_of] == files(tmp_path / "plain")[weights_of]


def test_broken_adapters(folder: Path, adapter: Path, text: Unlabelled, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"has no adapter_model\.safetensors"):
        refine_folder(broken, text, tmp_path / "out")
    from safetensors.torch import load_file, save_file

    some = load_file(adapter / "adapter_model.safetensors")
    save_file({n: t for n, t in some.items() if "lora_A" not in n}, broken / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="cannot be put on"):
        refine_folder(broken, text, tmp_path / "out")
    assert not (tmp_path / "out").exists()
