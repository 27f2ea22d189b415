"""mergekit recipes, run: every case agrees with what mergekit 0.1.5 wrote, or differs as docs/mergekit.md says."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from langmerge.engine.mergekit_layout import layer_counts, placed_tensors
from langmerge.errors import RecipeError
from tests.engine.mergekit_cases import Case, cases
from tests.engine.mergekit_models import (
    LABELS,
    build,
    causal_config,
    drawn,
    llama_shapes,
    write_model,
    xlmr_config,
    xlmr_shapes,
)
from tests.engine.mergekit_runs import ids, linear, parsed, read_arrays, run, stacked
from tests.tiny import read_raw

VECTORS = Path(__file__).parent / "mergekit_vectors"
CASES = cases()
FACTS: dict[str, Any] = json.loads((VECTORS / "vectors.json").read_text())
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# mergekit turns bfloat16 models into float32 ones: its mask is float32, and so are its λ.
WIDENED = {"qwen2, arcee_fusion", "qwen2, ramplus_tl"}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mergekit")
    build(root)
    return root


def expected(name: str, case: Case, shapes: Mapping[str, list[int]], dtype: str) -> dict[str, Tensor]:
    """What mergekit wrote of the tensors that the case keeps."""
    with np.load(VECTORS / "vectors.npz") as vectors:
        flat = torch.from_numpy(vectors[name])
    flat = flat.view(torch.bfloat16) if dtype == "bfloat16" else flat
    kept = {tensor: shape for tensor, shape in shapes.items() if any(part in tensor for part in case.keep)}
    parts = flat.split([int(np.prod(shape)) for shape in kept.values()])
    return {tensor: part.reshape(shape) for (tensor, shape), part in zip(kept.items(), parts, strict=True)}


@pytest.mark.parametrize("name", CASES)
def test_it_agrees_with_mergekit(models: Path, tmp_path: Path, name: str) -> None:
    case, facts = CASES[name], FACTS["cases"][name]
    found = run(models, case.recipe, tmp_path / "out")
    layout = FACTS["layouts"][facts["layout"]]
    dtype = "bfloat16" if name in WIDENED else layout["dtype"]
    assert {tensor: list(one.shape) for tensor, one in found.items()} == layout["shapes"]
    assert {one.dtype for one in found.values()} == {DTYPES[dtype]}
    order = _order_of_union(tmp_path / "out", facts) if facts["vocabulary"] else {}
    far, total = 0, 0
    for tensor, theirs in expected(name, case, layout["shapes"], layout["dtype"]).items():
        theirs = theirs[list(order.values())] if len(theirs) == len(order) else theirs
        step = torch.finfo(DTYPES[dtype]).eps * float(theirs.double().abs().max())
        far += int(((found[tensor].double() - theirs.double()).abs() > case.steps * step).sum())
        total += theirs.numel()
    assert far <= case.strays * total
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {key: config[key] for key in facts["config"]} == facts["config"]
    assert config["dtype"] == dtype
    template = tmp_path / "out" / "chat_template.jinja"
    assert (template.read_text() if template.exists() else None) == facts["chat_template"]


def _order_of_union(out: Path, facts: Mapping[str, Any]) -> dict[str, int]:
    """mergekit's row of every piece, in the order of ours: the ids of its unions differ from run to run."""
    ours = ids(out)
    assert ours.keys() == facts["vocabulary"].keys()
    return {piece: facts["vocabulary"][piece] for piece, _ in sorted(ours.items(), key=lambda one: one[1])}


def test_the_vectors_can_tell_a_wrong_weight(models: Path, tmp_path: Path) -> None:
    name = "llama, linear"
    wrong = json.loads(json.dumps(CASES[name].recipe))
    wrong["models"][0]["parameters"]["weight"] += 1e-5
    found = run(models, wrong, tmp_path / "out")
    layout = FACTS["layouts"][FACTS["cases"][name]["layout"]]
    theirs = expected(name, CASES[name], layout["shapes"], layout["dtype"])["lm_head.weight"]
    step = torch.finfo(torch.float32).eps * float(theirs.abs().max())
    assert float((found["lm_head.weight"] - theirs).abs().max()) > CASES[name].steps * step


