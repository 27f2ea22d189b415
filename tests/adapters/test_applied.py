"""An adapter put into weights is what PEFT computes with it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from langmerge.adapters import AdaptedModel, open_parsed, put_in
from langmerge.errors import CheckpointError
from tests.adapters.made import base, changed, loaded, logits, write_adapter
from tests.tiny import xlm_roberta

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("lora", {}),
        ("lora", {"use_rslora": True, "target_modules": ["query", "word_embeddings"]}),
        ("ia3", {}),
    ],
)
def test_put_in(tmp_path: Path, kind: str, more: dict[str, object]) -> None:
    write_adapter(tmp_path / "a", 1, kind, **more)
    model, peft = base(), loaded(tmp_path / "a")
    put_in(model, open_parsed(tmp_path / "a"))
    model.classifier = peft.base_model.model.classifier
    np.testing.assert_allclose(logits(model), logits(peft), rtol=0, atol=1e-5)
    assert np.abs(logits(base()) - logits(model)).max() > 1e-3


def test_what_cannot_be_put_in(tmp_path: Path) -> None:
    write_adapter(tmp_path / "p", 1, "prefix")
    with pytest.raises(CheckpointError, match="is a prefix"):
        put_in(base(), open_parsed(tmp_path / "p"))
    write_adapter(tmp_path / "a", 1)
    with pytest.raises(CheckpointError, match="the model has no module"):
        put_in(torch.nn.Linear(2, 2), open_parsed(tmp_path / "a"))
    with pytest.raises(CheckpointError, match="the model has no module"):
        put_in(xlm_roberta("encoder", seed=3), open_parsed(tmp_path / "a"))
    changed(tmp_path / "a", fan_in_fan_out=True)
    model = base()
    with pytest.raises(CheckpointError, match="in the model, not"):
        put_in(model, open_parsed(tmp_path / "a"))


def test_one_model_holds_one_adapter_after_the_other(tmp_path: Path) -> None:
    """Of both kinds, heads included; nothing of one is left with the next."""
    kinds = {"a": "lora", "b": "ia3", "c": "lora"}
    for seed, (name, kind) in enumerate(kinds.items(), 1):
        more = {"target_modules": ["query", "word_embeddings"]} if name == "c" else {}
        write_adapter(tmp_path / name, seed, kind, **more)
    held = AdaptedModel(base())
    for name in ("a", "b", "a", "c", "b"):
        found = logits(held.holding(open_parsed(tmp_path / name)))
        np.testing.assert_allclose(found, logits(loaded(tmp_path / name)), rtol=0, atol=1e-5)


def test_a_head_that_does_not_fit(tmp_path: Path) -> None:
    write_adapter(tmp_path / "a", 1)
    model = base()
    model.classifier.out_proj = torch.nn.Linear(model.classifier.out_proj.in_features, 9)
    with pytest.raises(CheckpointError, match="does not fit the model: is this its base"):
        AdaptedModel(model).holding(open_parsed(tmp_path / "a"))
