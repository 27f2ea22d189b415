from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from langmerge.coefficients import Coefficients
from langmerge.errors import RecipeError
from langmerge.recipe import Recipe

GOOD: dict[str, Any] = {
    "base": "pool/base",
    "sources": {"de-DE": "pool/de-DE", "fr-FR": "/elsewhere/fr-FR"},
    "method": "ties",
    "parameters": {"density": 0.2},
    "coefficients": {"de-DE": 0.75, "fr-FR": 0.25},
    "dtype": "BF16",
    "target": "cy-GB",
}


def written(tmp_path: Path, text: str | dict[str, Any]) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text if isinstance(text, str) else yaml.safe_dump(text))
    return path


def test_a_recipe_is_read_with_paths_from_its_own_folder(tmp_path: Path) -> None:
    recipe = Recipe.load(written(tmp_path, GOOD))
    assert recipe.base == tmp_path / "pool" / "base"
    assert recipe.sources == {"de-DE": tmp_path / "pool" / "de-DE", "fr-FR": Path("/elsewhere/fr-FR")}
    assert (recipe.method, recipe.parameters, recipe.dtype, recipe.target) == (
        "ties",
        {"density": 0.2},
        "BF16",
        "cy-GB",
    )
    assert recipe.weights.for_tensor("x") == {"de-DE": 0.75, "fr-FR": 0.25}


def test_what_is_left_out_has_defaults(tmp_path: Path) -> None:
    recipe = Recipe.load(written(tmp_path, {key: GOOD[key] for key in ("base", "sources", "method")}))
    assert (recipe.embeddings, recipe.head, recipe.dtype, recipe.parameters) == ("merge", "merge", None, {})
    assert (recipe.layers, recipe.other_layers) == (None, "base")
    assert recipe.coefficients is None
    assert recipe.weights.for_tensor("x") == {"de-DE": 0.5, "fr-FR": 0.5}


@pytest.mark.parametrize(
    ("layers", "expected"),
    [(None, set()), (3, {3}), ("3", {3}), ("4-7", {4, 5, 6, 7}), ("0-1, 8", {0, 1, 8}), ("2-2,2", {2})],
)
def test_layers_are_numbers_and_ranges(layers: object, expected: set[int]) -> None:
    assert Recipe.parse({**GOOD, "layers": layers}).blocks == expected


def test_parts_may_name_a_source() -> None:
    said = {"embeddings": "source:fr-FR", "head": "base", "layers": "0", "other_layers": "source:de-DE"}
    recipe = Recipe.parse({**GOOD, **said})
    assert {key: getattr(recipe, key) for key in said} == said


def test_a_recipe_comes_back_from_its_own_text(tmp_path: Path) -> None:
    recipe = Recipe.load(written(tmp_path, GOOD))
    assert Recipe.load(written(tmp_path, recipe.model_dump(mode="json"))) == recipe


def test_coefficients_from_a_file_beside_it(tmp_path: Path) -> None:
    values = {"model": {"de-DE": 0.9, "fr-FR": 0.1}, "head": {"de-DE": 0.5, "fr-FR": 0.5}}
    Coefficients(values=values).save(tmp_path / "coefficients.json")
    recipe = Recipe.load(written(tmp_path, {**GOOD, "coefficients": "coefficients.json"}))
    assert recipe.weights.values == values
    with pytest.raises(RecipeError, match=r"coefficients file .*/none.json does not exist"):
        Recipe.load(written(tmp_path, {**GOOD, "coefficients": "none.json"}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": None}, "method: Field required"),
        ({"base": None}, "base: Field required"),
        ({"sources": None}, "sources: Field required"),
        ({"sources": {}}, "sources: Dictionary should have at least 1 item"),
        ({"sources": ["a", "b"]}, "sources: Input should be a valid dictionary"),
        ({"sourcse": {}}, "sourcse: Extra inputs are not permitted"),
        ({"other_layers": "source:de-DE"}, "other_layers is 'source:de-DE', and without layers there are no others"),
        ({"embeddings": "de-DE"}, "embeddings is 'de-DE': it must be merge, mean, base or source:<name of a source>"),
        ({"head": "de-DE"}, "head is 'de-DE': it must be"),
        ({"embeddings": "drop"}, "embeddings is 'drop': it must be merge, mean, base or source:<name of a source>"),
        ({"head": "source:sw-KE"}, "head is 'source:sw-KE': it must be merge, mean, base, regmean or source:<name"),
        ({"other_layers": "merge"}, "other_layers is 'merge': it must be mean, base or source:<name of a source>"),
        ({"layers": "3-1"}, "layers is '3-1': write numbers and ranges, like 4-7 or 0-3,8"),
        ({"layers": "0-99999999999"}, "layers is '0-99999999999': write numbers"),
        ({"layers": "one"}, "layers is 'one': write numbers"),
        ({"layers": "-1"}, "layers is '-1': write numbers"),
        ({"layers": ""}, "layers is '': write numbers"),
        ({"layers": " , "}, "layers is ' , ': write numbers"),
        ({"layers": True}, "layers: Input should be a valid string"),
        ({"dtype": "I8"}, "dtype: Input should be 'F32', 'F16', 'BF16', 'F8_E4M3' or 'F8_E5M2'"),
        ({"coefficients": {"de-DE": 1.0}}, r"coefficients are for \['de-DE'\], sources are \['de-DE', 'fr-FR'\]"),
        ({"coefficients": {"de-DE": 1, "fr-FR": 1, "sw-KE": 1}}, "every coefficient a source"),
        ({"coefficients": {"de-DE": 1, "fr-FR": "much"}}, "coefficients.values.model.fr-FR: Input should be a"),
        ({"coefficients": {"de-DE": 1, "fr-FR": float("nan")}}, "the coefficient of fr-FR is not finite"),
    ],
)  # fmt: skip
def test_a_wrong_recipe_is_one_clear_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    raw = {key: value for key, value in {**GOOD, **change}.items() if value is not None}
    path = written(tmp_path, raw)
    with pytest.raises(RecipeError, match=message) as caught:
        Recipe.load(path)
    assert str(caught.value).startswith(f"recipe {path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: [", "is not valid YAML"),
        ("- a\n- b\n", "holds no mapping: it needs base, sources and method"),
        ("", "holds no mapping"),
        ("!!python/object/apply:os.getcwd []", "is not valid YAML"),
        ("base: a\nsources: {de-DE: x, de-DE: y}\nmethod: linear\n", "found the key 'de-DE' twice"),
        ("base: a\nbase: b\nsources: {de-DE: x}\nmethod: linear\n", "found the key 'base' twice"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        Recipe.load(written(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read: No such file or directory"):
        Recipe.load(tmp_path / "recipe.yaml")
    (tmp_path / "recipe.yaml").write_bytes(b"base: \xff")
    with pytest.raises(RecipeError, match="is not valid YAML"):
        Recipe.load(tmp_path / "recipe.yaml")


def test_parse_takes_a_mapping(tmp_path: Path) -> None:
    raw = dict(GOOD)
    assert Recipe.parse(raw, folder=tmp_path).base == tmp_path / "pool" / "base"
    assert raw == GOOD
    assert Recipe.parse(raw).base == Path("pool/base")
    with pytest.raises(RecipeError, match=r"^grid x: method: Field required"):
        Recipe.parse({key: value for key, value in raw.items() if key != "method"}, where="grid x")


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Recipe.parse(GOOD).method = "linear"  # type: ignore[misc]
