"""A merge that stays in memory: the bits of a merge, and exact dot products."""

from pathlib import Path

import numpy as np
import pytest
import torch

from langmerge.coefficients import Coefficients
from langmerge.engine import make_plan
from langmerge.engine.resident import ResidentMerge
from langmerge.errors import InputError, PlanError
from langmerge.methods.signs import agreed
from tests.engine.conftest import SOURCES, recipe_of, streamed
from tests.tiny import QUERY, WORDS, Tensors, read_raw

PP = {"method": "ties", "parameters": {"density": 0.5, "election": "unweighted", "normalize": False}}
PLAIN = {"method": "task_arithmetic"}
METHODS = pytest.mark.parametrize("method", [PLAIN, PP], ids=["plain", "plus"])
KERNELS = pytest.mark.parametrize("kernels", ["compiled", "torch"])

pytestmark = pytest.mark.usefixtures("small_steps")


def numbers(*row: float) -> Coefficients:
    return Coefficients(values={"model": dict(zip(SOURCES, row, strict=True))})


def resident(root: Path, method: dict, row: tuple[float, ...] = (0.0, 0.0, 0.0), **options):  # type: ignore[no-untyped-def]
    plan = make_plan(recipe_of(root, **method, coefficients=numbers(*row)))
    places = {t.name: np.zeros(t.shape, np.float32) for t in plan.written if t.dtype == "F32"}
    for name, rows in options.get("rows", {}).items():
        places[name] = places[name][: len(rows)].copy()
    return ResidentMerge(plan, places, **options), places


def taus(root: Path, name: str) -> torch.Tensor:
    base = read_raw(root / "base")[name]
    return torch.stack([read_raw(root / source)[name] - base for source in SOURCES])


@METHODS
@KERNELS
def test_a_fill_has_the_bits_of_a_merge_with_the_same_coefficients(
    wide_pool: Path, method: dict, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LANGMERGE_KERNELS", kernels)
    own, places = resident(wide_pool, method, (0.3, 0.3, 0.3))
    row = [0.31, 0.007, 1.9]
    own.fill(dict.fromkeys(own.moving, row))
    whole: Tensors = streamed(recipe_of(wide_pool, **method, coefficients=numbers(*row)))
    assert len(own.moving) == len(whole) > 3
    for name in own.moving:
        assert places[name].tobytes() == whole[name].numpy().tobytes(), name


@METHODS
def test_zero_coefficients_give_the_base_bit_for_bit(wide_pool: Path, method: dict) -> None:
    _, places = resident(wide_pool, method)
    for name, one in read_raw(wide_pool / "base").items():
        assert places[name].tobytes() == one.numpy().tobytes()


def test_one_source_with_coefficient_one_gives_the_expert(wide_pool: Path) -> None:
    _, places = resident(wide_pool, PLAIN, (0.0, 1.0, 0.0))
    for name, one in read_raw(wide_pool / "fr-FR").items():
        # θ_0 + (θ − θ_0) rounds; no more than that.
        torch.testing.assert_close(torch.from_numpy(places[name]), one, rtol=0, atol=3e-7)


@METHODS
@KERNELS
def test_dot_products_are_those_of_the_task_vectors(
    wide_pool: Path, method: dict, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LANGMERGE_KERNELS", kernels)
    own, places = resident(wide_pool, method)
    for name in own.moving:
        g = torch.randn(places[name].shape, generator=torch.Generator().manual_seed(1))
        tau = taus(wide_pool, name)
        if method is PP:
            kept = max(1, int(0.5 * tau[0].numel()))
            bounds = tau.abs().flatten(1).sort(dim=1, descending=True).values[:, kept - 1]
            tau = agreed(tau, bounds)
        expected = tau.double().flatten(1) @ g.double().flatten()
        np.testing.assert_allclose(own.dots({name: g.numpy()})[name], expected, rtol=1e-12, atol=1e-12)


def test_the_number_of_threads_changes_no_bit(wide_pool: Path) -> None:
    found = []
    for threads in (1, 3):
        own, places = resident(wide_pool, PP, (0.2, 0.3, 0.4), threads=threads)
        g = np.linspace(-1, 1, places[QUERY].size, dtype=np.float32).reshape(places[QUERY].shape)
        found.append((own.dots({QUERY: g})[QUERY].tobytes(), *(one.tobytes() for one in places.values())))
        own.close()
    assert found[0] == found[1]


def test_only_some_rows_of_the_embeddings_are_held(wide_pool: Path) -> None:
    rows = np.array([0, 1, 7, 39])
    own, places = resident(wide_pool, PLAIN, (0.5, 0.25, 0.25), rows={WORDS: rows})
    whole = streamed(recipe_of(wide_pool, **PLAIN, coefficients=numbers(0.5, 0.25, 0.25)))
    assert places[WORDS].tobytes() == whole[WORDS].numpy()[rows].tobytes()
    g = np.arange(24, dtype=np.float32).reshape(4, 6)
    expected = (taus(wide_pool, WORDS)[:, rows].double() * torch.from_numpy(g)).sum((1, 2))
    np.testing.assert_allclose(own.dots({WORDS: g})[WORDS], expected, rtol=1e-12)


def test_norms_are_those_of_the_task_vectors(wide_pool: Path) -> None:
    own, _ = resident(wide_pool, PLAIN)
    expected = taus(wide_pool, QUERY).double().flatten(1).norm(dim=1)
    np.testing.assert_allclose(own.norms[QUERY], expected, rtol=1e-6)


def test_what_is_not_linear_is_refused(wide_pool: Path) -> None:
    with pytest.raises(PlanError, match="not linear"):
        resident(wide_pool, {"method": "ties"})
    with pytest.raises(PlanError, match="not linear"):
        resident(wide_pool, {"method": "task_arithmetic", "parameters": {"scale": 2.0}})


def test_places_that_do_not_fit(wide_pool: Path) -> None:
    plan = make_plan(recipe_of(wide_pool, **PLAIN, coefficients=numbers(0, 0, 0)))
    with pytest.raises(InputError, match="which the merge does not give"):
        ResidentMerge(plan, {"other": np.zeros(3, np.float32)})
    with pytest.raises(InputError, match=r"held as float32 \(3,\)"):
        ResidentMerge(plan, {QUERY: np.zeros(3, np.float32)})