# Layers


def test_places_of_layers(models: Path) -> None:
    recipe = parsed(models, linear("deep/a", "deep/b"))
    names = {name: llama_shapes(4) for name in recipe.references}
    places = {tensor.name: tensor.t for tensor in placed_tensors(recipe, names)}
    assert [places[f"model.layers.{layer}.input_layernorm.weight"] for layer in range(4)] == pytest.approx(
        [0, 1 / 3, 2 / 3, 1]
    )
    assert places["model.embed_tokens.weight"] == places["lm_head.weight"] == 0
    one = {name: llama_shapes(1) for name in recipe.references}
    assert {t.t for t in placed_tensors(recipe, one) if ".layers." in t.name} == {1.0}
    assert layer_counts(llama_shapes(4)) == {"model.layers.": 4}


def test_two_stacks_of_layers_have_places_of_their_own(models: Path) -> None:
    names = [f"encoder.block.{layer}.w" for layer in range(2)] + [
        f"decoder.block.{layer}.w" for layer in range(5)
    ]
    recipe = parsed(models, linear("deep/a"))
    places = {tensor.name: tensor.t for tensor in placed_tensors(recipe, {"deep/a": names})}
    assert (places["encoder.block.1.w"], places["decoder.block.1.w"]) == (1.0, 0.25)
    stacked = {
        "merge_method": "passthrough",
        "slices": [{"sources": [{"model": "deep/a", "layer_range": [0, 1]}]}],
    }
    with pytest.raises(
        RecipeError,
        match=r"slices need models with one stack of layers, found decoder\.block\., encoder\.block\.",
    ):
        placed_tensors(parsed(models, stacked), {"deep/a": names})


def test_stacked_layers_are_the_models_own(models: Path, tmp_path: Path) -> None:
    found = run(models, stacked(("deep/a", 2, 4), ("deep/b", 0, 1)), tmp_path / "out")
    a, b = read_raw(models / "deep" / "a"), read_raw(models / "deep" / "b")
    at = "model.layers.{}.mlp.up_proj.weight"
    for layer, (model, own) in enumerate([(a, 2), (a, 3), (b, 0)]):
        assert torch.equal(found[at.format(layer)], model[at.format(own)])
    assert torch.equal(found["model.embed_tokens.weight"], a["model.embed_tokens.weight"])
    assert torch.equal(found["lm_head.weight"], b["lm_head.weight"])
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 3


def test_what_stands_for_each_layer_in_the_config_is_stacked_too(models: Path, tmp_path: Path) -> None:
    kinds = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    config = {**causal_config("llama", 4), "layer_types": kinds}
    write_model(models / "typed", drawn(llama_shapes(4), 1), config)
    run(models, stacked(("typed", 0, 1), ("typed", 1, 4), ("typed", 1, 2)), tmp_path / "out")
    found = json.loads((tmp_path / "out" / "config.json").read_text())["layer_types"]
    assert found == [kinds[layer] for layer in (0, 1, 2, 3, 1)]


