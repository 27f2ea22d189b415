"""Adapters are refined into adapters."""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from langmerge.errors import CheckpointError, MissingExtraError, TrainingError
from langmerge.models import (
    load_adapted_classifier,
    load_classifier,
    predict_logits,
)
from langmerge.tasks import Unlabelled
from langmerge.training import Refinement, refine_classifier, refine_folder
from langmerge.training.alignment import head_bias
from tests.training.half_trained import (
    SETTINGS,
    STILL,
    Interrupting,
    encoded,
    files,
)


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


def test_a_prior_moves_the_bias_that_the_adapter_keeps(
    folder: Path, adapter: Path, text: Unlabelled, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    asked = Refinement(rounds=0, prior={"alarm": 0.9, "music": 0.1}, bf16=False)
    made = refine_folder(adapter, text, tmp_path / "out", refinement=asked)
    before, after = (load_file(place / "adapter_model.safetensors") for place in (adapter, tmp_path / "out"))
    moved = [name for name in after if not torch.equal(before[name], after[name])]
    assert moved == ["base_model.model.classifier.out_proj.bias"]
    old, new = made.record["alignment"]["distance"]
    assert new < old
    # A head that stays in the base is not written: moving its bias would be lost.
    model = load_adapted_classifier(adapter)
    classifier = model.base_model.model.classifier
    model.base_model.model.classifier = classifier.original_module
    with pytest.raises(CheckpointError, match="does not keep the head's bias"):
        head_bias(model, encoded(folder, text)[0])


def test_an_adapters_base_does_not_train_afterwards_either(
    folder: Path, adapter: Path, text: Unlabelled
) -> None:
    model = load_adapted_classifier(adapter)
    before = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert before
    assert all("lora" in name or "modules_to_save" in name for name in before)
    refine_classifier(model, encoded(folder, text), refinement=SETTINGS.model_copy(update={"epochs": 1}))
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == before


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
    (lost / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "/gone"}))
    with pytest.raises(CheckpointError, match="/gone"):
        refine_folder(lost, text, tmp_path / "out", refinement=SETTINGS)
    refine_folder(lost, text, tmp_path / "out", refinement=SETTINGS, base=folder)
    said = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert said["base_model_name_or_path"] == str(folder)
    refine_folder(adapter, text, tmp_path / "plain", refinement=SETTINGS)
    weights_of = "adapter_model.safetensors"
    assert files(tmp_path / "out")[weights_of] == files(tmp_path / "plain")[weights_of]


@pytest.mark.filterwarnings("ignore")  # so that what the program itself does about them is seen
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


def test_a_prefix_is_not_refined(folder: Path, text: Unlabelled, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        peft.get_peft_model(load_classifier(folder, device="cpu"), config).save_pretrained(
            tmp_path / "prefix"
        )
    with pytest.raises(TrainingError, match="Nothing of this model trains: a prefix"):
        refine_folder(tmp_path / "prefix", text, tmp_path / "out", base=folder, refinement=STILL)
    assert not (tmp_path / "out").exists()
