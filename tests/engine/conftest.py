"""A raw pool of a base and three sources, made once; tests that change it copy it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from langmerge.engine import make_plan, merged_tensors
from langmerge.recipe import Recipe
from tests.tiny import Tensors, write_expert, write_raw_pool, write_xlm_roberta

SOURCES = ("de-DE", "fr-FR", "sw-KE")


def recipe_of(root: Path, **changes: Any) -> Recipe:
    """The uniform linear merge of a pool's three sources, with changes."""
    fields = {
        "base": root / "base",
        "sources": {name: root / name for name in SOURCES},
        "method": "linear",
        **changes,
    }
    return Recipe.model_validate(fields)


def bits(tensors: Tensors) -> dict[str, tuple[torch.dtype, bytes]]:
    return {
        name: (one.dtype, one.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        for name, one in tensors.items()
    }


_WIDTHS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}


def ulps(one: Tensor, other: Tensor) -> int:
    """How many numbers of their dtype lie between two tensors of finite numbers, at most; +0 and −0 are neighbours."""
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    places = []
    for tensor in (one, other):
        whole = _WIDTHS[tensor.element_size()]
        raw = tensor.contiguous().reshape(-1).view(whole).to(torch.int64)
        places.append(torch.where(raw < 0, torch.iinfo(whole).min - raw - 1, raw))
    return int((places[0] - places[1]).abs().max()) if one.numel() else 0


def streamed(recipe: Recipe) -> Tensors:
    return {one.plan.name: one.tensor for one in merged_tensors(make_plan(recipe))}


def entries(out: Path) -> dict[str, dict[str, Any]]:
    record = json.loads((out / "langmerge.json").read_text())
    return {entry["tensor"]: entry for entry in record["tensors"]}


@pytest.fixture(scope="session")
def raw_pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read-only: base and sources with an XLM-R's names."""
    root = tmp_path_factory.mktemp("raw")
    write_raw_pool(root, SOURCES)
    return root


@pytest.fixture
def own_pool(raw_pool: Path, tmp_path: Path) -> Path:
    """A copy of it to change."""
    return Path(shutil.copytree(raw_pool, tmp_path / "pool"))


@pytest.fixture(scope="session")
def xlm_pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read-only: a real XLM-R classifier as base (`base`), its experts, and headless bases of the same shape."""
    root = tmp_path_factory.mktemp("xlm")
    write_xlm_roberta(root / "base")
    write_xlm_roberta(root / "encoder", "encoder")
    write_xlm_roberta(root / "masked_lm", "masked_lm")
    for seed, name in enumerate(SOURCES, start=1):
        write_expert(root / name, root / "base", seed)
    return root
