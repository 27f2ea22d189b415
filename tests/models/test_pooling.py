"""Mean pooling as one more layer."""

from pathlib import Path

import pytest
import torch

from langmerge.models import (
    add_mean_pooling,
    load_classifier,
    load_tokenizer,
    new_classifier,
    pooling_parameters,
    save_classifier,
)
from tests.tiny_encoder import write_tiny_encoder

LABELS = ("a", "b", "c")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder."""
    return write_tiny_encoder(tmp_path_factory.mktemp("pooling") / "encoder")


def batch(encoder: Path) -> dict[str, torch.Tensor]:
    """Two texts of different length, padded."""
    tokenizer = load_tokenizer(encoder)
    return dict(tokenizer(["wake me up today please", "stop"], return_tensors="pt", padding=True))


@torch.no_grad()
def test_the_first_token_holds_the_mean_of_all_tokens(encoder: Path) -> None:
    plain, _ = new_classifier(encoder, LABELS, seed=0, mean_pooling=False)
    pooled, _ = new_classifier(encoder, LABELS, seed=0)
    inputs = batch(encoder)
    states = plain.base_model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    mean = (states * mask).sum(1) / mask.sum(1)
    width, eps = states.shape[-1], plain.config.layer_norm_eps
    expected = states[:, 0] + 16 * mean
    for _ in range(2):
        expected = torch.nn.functional.layer_norm(expected, (width,), eps=eps)
    found = pooled.base_model(**inputs).last_hidden_state[:, 0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_stock_loader_gives_the_same_logits(encoder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    model, tokenizer = new_classifier(encoder, LABELS, seed=0)
    save_classifier(model, tokenizer, tmp_path)
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(stock(**batch(encoder)).logits, model(**batch(encoder)).logits)


@torch.no_grad()
def test_every_token_counts(encoder: Path) -> None:
    """With the first token alone, a change in the last one could only show through attention."""
    model, _ = new_classifier(encoder, LABELS, seed=0)
    inputs = batch(encoder)
    states: list[torch.Tensor] = []
    layer = model.base_model.encoder.layer[-1]
    layer.register_forward_pre_hook(lambda _module, args: states.append(args[0].clone()))
    model(**inputs)
    moved = states[0].clone()
    moved[0, 3, 0] += 1.0  # one feature: a shift of all would be taken out by the layer norm
    before, after = (torch.as_tensor(layer(one)).reshape(states[0].shape) for one in (states[0], moved))
    assert not torch.allclose(before[0, 0], after[0, 0])


def test_the_pooling_is_known_after_loading_and_stays_fixed(encoder: Path, tmp_path: Path) -> None:
    model, tokenizer = new_classifier(encoder, LABELS, seed=0)
    save_classifier(model, tokenizer, tmp_path)
    loaded = load_classifier(tmp_path)
    assert loaded.config.num_hidden_layers == 3
    fixed = {id(parameter) for parameter in pooling_parameters(loaded)}
    names = {name for name, parameter in loaded.named_parameters() if id(parameter) in fixed}
    assert "roberta.encoder.layer.2.attention.self.value.weight" in names
    assert "classifier.dense.weight" in names
    assert not any("layer.1." in name or "out_proj" in name for name in names)


def test_a_model_without_it_has_nothing_fixed(encoder: Path) -> None:
    plain, _ = new_classifier(encoder, LABELS, seed=0, mean_pooling=False)
    assert pooling_parameters(plain) == []


def test_another_architecture_is_left_as_it_is() -> None:
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    config = DistilBertConfig(vocab_size=20, dim=8, n_layers=1, n_heads=2, hidden_dim=16, num_labels=3)
    model = DistilBertForSequenceClassification(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert not add_mean_pooling(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_that_has_it_gets_no_second_one(encoder: Path, tmp_path: Path) -> None:
    """A merged model may be the base of further training."""
    model, tokenizer = new_classifier(encoder, LABELS, seed=0)
    save_classifier(model, tokenizer, tmp_path)
    again, _ = new_classifier(tmp_path, LABELS, seed=0)
    assert again.config.num_hidden_layers == 3
    assert len(again.base_model.encoder.layer) == 3
