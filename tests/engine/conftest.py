"""A raw pool of a base and three sources, made once; tests that change it copy it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from langmerge.engine import inputs, make_plan, merged_tensors
from langmerge.errors import PlanError
from langmerge.methods import SPECS
from langmerge.recipe import Recipe
from tests.tiny import (
    QUERY,
    WORDS,
    Tensors,
    drawn,
    tuned,
    write_expert,
    write_raw,
    write_raw_pool,
    write_xlm_roberta,
)

SOURCES = ("de-DE", "fr-FR", "sw-KE")

WIDE_SHAPES = {
    WORDS: (40, 6),
    QUERY: (16, 16),
    "roberta.encoder.layer.1.output.dense.weight": (5, 12),
    "roberta.encoder.layer.1.output.dense.bias": (200,),
    "classifier.out_proj.weight": (3, 6),
}


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


def case_recipe(root: Path, method: str, parameters: dict[str, Any] | None = None, **changes: Any) -> Recipe:
    """The recipe of a method, with as many sources as it takes."""
    names = SOURCES[: SPECS[method].sources[1]]
    sources = {name: root / name for name in names}
    return recipe_of(
        root, **{"method": method, "parameters": parameters or {}, "sources": sources, **changes}
    )


def faults_of(root: Path, **changes: Any) -> tuple[str, ...]:
    """What is wrong with a recipe."""
    with pytest.raises(PlanError) as caught:
        make_plan(recipe_of(root, **changes))
    return caught.value.faults


def treatments(root: Path, **changes: Any) -> dict[str, str]:
    """What becomes of every tensor."""
    return {tensor.name: tensor.treatment for tensor in make_plan(recipe_of(root, **changes)).tensors}


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several steps in a piece and several pieces in a tensor, though it has some hundred entries."""
    monkeypatch.setattr(inputs, "STEP", 64)
    monkeypatch.setattr(inputs, "PIECE", 128)


@pytest.fixture(scope="session")
def wide_pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read-only: tensors of some hundred entries, the sources' deltas with a direction in common."""
    root = tmp_path_factory.mktemp("wide")
    base = drawn(0, shapes=WIDE_SHAPES)
    moved = tuned(base, 9)
    write_raw(root / "base", base)
    for seed, name in enumerate(SOURCES, start=1):
        write_raw(root / name, tuned(moved, seed))
    return root


@pytest.fixture
def own_wide_pool(wide_pool: Path, tmp_path: Path) -> Path:
    """A copy of it to change."""
    return Path(shutil.copytree(wide_pool, tmp_path / "pool"))


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
