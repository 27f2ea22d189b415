"""PEFT's adapters as task vectors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from langmerge.coefficients import Coefficients
from langmerge.errors import CheckpointError
from langmerge.learned.adamerging import TextStream, learn
from langmerge.learned.groups import grouping
from langmerge.learned.lora import lora_deltas
from langmerge.learned.objectives import Composed
from langmerge.models import predict_logits
from tests.adapters.made import write_adapter
from tests.learned.models import TEXT, quick
from tests.tiny import xlm_roberta

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


VARIANTS = [
    {},
    {"use_rslora": True, "r": 3},
    {"alpha_pattern": {"layer.1.attention.self.query": 2}, "rank_pattern": {"query": 1}},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=["plain", "rslora", "patterns"])
def test_an_adapter_with_coefficient_one_is_what_peft_merges(tmp_path: Path, changes: dict[str, Any]) -> None:
    expected = {name: write_adapter(tmp_path / name, seed, **changes) for seed, name in enumerate(("a", "b"))}
    model = xlm_roberta("classifier", seed=3)
    before = predict_logits(model, TEXT, bf16=False)
    deltas = lora_deltas(model, {"a": tmp_path / "a", "b": tmp_path / "b"})
    for row, name in (([1.0, 0.0], "a"), ([0.0, 1.0], "b")):
        deltas.fill(dict.fromkeys(deltas.tensors, row))
        found = predict_logits(model, TEXT, bf16=False)
        np.testing.assert_allclose(found, predict_logits(expected[name], TEXT, bf16=False), rtol=0, atol=1e-5)
    deltas.fill({tensor: [0.0, 0.0] for tensor in deltas.tensors})
    np.testing.assert_array_equal(predict_logits(model, TEXT, bf16=False), before)


def test_gradients_are_those_of_the_merged_models_differences(tmp_path: Path) -> None:
    whole = [write_adapter(tmp_path / name, seed) for seed, name in enumerate(("a", "b"))]
    model = xlm_roberta("classifier", seed=3)
    base = {name: one.detach().clone() for name, one in model.named_parameters()}
    deltas = lora_deltas(model, {"a": tmp_path / "a", "b": tmp_path / "b"})
    assert any("classifier" in name for name in deltas.tensors)
    for name in deltas.tensors:
        g = torch.randn(base[name].shape, generator=torch.Generator().manual_seed(5))
        expected = [
            float(((dict(one.named_parameters())[name] - base[name]).double() * g).sum().detach())
            for one in whole
        ]
        np.testing.assert_allclose(deltas.dots({name: g})[name], expected, rtol=1e-4, atol=1e-5)


def test_coefficients_of_adapters_are_learned(tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "b")):
        write_adapter(tmp_path / name, seed)
    model = xlm_roberta("classifier", seed=3)
    deltas = lora_deltas(model, {"a": tmp_path / "a", "b": tmp_path / "b"})
    groups = grouping(deltas.tensors, Coefficients.uniform(("a", "b")), kind="block", sources=deltas.sources)
    settings = quick(steps=20, lr=0.02, held_out=0.0, batch_size=24, anchor=0.0, check_every=5)
    found = learn(deltas, groups, [TextStream(model, TEXT, Composed({"entropy": 1.0}))], settings)
    assert found.history[-1].loss < found.history[1].loss


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"peft_type": "ADALORA"}, "'ADALORA'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"a_setting_of_tomorrow": 3}, "a_setting_of_tomorrow"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "biases"),
        ({"init_lora_weights": "pissa"}, "changes the base"),
    ],
)
def test_what_has_no_exact_product(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    write_adapter(tmp_path / "a", 0)
    file = tmp_path / "a" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(CheckpointError, match=says):
        lora_deltas(xlm_roberta("classifier", seed=3), {"a": tmp_path / "a"})


def test_an_adapter_of_another_base(tmp_path: Path) -> None:
    write_adapter(tmp_path / "a", 0)
    with pytest.raises(CheckpointError, match="the base has no tensor"):
        lora_deltas(xlm_roberta("encoder", seed=3), {"a": tmp_path / "a"})
    (tmp_path / "a" / "adapter_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="cannot be read"):
        lora_deltas(xlm_roberta("classifier", seed=3), {"a": tmp_path / "a"})
