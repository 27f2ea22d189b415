"""Classifiers: made, written, read, used."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from langmerge.errors import CheckpointError
from langmerge.models import (
    autocast,
    encode,
    has_fast_bf16,
    load_classifier,
    load_tokenizer,
    new_classifier,
    predict_logits,
    save_classifier,
)
from tests.tiny_encoder import WORDS, write_tiny_encoder

LABELS = ("alarm", "music", "weather")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pretrained encoder."""
    return write_tiny_encoder(tmp_path_factory.mktemp("models") / "base")


def texts(rows: int) -> list[str]:
    """Texts of one to eight known words."""
    draw = np.random.default_rng(0)
    return [" ".join(draw.choice(WORDS, draw.integers(1, 9))) for _ in range(rows)]


def test_head_comes_from_the_seed_alone(base: Path) -> None:
    torch.manual_seed(5)
    first, _ = new_classifier(base, LABELS, seed=1)
    torch.manual_seed(6)
    again, _ = new_classifier(base, LABELS, seed=1)
    other, _ = new_classifier(base, LABELS, seed=2)
    name = "classifier.out_proj.weight"
    assert torch.equal(first.state_dict()[name], again.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])
    body = "roberta.encoder.layer.0.output.dense.weight"
    assert torch.equal(first.state_dict()[body], other.state_dict()[body])


@pytest.mark.parametrize(
    ("labels", "kept"),
    [(LABELS, True), (LABELS[::-1], False), (("a", "b", "c"), False), (LABELS[:2], False)],
)
def test_a_trained_head_is_kept_only_for_the_same_labels(
    base: Path, tmp_path: Path, labels: tuple[str, ...], kept: bool
) -> None:
    """Labels in another order would leave a head whose rows are called what they are not."""
    trained, tokenizer = new_classifier(base, LABELS, seed=1)
    with torch.no_grad():
        trained.roberta.encoder.layer[0].output.dense.weight.add_(1.0)
    save_classifier(trained, tokenizer, tmp_path / "trained")
    found, _ = new_classifier(tmp_path / "trained", labels, seed=2)
    again, _ = new_classifier(tmp_path / "trained", labels, seed=2)
    body = "roberta.encoder.layer.0.output.dense.weight"
    assert torch.equal(found.state_dict()[body], trained.state_dict()[body])
    heads = [model.classifier.out_proj.weight for model in (found, again)]
    assert heads[0].shape == (len(labels), trained.config.hidden_size)
    assert torch.equal(*heads)
    rows = min(len(labels), len(LABELS))
    assert torch.equal(heads[0][:rows], trained.classifier.out_proj.weight[:rows]) is kept


def test_making_one_leaves_the_callers_generator(base: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    new_classifier(base, LABELS, seed=1)
    assert torch.equal(torch.rand(3), expected)


def test_saved_classifier_loads_by_the_stock_class(base: Path, tmp_path: Path) -> None:
    model, tokenizer = new_classifier(base, LABELS, seed=1)
    save_classifier(model, tokenizer, tmp_path / "out")
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    ours = load_classifier(tmp_path / "out", device="cpu")
    assert stock.config.id2label == dict(enumerate(LABELS))
    assert ours.config.label2id == {label: position for position, label in enumerate(LABELS)}
    assert not ours.training
    for name, value in model.state_dict().items():
        assert torch.equal(stock.state_dict()[name], value), name
        assert torch.equal(ours.state_dict()[name], value), name
    sample = texts(5)
    assert encode(load_tokenizer(tmp_path / "out"), sample) == encode(tokenizer, sample)


def test_logits_keep_the_order_of_the_rows(base: Path) -> None:
    model, tokenizer = new_classifier(base, LABELS, seed=1)
    encoded = encode(tokenizer, texts(37))
    logits = predict_logits(model, encoded, batch_tokens=30, bf16=False)
    assert logits.dtype == np.float32
    with torch.no_grad():
        for row, ids in enumerate(encoded):
            np.testing.assert_allclose(logits[row], model(torch.tensor([ids])).logits[0].numpy(), atol=1e-5)


def test_no_rows(base: Path) -> None:
    model, tokenizer = new_classifier(base, LABELS, seed=1)
    assert predict_logits(model, encode(tokenizer, [])).shape == (0, len(LABELS))


def test_bf16_is_used_when_asked_for(base: Path) -> None:
    model, tokenizer = new_classifier(base, LABELS, seed=1)
    encoded = encode(tokenizer, texts(20))
    exact = predict_logits(model, encoded, bf16=False)
    rough = predict_logits(model, encoded, bf16=True)
    assert not np.array_equal(exact, rough)
    np.testing.assert_allclose(rough, exact, atol=0.05)


@pytest.mark.parametrize("capability", ["amx_bf16", "avx512_bf16"])
def test_bf16_follows_the_capability(capability: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for capable in (True, False):
        monkeypatch.setattr(
            torch.cpu, "get_capabilities", lambda capable=capable: {"avx512_f": True, capability: capable}
        )
        assert has_fast_bf16(CPU) is capable
        with autocast(CPU, None):
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert product.dtype == (torch.bfloat16 if capable else torch.float32)


def test_long_texts_are_cut(base: Path) -> None:
    tokenizer = load_tokenizer(base)
    (ids,) = encode(tokenizer, ["wake " * 50], max_length=7)
    assert (len(ids), ids[0], ids[-1]) == (7, 0, 2)


def test_a_base_is_no_classifier(base: Path) -> None:
    with pytest.raises(CheckpointError, match=r"4 weights are missing.*classifier"):
        load_classifier(base)


def test_a_base_without_encoder_weights_is_refused(base: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        (base / "config.json").read_text(encoding="utf-8"), encoding="utf-8"
    )
    (tmp_path / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0" + json.dumps({}).encode().ljust(16))
    with pytest.raises(CheckpointError, match="weights are missing"):
        new_classifier(tmp_path, LABELS, seed=0)


@pytest.mark.parametrize("name", ["/no/such/folder", "./nowhere"])
def test_a_missing_folder_never_reaches_the_hub(name: str) -> None:
    for load in (load_classifier, load_tokenizer):
        with pytest.raises(CheckpointError, match="is not a folder"):
            load(name)


def test_pickled_weights_are_refused(base: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        (base / "config.json").read_text(encoding="utf-8"), encoding="utf-8"
    )
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="No model can be read"):
        load_classifier(tmp_path)


def test_without_transformers_the_install_command_is_named() -> None:
    code = (
        "import importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'transformers' else real(name, *a)\n"
        "import langmerge.models"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "MissingExtraError" in ran.stderr
    assert "pip install 'langmerge[models]'" in ran.stderr


def test_a_length_limit_of_ours_is_not_saved_with_the_tokenizer(base: Path, tmp_path: Path) -> None:
    model, tokenizer = new_classifier(base, LABELS, seed=0)
    assert len(encode(tokenizer, ["wake " * 40], max_length=8)[0]) == 8
    save_classifier(model, tokenizer, tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "tokenizer.json").read_text())["truncation"] is None
