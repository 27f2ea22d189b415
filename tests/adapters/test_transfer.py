"""Three adapters into one: what PEFT loads is the dense merge, and what cannot be is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from langmerge.adapters import Merging, Transfer, merge, open_parsed, transfer_adapter
from langmerge.adapters.measures import by_layer, said_of
from langmerge.errors import CheckpointError, InputError, OutputError
from tests.adapters.made import ROLES, base, changed, filled, loaded, logits, state, write_adapter

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

WEIGHTS = "adapter_model.safetensors"

SHAPES: dict[str, list[dict[str, Any]]] = {
    "alike": [{}, {}, {}],
    "ranks and alphas": [{"r": 3, "lora_alpha": 5}, {"r": 1}, {"r": 4, "lora_alpha": 1}],
    "rslora": [{"use_rslora": True}, {"use_rslora": True, "r": 3}, {}],
    "patterns": [
        {"alpha_pattern": {"layer.1.attention.self.query": 2}, "rank_pattern": {"query": 1}},
        {"rank_pattern": {"layer.0.attention.self.query": 5}},
        {},
    ],
    "modules": [
        {"target_modules": ["query", "value"]},
        {"target_modules": ["query", "key"]},
        {"target_modules": ["query", "key"]},
    ],
    "embeddings": [{"target_modules": ["word_embeddings", "query"]}] * 3,
}


def three(
    folder: Path, kind: str = "lora", changes: list[dict[str, Any]] | None = None
) -> tuple[dict[str, Path], list[Any]]:
    """Folders by role, and PEFT's models."""
    folders = {role: folder / role for role in ROLES}
    models = [
        write_adapter(folders[role], seed, kind, **more)
        for seed, (role, more) in enumerate(zip(ROLES, changes or [{}] * 3, strict=True), 1)
    ]
    return folders, models


def only_head(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: one for name, one in weights.items() if name.startswith("classifier")}


