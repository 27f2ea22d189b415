"""Adapters summed, recompressed, and merged by methods: what PEFT loads is the dense merge."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from langmerge.adapters import Merging, merge
from langmerge.errors import CheckpointError, InputError, MethodError
from langmerge.methods import METHODS
from tests.adapters.made import base, changed, filled, loaded, logits, state, write_adapter
from tests.adapters.test_transfer import SHAPES, WEIGHTS, only_head, same

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

LABELS = ["a", "b", "c"]


def some(
    folder: Path, kind: str = "lora", changes: list[dict[str, Any]] | None = None
) -> tuple[list[Path], list[Any]]:
    """Three adapters with labels on record, and their dense models."""
    folders, models = [], []
    for seed, more in enumerate(changes or [{}] * 3):
        folders.append(folder / "abc"[seed])
        models.append(write_adapter(folders[-1], seed, kind, **more))
        label(folders[-1], LABELS)
    return folders, models


def label(folder: Path, labels: list[str]) -> None:
    (folder / "langmerge_adapter.json").write_text(json.dumps({"labels": labels}))


def summed(models: list[Any], weights: list[float]) -> dict[str, torch.Tensor]:
    """θ_0 + Σ w (θ − θ_0); heads by w / Σ w."""
    start, states = state(base()), [state(model) for model in models]
    made = {}
    for name, own in start.items():
        if name.startswith("classifier"):
            made[name] = sum(w * one[name] for w, one in zip(weights, states, strict=True)) / sum(weights)
        else:
            made[name] = own + sum(w * (one[name] - own) for w, one in zip(weights, states, strict=True))
    return made


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weights", [[0.5, -0.2, 1.1], [-0.3, 0.7, 0.9]])
def test_cat_is_the_sum(tmp_path: Path, shape: str, weights: list[float]) -> None:
    folders, models = some(tmp_path, changes=SHAPES[shape])
    found = merge(tmp_path / "out", dict(zip(folders, weights, strict=True)))
    same(loaded(tmp_path / "out"), filled(summed(models, weights)))
    assert np.array(found["totals"]["cosines"]).diagonal() == pytest.approx([1, 1, 1])
    assert found["labels"] == LABELS


def test_cosines_are_those_of_the_updates(tmp_path: Path) -> None:
    folders, models = some(tmp_path, changes=SHAPES["modules"])
    found = merge(tmp_path / "out", dict.fromkeys(folders, 0.5))
    start = state(base())
    moved = [
        torch.cat(
            [(one[name] - start[name]).flatten() for name in start if not name.startswith("classifier")]
        )
        for one in map(state, models)
    ]
    expected = [[float(x @ y / x.norm() / y.norm()) for y in moved] for x in moved]
    np.testing.assert_allclose(found["totals"]["cosines"], expected, atol=1e-5)


def test_svd_of_full_rank_is_the_sum_and_less_says_what_is_lost(tmp_path: Path) -> None:
    folders, models = some(tmp_path, changes=SHAPES["ranks and alphas"])
    weights = dict.fromkeys(folders, 0.5)
    found = merge(tmp_path / "whole", weights, asked=Merging(mode="svd", rank=50))
    same(loaded(tmp_path / "whole"), filled(summed(models, [0.5] * 3)))
    assert found["totals"]["error"] < 1e-6
    less = merge(tmp_path / "less", weights, asked=Merging(mode="svd"))
    assert 0.01 < less["totals"]["error"] < 0.9
    assert json.loads((tmp_path / "less" / "adapter_config.json").read_text())["r"] == 4


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("ties", {"density": 0.5}),
        ("ties", {"density": 0.5, "scope": "tensor"}),
        ("dare_linear", {"density": 0.5}),
        ("dare_ties", {"density": 0.5}),
        ("wudi", {}),
        ("task_arithmetic", {"scale": 2.0}),
    ],
)
def test_methods_on_products(tmp_path: Path, method: str, parameters: dict[str, Any]) -> None:
    """At full rank: the method on dense task vectors."""
    folders, models = some(tmp_path)
    weights = [0.5, 0.7, 0.9]
    asked = Merging(mode="product", method=method, parameters=parameters, rank=8)
    found = merge(tmp_path / "out", dict(zip(folders, weights, strict=True)), asked=asked)
    start, states, dense = state(base()), [state(one) for one in models], summed(models, weights)
    for module in found["modules"]:
        name = f"{module}.weight"
        taus = torch.stack([one[name] - start[name] for one in states]).float()
        keyed = {"key": module, "sources": ["a", "b", "c"]} if "dare" in method else {}
        zero = torch.zeros(taus.shape[1:])
        parameters = {key: value for key, value in parameters.items() if key != "scope"}
        dense[name] = start[name] + METHODS[method](zero, taus, torch.tensor(weights), **keyed, **parameters)
    same(loaded(tmp_path / "out"), filled(dense))
    assert found["totals"]["error"] < 1e-6


def test_the_core_space_is_exact_for_sums_and_takes_methods(tmp_path: Path) -> None:
    folders, models = some(tmp_path, changes=SHAPES["ranks and alphas"])
    weights = dict.fromkeys(folders, 0.5)
    merge(tmp_path / "sum", weights, asked=Merging(mode="core"))
    same(loaded(tmp_path / "sum"), filled(summed(models, [0.5] * 3)))
    found = merge(tmp_path / "ties", weights, asked=Merging(method="ties", parameters={"density": 0.3}))
    assert (found["settings"]["mode"], found["settings"]["method"]) == ("core", "ties")
    assert np.abs(logits(loaded(tmp_path / "ties")) - logits(loaded(tmp_path / "sum"))).max() > 1e-3


@pytest.mark.parametrize("mode", ["linear", "geometric"])
def test_vectors(tmp_path: Path, mode: str) -> None:
    folders, models = some(
        tmp_path, "ia3", [{}, {}, {"target_modules": ["query"], "feedforward_modules": []}]
    )
    weights = [0.5, 0.7, 0.4]
    merge(tmp_path / "out", dict(zip(folders, weights, strict=True)), asked=Merging(mode=mode))
    dense, start = summed(models, weights), state(base())
    if mode == "geometric":
        for name, own in start.items():
            if not name.startswith("classifier"):
                ratios = [torch.where(own == 0, 1.0, state(one)[name] / own) for one in models]
                dense[name] = own * torch.stack([r**w for r, w in zip(ratios, weights, strict=True)]).prod(0)
    same(loaded(tmp_path / "out"), filled(dense))


def test_prefixes(tmp_path: Path) -> None:
    folders, _ = some(tmp_path, "prefix")
    merge(tmp_path / "out", dict(zip(folders, [0.2, 0.3, 0.5], strict=True)))
    tables = [load_file(folder / WEIGHTS)["prompt_embeddings"] for folder in folders]
    expected = 0.2 * tables[0] + 0.3 * tables[1] + 0.5 * tables[2]
    table = loaded(tmp_path / "out").prompt_encoder["default"].embedding.weight
    torch.testing.assert_close(table.detach(), expected)


# Heads.


def test_heads_are_matched_by_label_name(tmp_path: Path) -> None:
    folders, models = some(tmp_path)
    file = folders[1] / WEIGHTS
    turned = [2, 0, 1]
    own = {k: v[turned].clone() if "out_proj" in k else v for k, v in load_file(file).items()}
    save_file(own, file, {"format": "pt"})
    label(folders[1], [LABELS[row] for row in turned])
    weights = dict(zip(folders, [0.3, 0.3, 0.4], strict=True))
    merge(tmp_path / "out", weights)
    same(loaded(tmp_path / "out"), filled(summed(models, [0.3, 0.3, 0.4])))
    kept = merge(tmp_path / "kept", weights, asked=Merging(head="b"))
    assert kept["labels"] == ["c", "a", "b"]
    made = load_file(tmp_path / "kept" / WEIGHTS)
    for name in own:
        if "classifier" in name:
            assert torch.equal(made[name], own[name])


def test_the_head_brings_its_own_settings(tmp_path: Path) -> None:
    """A language's adapter before a task's: what PEFT loads as the head is the task's."""
    (one, two, _), models = some(tmp_path)
    for name in list(own := load_file(one / WEIGHTS)):
        if "classifier" in name:
            del own[name]
    save_file(own, one / WEIGHTS, {"format": "pt"})
    changed(one, modules_to_save=None, task_type=None)
    (one / "langmerge_adapter.json").unlink()
    merge(tmp_path / "out", {one: 0.5, two: 1.0})
    dense = summed(models[:2], [0.5, 1.0]) | only_head(state(models[1]))
    same(loaded(tmp_path / "out"), filled(dense))
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert "classifier" in config["modules_to_save"]
    assert config["task_type"] == "SEQ_CLS"


