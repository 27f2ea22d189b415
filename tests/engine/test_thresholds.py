"""Trim thresholds are exact order statistics, however they are found."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from langmerge.engine import compiled as backend_module
from langmerge.engine import make_plan
from langmerge.engine.compiled import CompiledBackend
from langmerge.engine.inputs import TensorInputs
from langmerge.engine.passes import Job, run_all
from tests.engine.conftest import SOURCES, WIDE_SHAPES, case_recipe
from tests.tiny import drawn, read_raw, tuned, write_raw


def thresholds(recipe: Any) -> dict[str, list[float]]:
    """Of every tensor, as the kernels measure them."""
    kernels = pytest.importorskip("langmerge.kernels._compiled")
    backend, plan = CompiledBackend(kernels), make_plan(recipe)
    jobs = [Job(TensorInputs(plan, tensor), {}) for tensor in plan.written]
    together = plan.parameters["scope"] == "model"
    works = [backend.measure(jobs)] if together else [backend.measure([job]) for job in jobs]
    with ThreadPoolExecutor(2) as pool:
        run_all(pool, [work for work in works if work is not None])
    return {job.inputs.tensor.name: job.known["thresholds"].tolist() for job in jobs}


def by_sorting(root: Path, names: list[str], densities: list[float]) -> list[float]:
    """The same over the named tensors together: the magnitude at its rank in a sorted list, per source."""
    base = read_raw(root / "base")
    found = []
    for source, density in zip(SOURCES, densities, strict=True):
        own = read_raw(root / source)
        magnitudes = np.sort(np.concatenate([(own[n] - base[n]).abs().flatten().numpy() for n in names]))[
            ::-1
        ]
        found.append(float(magnitudes[max(1, int(density * len(magnitudes))) - 1]))
    return found


def ties_and_zeros(root: Path) -> None:
    """Steps of a quarter: many ties; in sw-KE most deltas are zero."""
    generator = torch.Generator().manual_seed(5)
    base = {name: one.round() for name, one in drawn(0, shapes=WIDE_SHAPES).items()}
    write_raw(root / "base", base)
    for name in SOURCES:
        steps = {key: torch.randint(-3, 4, one.shape, generator=generator) / 4 for key, one in base.items()}
        share = 0.05 if name == "sw-KE" else 1.0
        kept = {key: one * (torch.rand(one.shape, generator=generator) < share) for key, one in steps.items()}
        write_raw(root / name, {key: base[key] + one for key, one in kept.items()})


@pytest.fixture(params=["normal", "ties"])
def deltas(request: pytest.FixtureRequest, wide_pool: Path, tmp_path: Path) -> Path:
    """Deltas of two kinds."""
    if request.param == "normal":
        return wide_pool
    ties_and_zeros(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("selected", [1 << 22, 0], ids=["selected", "counted"])
@pytest.mark.parametrize("scope", ["tensor", "model"])
@pytest.mark.parametrize(
    "densities", [[1e-9] * 3, [0.2] * 3, [0.5, 0.07, 0.93], [1.0, 0.3, 1.0], [0.999999] * 3]
)
def test_thresholds_are_exact(
    deltas: Path, monkeypatch: pytest.MonkeyPatch, densities: list[float], scope: str, selected: int
) -> None:
    monkeypatch.setattr(backend_module, "SELECTED", selected)
    parameters = {"density": densities, "scope": scope}
    found = thresholds(case_recipe(deltas, "ties", parameters))
    assert found.keys() == WIDE_SHAPES.keys()
    for name, one in found.items():
        assert one == by_sorting(deltas, sorted(WIDE_SHAPES) if scope == "model" else [name], densities)


def test_sources_that_keep_everything_need_no_threshold(wide_pool: Path) -> None:
    kernels = pytest.importorskip("langmerge.kernels._compiled")
    plan = make_plan(case_recipe(wide_pool, "ties", {"density": 1.0}))
    assert CompiledBackend(kernels).measure([Job(TensorInputs(plan, plan.written[0]), {})]) is None


@pytest.mark.parametrize("sampled", ["zeros", "the largest"])
def test_a_sample_that_misleads_costs_two_passes_and_no_accuracy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampled: str
) -> None:
    """What the sample sees has nothing to do with the rest."""
    monkeypatch.setattr(backend_module, "SELECTED", 0)
    monkeypatch.setattr(backend_module, "_SAMPLE", 1 << 10)
    monkeypatch.setattr(backend_module, "_RUN", 64)
    size = 40_000
    base = torch.zeros(size)
    seen = torch.zeros(size, dtype=torch.bool)
    every = size // (1 << 10)
    for start in range(0, size, 64 * every):
        seen[start : start + 64] = True
    write_raw(tmp_path / "base", {"w": base})
    for seed, name in enumerate(SOURCES):
        own = drawn(seed, shapes={"w": (size,)})["w"]
        write_raw(tmp_path / name, {"w": torch.where(seen, 0.0 if sampled == "zeros" else 1e6 * own, own)})
    passes: list[int] = []

    class Counted(backend_module._Counts):
        def __init__(self, kernels: Any, low: Any, span: int, shift: int) -> None:
            passes.append(shift)
            super().__init__(kernels, low, span, shift)

    monkeypatch.setattr(backend_module, "_Counts", Counted)
    found = thresholds(case_recipe(tmp_path, "ties", {"density": 0.3}))["w"]
    assert found == by_sorting(tmp_path, ["w"], [0.3] * 3)
    assert passes == [15, 0, 15, 0], "a sample, a count that missed, all in coarse buckets, a count"


def test_a_fair_sample_is_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_module, "SELECTED", 0)
    monkeypatch.setattr(backend_module, "_SAMPLE", 1 << 13)
    monkeypatch.setattr(backend_module, "_RUN", 64)
    base = drawn(0, shapes={"a": (300, 70), "b": (41_000,)})
    write_raw(tmp_path / "base", base)
    for seed, name in enumerate(SOURCES, start=1):
        write_raw(tmp_path / name, tuned(base, seed))
    passes: list[int] = []

    class Counted(backend_module._Counts):
        def __init__(self, kernels: Any, low: Any, span: int, shift: int) -> None:
            passes.append(shift)
            super().__init__(kernels, low, span, shift)

    monkeypatch.setattr(backend_module, "_Counts", Counted)
    found = thresholds(case_recipe(tmp_path, "ties", {"density": 0.3, "scope": "model"}))
    assert found["a"] == found["b"] == by_sorting(tmp_path, ["a", "b"], [0.3] * 3)
    assert passes == [15, 0]
