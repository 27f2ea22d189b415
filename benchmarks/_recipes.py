"""The same merge for langmerge and for mergekit."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _models import Family

SHARES = {2: (0.7, 0.3), 3: (0.5, 0.3, 0.2), 5: (0.3, 0.25, 0.2, 0.15, 0.1)}
"""Weights by number of sources: unequal, so that sources mixed up would show."""

METHODS: dict[str, dict[str, Any]] = {
    "linear": {},
    "task_arithmetic": {},
    "slerp": {"t": 0.3, "eps": 5e-4},
    "ties": {"density": 0.2},
    "dare_ties": {"density": 0.5, "normalize": False},
}
"""langmerge's parameters. slerp's eps is where mergekit too takes a line for the arc. dare_ties adds up what agrees, as
mergekit does by default: where they divide, the two divide by different sums."""

_NAMES = {"F32": "float32", "BF16": "bfloat16"}


def sources_of(family: Family, method: str) -> list[str]:
    """The experts that a method merges: two for slerp, else all."""
    return family.models[1:3] if method == "slerp" else family.models[1:]


def inputs_of(family: Family, method: str) -> list[str]:
    """The models that a langmerge recipe names; the base counts, because the receipt measures distances from it."""
    return ["base", *sources_of(family, method)]


def native_recipe(family: Family, method: str, models: Path) -> dict[str, Any]:
    """The recipe for langmerge."""
    sources = sources_of(family, method)
    recipe: dict[str, Any] = {
        "base": str(models / "base"),
        "sources": {name: str(models / name) for name in sources},
        "method": method,
        "parameters": METHODS[method],
    }
    if method != "slerp":
        recipe["coefficients"] = dict(zip(sources, SHARES[len(sources)], strict=True))
    return recipe


def mergekit_recipe(family: Family, method: str, models: Path) -> dict[str, Any]:
    """The equivalent for mergekit."""
    sources = sources_of(family, method)
    recipe: dict[str, Any] = {"merge_method": method, "dtype": _NAMES[family.dtype]}
    if method == "slerp":
        folders = [{"model": str(models / name)} for name in sources]
        return recipe | {
            "base_model": folders[0]["model"],
            "models": folders,
            "parameters": {"t": METHODS[method]["t"]},
        }
    density = {key: value for key, value in METHODS[method].items() if key == "density"}
    recipe["models"] = [
        {"model": str(models / name), "parameters": {"weight": weight} | density}
        for name, weight in zip(sources, SHARES[len(sources)], strict=True)
    ]
    if method != "linear":
        recipe["base_model"] = str(models / "base")
    return recipe | {"parameters": {"normalize": method in ("linear", "ties")}}


def write_recipe(recipe: Mapping[str, Any], file: Path) -> Path:
    """As a file; JSON is YAML too."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(recipe, indent=1))
    return file