def test_heads_without_names(tmp_path: Path) -> None:
    folders, models = some(tmp_path)
    (folders[1] / "langmerge_adapter.json").unlink()
    weights = dict.fromkeys(folders, 0.5)
    with pytest.raises(InputError, match="the labels of b's head are not known: say --head position"):
        merge(tmp_path / "out", weights)
    merge(tmp_path / "out", weights, asked=Merging(head="position"))
    same(loaded(tmp_path / "out"), filled(summed(models, [0.5] * 3)))
    label(folders[1], ["a", "b", "d"])
    with pytest.raises(InputError, match="a and b have other labels: c, d"):
        merge(tmp_path / "never", weights)
    with pytest.raises(InputError, match="--head z: give names, position or one of a, b, c"):
        merge(tmp_path / "never", weights, asked=Merging(head="z"))
    with pytest.raises(InputError, match="give no average of the heads"):
        merge(
            tmp_path / "never", dict(zip(folders, [1, -1, -0.5], strict=True)), asked=Merging(head="position")
        )
    assert not (tmp_path / "never").exists()


# What is refused.


@pytest.mark.parametrize(
    ("asked", "error", "says"),
    [
        ({"mode": "linear"}, InputError, "mode 'linear' is not for lora: give cat or svd or product or core"),
        ({"mode": "cat", "method": "ties"}, InputError, "mode cat is a sum"),
        ({"parameters": {"scale": 2.0}}, InputError, "mode cat is a sum"),
        ({"rank": 4}, InputError, "for modes svd and product"),
        ({"method": "tise"}, MethodError, "did you mean 'ties'"),
        ({"method": "fisher"}, MethodError, "reads more than the updates"),
        ({"method": "layer_swap"}, MethodError, "reads more than the updates"),
        ({"method": "ties", "parameters": {"density": 2}}, MethodError, "density"),
    ],
)
def test_settings(tmp_path: Path, asked: dict[str, Any], error: type[Exception], says: str) -> None:
    folders, _ = some(tmp_path)
    with pytest.raises(error, match=says):
        merge(tmp_path / "out", dict.fromkeys(folders, 0.5), asked=Merging(**asked))
    assert not (tmp_path / "out").exists()