def same(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(logits(found), logits(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("t", [1.0, 0.6, -0.5])
def test_lora_in_peft_is_the_dense_merge(tmp_path: Path, shape: str, t: float) -> None:
    folders, models = three(tmp_path, changes=SHAPES[shape])
    transfer_adapter(tmp_path / "out", **folders, asked=Transfer(t=t))
    one, two, other = map(state, models)
    dense = {name: one[name] + t * (two[name] - other[name]) for name in one} | only_head(one)
    found = loaded(tmp_path / "out")
    same(found, filled(dense))
    assert np.abs(logits(found) - logits(models[0])).max() > 1e-3
    same(found.merge_and_unload(), filled(dense))


def test_p1_lies_in_the_result_bit_for_bit(tmp_path: Path) -> None:
    folders, _ = three(tmp_path)
    transfer_adapter(tmp_path / "out", **folders)
    before, after = load_file(folders["task_source"] / WEIGHTS), load_file(tmp_path / "out" / WEIGHTS)
    assert before.keys() == after.keys()
    for name, own in before.items():
        if "lora_A" in name:
            assert torch.equal(after[name][:2], own)
        elif "lora_B" in name:
            assert torch.equal(after[name][:, :2], own)
        else:
            assert torch.equal(after[name], own)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (6, 18, {})
    assert sorted(config["target_modules"]) == ["output.dense", "query"]


def test_recompression_says_what_it_lost(tmp_path: Path) -> None:
    folders, models = three(tmp_path)
    one, two, other = map(state, models)
    dense = {name: one[name] + two[name] - other[name] for name in one} | only_head(one)
    whole = transfer_adapter(tmp_path / "whole", **folders, asked=Transfer(mode="svd", rank=6))
    same(loaded(tmp_path / "whole"), filled(dense))
    assert whole["totals"]["error"] < 1e-6
    found = transfer_adapter(tmp_path / "svd", **folders, asked=Transfer(mode="svd"))
    start, made = state(base()), state(loaded(tmp_path / "svd").merge_and_unload())
    moved = [name for name in start if not torch.equal(start[name], dense[name].float().double())]
    moved = [name for name in moved if not name.startswith("classifier")]
    lost = sum(float((dense[name] - made[name]).norm() ** 2) for name in moved) ** 0.5
    size = sum(float((dense[name] - start[name]).norm() ** 2) for name in moved) ** 0.5
    assert found["totals"]["error"] == pytest.approx(lost / size, rel=1e-3)
    assert 0.05 < found["totals"]["error"] < 0.9
    assert json.loads((tmp_path / "svd" / "adapter_config.json").read_text())["r"] == 2


def test_factors_apart_are_the_paper_code_and_say_that_they_are_not_exact(tmp_path: Path) -> None:
    folders, _ = three(tmp_path)
    found = transfer_adapter(tmp_path / "out", **folders, asked=Transfer(mode="factors", t=0.5))
    p1, p2, p3, made = (load_file(f / WEIGHTS) for f in (*folders.values(), tmp_path / "out"))
    for name in p1:
        expected = p1[name] + 0.5 * (p2[name] - p3[name]) if "lora_" in name else p1[name]
        torch.testing.assert_close(made[name], expected)
    assert found["totals"]["error"] > 0.1
    assert "did not begin at the same draw" in found["notes"][0]
    # With one A for all it is the product.
    for role in ROLES[1:]:
        own = load_file(folders[role] / WEIGHTS)
        save_file(
            {k: p1[k] if "lora_A" in k else v for k, v in own.items()},
            folders[role] / WEIGHTS,
            {"format": "pt"},
        )
    shared = transfer_adapter(tmp_path / "shared", **folders, asked=Transfer(mode="factors", t=0.5))
    assert shared["totals"]["error"] < 1e-6
    assert not any("draw" in note for note in shared["notes"])
    transfer_adapter(tmp_path / "exact", **folders, asked=Transfer(t=0.5))
    same(loaded(tmp_path / "shared"), loaded(tmp_path / "exact"))


@pytest.mark.parametrize("mode", ["ratio", "geometric"])
def test_vectors_in_peft_are_the_dense_merge(tmp_path: Path, mode: str) -> None:
    folders, models = three(tmp_path, "ia3", [{}, {"target_modules": ["query", "value"], "feedforward_modules": []}, {"target_modules": ["query", "value"], "feedforward_modules": []}])  # fmt: skip
    transfer_adapter(tmp_path / "out", **folders, asked=Transfer(t=0.7, mode=mode))
    same(loaded(folders["task_source"]), models[0])
    one, two, other = map(state, models)
    dense = {}
    for name in one:
        ratio = torch.where(other[name] == 0, 1.0, two[name] / other[name])
        dense[name] = one[name] * (1 + 0.7 * (ratio - 1) if mode == "ratio" else ratio**0.7)
    dense |= only_head(one)
    found = loaded(tmp_path / "out")
    same(found, filled(dense))
    assert np.abs(logits(found) - logits(models[0])).max() > 1e-4


@pytest.mark.parametrize("mode", ["safe", "paper"])
@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("tokens", [3, 12])
def test_prefixes_in_peft_are_the_formula(tmp_path: Path, mode: str, projection: bool, tokens: int) -> None:
    """With more tokens than the 8 dimensions, the two forms differ."""
    more: dict[str, Any] = {"num_virtual_tokens": tokens}
    more |= {"prefix_projection": True, "encoder_hidden_size": 5} if projection else {}
    folders, models = three(tmp_path, "prefix", [more] * 3)
    found = transfer_adapter(tmp_path / "out", **folders, asked=Transfer(t=0.8, mode=mode))
    tables = [
        load_file(folder / WEIGHTS)["prompt_embeddings"].double().numpy() for folder in folders.values()
    ]
    layers, expected = models[0].config.num_hidden_layers, tables[0].copy()
    width = expected.shape[1] // (2 * layers)
    for start in range(0, expected.shape[1], width):
        p1, p2, p3 = (table[:, start : start + width] for table in tables)
        inverse = np.linalg.pinv(p3)
        change = (p2 - p3) @ inverse if mode == "safe" else p2 @ inverse - np.eye(tokens)
        expected[:, start : start + width] = p1 + 0.8 * change @ p1
    made = load_file(tmp_path / "out" / WEIGHTS)["prompt_embeddings"].numpy()
    np.testing.assert_allclose(made, expected, rtol=1e-4, atol=1e-5)
    reloaded = loaded(tmp_path / "out")
    table = reloaded.prompt_encoder["default"].embedding.weight.detach().numpy()
    np.testing.assert_array_equal(table, made)
    assert found["totals"]["ratio"] > 0.1
    assert set(found["layers"]) == set(map(str, range(layers)))
    # Twelve virtual tokens leave no positions for text in so small a model.
    if tokens == 3:
        assert np.abs(logits(reloaded) - logits(loaded(folders["task_source"]))).max() > 1e-4


def test_measures_by_hand(tmp_path: Path) -> None:
    folders, models = three(tmp_path)
    found = transfer_adapter(tmp_path / "out", **folders, asked=Transfer(t=-0.5))
    start, (one, two, other) = state(base()), map(state, models)
    name = "roberta.encoder.layer.1.attention.self.query"
    task, moved = (
        one[f"{name}.weight"] - start[f"{name}.weight"],
        two[f"{name}.weight"] - other[f"{name}.weight"],
    )
    said = found["modules"][name]
    assert said["task"] == pytest.approx(float(task.norm()), rel=1e-5)
    assert said["divergence"] == pytest.approx(float(moved.norm()), rel=1e-5)
    cosine = float((task * moved).sum() / task.norm() / moved.norm())
    assert said["cosine"] == pytest.approx(cosine, abs=1e-5)
    assert list(found["layers"]) == ["0", "1"]
    assert found == json.loads((tmp_path / "out" / "langmerge_adapter.json").read_text())
    assert found["settings"] == {"t": -0.5, "mode": "product", "rank": None, "clip": None, "dtype": "keep"}


def test_narrow_factors_are_exact_or_said_to_be_rounded(tmp_path: Path) -> None:
    folders, _ = three(tmp_path)
    for folder in folders.values():
        own = load_file(folder / WEIGHTS)
        save_file({k: v.bfloat16() for k, v in own.items()}, folder / WEIGHTS, {"format": "pt"})
    assert transfer_adapter(tmp_path / "whole", **folders)["notes"] == []
    assert (
        load_file(tmp_path / "whole" / WEIGHTS)[
            "base_model.model.roberta.encoder.layer.0.attention.self.query.lora_B.weight"
        ].dtype
        == torch.bfloat16
    )
    rounded = transfer_adapter(tmp_path / "rounded", **folders, asked=Transfer(t=0.3))
    assert "--dtype float32 keeps it exact" in rounded["notes"][0]
    wide = transfer_adapter(tmp_path / "wide", **folders, asked=Transfer(t=0.3, dtype="float32"))
    assert wide["notes"] == []


def test_layers_are_in_order() -> None:
    one = said_of(1.0, 2.0, 0.5)
    found = by_layer({f"model.layers.{n}.q": one for n in (10, 2, 0)} | {"lm_head": one})
    assert list(found) == ["0", "2", "10", "lm_head"]
    assert found["10"] == {"ratio": 2.0, "cosine": 0.5}


# What is refused; nothing is written.


def refused(
    tmp_path: Path, folders: dict[str, Path], says: str, error: type[Exception] = InputError, **asked: Any
) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=says):
        transfer_adapter(tmp_path / "out", **folders, asked=Transfer(**asked))
    after = [path for path in tmp_path.rglob("*") if path.name != ".langmerge.fingerprint"]
    assert sorted(after) == [path for path in before if path.name != ".langmerge.fingerprint"]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"t": 0.0}, "leaves .*task_source as it is"),
        ({"t": float("nan")}, "nothing to merge"),
        ({"mode": "ratio"}, "mode 'ratio' is not for lora: give product or svd or factors"),
        ({"rank": 3}, "rank is not used by mode 'product'"),
        ({"mode": "svd", "rank": 0}, "give 1 or more"),
        ({"clip": 2.0}, "clip is not used"),
        ({"dtype": "int8"}, "dtype 'int8'"),
    ],
)
def test_settings(tmp_path: Path, asked: dict[str, Any], says: str) -> None:
    refused(tmp_path, three(tmp_path)[0], says, **asked)


