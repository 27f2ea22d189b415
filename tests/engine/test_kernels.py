"""Merges by the compiled kernels and by torch: the same bytes, or neighbours where dot products decide."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from langmerge.checkpoint import DTYPES, open_checkpoint
from langmerge.checkpoint.tensors import TORCH_DTYPES, to_tensor
from langmerge.engine import inputs, make_plan, merge
from langmerge.engine.compiled import OWN, CompiledBackend
from langmerge.kernels import CHOICE
from langmerge.methods import SPECS, checked_parameters
from langmerge.methods.mixing import mixing_of
from langmerge.recipe import Recipe
from tests.engine.conftest import SOURCES, bits, recipe_of, ulps
from tests.tiny import Tensors

compiled = pytest.importorskip("langmerge.kernels._compiled")

CASES: list[tuple[str, dict[str, Any]]] = [
    ("linear", {}),
    ("linear", {"normalize": False}),
    ("task_arithmetic", {"scale": 0.7}),
    ("ties", {"density": 0.4}),
    ("ties", {"density": 1.0, "election": "count"}),
    ("ties", {"density": 0.4, "normalize": False, "scale": -0.5}),
    ("ties", {"density": [0.2, 1.0, 0.5]}),
    ("ties", {"density": 0.3, "election": "unweighted", "normalize": False}),
    ("ties", {"density": 0.3, "scope": "model"}),
    ("ties", {"density": [1.0, 0.1, 0.5], "scope": "model", "election": "count"}),
    ("dare_linear", {"density": 0.5, "seed": 4}),
    ("dare_linear", {"density": [0.3, 1.0, 1e-12], "normalize": True}),
    ("dare_ties", {"density": 0.5, "seed": 4}),
    ("dare_ties", {"density": [0.3, 0.5, 1.0], "election": "count", "normalize": False}),
    ("slerp", {}),
    ("slerp", {"t": 0.3, "about": "base"}),
    ("multislerp", {}),
    ("multislerp", {"about": "base"}),
    ("karcher", {}),
    ("karcher", {"about": "base"}),
    ("model_stock", {}),
    ("directional_consensus", {"alpha": 0.4}),
    ("nuslerp", {}),
    ("nuslerp", {"t": 0.6, "about": "base"}),
]
WEIGHTS = {"de-DE": 0.5, "fr-FR": 0.2, "sw-KE": 0.4}

SHAPES = [(), (0,), (0, 4), (1,), (129,), (2, 3, 4), (17, 33)]
STORED = {
    "F32": ("F32", ("F32", "F32", "F32")),
    "BF16": ("BF16", ("BF16", "BF16", "BF16")),
    "F16": ("F16", ("F16", "F16", "F16")),
    "F64": ("F64", ("F64", "F64", "F64")),
    "F8_E4M3": ("F8_E4M3", ("F8_E4M3", "F8_E4M3", "F8_E4M3")),
    "F8_E5M2": ("F8_E5M2", ("F8_E5M2", "F8_E5M2", "F8_E5M2")),
    "short": ("F32", ("BF16", "F16", "F32")),
    "mixed": ("BF16", ("F64", "F8_E4M3", "F8_E5M2")),
    "wide": ("F16", ("F32", "F64", "BF16")),
}
"""dtypes of the base and the three sources."""


def entries_of(kind: str, place: int, shape: tuple[int, ...]) -> Tensor:
    """Of the base (place 0) or a source: normal numbers, or steps with many ties, zeros and cancelled votes."""
    draw = torch.Generator().manual_seed(math.prod(shape) + 1)
    base = torch.randn(shape, generator=draw)
    own = torch.Generator().manual_seed(1000 * place + math.prod(shape))
    if kind == "steps":
        base = (2 * base).round() / 2 * (base.abs() > 0.3) * torch.sign(base)
        return base + torch.randint(-2, 3, shape, generator=own) / 4 * (place > 0)
    # Deltas share a direction, so that the methods which look for one find it.
    shared = torch.randn(shape, generator=draw)
    return base + 0.1 * (shared + torch.randn(shape, generator=own)) * (place > 0)


def write_unaligned(folder: Path, tensors: dict[str, tuple[str, Tensor]]) -> None:
    """A model whose first tensor has one byte: nothing behind it lies where its dtype would want it."""
    header: dict[str, Any] = {}
    raw = bytearray()
    for name, (dtype, tensor) in tensors.items():
        stored = tensor.to(TORCH_DTYPES[dtype]).contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        places = [len(raw), len(raw) + len(stored)]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": places}
        raw += stored
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + raw)
    (folder / "config.json").write_text("{}")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a tensor of every shape in every mixture of dtypes, none of them aligned."""
    root = tmp_path_factory.mktemp("zoo")
    for place, name in enumerate(("base", *SOURCES)):
        tensors: dict[str, tuple[str, Tensor]] = {"buffer": ("U8", torch.tensor([3]))}
        for shape in SHAPES:
            for stored, (base, sources) in STORED.items():
                dtype = base if place == 0 else sources[place - 1]
                tensors[f"{stored} {list(shape)}"] = dtype, entries_of("normal", place, shape)
            tensors[f"steps {list(shape)}"] = "F32", entries_of("steps", place, shape)
        write_unaligned(root / name, tensors)
    return root


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several steps and pieces in tensors of a few hundred entries; random masks begin at odd places too."""
    monkeypatch.setattr(inputs, "STEP", 67)
    monkeypatch.setattr(inputs, "PIECE", 134)


def case_recipe(root: Path, method: str, parameters: dict[str, Any], **changes: Any) -> Recipe:
    names = SOURCES[: SPECS[method].sources[1]]
    fields = {
        "method": method,
        "parameters": parameters,
        "sources": {name: root / name for name in names},
        "coefficients": {name: WEIGHTS[name] for name in names},
        **changes,
    }
    return recipe_of(root, **fields)


def read(folder: Path) -> Tensors:
    """Every tensor of a folder; safetensors' own reader wants them aligned."""
    opened = open_checkpoint(folder)
    return {name: to_tensor(opened.array(name), info.dtype) for name, info in opened.tensors.items()}


