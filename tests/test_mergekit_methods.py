"""How every method of mergekit, with its parameters, is carried over to ours."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from langmerge.errors import MethodError
from langmerge.mergekit_methods import PEER_METHODS, Treatment
from langmerge.mergekit_recipe import MergekitRecipe
from langmerge.methods.specs import SPECS

QUERY = "model.layers.3.self_attn.q_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("base", "a", "b", "c"):
        (tmp_path / name).mkdir()
    return tmp_path


def treated(raw: Mapping[str, Any], folder: Path) -> Treatment:
    recipe = MergekitRecipe.parse(raw, folder=folder)
    (group,) = recipe.groups
    return recipe.treatment(QUERY, {one.model: QUERY for one in group.sources}, group=group, t=0.0)


def test_every_method_of_mergekit_is_one_of_ours() -> None:
    assert {peer.ours for peer in PEER_METHODS.values()} <= SPECS.keys()
    for name, peer in PEER_METHODS.items():
        # The base apart, both merge as many models.
        low, high = SPECS[peer.ours].sources
        assert low <= peer.sources[0], name
        assert high is None or peer.sources[1] == high, name


def recipe_of(method: str, parameters: Mapping[str, Any], *each: Mapping[str, Any], base: bool = True) -> Any:
    models = [{"model": name, "parameters": dict(own)} for name, own in zip("abc", each, strict=False)]
    found = {"merge_method": method, "models": models, "parameters": dict(parameters)}
    return {**found, "base_model": "base"} if base else found


HALF = {"weight": 0.5, "density": 0.5}
WHOLE = {"weight": 0.5, "density": 1.0}
MAPPED: dict[str, tuple[dict[str, Any], str, dict[str, Any], tuple[float, ...]]] = {
    "linear": (recipe_of("linear", {}, {"weight": 1}, {"weight": 3}, base=False), "linear", {"normalize": True}, (1, 3)),
    "linear, base_model is a source": (
        recipe_of("linear", {"weight": 0.25}, {"weight": 1}), "linear", {"normalize": True}, (1, 0.25),
    ),
    "task_arithmetic": (
        recipe_of("task_arithmetic", {"lambda": 2}, {"weight": 1}, {"weight": 3}), "task_arithmetic", {"scale": 2.0}, (1, 3),
    ),
    "task_arithmetic, divided": (
        recipe_of("task_arithmetic", {"normalize": True}, {"weight": 1}, {"weight": 3}),
        "task_arithmetic", {"scale": 1.0}, (0.25, 0.75),
    ),
    "ties": (
        recipe_of("ties", {"int8_mask": True}, HALF, {"weight": 1, "density": 2}), "ties",
        {"density": [0.5, 1.0], "scale": 1.0, "election": "sum", "normalize": True, "scope": "tensor"}, (0.5, 1),
    ),
    "dare_ties": (
        recipe_of("dare_ties", {}, HALF), "dare_ties",
        {"density": [0.5], "scale": 1.0, "election": "sum", "normalize": False, "seed": 0}, (0.5,),
    ),
    "dare_linear": (
        recipe_of("dare_linear", {"rescale": True}, HALF), "dare_linear",
        {"density": [0.5], "scale": 1.0, "normalize": False, "seed": 0}, (0.5,),
    ),
    "dare_linear, nothing to rescale": (
        recipe_of("dare_linear", {"rescale": False}, WHOLE), "dare_linear",
        {"density": [1.0], "scale": 1.0, "normalize": False, "seed": 0}, (0.5,),
    ),
    "della": (
        recipe_of("della", {"epsilon": 0.1}, HALF, WHOLE), "della_ties",
        {"density": [0.5, 1.0], "epsilon": [0.1, 0.0], "scale": 1.0, "election": "sum", "normalize": True, "seed": 0},
        (0.5, 0.5),
    ),
    "della_linear": (
        recipe_of("della_linear", {}, HALF), "della_linear",
        {"density": [0.5], "epsilon": [0.15], "scale": 1.0, "normalize": False, "seed": 0}, (0.5,),
    ),
    "breadcrumbs": (
        recipe_of("breadcrumbs", {"gamma": 0.2}, HALF, {"weight": 1}), "breadcrumbs",
        {"density": [0.5, 1.0], "gamma": [0.2, 0.0], "scale": 1.0, "normalize": False}, (0.5, 1),
    ),
    "breadcrumbs_ties": (
        recipe_of("breadcrumbs_ties", {}, HALF), "breadcrumbs_ties",
        {"density": [0.5], "gamma": [0.01], "scale": 1.0, "election": "sum", "normalize": False}, (0.5,),
    ),
    "slerp": (recipe_of("slerp", {"t": 0.3}, {}), "slerp", {"t": 0.3, "eps": 5e-4, "about": "origin"}, (1, 1)),
    "multislerp": (
        recipe_of("multislerp", {"normalize_weights": False, "eps": "1e-7"}, {"weight": 1}, {"weight": 2}), "multislerp",
        {"about": "base", "normalize": False, "eps": 1e-7}, (1, 2),
    ),
    "multislerp without base": (
        recipe_of("multislerp", {}, {"weight": 1}, base=False), "multislerp",
        {"about": "origin", "normalize": True, "eps": 1e-8}, (1,),
    ),
    "karcher": (
        recipe_of("karcher", {"max_iter": 30}, {}, {}, base=False), "karcher",
        {"about": "origin", "max_iter": 30, "tol": 1e-5}, (1, 1),
    ),
    "nuslerp": (
        recipe_of("nuslerp", {"nuslerp_row_wise": True}, {"weight": 1}, {"weight": 3}), "nuslerp",
        {"t": 0.75, "row_wise": True, "flatten": True, "about": "base"}, (1, 1),
    ),
    "nuslerp of weights that cancel": (
        recipe_of("nuslerp", {"nuslerp_flatten": False}, {"weight": 1}, {"weight": -1}, base=False), "nuslerp",
        {"t": 0.5, "row_wise": False, "flatten": False, "about": "origin"}, (1, 1),
    ),
    "model_stock": (recipe_of("model_stock", {"filter_wise": True}, {}, {}), "model_stock", {"filter_wise": True}, (1, 1)),
    "nearswap": (recipe_of("nearswap", {"t": 0.01}, {}), "nearswap", {"t": 0.01}, (1,)),
    "passthrough": (recipe_of("passthrough", {}, {"scale": 0.5}, base=False), "passthrough", {"scale": 0.5}, (1,)),
    "passthrough as it is": (recipe_of("passthrough", {}, {}, base=False), "passthrough", {"scale": 1.0}, (1,)),
    "sce": (recipe_of("sce", {"select_topk": 0.3}, {}, {}), "sce", {"topk": 0.3}, (1, 1)),
    "ram": (recipe_of("ram", {"epsilon": 0}, {}, {}), "ram", {"epsilon": 0.0}, (1, 1)),
    "ramplus_tl": (
        recipe_of("ramplus_tl", {}, {}, {}), "ramplus", {"r": 0.1, "alpha": 0.2, "epsilon": 1e-5}, (1, 1),
    ),
    "arcee_fusion": (recipe_of("arcee_fusion", {}, {}), "arcee_fusion", {}, (1,)),
}  # fmt: skip


@pytest.mark.parametrize("name", MAPPED)
def test_how_methods_are_carried_over(folder: Path, name: str) -> None:
    raw, method, parameters, weights = MAPPED[name]
    found = treated(raw, folder)
    assert found.method == method
    assert found.weights == pytest.approx(weights)
    # Parameters of ours that mergekit does not have stay at their defaults.
    assert {key: found.parameters[key] for key in parameters} == parameters
    own = {key: one.default for key, one in SPECS[method].parameters.items() if key not in parameters}
    assert {key: value for key, value in found.parameters.items() if key not in parameters} == own


def test_every_method_is_among_these() -> None:
    assert {raw["merge_method"] for raw, *_ in MAPPED.values()} == PEER_METHODS.keys()


def test_the_documentation_names_every_method_with_its_parameters() -> None:
    text = (Path(__file__).parents[1] / "docs" / "mergekit.md").read_text()
    rows = {
        line.split("`")[1]: line
        for line in text.splitlines()
        if line.startswith("| `") and line.count("|") == 5
    }
    for name, peer in PEER_METHODS.items():
        row = said = rows[name]
        assert [cell.strip() for cell in row.split("|")[2:4]] == [f"`{peer.ours}`", peer.role], name
        # A row says "as `ties`" for what it shares with it.
        while other := re.search(r"\| as `(\w+)`", row):
            row = rows[other[1]]
            said += row
        assert all(f"`{key}`" in said for key in peer.parameters), name


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (recipe_of("linear", {}, {"weight": 0.0}, {"weight": 0}, base=False), "sum to zero"),
        (recipe_of("task_arithmetic", {}, HALF), "density has no effect on task_arithmetic"),
        (recipe_of("ties", {"rescale": True}, HALF), "rescale is true, .* remove rescale"),
        (
            recipe_of("dare_ties", {"rescale": False}, HALF),
            "rescale is false, .* rescale: true is its default",
        ),
        (recipe_of("ties", {}, {"weight": 1, "density": 0}), r"density is 0.0, it must lie in \(0, 1\]"),
        (recipe_of("ties", {}, {"weight": -1}), "include a negative one"),
        (recipe_of("slerp", {"t": 1.5}, {}), r"t is 1.5, it must lie in \[0, 1\]"),
    ],
)
def test_values_that_cannot_be_carried_over_name_the_tensor(folder: Path, raw: Any, message: str) -> None:
    with pytest.raises(MethodError, match=f"^tensor '{QUERY}': .*{message}"):
        treated(raw, folder)