def test_nothing_to_merge_and_what_does_not_fit(tmp_path: Path) -> None:
    (one, two, _), _ = some(tmp_path)
    out = tmp_path / "out"
    for given, says in (
        ({}, "no adapters to merge"),
        ({one: 1.0}, "a alone with weight 1 stays as it is"),
        ({one: 0.5, two: 0.0}, "weight 0 of b: give a finite number"),
        ({one: 0.5, two: float("inf")}, "weight inf of b"),
    ):
        with pytest.raises(InputError, match=says):
            merge(out, given)
    changed(two, use_dora=True)
    with pytest.raises(CheckpointError, match="use_dora"):
        merge(out, {one: 0.5, two: 0.5})
    write_adapter(two, 5, "ia3")
    with pytest.raises(InputError, match=r"a .* is lora, b .* is ia3"):
        merge(out, {one: 0.5, two: 0.5})
    assert not out.exists()


def test_one_adapter_is_scaled_or_recompressed(tmp_path: Path) -> None:
    (one, *_), (model, *_) = some(tmp_path)
    merge(tmp_path / "half", {one: 0.5})
    same(loaded(tmp_path / "half"), filled(summed([model], [0.5])))
    found = merge(tmp_path / "thin", {one: 1.0}, asked=Merging(mode="svd", rank=1))
    assert 0.01 < found["totals"]["error"] < 0.9


def test_vectors_of_other_signs_have_no_geometric_mean(tmp_path: Path) -> None:
    (one, two, _), _ = some(tmp_path, "ia3")
    own = load_file(two / WEIGHTS)
    name = next(name for name in own if "layer.1.attention.self.query" in name)
    own[name][3] = -0.5
    save_file(own, two / WEIGHTS, {"format": "pt"})
    with pytest.raises(InputError, match=r"layer.1.attention.self.query' entry 3: .* use mode linear"):
        merge(tmp_path / "out", {one: 0.5, two: 0.5}, asked=Merging(mode="geometric"))