def test_references_that_are_the_same(tmp_path: Path) -> None:
    folders, _ = three(tmp_path)
    shutil.copytree(folders["reference_target"], folders["reference_source"], dirs_exist_ok=True)
    refused(tmp_path, folders, "do the same everywhere: nothing would be transferred")
    refused(tmp_path, {**folders, "reference_source": folders["reference_target"]}, "are the same folder")


def test_names_that_match_nothing(tmp_path: Path) -> None:
    one = {"target_modules": ["query"]}
    folders, _ = three(
        tmp_path / "a", changes=[one, {"target_modules": ["key"]}, {"target_modules": ["key"]}]
    )
    refused(
        tmp_path, folders, r"no module of .*task_source is in .*reference_target: the first are '\S*query'"
    )
    folders, _ = three(tmp_path / "b", changes=[one, {"target_modules": ["key", "query"]}, one])
    refused(
        tmp_path, folders, r"the references change other modules: '\S*key' is only in \S*reference_target"
    )


def test_another_base(tmp_path: Path) -> None:
    folders, _ = three(tmp_path)
    for role, name in zip(ROLES, ("org/one", "org/one", "org/other"), strict=True):
        changed(folders[role], base_model_name_or_path=name)
    refused(tmp_path, folders, "was trained on org/one, .* on org/other: .* say --same-base")
    assert transfer_adapter(tmp_path / "trusted", **folders, asked=Transfer(same_base=True))
    file = folders["reference_target"] / WEIGHTS
    save_file(
        {k: v[:, :-1].clone() if "lora_A" in k else v for k, v in load_file(file).items()},
        file,
        {"format": "pt"},
    )
    refused(tmp_path, folders, r"has shape \d+×\d+ in .* they were trained on other bases", same_base=True)


