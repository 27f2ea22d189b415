"""The plan of a recipe of any kind."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from langmerge.engine.native import plan_recipe
from langmerge.engine.plan import Plan
from langmerge.recipe import Recipe, read_mapping

AnyRecipe = Recipe
"""What can be merged: a native recipe."""


def load_recipe(path: Path | str) -> AnyRecipe:
    """Read a YAML recipe; paths in it are relative to its folder.

    Raises:
        RecipeError: it cannot be read, or breaks a rule.
    """
    path = Path(path)
    return Recipe.parse(read_mapping(path), folder=path.parent, where=f"recipe {path}")


def recipe_of_receipt(record: Mapping[str, Any]) -> AnyRecipe:
    """The recipe that a receipt holds.

    Raises:
        RecipeError: it breaks a rule.
    """
    return Recipe.parse(dict(record["recipe"]), where="the receipt's recipe")


def make_plan(recipe: AnyRecipe) -> Plan:
    """Check a recipe against the headers of what it names, and say what will happen to every tensor.

    Raises:
        PlanError: with every fault found.
    """
    return plan_recipe(recipe)
