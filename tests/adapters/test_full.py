"""Whole models by the same rule."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from langmerge.adapters import Transfer, transfer
from langmerge.engine.verify import verify
from langmerge.errors import InputError
from langmerge.models import load_classifier
from tests.tiny import write_xlm_roberta

ROLES = ("task_source", "reference_target", "reference_source")


def models(folder: Path, *labels: list[str]) -> dict[str, Path]:
    return {
        role: write_xlm_roberta(folder / role, seed=seed, labels=own)
        for seed, (role, own) in enumerate(zip(ROLES, labels, strict=True))
    }


@pytest.mark.parametrize("t", [1.0, -0.4])
@pytest.mark.parametrize("other", [["a", "b", "c"], ["x", "y"]])
def test_three_models(tmp_path: Path, t: float, other: list[str]) -> None:
    folders = models(tmp_path, ["a", "b", "c"], other, other)
    transfer(tmp_path / "out", **folders, asked=Transfer(t=t))
    one, two, three, made = (
        load_file(folder / "model.safetensors") for folder in (*folders.values(), tmp_path / "out")
    )
    assert made.keys() == one.keys()
    for name, own in one.items():
        expected = own if name.startswith("classifier") else own + t * (two[name] - three[name])
        torch.testing.assert_close(made[name], expected, rtol=1e-5, atol=1e-6)
    assert list(load_classifier(tmp_path / "out").config.id2label.values()) == ["a", "b", "c"]
    assert verify(tmp_path / "out").agrees


def test_references_with_other_heads(tmp_path: Path) -> None:
    """Masked-LM references beside a classifier: each head is its own model's."""
    folders = models(tmp_path, *[["a", "b"]] * 3)
    for seed, role in enumerate(ROLES[1:], 5):
        write_xlm_roberta(folders[role], "masked_lm", seed=seed)
    transfer(tmp_path / "out", **folders)
    one, two, three, made = (
        load_file(folder / "model.safetensors") for folder in (*folders.values(), tmp_path / "out")
    )
    assert made.keys() == one.keys()
    name = "roberta.encoder.layer.0.output.dense.weight"
    torch.testing.assert_close(made[name], one[name] + two[name] - three[name], rtol=1e-5, atol=1e-6)


def test_nothing_to_transfer(tmp_path: Path) -> None:
    folders = models(tmp_path, *[["a", "b"]] * 3)
    with pytest.raises(InputError, match=r"t = 0 leaves .*task_source as it is"):
        transfer(tmp_path / "out", **folders, asked=Transfer(t=0.0))
    with pytest.raises(InputError, match="are the same: nothing would be transferred"):
        transfer(tmp_path / "out", **{**folders, "reference_source": folders["reference_target"]})
    with pytest.raises(InputError, match="is a whole model: mode, rank"):
        transfer(tmp_path / "out", **folders, asked=Transfer(mode="svd"))
    assert not (tmp_path / "out").exists()