def merged_by(kernels: str, recipe: Recipe, out: Path, monkeypatch: pytest.MonkeyPatch) -> Tensors:
    monkeypatch.setenv(CHOICE, kernels)
    return read(merge(recipe, out))


def allowed(method: str, parameters: dict[str, Any]) -> int:
    return 1 if mixing_of(method, checked_parameters(method, parameters)) else 0


def test_the_cases_cover_every_method_with_a_kernel() -> None:
    mixed = {name for name in SPECS if mixing_of(name, checked_parameters(name, {}))}
    assert {method for method, _ in CASES} == OWN | mixed


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize(("method", "parameters"), CASES)
def test_kernels_and_torch_agree(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, parameters: dict[str, Any]
) -> None:
    recipe = case_recipe(zoo, method, parameters)
    backend = CompiledBackend(compiled)
    assert all(backend.handles(tensor) for tensor in make_plan(recipe).written if tensor.method)
    found = merged_by("compiled", recipe, tmp_path / "compiled", monkeypatch)
    expected = merged_by("torch", recipe, tmp_path / "torch", monkeypatch)
    assert found.keys() == expected.keys()
    base = read(zoo / "base")
    for name, one in found.items():
        assert (one.dtype, one.shape) == (base[name].dtype, base[name].shape)
        assert ulps(one, expected[name]) <= allowed(method, parameters), name
    changed = sum(not torch.equal(one, base[name]) for name, one in found.items())
    assert changed >= 24
    records = [
        json.loads((tmp_path / kernels / "langmerge.json").read_text()) for kernels in ("compiled", "torch")
    ]
    assert records[0]["treatments"] == records[1]["treatments"]
    assert records[0]["norm_ratio"] == pytest.approx(records[1]["norm_ratio"], rel=1e-5)


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"])
@pytest.mark.parametrize(("method", "parameters"), [("linear", {}), ("dare_ties", {}), ("slerp", {})])
def test_they_agree_in_every_dtype_of_the_output(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, parameters: Any, dtype: str
) -> None:
    recipe = case_recipe(zoo, method, parameters, dtype=dtype)
    found = merged_by("compiled", recipe, tmp_path / "compiled", monkeypatch)
    expected = merged_by("torch", recipe, tmp_path / "torch", monkeypatch)
    for name, one in found.items():
        assert one.dtype == (torch.uint8 if name == "buffer" else TORCH_DTYPES[dtype])
        assert ulps(one, expected[name]) <= allowed(method, parameters), name


@pytest.fixture
def instructions() -> Iterator[None]:
    before = compiled.instructions()
    yield
    compiled.instructions(before)


@pytest.mark.usefixtures("small_steps", "instructions")
@pytest.mark.parametrize("name", ["avx2", "avx512"])
def test_every_instruction_set_merges_to_the_same_bytes(zoo: Path, tmp_path: Path, name: str) -> None:
    try:
        compiled.instructions(name)
    except ValueError:
        pytest.skip(f"this machine has no {name}")
    for number, method in enumerate(("linear", "ties", "dare_ties", "slerp", "model_stock")):
        recipe = case_recipe(zoo, method, {})
        found = []
        for one in (name, "plain"):
            compiled.instructions(one)
            out = merge(recipe, tmp_path / f"{number} {one}")
            found.append((bits(read(out)), (out / "langmerge.json").read_text()))
        assert found[0] == found[1], method


@pytest.mark.parametrize(("method", "parameters"), CASES[::3])
def test_steps_change_no_byte(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, parameters: dict[str, Any]
) -> None:
    recipe = case_recipe(zoo, method, parameters)
    whole = read(merge(recipe, tmp_path / "whole"))
    monkeypatch.setattr(inputs, "STEP", 64)
    monkeypatch.setattr(inputs, "PIECE", 64)
    in_steps = read(merge(recipe, tmp_path / "steps"))
    for name, one in whole.items():
        # Coefficients from dot products that were added up in other parts may differ in their last bit.
        assert ulps(one, in_steps[name]) <= allowed(method, parameters), name


@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties", "slerp"])
def test_tensors_of_several_real_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    shape = (2 * inputs.STEP + 4097,)
    for place, name in enumerate(("base", *SOURCES)):
        write_unaligned(
            tmp_path / name,
            {"buffer": ("U8", torch.tensor([3])), "w": ("BF16", entries_of("normal", place, shape))},
        )
    recipe = case_recipe(tmp_path, method, {})
    found = merged_by("compiled", recipe, tmp_path / "compiled", monkeypatch)
    expected = merged_by("torch", recipe, tmp_path / "torch", monkeypatch)
    assert ulps(found["w"], expected["w"]) <= allowed(method, {})
    assert not torch.equal(found["w"], read(tmp_path / "base")["w"])


def test_the_dtypes_of_the_tests_are_all_there_are() -> None:
    floats = {name for name in DTYPES if name.startswith(("F", "BF"))}
    assert {base for base, _ in STORED.values()} == floats
    assert np.dtype(DTYPES["BF16"]).itemsize == 2
