"""mergekit's recipes as files: what is accepted, what each parameter is for a tensor, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from langmerge.errors import RecipeError
from langmerge.mergekit_methods import Treatment
from langmerge.mergekit_recipe import MergekitRecipe, is_mergekit

QUERY = "model.layers.3.self_attn.q_proj.weight"
GOOD: dict[str, Any] = {
    "merge_method": "ties",
    "base_model": "base",
    "models": [
        {"model": "a", "parameters": {"weight": 0.6, "density": 0.4}},
        {"model": "./b/", "parameters": {"weight": 0.2}},
    ],
    "parameters": {"normalize": False, "lambda": 0.5},
    "dtype": "float32",
    "out_dtype": "torch.bfloat16",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("base", "a", "b", "c", "hub/x"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def changed(**change: Any) -> dict[str, Any]:
    """GOOD with keys replaced; None takes a key away."""
    return {key: value for key, value in {**GOOD, **change}.items() if value is not None}


def treated(recipe: MergekitRecipe, name: str = QUERY, t: float = 0.0, group: int = 0) -> Treatment:
    chosen = recipe.groups[group]
    return recipe.treatment(name, {one.model: name for one in chosen.sources}, group=chosen, t=t)


def weights_of(
    folder: Path, *settings: Any, name: str = QUERY, t: float = 0.0, **more: Any
) -> tuple[float, ...]:
    """Weights of an unnormalized linear merge of a, b, c with these settings of `weight`."""
    models = [
        {"model": model, "parameters": {"weight": setting}} if setting is not None else {"model": model}
        for model, setting in zip("abc", settings, strict=False)
    ]
    more["parameters"] = {"normalize": False, **more.get("parameters", {})}
    recipe = MergekitRecipe.parse({"merge_method": "linear", "models": models, **more}, folder=folder)
    return treated(recipe, name, t).weights


def test_a_recipe_is_known_by_its_merge_method() -> None:
    assert is_mergekit(GOOD)
    assert not is_mergekit({"base": "base", "sources": {}, "method": "ties"})


def test_what_a_recipe_says(folder: Path) -> None:
    recipe = MergekitRecipe.parse(GOOD, folder=folder)
    assert recipe.references == ("base", "a", "b")
    assert recipe.folder_of("a") == folder / "a"
    assert (recipe.dtype, recipe.out_dtype) == ("float32", "bfloat16")
    (group,) = recipe.groups
    assert [source.model for source in group.sources] == ["a", "b", "base"]
    assert (recipe.sources_of(group), recipe.base_of(group)) == (("a", "b"), "base")
    assert treated(recipe) == Treatment(
        "ties",
        {"density": [0.4, 1.0], "scale": 0.5, "election": "sum", "normalize": False, "scope": "tensor"},
        (0.6, 0.2),
    )


def test_a_recipe_comes_back_from_its_own_dump(folder: Path) -> None:
    recipe = MergekitRecipe.parse(GOOD, folder=folder)
    again = MergekitRecipe.model_validate(recipe.model_dump(mode="json"))
    assert again == recipe
    assert again.references == recipe.references


# A gradient: numbers at equal distances over the layers, straight lines between them.
@pytest.mark.parametrize(
    ("setting", "t", "expected"),
    [
        (0.3, 0.7, 0.3),
        ("1e-2", 0.0, 0.01),
        ([0.2, 0.6], 0.0, 0.2),
        ([0.2, 0.6], 0.25, 0.3),
        ([0.2, 0.6], 1.0, 0.6),
        ([0.0, 1.0, 0.5], 0.5, 1.0),
        ([0.0, 1.0, 0.5], 0.75, 0.75),
        ([0.4], 0.5, 0.4),
    ],
)
def test_gradients(folder: Path, setting: Any, t: float, expected: float) -> None:
    assert weights_of(folder, setting, t=t) == pytest.approx((expected,))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (QUERY, 0.1),
        ("model.layers.3.mlp.up_proj.weight", 0.45),
        ("model.layers.3.input_layernorm.weight", 0.9),
    ],
)
def test_the_first_filter_that_is_part_of_the_name_decides(folder: Path, name: str, expected: float) -> None:
    setting = [
        {"filter": "self_attn", "value": 0.1},
        {"filter": "layers.3.mlp", "value": [0.3, 0.6]},
        {"filter": "mlp", "value": 0.7},
        {"value": 0.9},
    ]
    assert weights_of(folder, setting, name=name, t=0.5) == pytest.approx((expected,))


def test_a_star_and_one_condition_without_a_list(folder: Path) -> None:
    assert weights_of(folder, [{"filter": "*", "value": 0.5}, {"value": 0.1}]) == (0.5,)
    assert weights_of(folder, {"filter": "q_proj", "value": 0.5}, parameters={"weight": 0.1}) == (0.5,)


def test_a_model_is_heard_before_its_slice_and_that_before_the_whole(folder: Path) -> None:
    inner = {"weight": [{"filter": "mlp", "value": 0.1}]}
    slices = [
        {
            "sources": [
                {"model": "a", "layer_range": [0, 2], "parameters": inner},
                {"model": "b", "layer_range": [0, 2]},
            ],
            "parameters": {"weight": [{"filter": "layers", "value": 0.2}]},
        },
        {"sources": [{"model": "c", "layer_range": [1, 2]}]},
    ]
    raw = {"merge_method": "linear", "slices": slices, "parameters": {"normalize": False, "weight": 0.3}}
    recipe = MergekitRecipe.parse(raw, folder=folder)
    assert treated(recipe, "model.layers.0.mlp.up_proj.weight").weights == (0.1, 0.2)
    assert treated(recipe, QUERY).weights == (0.2, 0.2)
    assert treated(recipe, "model.norm.weight").weights == (0.3, 0.3)
    assert treated(recipe, QUERY, group=1).weights == (0.3,)


def test_filters_of_a_source_see_its_own_layer_and_shared_ones_the_outputs(folder: Path) -> None:
    own = {"weight": [{"filter": "layers.0.", "value": 0.1}, {"value": 0.9}]}
    slices = [{"sources": [{"model": "a", "layer_range": [0, 1], "parameters": own}]}]
    switch = [{"filter": "layers.5.", "value": False}, {"value": True}]
    raw = {"merge_method": "linear", "slices": slices, "parameters": {"normalize": switch}}
    recipe = MergekitRecipe.parse(raw, folder=folder)
    inputs = {"a": "model.layers.0.w.weight"}
    found = recipe.treatment("model.layers.5.w.weight", inputs, group=recipe.groups[0], t=0.0)
    assert (found.weights, found.parameters["normalize"]) == ((0.1,), False)


def test_a_switch_changes_in_steps(folder: Path) -> None:
    recipe = MergekitRecipe.parse(changed(parameters={"normalize": [True, False, True]}), folder=folder)
    assert [treated(recipe, t=t).parameters["normalize"] for t in (0.0, 0.4, 0.5, 0.9, 1.0)] == [
        True, True, False, False, True,
    ]  # fmt: skip


def test_a_number_that_no_scope_gives_is_an_error_that_names_tensor_and_model(folder: Path) -> None:
    only = [{"filter": "mlp", "value": 0.5}]
    with pytest.raises(RecipeError, match=f"tensor '{QUERY}' has no weight for b: give it"):
        weights_of(folder, 0.5, only)


def test_a_listed_base_changes_nothing(folder: Path) -> None:
    listed = changed(models=[GOOD["models"][0], {"model": "./base"}, GOOD["models"][1]])
    one, other = MergekitRecipe.parse(GOOD, folder=folder), MergekitRecipe.parse(listed, folder=folder)
    assert other.sources_of(other.groups[0]) == ("a", "b")
    assert treated(one) == treated(other)


def test_slerp_goes_from_the_base_to_the_other_wherever_they_stand(folder: Path) -> None:
    raw = {
        "merge_method": "slerp",
        "base_model": "b",
        "models": [{"model": "a"}, {"model": "b"}],
        "parameters": {"t": 0},
    }
    recipe = MergekitRecipe.parse(raw, folder=folder)
    assert recipe.sources_of(recipe.groups[0]) == ("b", "a")


def slices(*pieces: Any, **more: Any) -> dict[str, Any]:
    """A passthrough of slices; each piece is (model, first, behind the last) or a list of them."""
    found = []
    for piece in pieces:
        sources = piece if isinstance(piece, list) else [piece]
        found.append({"sources": [{"model": m, "layer_range": [low, high]} for m, low, high in sources]})
    return {"merge_method": "passthrough", "slices": found, **more}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown method": (changed(merge_method="tyes"), "merge_method 'tyes' is not supported: there are arcee_fusion, "),
    "modules": (changed(models=None, modules={}), "the key 'modules' is not supported: write models or slices"),
    "tokenizer": (changed(tokenizer={"source": "union"}), "the key 'tokenizer' is not supported: write tokenizer_source"),
    "unknown key": (changed(ouput="x"), "the key 'ouput' is not supported: remove it"),
    "folder": (changed(folder="/etc"), "the key 'folder' is not supported"),
    "residual_weight": (
        {"merge_method": "passthrough", "slices": [{"sources": [{"model": "a", "layer_range": [0, 1]}], "residual_weight": 1}]},
        r"slices\.0\.residual_weight: not supported: mergekit itself ignores it",
    ),
    "unknown key of a model": (changed(models=[{"model": "a", "weight": 1}]), r"models\.0\.weight: not supported: remove it"),
    "both": (changed(slices=[{"sources": [{"model": "a", "layer_range": [0, 1]}]}]), "give either models or slices"),
    "neither": (changed(models=None), "give either models or slices"),
    "no models": (changed(models=[]), "models: Tuple should have at least 1 item"),
    "dtype": (changed(dtype="int8"), "dtype: Input should be 'float32', 'float16' or 'bfloat16'"),
    "hub id": (changed(base_model="mistralai/Mistral-7B-v0.1"), "'mistralai/Mistral-7B-v0.1' is no folder .* download"),
    "adapter": (changed(models=[{"model": "a+lora"}]), r"'a\+lora' is a model with an adapter: merge the adapter"),
    "tokenizer of nobody": (changed(tokenizer_source="nobody"), "the model 'nobody' is no folder"),
    "model that is no text": (changed(models=[{"model": {"model": "a"}}]), r"models\.0\.model: Input should be a valid string"),
    "twice": (changed(models=[*GOOD["models"], {"model": "a"}]), "models lists the model 'a' twice"),
    "no base": (changed(base_model=None), "ties needs base_model"),
    "only the base": (changed(models=[{"model": "base"}]), "ties merges at least 1 .* besides base_model and finds 0"),
    "three for slerp": (
        {"merge_method": "slerp", "base_model": "a", "models": [{"model": m} for m in "abc"], "parameters": {"t": 0.5}},
        "slerp merges exactly 2 .*, base_model included, and finds 3",
    ),
    "unknown parameter": (changed(parameters={"densty": 0.5}), r"parameters\.densty: no parameter .*, which has density, "),
    "parameter of another method": (
        changed(models=[{"model": "a", "parameters": {"gamma": 0.1}}]), r"models a\.parameters\.gamma: no parameter",
    ),
    "one value for all": (
        changed(models=[{"model": "a", "parameters": {"normalize": True}}]),
        r"models a\.parameters\.normalize: one value is for all models",
    ),
    "weight of the base": (
        changed(models=[*GOOD["models"], {"model": "base", "parameters": {"weight": 1}}]),
        "models base.parameters: this is the base_model of ties, for which weight has no effect",
    ),
    "text for a number": (changed(parameters={"lambda": "much"}), r"parameters\.lambda: 'much' is not a number"),
    "switch for a number": (changed(parameters={"lambda": True}), r"parameters\.lambda: True is not a number"),
    "number for a switch": (changed(parameters={"normalize": 1}), r"parameters\.normalize: 1 is not true or false"),
    "infinity": (changed(parameters={"lambda": float("inf")}), r"parameters\.lambda: inf is not finite"),
    "nothing": (changed(parameters={"lambda": None}), r"parameters\.lambda: None is not a number"),
    "empty gradient": (changed(parameters={"lambda": []}), r"parameters\.lambda: an empty list"),
    "half a whole number": (
        {"merge_method": "karcher", "models": [{"model": "a"}], "parameters": {"max_iter": 2.5}},
        r"parameters\.max_iter: \[2.5\] is not one whole number",
    ),
    "gradient of whole numbers": (
        {"merge_method": "karcher", "models": [{"model": "a"}], "parameters": {"max_iter": [1, 2]}},
        r"parameters\.max_iter: \[1, 2\] is not one whole number",
    ),
    "mixed list": (changed(parameters={"lambda": [{"value": 1}, 0.5]}), r"0\.5 stands in a list of conditions"),
    "condition without value": (changed(parameters={"lambda": [{"filter": "x"}]}), "each is {filter: …, value: …}"),
    "filter that is no text": (changed(parameters={"lambda": [{"filter": 3, "value": 1}]}), "the filter 3 is no text"),
    "condition in a condition": (changed(parameters={"lambda": {"value": {"value": 1}}}), "{'value': 1} is no value"),
    "name of a template": (changed(chat_template="chatml"), "chat_template 'chatml' is neither auto nor a template"),
    "layers of models": (
        changed(models=[{"model": "a", "layer_range": [0, 1]}]), "models a: layer_range belongs under slices",
    ),
    "no layers": (
        {"merge_method": "passthrough", "slices": [{"sources": [{"model": "a"}]}]},
        r"slices\[0\] a: layer_range must be \[first, behind the last\], found None",
    ),
    "layers backwards": (slices(("a", 3, 3)), r"layer_range must be \[first, behind the last\], found \(3, 3\)"),
    "other numbers of layers": (
        slices([("a", 0, 2), ("b", 0, 3)], merge_method="linear"), r"slices\[0\]: its sources have different numbers of layers, \[2, 3\]",
    ),
    "base outside a slice": (
        slices([("a", 0, 2), ("b", 0, 2)], merge_method="task_arithmetic", base_model="base"),
        r"slices\[0\]: the base_model 'base' must be among its sources",
    ),
    "two to pass through": (slices([("a", 0, 2), ("b", 0, 2)]), "passthrough merges exactly 1 .* and finds 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_in_one_line(folder: Path, name: str) -> None:
    raw, message = REFUSED[name]
    with pytest.raises(RecipeError, match=message) as caught:
        MergekitRecipe.parse(raw, folder=folder, where="recipe x.yaml")
    assert str(caught.value).startswith("recipe x.yaml: ")
    assert "\n" not in str(caught.value)


def test_two_spellings_are_one_folder(folder: Path) -> None:
    raw = {
        "merge_method": "linear",
        "parameters": {"weight": 1},
        "models": [{"model": "hub/x"}, {"model": "a/../hub/x/"}],
    }
    with pytest.raises(RecipeError, match="lists the model 'hub/x' twice"):
        MergekitRecipe.parse(raw, folder=folder)


def test_a_name_that_no_folder_can_have(folder: Path) -> None:
    with pytest.raises(RecipeError, match="x" * 300):
        MergekitRecipe.parse(changed(models=[{"model": "x" * 300}, {"model": "a"}]), folder=folder)
