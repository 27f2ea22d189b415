"""Where langmerge does otherwise than mergekit, and what it refuses: docs/mergekit.md lists both."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from langmerge.cli import main
from langmerge.engine import make_plan, merge, recipe_payload
from langmerge.engine.planning import load_recipe, recipe_of_receipt
from langmerge.errors import PlanError, RecipeError
from langmerge.recipe import Recipe
from langmerge.results import signature
from tests.engine.mergekit_models import (
    PIECES_OF_BASE,
    PIECES_OF_OTHER,
    SPECIAL,
    build,
    causal_config,
    drawn,
    llama_shapes,
    tuned,
    write_model,
    xlmr_config,
    xlmr_shapes,
)
from tests.engine.mergekit_runs import ids, linear, parsed, read_arrays, run, stacked
from tests.tiny import read_raw


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mergekit")
    build(root)
    return root


# Vocabularies


def test_token_ids_of_the_config_follow_the_vocabulary(models: Path, tmp_path: Path) -> None:
    pieces = ("x0", "x1", "</s>", "<s>", "<unk>", *PIECES_OF_BASE[5:])
    config = {**causal_config("llama", 2), "bos_token_id": 3, "eos_token_id": 2}
    write_model(models / "ids", read_arrays(models / "llama" / "b"), config, pieces=pieces)
    (models / "llama" / "a" / "generation_config.json").write_text('{"bos_token_id": 1}')
    run(models, linear("ids", base_model="llama/a", tokenizer_source="ids"), tmp_path / "out")
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (found["bos_token_id"], found["eos_token_id"]) == (ids(tmp_path / "out")["<s>"], 2) == (3, 2)
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["bos_token_id"] == 3


def test_a_union_keeps_the_first_models_ids_and_then_the_others_in_order(
    models: Path, tmp_path: Path
) -> None:
    run(models, linear("llama/a", "llama/other", tokenizer_source="union"), tmp_path / "out")
    found = ids(tmp_path / "out")
    new = [piece for piece in PIECES_OF_OTHER if piece not in PIECES_OF_BASE]
    assert [piece for piece, _ in sorted(found.items(), key=lambda one: one[1])] == [*PIECES_OF_BASE, *new]
    assert (tmp_path / "out" / "tokenizer_config.json").exists()


def test_a_piece_that_one_model_has_is_taken_from_it(models: Path, tmp_path: Path) -> None:
    found = run(models, linear("llama/a", "llama/other", tokenizer_source="union"), tmp_path / "out")
    name = "model.embed_tokens.weight"
    a, other = (read_raw(models / "llama" / model)[name] for model in ("a", "other"))
    rows = ids(tmp_path / "out")
    assert torch.equal(found[name][rows["n0"]], other[PIECES_OF_OTHER.index("n0")])
    assert torch.equal(found[name][rows["p00"]], a[PIECES_OF_BASE.index("p00")])
    shared = (a[PIECES_OF_BASE.index("p09")] + other[PIECES_OF_OTHER.index("p09")]) / 2
    assert torch.allclose(found[name][rows["p09"]], shared)


def test_rows_without_a_piece_stay(models: Path, tmp_path: Path) -> None:
    for name in "ab":
        arrays = read_arrays(models / "llama" / name)
        wide = {
            n: np.concatenate([a, a[:4]]) if len(a) == len(PIECES_OF_BASE) else a for n, a in arrays.items()
        }
        write_model(
            models / f"padded-{name}", wide, causal_config("llama", 2, pieces=len(PIECES_OF_BASE) + 4)
        )
    found = run(models, linear("padded-a", "padded-b", tokenizer_source="base"), tmp_path / "out")
    assert len(found["lm_head.weight"]) == len(PIECES_OF_BASE) + 4
    assert torch.equal(found["lm_head.weight"][-4:], found["lm_head.weight"][:4])


@pytest.mark.parametrize("others", [("wide",), ("wide", "llama/other")])
def test_more_rows_than_the_vocabulary_of_the_output_are_cut_off(
    models: Path, tmp_path: Path, others: tuple[str, ...]
) -> None:
    arrays = read_arrays(models / "llama" / "a")
    wide = {n: np.concatenate([a, a[:4]]) if len(a) == len(PIECES_OF_BASE) else a for n, a in arrays.items()}
    write_model(models / "wide", wide, causal_config("llama", 2, pieces=len(PIECES_OF_BASE) + 4))
    weight = [{"filter": "embed", "value": 0.0}, {"value": 1}]
    raw = linear("llama/a", *others, tokenizer_source="llama/a")
    raw["models"][0]["parameters"] = {"weight": 1.0}
    raw["models"][-1]["parameters"] = {"weight": weight if len(others) > 1 else 1.0}
    found = run(models, raw, tmp_path / "out")["model.embed_tokens.weight"]
    assert torch.equal(found, torch.from_numpy(arrays["model.embed_tokens.weight"]))


def test_the_size_of_the_vocabulary_is_that_of_the_output(models: Path, tmp_path: Path) -> None:
    arrays = read_arrays(models / "llama" / "b")
    wide = {n: np.concatenate([a, a[:4]]) if len(a) == len(PIECES_OF_BASE) else a for n, a in arrays.items()}
    write_model(models / "wide-base", wide, causal_config("llama", 2, pieces=len(PIECES_OF_BASE) + 4))
    raw = linear("llama/a", base_model="wide-base", tokenizer_source="llama/a")
    assert len(run(models, raw, tmp_path / "out")["lm_head.weight"]) == len(PIECES_OF_BASE)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == len(PIECES_OF_BASE)


@pytest.mark.parametrize("source", ["llama/other", "union"])
def test_no_file_of_another_vocabulary_comes_along(models: Path, tmp_path: Path, source: str) -> None:
    folder = write_model(models / "spiece", read_arrays(models / "llama" / "a"), causal_config("llama", 2))
    (folder / "tokenizer.model").write_bytes(b"its own pieces")
    raw = linear("llama/other", base_model="spiece", tokenizer_source=source)
    run(models, raw, tmp_path / "out")
    assert not (tmp_path / "out" / "tokenizer.model").exists()
    run(models, linear("spiece", "llama/b"), tmp_path / "same")
    assert (tmp_path / "same" / "tokenizer.model").exists()


def test_models_of_different_dtypes_are_stored_in_one_that_holds_both(models: Path, tmp_path: Path) -> None:
    write_model(models / "half", read_arrays(models / "llama" / "b"), causal_config("llama", 2), dtype="BF16")
    for number, names in enumerate((("llama/a", "half"), ("half", "llama/a"))):
        found = run(models, linear(*names), tmp_path / str(number))
        assert {one.dtype for one in found.values()} == {torch.float32}


def test_no_tokenizer_is_made_up(models: Path, tmp_path: Path) -> None:
    for name in "ab":
        folder = write_model(models / f"bare-{name}", read_arrays(models / "xlmr" / name), xlmr_config())
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer_config.json").unlink()
    run(models, linear("bare-a", "bare-b"), tmp_path / "out")
    assert not list((tmp_path / "out").glob("token*"))


# Small task vectors, opposed ones


def moved(root: Path, name: str, by: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """A model at some distance of the Llama base; returns what float32 leaves of the distance."""
    base = read_arrays(root / "llama" / "base")
    arrays = {tensor: (one + by[tensor]).astype(np.float32) for tensor, one in base.items()}
    write_model(root / name, arrays, causal_config("llama", 2))
    return {tensor: one.astype(np.float64) - base[tensor] for tensor, one in arrays.items()}


def noise(seed: int) -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.RandomState(seed)
    return {name: random.standard_normal(shape) for name, shape in llama_shapes(2).items()}


@pytest.fixture(scope="module")
def near_models(models: Path) -> dict[str, dict[str, np.ndarray[Any, Any]]]:
    """Two models that agree, one with a third of the other's distance, both of 3e-4 at most."""
    common, own, more = noise(1), noise(2), noise(3)
    near = {name: 3e-4 * (common[name] + 0.3 * own[name]) for name in common}
    nearer = {name: 1e-4 * (common[name] + 0.3 * more[name]) for name in common}
    return {"near": moved(models, "near", near), "nearer": moved(models, "nearer", nearer)}


