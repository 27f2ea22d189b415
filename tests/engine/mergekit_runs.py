"""mergekit recipes as files, and what langmerge makes of them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from langmerge.engine import merge
from langmerge.engine.planning import load_recipe
from langmerge.mergekit_recipe import MergekitRecipe
from tests.engine.mergekit_models import Arrays
from tests.tiny import read_raw


def parsed(root: Path, raw: Mapping[str, Any]) -> MergekitRecipe:
    """A recipe read from a file beside the models."""
    file = root / "recipe.yaml"
    file.write_text(yaml.safe_dump(dict(raw)))
    recipe = load_recipe(file)
    assert isinstance(recipe, MergekitRecipe)
    return recipe


def run(root: Path, raw: Mapping[str, Any], out: Path) -> dict[str, Tensor]:
    return read_raw(merge(parsed(root, raw), out))


def linear(*names: str, **more: Any) -> dict[str, Any]:
    return {
        "merge_method": "linear",
        "models": [{"model": name} for name in names],
        "parameters": {"weight": 1},
        **more,
    }


def stacked(*pieces: tuple[str, int, int], **more: Any) -> dict[str, Any]:
    slices = [{"sources": [{"model": name, "layer_range": [low, high]}]} for name, low, high in pieces]
    return {"merge_method": "passthrough", "slices": slices, **more}


def read_arrays(folder: Path) -> Arrays:
    return {name: one.float().numpy() for name, one in read_raw(folder).items()}


def ids(folder: Path) -> dict[str, int]:
    document = json.loads((folder / "tokenizer.json").read_text())
    return document["model"]["vocab"] | {token["content"]: token["id"] for token in document["added_tokens"]}
