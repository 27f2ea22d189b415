"""RAM and RAM+."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from langmerge.errors import MethodError
from langmerge.methods import METHODS, checked_parameters, measures_of
from langmerge.methods.measures import measured

from .conftest import Experts, experts, float64, streamed
from .mergekit_vectors import BASE, SPARSE, TAU, result

ram, ramplus = METHODS["ram"], METHODS["ramplus"]


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-13) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def sparse(shape: tuple[int, ...] = (8, 5), n: int = 3, dtype: torch.dtype = torch.float64) -> Experts:
    """Experts that changed about half of the entries each."""
    base, tuned, weights = experts(shape, n, dtype=dtype)
    kept = torch.rand(tuned.shape, generator=torch.Generator().manual_seed(5)) < 0.5
    return Experts(base, torch.where(kept, tuned, base), weights)


def test_ram_by_hand() -> None:
    # The first entry both changed, the second and third one alone, the fourth none (by no more than ε).
    base, tau = float64(1, 1, 1, 1), float64([2, 3, 0, 0.1], [4, 0, -5, -0.1])
    found = ram(base, base + tau, float64(0.5, 0.5), epsilon=0.2)
    close(found, 1 + float64(3, 3, -5, 0))
    close(ram(base, base + tau, float64(3, 1), epsilon=0.2, scale=2.0), 1 + 2 * float64(2.5, 3, -5, 0))


def test_ramplus_by_hand() -> None:
    # The first source shares one entry and has two of its own: ρ = ½, over α = 0.4; the second shares one and has four:
    # ρ = ¼. So l = 1 + 0.5·0.4 and 1 + 0.5·0.25.
    tau = float64([2, 3, 3, 0, 0, 0, 0], [4, 0, 0, 8, 8, 8, 8])
    found = ramplus(torch.zeros_like(tau[0]), tau, float64(1, 1), r=0.5, alpha=0.4)
    close(found, float64(3, 3.6, 3.6, 9, 9, 9, 9))


def ram_by_numpy(tau: np.ndarray, r: float, alpha: float, epsilon: float) -> np.ndarray:
    """The paper's three cases, entry by entry; task vectors (N, d), no weights."""
    changed = np.abs(tau) > epsilon
    merged = np.zeros(tau.shape[1])
    raised = []
    for i in range(len(tau)):
        others = np.delete(changed, i, axis=0).any(axis=0)
        alone, shared = (changed[i] & ~others).sum(), (changed[i] & others).sum()
        raised.append(1 + r * min(shared / alone, alpha))
    for place in range(tau.shape[1]):
        who = np.flatnonzero(changed[:, place])
        if len(who) == 1:
            merged[place] = raised[who[0]] * tau[who[0], place]
        elif len(who) > 1:
            merged[place] = tau[who, place].mean()
    return merged


@pytest.mark.parametrize("alpha", [0.2, 50.0])
@pytest.mark.parametrize("n", [2, 3, 5])
def test_by_the_papers_cases(n: int, alpha: float) -> None:
    base, tuned, _ = sparse((200,), n)
    ones, tau = torch.ones(n, dtype=torch.float64), (tuned - base).numpy()
    close(ram(base, tuned, ones) - base, torch.from_numpy(ram_by_numpy(tau, 0.0, 0.0, 1e-5)))
    found = ramplus(base, tuned, ones, r=0.3, alpha=alpha) - base
    close(found, torch.from_numpy(ram_by_numpy(tau, 0.3, alpha, 1e-5)))


def test_ram_of_dense_changes_is_the_mean() -> None:
    given = experts((6, 5), 4)
    for method in (ram, ramplus):
        close(method(*given, epsilon=0.0), METHODS["linear"](*given))


def test_ramplus_of_strength_zero_is_ram() -> None:
    given = sparse()
    close(ramplus(*given, r=0.0), ram(*given))
    close(ramplus(*given, alpha=0.0), ram(*given))
    assert not torch.allclose(ramplus(*given), ram(*given))


def test_what_one_source_changed_does_not_depend_on_its_weight() -> None:
    base, tuned, _ = sparse()
    first, second = (ram(base, tuned, float64(*weights)) for weights in ((0.2, 0.3, 0.5), (5, 1, 1)))
    changed = (tuned != base).sum(0)
    assert torch.equal(first[changed == 0], base[changed == 0])
    close(first[changed == 1], second[changed == 1])
    assert not torch.allclose(first[changed > 1], second[changed > 1])


def test_a_source_of_weight_zero_still_counts_as_one_that_changed() -> None:
    # Else its say would jump with the smallest weight. It shares the first entry; alone, it changes nothing.
    base, tau = float64(0, 0, 0), float64([2, 3, 0], [4, 0, 5])
    close(ram(base, tau, float64(1, 0)), float64(2, 3, 0))


@pytest.mark.parametrize("name", ["ram", "ramplus"])
def test_a_nan_that_is_no_change_shows(name: str) -> None:
    tau = float64([1, torch.nan, 0], [1, 0, 2])
    assert METHODS[name](float64(0, 0, 0), tau, float64(1, 1)).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("rows", [1, 3])
def test_ramplus_in_chunks(rows: int) -> None:
    given, parameters = sparse(), checked_parameters("ramplus", {"alpha": 50.0})
    measures = measures_of("ramplus", parameters)
    known = streamed(measures, given, rows, **parameters)
    assert torch.equal(known["changed"], measured(measures, *given, **parameters)["changed"])
    parts = [
        ramplus(base, tuned, given.weights, **parameters, known=known)
        for base, tuned in zip(given.base.split(rows), given.tuned.split(rows, 1), strict=True)
    ]
    whole = ramplus(*given, **parameters)
    assert torch.equal(torch.cat(parts), whole)
    # A chunk alone counts otherwise.
    alone = ramplus(given.base[:rows], given.tuned[:, :rows], given.weights, **parameters)
    assert not torch.equal(alone, whole[:rows])


@pytest.mark.parametrize(
    ("key", "name", "parameters", "tolerance"),
    [
        ("ram", "ram", {}, 1e-11),
        # mergekit divides the counts in float32.
        ("ramplus", "ramplus", {}, 1e-7),
        ("ramplus r=0.5 alpha=2 epsilon=0.3", "ramplus", {"r": 0.5, "alpha": 2.0, "epsilon": 0.3}, 1e-7),
    ],
)
def test_as_mergekit(key: str, name: str, parameters: dict[str, Any], tolerance: float) -> None:
    found = METHODS[name](BASE, BASE + TAU * SPARSE, float64(1, 1, 1), **parameters)
    close(found, result(key), tolerance)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("ram", {"epsilon": -1.0}, "ram: epsilon is -1.0, it must be at least 0 and finite"),
        ("ramplus", {"r": -0.1}, "ramplus: r is -0.1, it must be at least 0 and finite"),
        ("ramplus", {"alpha": -0.1}, "ramplus: alpha is -0.1, it must be at least 0 and finite"),
    ],
)
def test_what_is_out_of_range(name: str, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=f"^{message}$"):
        METHODS[name](*experts(), **parameters)


@pytest.mark.parametrize("name", ["ram", "ramplus"])
def test_negative_weights_are_refused(name: str) -> None:
    base, tuned, _ = experts()
    with pytest.raises(MethodError, match=rf"{name}: weights \[1\.0, -0\.5\] include a negative one"):
        METHODS[name](base, tuned, float64(1, -0.5))