def test_sce_weighs_small_task_vectors_by_their_energy(
    models: Path, near_models: Any, tmp_path: Path
) -> None:
    raw = linear("near", "nearer", base_model="llama/base", merge_method="sce", parameters={})
    name = "model.layers.0.mlp.up_proj.weight"
    delta = (
        run(models, raw, tmp_path / "out")[name].double().numpy()
        - read_arrays(models / "llama" / "base")[name]
    )
    one, other = (near_models[model][name] for model in ("near", "nearer"))
    share = (one**2).sum() / ((one**2).sum() + (other**2).sum())
    agree = np.sign(one) == np.sign(other)
    assert share > 0.85
    assert delta[agree] == pytest.approx((share * one + (1 - share) * other)[agree], abs=1e-7)


def test_model_stock_sees_the_angle_of_small_task_vectors(
    models: Path, near_models: Any, tmp_path: Path
) -> None:
    raw = linear("near", "nearer", base_model="llama/base", merge_method="model_stock", parameters={})
    name = "model.norm.weight"
    delta = (
        run(models, raw, tmp_path / "out")[name].double().numpy()
        - read_arrays(models / "llama" / "base")[name]
    )
    one, other = (near_models[model][name] for model in ("near", "nearer"))
    cosine = (one * other).sum() / np.sqrt((one**2).sum() * (other**2).sum())
    assert delta == pytest.approx(2 * cosine / (1 + cosine) * (one + other) / 2, abs=2e-7)