def test_mixed_kinds(tmp_path: Path) -> None:
    folders, _ = three(tmp_path)
    write_adapter(tmp_path / "reference_target", 5, "ia3")
    refused(tmp_path, folders, "is lora, the reference in the target language .* is ia3")


def test_vectors_that_have_no_ratio(tmp_path: Path) -> None:
    folders, _ = three(tmp_path, "ia3")
    file = folders["reference_source"] / WEIGHTS
    own = load_file(file)
    name = next(name for name in own if "layer.1.attention.self.query" in name)
    own[name][4], own[name][7] = 0.0, -1.0
    save_file(own, file, {"format": "pt"})
    refused(
        tmp_path, folders, r"layer.1.attention.self.query' entry 4: \S+ / 0; .* entry 7: \S+ / -1; say --clip"
    )
    made = transfer_adapter(tmp_path / "clipped", **folders, asked=Transfer(clip=4.0))
    assert made["totals"]["clipped"] >= 2
    refused(tmp_path, folders, "give a number above 1", clip=1.0)


def test_prefixes_of_other_lengths(tmp_path: Path) -> None:
    folders, _ = three(tmp_path, "prefix", [{}, {"num_virtual_tokens": 4}, {}])
    refused(tmp_path, folders, "prompt_embeddings")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"use_dora": True}, "has use_dora: its update is normalised"),
        ({"lora_bias": True}, "has lora_bias"),
        ({"init_lora_weights": "pissa"}, "changes the base"),
        ({"bias": "all"}, "trains biases"),
        ({"lora_alpha": 0}, r"alpha is 0 for '\S+', so it changes nothing"),
        (
            {"alpha_pattern": {"layer.1.attention.self.query": 0}},
            r"alpha is 0 for '\S*layer.1.attention.self.query'",
        ),
        ({"peft_type": "VERA"}, "is 'VERA': there are rules for LORA, IA3, PREFIX_TUNING"),
    ],
)
def test_what_has_no_exact_rule(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    folders, _ = three(tmp_path)
    changed(folders["reference_source"], **changes)
    refused(tmp_path, folders, says, CheckpointError)


def test_an_input_is_never_replaced(tmp_path: Path) -> None:
    folders, _ = three(tmp_path)
    before = (folders["task_source"] / WEIGHTS).read_bytes()
    for out in (folders["task_source"], tmp_path):
        with pytest.raises(OutputError, match="holds the input"):
            transfer_adapter(out, **folders, overwrite=True)
        with pytest.raises(OutputError, match="holds the input"):
            merge(
                out,
                {folders["task_source"]: 0.5, folders["reference_target"]: 0.5},
                asked=Merging(head="task_source"),
                overwrite=True,
            )
    assert (folders["task_source"] / WEIGHTS).read_bytes() == before


def test_a_signature_is_of_weights_and_settings(tmp_path: Path) -> None:
    folder = three(tmp_path)[0]["task_source"]
    first = open_parsed(folder).signature()
    changed(folder, base_model_name_or_path="somewhere/else")
    assert open_parsed(folder).signature() == first
    changed(folder, lora_alpha=7)
    assert open_parsed(folder).signature() != first


def test_broken_files(tmp_path: Path) -> None:
    folders, _ = three(tmp_path)
    refused(tmp_path, {**folders, "task_source": tmp_path / "none"}, "none does not exist", CheckpointError)
    (tmp_path / "empty").mkdir()
    refused(tmp_path, {**folders, "task_source": tmp_path / "empty"}, "holds no adapter", CheckpointError)
    own = load_file(folders["reference_target"] / WEIGHTS)
    name = next(name for name in own if "lora_A" in name)
    own[name][0, 0] = float("nan")
    save_file(own, folders["reference_target"] / WEIGHTS, {"format": "pt"})
    refused(tmp_path, folders, "NaN or infinity", CheckpointError)
    del own[name]
    save_file(own, folders["reference_target"] / WEIGHTS, {"format": "pt"})
    refused(tmp_path, folders, "has one of lora_A and lora_B alone", CheckpointError)
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        transfer_adapter(tmp_path / "out", **folders)
