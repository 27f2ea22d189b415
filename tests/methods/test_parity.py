"""Against the published formulas and, where it is installed, peft. Known deviations are tests of their own."""

import importlib.util
from pathlib import Path
from types import ModuleType
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from langmerge.methods import METHODS

from .conftest import experts, float64
from .references import (
    interference,
    largest_entries,
    slerp_of_mergekit,
    ties_by_its_authors,
    ties_with_weights,
)

slerp, ties, dare_ties, wudi = (METHODS[name] for name in ("slerp", "ties", "dare_ties", "wudi"))


def close(found: torch.Tensor, expected: torch.Tensor | np.ndarray, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected), rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def peft() -> ModuleType:
    """peft's merge arithmetic by itself: importing all of peft would load transformers."""
    package = importlib.util.find_spec("peft")
    if package is None or package.origin is None:
        pytest.skip("peft is not installed")
    file = Path(package.origin).parent / "utils" / "merge_utils.py"
    found = importlib.util.spec_from_file_location("peft_merge_utils", file)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_ties_over_a_whole_model(n: int, density: float) -> None:
    # Two tensors of one model, 40 + 60 entries; the engine finds each source's threshold over both.
    small, large = experts((5, 8), n, seed=1), experts((60,), n, seed=2)
    tau = torch.cat([(one.tuned - one.base).flatten(1) for one in (small, large)], dim=1)
    expected = ties_by_its_authors(tau.numpy(), density)
    thresholds = tau.abs().sort(dim=1, descending=True).values[:, [int(density * 100) - 1]]
    ones = torch.ones(n, dtype=torch.float64)
    found = [
        ties(one.base, one.tuned, ones, known={"thresholds": thresholds}) - one.base for one in (small, large)
    ]
    close(torch.cat([one.flatten() for one in found]), expected)


@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
def test_ties_over_one_tensor(density: float) -> None:
    base, tuned, _ = experts((5, 8), 5)
    expected = ties_by_its_authors((tuned - base).flatten(1).numpy(), density).reshape(5, 8)
    close(ties(base, tuned, torch.ones(5, dtype=torch.float64), density=density) - base, expected)


def test_deviation_a_cancelled_vote_is_zero_and_not_the_majoritys() -> None:
    tau = float64([1, 5, 5], [-1, 5, 5])
    assert ties_by_its_authors(tau.numpy(), 1.0).tolist() == [1, 5, 5]
    assert ties(tau[0] * 0, tau, float64(1, 1), density=1.0).tolist() == [0, 5, 5]


def test_deviation_entries_that_tie_are_all_kept() -> None:
    tau = float64(2, 2, 2, 1)
    assert np.count_nonzero(largest_entries(tau.numpy(), 2)) == 2
    assert ties(tau * 0, tau[None], float64(1), density=0.5).tolist() == [2, 2, 2, 0]


@pytest.mark.parametrize("density", [0.3, 1.0])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.5, 0.2, 0.3), (2.0, 0.1, 0.0)], ids=str)
def test_weighted_ties(weights: tuple[float, ...], density: float) -> None:
    base, tuned, _ = experts((200,), 3)
    delta = np.stack([largest_entries(one.numpy(), int(density * 200)) for one in tuned - base])
    for normalize in (True, False):
        found = ties(base, tuned, float64(*weights), density=density, normalize=normalize) - base
        close(found, ties_with_weights(delta, np.array(weights), election="sum", normalize=normalize))


def test_ties_by_count_of_signs() -> None:
    # Three sources and equal weights: no vote is cancelled.
    base, tuned, _ = experts((200,), 3)
    ones = torch.ones(3, dtype=torch.float64)
    expected = ties_with_weights((tuned - base).numpy(), ones.numpy(), election="count")
    close(ties(base, tuned, ones, density=1.0, election="count") - base, expected)


def test_deviation_a_count_is_weighted() -> None:
    tau, weights = float64([1, 1], [-1, -1], [-1, 1]), float64(5, 1, 1)
    assert ties_with_weights(tau.numpy(), weights.numpy(), election="count").tolist() == [-1, 1]
    assert ties(tau[0] * 0, tau, weights, density=1.0, election="count").tolist() == [1, 1]


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("spread", [1.0, 0.1, 1e-3])
def test_slerp(spread: float, t: float) -> None:
    base, tuned, weights = experts((6, 5))
    tuned = base + spread * (tuned - base)
    expected = slerp_of_mergekit(t, tuned[0].numpy(), tuned[1].numpy())
    close(slerp(base, tuned, weights, t=t), expected)


def test_deviation_slerp_bends_a_little_longer() -> None:
    # cos Ω = 0.9998: past mergekit's 0.9995, not yet past eps = 1e-4.
    angle = np.arccos(0.9998)
    tuned = float64([1, 0], [np.cos(angle), np.sin(angle)])
    straight = slerp_of_mergekit(0.5, tuned[0].numpy(), tuned[1].numpy())
    bent = slerp(tuned[0], tuned, float64(1, 1))
    assert float(torch.linalg.vector_norm(bent)) == pytest.approx(1, abs=1e-14)
    assert 1e-5 < 1 - np.linalg.norm(straight) < 1e-4
    close(slerp(tuned[0], tuned, float64(1, 1), eps=5e-4), straight)