def test_opposed_models_leave_the_base(models: Path, tmp_path: Path) -> None:
    there, own = noise(4), noise(5)
    moved(models, "up", {name: 0.1 * one + 0.02 * own[name] for name, one in there.items()})
    moved(models, "down", {name: -0.1 * one + 0.02 * own[name] for name, one in there.items()})
    raw = linear("up", "down", base_model="llama/base", merge_method="model_stock", parameters={})
    found = run(models, raw, tmp_path / "stock")
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(found[name], read_raw(models / "llama" / "base")[name])


@pytest.mark.parametrize("method", ["ties", "dare_ties", "della", "breadcrumbs_ties", "sce"])
def test_a_cancelled_vote_leaves_the_base(models: Path, tmp_path: Path, method: str) -> None:
    shapes = llama_shapes(2)
    for name, value in (("zeros", 0.0), ("plus", 0.25), ("minus", -0.25)):
        arrays = {tensor: np.full(shape, value, np.float32) for tensor, shape in shapes.items()}
        write_model(models / name, arrays, causal_config("llama", 2))
    parameters = {} if method == "sce" else {"weight": 0.5}
    raw = linear("plus", "minus", base_model="zeros", merge_method=method, parameters=parameters)
    assert not run(models, raw, tmp_path / "out")["lm_head.weight"].any()


# Recipes as files, and receipts


def test_a_file_without_merge_method_is_one_of_ours(models: Path, tmp_path: Path) -> None:
    (tmp_path / "ours.yaml").write_text(f"base: {models}/llama/base\nsources: {{x: a}}\nmethod: linear\n")
    assert isinstance(load_recipe(tmp_path / "ours.yaml"), Recipe)


def test_a_key_given_twice_is_refused(models: Path) -> None:
    file = models / "twice.yaml"
    file.write_text("merge_method: linear\nmodels:\n- model: llama/a\n  parameters: {weight: 1, weight: 2}\n")
    with pytest.raises(RecipeError, match="found the key 'weight' twice"):
        load_recipe(file)


def test_the_receipt_holds_the_recipe(models: Path, tmp_path: Path) -> None:
    raw = linear(
        "llama/a", "./llama/b", base_model="llama/base", merge_method="ties", tokenizer_source="base"
    )
    found = run(models, raw, tmp_path / "out")
    receipt = json.loads((tmp_path / "out" / "langmerge.json").read_text())
    again = recipe_of_receipt(receipt)
    assert make_plan(again).settings == make_plan(parsed(models, raw)).settings
    merge(again, tmp_path / "again")
    assert all(torch.equal(one, found[name]) for name, one in read_raw(tmp_path / "again").items())
    assert (
        json.loads((tmp_path / "again" / "langmerge.json").read_text())["signature"] == receipt["signature"]
    )


def test_what_decides_the_bytes_is_in_the_signature(models: Path) -> None:
    shutil.copytree(models / "llama" / "a", models / "llama" / "copy")

    def signed(*names: str, method: str = "linear", **more: Any) -> str:
        raw = linear(*names, base_model="llama/base", merge_method=method, **more)
        return signature(recipe_payload(make_plan(parsed(models, raw))))

    ties = {"method": "ties"}
    assert signed("llama/a", "llama/b", **ties) == signed("llama/copy", "llama/b", **ties)
    # Random masks are keyed by the names.
    drawn = {"method": "dare_ties", "parameters": {"weight": 1, "density": 0.5}}
    assert signed("llama/a", "llama/b", **drawn) != signed("llama/copy", "llama/b", **drawn)
    assert signed("llama/a", "llama/b", **ties) != signed(
        "llama/a", "llama/b", tokenizer_source="base", **ties
    )