def test_a_stacked_encoder_says_how_many_layers_it_has(models: Path, tmp_path: Path) -> None:
    found = run(models, stacked(("xlmr/a", 0, 2), ("xlmr/b", 0, 2)), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 4
    own = read_raw(models / "xlmr" / "b")["classifier.out_proj.weight"]
    assert torch.equal(found["classifier.out_proj.weight"], own)


def test_the_last_slice_has_all_its_sources_in_the_head(models: Path, tmp_path: Path) -> None:
    raw = stacked(("deep/a", 0, 2), ("deep/b", 2, 4), merge_method="linear", parameters={"weight": 1})
    raw["slices"][1]["sources"].append({"model": "deep/c", "layer_range": [2, 4]})
    found = run(models, raw, tmp_path / "out")["lm_head.weight"]
    b, c = (read_raw(models / "deep" / name)["lm_head.weight"] for name in "bc")
    assert torch.allclose(found, (b + c) / 2)


# Heads, labels, tied weights


@pytest.fixture(scope="module")
def other_models(models: Path) -> Path:
    """Models that are apt to go wrong, beside the others."""
    masked = drawn(xlmr_shapes("lm_head"), 50)
    encoder = read_arrays(models / "xlmr" / "base")
    write_model(
        models / "masked", masked | {n: a for n, a in encoder.items() if n in masked}, xlmr_config("lm_head")
    )
    permuted = read_arrays(models / "xlmr" / "b")
    order = [2, 0, 1]
    for name in ("classifier.out_proj.weight", "classifier.out_proj.bias"):
        permuted[name] = permuted[name][order]
    write_model(models / "permuted", permuted, xlmr_config(labels=[LABELS[row] for row in order]))
    return models


def test_a_base_without_the_head_keeps_the_classifier(other_models: Path, tmp_path: Path) -> None:
    raw = linear("xlmr/a", "xlmr/b", base_model="masked", merge_method="task_arithmetic")
    raw["parameters"] = {"weight": [{"filter": "classifier", "value": 1.5}, {"value": 0.5}]}
    found = run(other_models, raw, tmp_path / "out")
    a, b = (read_raw(other_models / "xlmr" / name) for name in "ab")
    assert found.keys() == a.keys()
    assert torch.allclose(
        found["classifier.dense.weight"], (a["classifier.dense.weight"] + b["classifier.dense.weight"]) / 2
    )
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["XLMRobertaForSequenceClassification"]
    assert list(config["label2id"]) == list(LABELS)


def test_label_rows_are_matched_by_name(other_models: Path, tmp_path: Path) -> None:
    found = run(other_models, linear("xlmr/b", "permuted"), tmp_path / "out")
    own = read_raw(other_models / "xlmr" / "b")
    assert torch.equal(found["classifier.out_proj.weight"], own["classifier.out_proj.weight"])
    assert torch.equal(found["classifier.out_proj.bias"], own["classifier.out_proj.bias"])


def test_a_head_beside_the_embeddings_is_one_that_the_config_reads(models: Path, tmp_path: Path) -> None:
    found = run(models, linear("llama/a", base_model="llama/tied"), tmp_path / "out")
    assert "lm_head.weight" in found
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False


def test_a_head_that_all_have_tied_is_stored_once(models: Path, tmp_path: Path) -> None:
    for name in "ab":
        arrays = read_arrays(models / "qwen2" / name) | {
            "lm_head.weight": drawn(llama_shapes(1), 5)["lm_head.weight"]
        }
        write_model(models / f"stored-{name}", arrays, causal_config("qwen2", 2, tied=True))
    found = run(models, linear("stored-a", "stored-b"), tmp_path / "out")
    assert found.keys() == read_raw(models / "qwen2" / "a").keys()


def test_integer_buffers_are_copied(models: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    for name in ("base", "a"):
        tensors = read_raw(models / "llama" / name) | {"model.position_ids": torch.arange(5)}
        write_model(models / f"buffer-{name}", {}, causal_config("llama", 2))
        save_file(tensors, models / f"buffer-{name}" / "model.safetensors", metadata={"format": "pt"})
    half = {"parameters": {"weight": 0.5}, "out_dtype": "float16"}
    for raw in (
        linear("buffer-a", base_model="buffer-base", merge_method="task_arithmetic"),
        linear("buffer-a", "buffer-base"),
    ):
        out = tmp_path / raw["merge_method"]
        found = run(models, raw | half, out)
        assert torch.equal(found["model.position_ids"], torch.arange(5))
        assert found["lm_head.weight"].dtype == torch.float16
    # A buffer that one model lacks is left out.
    found = run(models, linear("buffer-a", "llama/b"), tmp_path / "out")
    assert "model.position_ids" not in found