def test_wudi_reaches_what_its_authors_descend_to() -> None:
    # Their loss, from the sum: weights of one, no ridge. They stop Adam after 300 steps of 1e-5; this goes on to the end.
    base, tuned, _ = experts((12, 5), 3)
    ones, tau = torch.ones(3, dtype=torch.float64), tuned - base
    merged = tau.sum(0).requires_grad_()
    optimizer = torch.optim.SGD([merged], lr=0.3)
    norms = (tau**2).sum((1, 2))
    for _ in range(400):
        optimizer.zero_grad()
        (((merged - tau) @ tau.mT) ** 2 / norms.reshape(-1, 1, 1)).sum().backward()
        optimizer.step()
    solved = wudi(base, tuned, ones, ridge=1e-12) - base
    close(solved, merged.detach(), 1e-9)
    others = [interference(one.numpy(), tau.numpy(), ones.numpy()) for one in (tau.sum(0), tau.mean(0))]
    assert interference(solved.numpy(), tau.numpy(), ones.numpy()) < 0.99 * min(others)


@pytest.mark.parametrize("method", ["total", "frequency"])
@pytest.mark.parametrize("density", [0.2, 0.5, 0.99])
def test_ties_of_peft(peft: ModuleType, density: float, method: str) -> None:
    # Five sources, so that signs seldom cancel; where trimming leaves an even number, both codes must have one winner.
    base, tuned, _ = experts((20, 10), 5)
    ones, tau = torch.ones(5, dtype=torch.float64), tuned - base
    election = {"total": "sum", "frequency": "count"}[method]
    found = ties(base, tuned, ones, density=density, election=election) - base
    expected = peft.ties(list(tau), ones, density, majority_sign_method=method)
    votes = torch.stack([peft.prune(one, density, method="magnitude") for one in tau])
    votes = votes.sum(0) if method == "total" else votes.sign().sum(0)
    assert int((votes != 0).sum()) > 60
    close(found[votes != 0], expected[votes != 0])
    assert not bool(found[votes == 0].any())


def test_deviation_peft_gives_a_cancelled_vote_to_the_plus(peft: ModuleType) -> None:
    tau, ones = float64([1, 9], [-1, 9]), float64(1, 1)
    mask = peft.calculate_majority_sign_mask(tau)
    assert peft.disjoint_merge(tau, mask).tolist() == [1, 9]
    assert ties(tau[0] * 0, tau, ones, density=1.0).tolist() == [0, 9]


def test_deviation_peft_divides_by_the_number_that_agrees(peft: ModuleType) -> None:
    # So that weights of 1/N shrink its merge N times; they are shares here, and do not.
    base, tuned, _ = experts((20, 10), 4)
    quarters = torch.full((4,), 0.25, dtype=torch.float64)
    expected = peft.ties(list(tuned - base), quarters, 0.5)
    close(ties(base, tuned, quarters, density=0.5) - base, 4 * expected)


@pytest.mark.parametrize(("size", "density"), [(3, 0.5), (3, 0.34), (100, 0.29), (60, 0.999), (7, 1.0)])
def test_the_number_kept_by_peft(peft: ModuleType, size: int, density: float) -> None:
    tau = experts((size,), 1).tuned[0]
    expected = peft.magnitude_based_pruning(tau, density)
    assert torch.equal(ties(tau * 0, tau[None], float64(1), density=density), expected)


def test_deviation_peft_may_keep_nothing(peft: ModuleType) -> None:
    tau = float64(1, -3, 2)
    assert peft.magnitude_based_pruning(tau, 0.2).tolist() == [0, 0, 0]
    assert ties(tau * 0, tau[None], float64(1), density=0.2).tolist() == [0, -3, 0]


@pytest.mark.parametrize("density", [0.2, 0.5, 0.95])
def test_trimming_of_peft(peft: ModuleType, density: float) -> None:
    base, tuned, weights = experts((20, 10), 3)
    found = [ties(base, one[None], float64(1), density=density) - base for one in tuned]
    expected = peft.magnitude_prune(list(tuned - base), weights, density)
    close(sum(weight * one for weight, one in zip(weights, found, strict=True)), expected)


def test_task_arithmetic_of_peft(peft: ModuleType) -> None:
    base, tuned, weights = experts((20, 10), 3)
    found = METHODS["task_arithmetic"](base, tuned, weights) - base
    close(found, peft.task_arithmetic(list(tuned - base), weights))


def test_dare_ties_of_peft_with_these_masks(peft: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    base, tuned, _ = experts((400,), 3)
    ones, names, tau = torch.ones(3, dtype=torch.float64), ["a", "b", "c"], tuned - base
    unit = torch.ones((1, 400), dtype=torch.float64)
    masks = [0.5 * dare_ties(unit[0] * 0, unit, ones[:1], sources=[name]) for name in names]
    monkeypatch.setattr(torch, "bernoulli", Mock(side_effect=masks))
    expected = peft.dare_ties(list(tau), ones, 0.5)
    monkeypatch.undo()
    found = dare_ties(base, tuned, ones, sources=names) - base
    # Where nothing was dropped the two are one; where something was, peft divides by the survivors alone, and is
    # larger by the number that agreed over the number that survived.
    survived = ((torch.stack(masks) * tau).sign() == found.sign()).sum(0)
    agreed = (tau.sign() == found.sign()).sum(0)
    there = found != 0
    assert int(((survived < agreed) & there).sum()) > 100
    assert int(((survived == agreed) & there).sum()) > 50
    close(found[there] * agreed[there] / survived[there], expected[there])
    assert not bool(expected[~there].any())
