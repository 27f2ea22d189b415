"""The plan of a recipe of any kind."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from langmerge.engine.native import plan_recipe
from langmerge.engine.plan import Plan
from langmerge.recipe import Recipe, read_mapping

# What reads and plans mergekit's recipes is loaded for one of them only.
if TYPE_CHECKING:
    from langmerge.mergekit_recipe import MergekitRecipe

AnyRecipe: TypeAlias = "Recipe | MergekitRecipe"
"""What can be merged: a native recipe, or one of mergekit's."""


def load_recipe(path: Path | str) -> AnyRecipe:
    """Read a YAML recipe; paths in it are relative to its folder.

    Raises:
        RecipeError: it cannot be read, or breaks a rule.
    """
    path = Path(path)
    return _parsed(read_mapping(path), folder=path.parent, where=f"recipe {path}")


def recipe_of_receipt(record: Mapping[str, Any]) -> AnyRecipe:
    """The recipe that a receipt holds.

    Raises:
        RecipeError: it breaks a rule.
    """
    raw = dict(record["recipe"])
    return _parsed(raw, folder=Path(raw.pop("folder", "")), where="the receipt's recipe")


def _parsed(raw: dict[str, Any], *, folder: Path, where: str) -> AnyRecipe:
    if "merge_method" not in raw:
        return Recipe.parse(raw, folder=folder, where=where)
    from langmerge.mergekit_recipe import MergekitRecipe

    return MergekitRecipe.parse(raw, folder=folder, where=where)


def make_plan(recipe: AnyRecipe) -> Plan:
    """Check a recipe against the headers of what it names, and say what will happen to every tensor.

    Raises:
        PlanError: with every fault found.
    """
    if isinstance(recipe, Recipe):
        return plan_recipe(recipe)
    from langmerge.engine.mergekit import plan_mergekit

    return plan_mergekit(recipe)
