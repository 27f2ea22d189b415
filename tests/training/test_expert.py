"""Training one expert on a task that a tiny model can learn."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from langmerge.errors import TrainingError
from langmerge.models import encode, new_classifier, predict_logits
from langmerge.training import train_expert
from langmerge.training.expert import adamw, linear_schedule
from tests.tiny_encoder import WORDS, write_tiny_encoder

LABELS = ("alarm", "music")
EMBEDDINGS = "roberta.embeddings.word_embeddings.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pretrained encoder."""
    return write_tiny_encoder(tmp_path_factory.mktemp("training") / "base")


def rows(tokenizer: Any, count: int, seed: int) -> tuple[list[list[int]], np.ndarray]:
    """Texts whose label is whether "music" occurs."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 2, count)
    others = [word for word in WORDS if word != "music"]
    texts = [
        " ".join(draw.permutation([*draw.choice(others, draw.integers(1, 5)), *["music"] * label]))
        for label in labels
    ]
    return encode(tokenizer, texts), labels


def trained(base: Path, **options: Any) -> tuple[Any, Any]:
    """A model after training, and the record."""
    model, tokenizer = new_classifier(base, LABELS, seed=0)
    settings = {"lr": 5e-3, "head_lr": 2e-2, "batch_size": 8, "bf16": False, **options}
    record = train_expert(model, *rows(tokenizer, 96, 1), *rows(tokenizer, 64, 2), **settings)
    return model, record


def test_it_learns(base: Path) -> None:
    model, record = trained(base, epochs=10, patience=10)
    assert max(record.dev_accuracy) > 0.9
    assert record.train_loss[-1] < record.train_loss[0]
    assert record.steps == 12 * len(record.train_loss)
    assert record.settings["train_rows"] == 96
    assert not model.training


def test_the_best_epoch_is_kept(base: Path) -> None:
    """Dev labels are turned round: what is learned makes dev worse, so an early epoch is the best."""
    model, tokenizer = new_classifier(base, LABELS, seed=0)
    encoded, labels = rows(tokenizer, 64, 2)
    record = train_expert(
        model, *rows(tokenizer, 96, 1), encoded, 1 - labels,
        epochs=10, patience=10, lr=5e-3, head_lr=2e-2, batch_size=8, bf16=False,
    )  # fmt: skip
    found = float(np.mean(predict_logits(model, encoded, bf16=False).argmax(axis=1) == 1 - labels))
    assert record.dev_accuracy[-1] < max(record.dev_accuracy)
    assert found == max(record.dev_accuracy)
    assert record.best_epoch == 1 + int(np.argmax(record.dev_accuracy))


def test_it_stops_without_progress(base: Path) -> None:
    _, record = trained(base, lr=0.0, head_lr=0.0, patience=2, epochs=9)
    assert len(record.dev_accuracy) == 3
    assert (record.best_epoch, record.steps) == (1, 36)


def test_same_seed_same_weights(base: Path) -> None:
    torch.manual_seed(1)
    first, _ = trained(base, epochs=2, seed=3)
    torch.manual_seed(2)
    again, _ = trained(base, epochs=2, seed=3)
    other, _ = trained(base, epochs=2, seed=4)
    name = "classifier.out_proj.weight"
    assert torch.equal(first.state_dict()[name], again.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])


def test_the_callers_generator_is_left_alone(base: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    trained(base, epochs=1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("freeze", [True, False])
def test_word_embeddings_are_frozen_when_asked(base: Path, freeze: bool) -> None:
    fresh, _ = new_classifier(base, LABELS, seed=0)
    model, _ = trained(base, epochs=1, freeze_embeddings=freeze)
    before, after = fresh.state_dict(), model.state_dict()
    assert torch.equal(before[EMBEDDINGS], after[EMBEDDINGS]) is freeze
    body = "roberta.encoder.layer.1.output.dense.weight"
    assert not torch.equal(before[body], after[body])
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_loss_that_is_not_finite_stops_it(base: Path) -> None:
    model, tokenizer = new_classifier(base, LABELS, seed=0)
    with torch.no_grad():
        model.classifier.out_proj.bias.fill_(float("nan"))
    with pytest.raises(TrainingError, match="loss is nan"):
        train_expert(model, *rows(tokenizer, 16, 1), *rows(tokenizer, 8, 2))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_no_rows_is_an_error(base: Path) -> None:
    model, tokenizer = new_classifier(base, LABELS, seed=0)
    with pytest.raises(TrainingError, match="0 train"):
        train_expert(model, [], np.zeros(0, dtype=np.int64), *rows(tokenizer, 8, 2))


def test_schedule() -> None:
    factor = linear_schedule(steps=100, warmup=0.1)
    assert factor(0) == pytest.approx(0.1)
    assert factor(9) == 1.0
    assert factor(55) == pytest.approx(0.5)
    assert factor(100) == 0.0


def test_optimiser_groups(base: Path) -> None:
    model, _ = new_classifier(base, LABELS, seed=0, mean_pooling=False)
    groups = adamw(model, lr=1e-4, head_lr=2e-3, weight_decay=0.01).param_groups
    found = {(group["lr"], group["weight_decay"]): len(group["params"]) for group in groups}
    # Head: two matrices and two biases. Encoder: 3 tables and 6 matrices in each of 2 layers; the rest are vectors.
    assert found == {(1e-4, 0.01): 15, (1e-4, 0.0): 22, (2e-3, 0.01): 2, (2e-3, 0.0): 2}