def test_the_command_line_takes_a_recipe(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "recipe.yaml"
    raw = linear(str(models / "llama" / "a"), str(models / "llama" / "b"))
    file.write_text(yaml.safe_dump(raw))
    assert cli(monkeypatch, "plan", file, "--json") == 0
    assert json.loads(capsys.readouterr().out)["tensors"][0]["method"] == "linear"
    assert cli(monkeypatch, "plan", file) == 0
    assert cli(monkeypatch, "merge", file, tmp_path / "out") == 0
    assert read_raw(tmp_path / "out").keys() == llama_shapes(2).keys()
    file.write_text(yaml.safe_dump({**raw, "modules": {}}))
    assert cli(monkeypatch, "plan", file) == 2
    assert "the key 'modules' is not supported" in capsys.readouterr().err


def cli(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Exit status of the command line."""
    monkeypatch.setattr("sys.argv", ["langmerge", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


# What is refused


def faults(root: Path, raw: Mapping[str, Any]) -> str:
    with pytest.raises(PlanError) as caught:
        make_plan(parsed(root, raw))
    return str(caught.value)


def test_other_ids_without_tokenizer_source(models: Path) -> None:
    reversed_pieces = (*SPECIAL, *reversed(PIECES_OF_BASE[len(SPECIAL) :]))
    write_model(
        models / "swapped",
        read_arrays(models / "llama" / "b"),
        causal_config("llama", 2),
        pieces=reversed_pieces,
    )
    found = faults(models, linear("llama/a", "swapped"))
    assert "the tokenizers of swapped and llama/a have different vocabularies" in found
    assert "or set tokenizer_source" in found


def test_a_tokenizer_source_that_is_no_model_of_the_recipe(models: Path) -> None:
    assert "tokenizer_source llama/other is none of the models: name one of llama/a" in faults(
        models, linear("llama/a", tokenizer_source="llama/other")
    )


def test_layers_that_are_not_there(models: Path) -> None:
    found = faults(models, stacked(("deep/a", 0, 2), ("deep/b", 3, 5)))
    assert "the layer_range [3, 5] of deep/b goes beyond its 4 layers" in found


def test_a_missing_tensor_names_it_and_the_model(models: Path) -> None:
    write_model(models / "masked", drawn(xlmr_shapes("lm_head"), 50), xlmr_config("lm_head"))
    assert "tensor 'classifier.dense.bias' is missing in masked" in faults(models, linear("xlmr/a", "masked"))


def test_a_fault_of_the_method_is_said_once(models: Path) -> None:
    found = faults(models, linear("llama/a", parameters={"weight": 0}))
    assert found.count("sum to zero") == 1


def test_a_model_that_equals_the_base(models: Path) -> None:
    write_model(models / "copy", read_arrays(models / "llama" / "base"), causal_config("llama", 2))
    raw = linear("llama/a", "copy", base_model="llama/base", merge_method="ties")
    assert "source copy" in faults(models, raw)
    assert "its task vector is zero" in faults(models, raw)


def test_a_tensor_that_the_base_lacks(models: Path) -> None:
    shapes = llama_shapes(2)
    small = {name: one for name, one in drawn(shapes, 3).items() if "layers.1.mlp" not in name}
    write_model(models / "small", small, causal_config("llama", 2))
    found = faults(models, linear("llama/a", base_model="small", merge_method="task_arithmetic"))
    assert "tensor 'model.layers.1.mlp.up_proj.weight' is in the models but not in the base_model" in found


def test_two_bases_for_a_method_of_task_vectors(models: Path) -> None:
    raw = stacked(
        ("deep/a", 0, 2), ("deep/b", 2, 4), merge_method="task_arithmetic", parameters={"weight": 1}
    )
    for piece, base in zip(raw["slices"], ("deep/base", "deep/c"), strict=True):
        piece["base_model"] = base
        piece["sources"].append({"model": base, "layer_range": piece["sources"][0]["layer_range"]})
    assert "the slices have different base_models for task_arithmetic" in faults(models, raw)


def test_nan_in_a_model(models: Path, tmp_path: Path) -> None:
    from langmerge.errors import CheckpointError

    arrays = tuned(read_arrays(models / "llama" / "base"), 77)
    arrays["lm_head.weight"][0, 0] = np.nan
    write_model(models / "nan", arrays, causal_config("llama", 2))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        run(models, linear("llama/a", "nan"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
