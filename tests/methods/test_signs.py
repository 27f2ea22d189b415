"""TIES and DARE-TIES."""

from math import sqrt
from typing import Any

import pytest
import torch
from torch import Tensor

from langmerge.errors import MethodError
from langmerge.methods import METHODS, measures_of

from .conftest import Experts, experts, float64, streamed

ties, dare_ties, linear = METHODS["ties"], METHODS["dare_ties"], METHODS["linear"]
ONE = float64(1.0)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)


def trimmed(tau: Tensor, density: float) -> Tensor:
    """What is left of one task vector: the merge of one source."""
    return ties(torch.zeros_like(tau), tau[None], ONE.to(tau), density=density)


def dropped(tau: Tensor, density: float, **options: Any) -> Tensor:
    """What is left of one task vector, rescaled: the merge of one source."""
    return dare_ties(torch.zeros_like(tau), tau[None], ONE.to(tau), density=density, **options)


def test_ties_by_hand() -> None:
    tau = float64([4, -1, 3, 0.5, 0], [2, -3, -1, 0, 0.5], [-5, 0.2, -4, 0.1, 0.3])
    # Two of five are kept: [4, 0, 3, 0, 0], [2, −3, 0, 0, 0], [−5, 0, −4, 0, 0]. Weights 1, 2, 1.
    # Votes by mass: 4 + 4 − 5 = 3, −6, 3 − 4 = −1, 0, 0, so +, −, −.
    # Means of what agrees: (1·4 + 2·2) / 3 = 8/3, −3, −4, 0, 0.
    base, weights = torch.ones(5, dtype=torch.float64), float64(1, 2, 1)
    found = ties(base, base + tau, weights, density=0.4, scale=0.5)
    close(found, 1 + 0.5 * float64(8 / 3, -3, -4, 0, 0))
    # Votes by number: 1 + 2 − 1 = 2, −2, 1 − 1 = 0: the third is now cancelled.
    counted = ties(base, base + tau, weights, density=0.4, scale=0.5, election="count")
    close(counted, 1 + 0.5 * float64(8 / 3, -3, 0, 0, 0))
    # Undivided, what agrees is summed.
    summed = ties(base, base + tau, weights, density=0.4, normalize=False)
    close(summed, 1 + float64(8, -6, -4, 0, 0))


def test_dare_ties_by_hand() -> None:
    tau = float64([1, 1, -1, 2, 3, 1, 4, -1], [3, 2, 1, 1, -1, 5, -1, -3])
    # Masks of (0, "k", name) at p = 0.5: 00001011 for de-DE, 10111100 for fr-FR. Divided by p:
    #   [0, 0, 0, 0, 6, 0, 8, −2] and [6, 0, 2, 2, −2, 10, 0, 0]. Weights ¼, ¾.
    # Votes: 4.5, 0, 1.5, 1.5, 1.5 − 1.5, 7.5, 2, −0.5; so + 0 + + 0 + + −.
    # Over the weights of those whose τ has that sign, dropped or not: 1, –, ¾, 1, –, 1, ¼, 1.
    base, options = torch.ones(8, dtype=torch.float64), {"key": "k", "sources": ["de-DE", "fr-FR"]}
    found = dare_ties(base, base + tau, float64(0.25, 0.75), scale=0.5, **options)
    close(found, 1 + 0.5 * float64(4.5, 0, 2, 1.5, 0, 7.5, 8, -0.5))
    summed = dare_ties(base, base + tau, float64(0.25, 0.75), normalize=False, **options)
    close(summed, 1 + float64(4.5, 0, 1.5, 1.5, 0, 7.5, 2, -0.5))


def test_ties_that_neither_trims_nor_disagrees_is_linear() -> None:
    base, tuned, weights = experts((6, 5), 4)
    tau = (tuned - base).abs() * torch.randn(6, 5, dtype=torch.float64).sign()
    given = base, base + tau, weights
    for election in ("sum", "count"):
        close(ties(*given, density=1.0, election=election), linear(*given))
        close(dare_ties(*given, density=1.0, election=election), linear(*given))
    assert not torch.allclose(ties(*given, density=0.5), linear(*given))


@pytest.mark.parametrize("density", [0.01, 0.2, 0.29, 0.5, 0.75, 0.999])
@pytest.mark.parametrize("size", [1, 3, 60, 99, 100])
def test_a_share_of_the_entries_is_kept_and_never_none(size: int, density: float) -> None:
    tau = experts((size,), 1).tuned[0]
    result = trimmed(tau, density)
    kept = result != 0
    assert int(kept.sum()) == max(1, int(density * size))
    assert torch.equal(result[kept], tau[kept])
    assert bool(tau[kept].abs().min() >= tau[~kept].abs().max()) if not bool(kept.all()) else True


def test_entries_that_tie_with_the_smallest_kept_are_kept() -> None:
    tau = float64(1, -2, 2, 2, 0, 3)
    assert trimmed(tau, 1 / 3).tolist() == [0, -2, 2, 2, 0, 3]
    assert trimmed(tau, 1 / 6).tolist() == [0, 0, 0, 0, 0, 3]


def test_each_source_is_trimmed_by_itself() -> None:
    tau = float64([1, 2, 3, 4], [10, 40, 20, 30])
    assert ties(torch.zeros_like(tau[0]), tau, float64(1, 3), density=0.5).tolist() == [0, 40, 3, 23.5]


@pytest.mark.parametrize("merge", [ties, dare_ties])
def test_each_source_may_have_its_own_density(merge: Any) -> None:
    tau, base, weights = float64([1, 2, 3, 4], [10, 40, 20, 30]), torch.zeros(4, dtype=torch.float64), [1, 3]
    found = merge(base, tau, float64(*weights), density=[0.25, 1.0], normalize=False)
    first = merge(base, tau[:1], float64(1), density=0.25, normalize=False)
    assert torch.equal(found, first + 3 * tau[1])


def test_what_is_not_divided_is_the_sum_of_what_agrees() -> None:
    base, tuned, weights = experts((6, 5), 3)
    once, thrice = (ties(base, tuned, weights * by, normalize=False) - base for by in (1, 3))
    close(thrice, 3 * once)
    same = torch.stack([tuned[0]] * 3)
    close(ties(base, same, weights * 3, density=1.0, normalize=False), base + 3 * (tuned[0] - base))


def thresholds(*values: float) -> dict[str, Tensor]:
    """What is known of each source: the smallest magnitude kept."""
    return {"thresholds": float64(*values).reshape(-1, 1)}


def test_known_thresholds_decide_instead_of_the_density() -> None:
    tau, base, weights = float64([1, -2, 3, 4], [5, 6, 7, -8]), float64(0, 0, 0, 0), float64(1, 1)
    for density in (0.01, 0.99):
        found = ties(base, tau, weights, density=density, known=thresholds(2, 7))
        # Kept: [0, −2, 3, 4] and [0, 0, 7, −8]; equal to the threshold counts.
        assert found.tolist() == [0, -2, 5, -8]
    matrices = ties(base.reshape(2, 2), tau.reshape(2, 2, 2), weights, known=thresholds(2, 7))
    assert matrices.tolist() == [[0, -2], [5, -8]]
    assert ties(float64(0)[0], tau[:, 0], weights, known=thresholds(2, 5)).item() == 5
    assert ties(base, tau, weights, known=thresholds(torch.inf, torch.inf)).tolist() == [0, 0, 0, 0]


def test_thresholds_of_one_tensor_are_the_density() -> None:
    base, tuned, weights = experts((8, 5), 3)
    smallest = (tuned - base).abs().flatten(1).sort(descending=True).values[:, 11]
    found = ties(base, tuned, weights, known=thresholds(*smallest.tolist()))
    assert torch.equal(found, ties(base, tuned, weights, density=12.1 / 40))


def test_a_chunk_with_known_thresholds_is_a_part_of_the_whole() -> None:
    given = experts((9, 5), 3, dtype=torch.float32)
    measures = measures_of("ties", {"density": 0.3})
    known = streamed(measures, given, 2, density=0.3)
    parts = [ties(one, tuned, given.weights, density=0.3, known=known) for one, tuned in in_rows(given, 4)]
    assert torch.equal(torch.cat(parts), ties(*given, density=0.3))
    # By itself a chunk would keep other entries.
    alone = [ties(one, tuned, given.weights, density=0.3) for one, tuned in in_rows(given, 4)]
    assert not torch.equal(torch.cat(alone), torch.cat(parts))


def test_a_chunk_with_its_offset_has_the_masks_of_the_whole() -> None:
    given = experts((9, 5), 3)
    parts = [
        dare_ties(one, tuned, given.weights, key="x", offset=4 * 5 * i)
        for i, (one, tuned) in enumerate(in_rows(given, 4))
    ]
    assert torch.equal(torch.cat(parts), dare_ties(*given, key="x"))


def in_rows(given: Experts, rows: int) -> list[tuple[Tensor, Tensor]]:
    """Base and experts, a few rows at a time."""
    return list(zip(given.base.split(rows), given.tuned.split(rows, dim=1), strict=True))


def test_a_nan_is_not_below_a_threshold() -> None:
    tau = float64([1, torch.nan, 3])
    assert ties(tau[0] * 0, tau, ONE, known=thresholds(2)).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("merge", [ties, dare_ties])
def test_votes_that_cancel_leave_the_base(merge: Any) -> None:
    base, tau = float64(7, 7), float64([2, 3], [-2, -1], [0, -1])
    assert merge(base, base + tau, float64(1, 1, 1), density=1.0).tolist() == [7, 10]
    assert merge(base, base + tau, float64(1, 1, 2), density=1.0, election="count").tolist() == [7, 6]


def test_division_is_by_the_weights_that_agree() -> None:
    # The first source alone has an entry at 0: it is not diluted by those that have none, or another sign.
    tau = float64([4, 5], [0, 5], [-1, 5])
    found = ties(float64(0, 0), tau, float64(0.2, 0.3, 0.5), density=1.0)
    close(found, float64(4, 5))


def test_a_source_of_weight_zero_has_no_say() -> None:
    base, tuned, weights = experts((6, 5), 3)
    weights[1] = 0
    others = torch.tensor([0, 2])
    close(ties(base, tuned, weights), ties(base, tuned[others], weights[others]))
    names = ["a", "b", "c"]
    without = dare_ties(base, tuned[others], weights[others], sources=["a", "c"])
    close(dare_ties(base, tuned, weights, sources=names), without)


def test_sums_run_in_the_order_of_the_sources() -> None:
    # With signs that agree and weights of one, TIES is a plain sum over 14, so its last bit shows the order.
    tau = experts((101, 99), 14, dtype=torch.float32).tuned.abs()
    total = torch.zeros_like(tau[0])
    for one in tau:
        total += one
    assert torch.equal(ties(torch.zeros_like(total), tau, torch.ones(14), density=1.0), total / 14)
    assert not torch.equal(tau.sum(0), total)


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_dare_keeps_a_share_and_rescales_it(density: float) -> None:
    result = dropped(torch.full((100, 100), 3.0), density)
    assert sorted(result.unique().tolist()) == [0.0, pytest.approx(3 / density)]
    assert float((result != 0).float().mean()) == pytest.approx(density, abs=0.02)


@pytest.mark.parametrize("n", [1, 3])
def test_the_mean_over_seeds_is_the_mean(n: int) -> None:
    # Where all sources agree on the sign; dividing by the survivors would give 1.75 times as much for three of them.
    base, tuned, weights = experts((40,), n)
    tau = (tuned - base).abs() + 0.1
    runs = torch.stack([dare_ties(base * 0, tau, weights, density=0.5, seed=seed) for seed in range(600)])
    error = runs.mean(0) - linear(base, tau, weights)
    assert bool((error.abs() < 5 * runs.std(0) / sqrt(600)).all())
    assert float(error.mean()) == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("density", [0.9, 0.7, 0.5, 0.3, 0.1])
@pytest.mark.parametrize("n", [1, 5])
def test_the_norm_does_not_explode_as_more_is_dropped(n: int, density: float) -> None:
    # N equal sources: E‖τ_m‖² / ‖τ‖² = 1 + (1 − p) / (p N). Dividing by the survivors gives (1 − (1 − p)^N) / p²:
    # 6.4 times the norm for five at p = 0.1, where this is 1.7.
    tau = torch.randn(20_000, generator=torch.Generator().manual_seed(1))
    result = dare_ties(torch.zeros_like(tau), tau.expand(n, -1), torch.full((n,), 1 / n), density=density)
    ratio = float(torch.linalg.vector_norm(result) / torch.linalg.vector_norm(tau))
    assert ratio == pytest.approx(sqrt(1 + (1 - density) / (density * n)), rel=0.03)


def test_dare_does_not_trim() -> None:
    tau = torch.linspace(0.001, 1, 1000)
    kept = dropped(tau, 0.5) != 0
    assert float(kept[:500].float().mean()) == pytest.approx(float(kept[500:].float().mean()), abs=0.05)


def test_masks_are_keyed_by_seed_tensor_and_source() -> None:
    tau = torch.ones(200)
    usual = {"seed": 0, "key": "layer.0", "sources": ["de-DE"]}
    mask = dropped(tau, 0.5, **usual)
    assert torch.equal(mask, dropped(tau, 0.5, **usual))
    for change in ({"seed": 1}, {"key": "layer.1"}, {"sources": ["fr-FR"]}):
        other = dropped(tau, 0.5, **{**usual, **change})
        assert 60 < int((mask != other).sum()) < 140, change
    # No text that joins to the same one.
    assert not torch.equal(
        dropped(tau, 0.5, key="a", sources=["bc"]), dropped(tau, 0.5, key="ab", sources=["c"])
    )


def test_a_larger_share_keeps_what_a_smaller_one_kept() -> None:
    tau = torch.ones(1000)
    shares = [dropped(tau, density) != 0 for density in (0.2, 0.5, 0.8)]
    assert bool((shares[0] <= shares[1]).all())
    assert bool((shares[1] <= shares[2]).all())


def test_names_carry_the_masks_to_another_order() -> None:
    # Dyadic numbers, so that sums are exact in every order: what differs would be the masks.
    generator = torch.Generator().manual_seed(0)
    tau = torch.randint(-8, 9, (3, 12, 10), generator=generator).float()
    base, weights, names, order = (
        torch.zeros(12, 10),
        torch.tensor([0.5, 0.25, 1.0]),
        ["a", "b", "c"],
        [2, 0, 1],
    )
    once = dare_ties(base, tau, weights, key="x", sources=names)
    moved = tau[order], weights[order]
    assert torch.equal(dare_ties(base, *moved, key="x", sources=[names[i] for i in order]), once)
    assert not torch.equal(dare_ties(base, *moved, key="x", sources=names), once)
    assert not torch.equal(dare_ties(base, *moved, key="x"), once)


def test_a_mask_does_not_depend_on_the_other_sources() -> None:
    base, tuned, _ = experts((50,), 3)
    for place, name in enumerate(("a", "b", "c")):
        weights = torch.zeros(3, dtype=torch.float64)
        weights[place] = 1
        together = dare_ties(base, tuned, weights, sources=["a", "b", "c"])
        close(together, base + dropped((tuned - base)[place], 0.5, sources=[name]))


def test_every_source_needs_a_name() -> None:
    with pytest.raises(MethodError, match=r"^1 source names were given for 3 sources$"):
        dare_ties(*experts((3, 4), 3), sources=["a"])


@pytest.mark.parametrize("density", [0.0, -0.5, 1.5, float("nan")])
@pytest.mark.parametrize("name", ["ties", "dare_ties"])
def test_a_density_is_a_share_above_zero(name: str, density: float) -> None:
    with pytest.raises(MethodError, match=rf"{name}: density is {density}, it must lie in \(0, 1\]"):
        METHODS[name](*experts(), density=density)


@pytest.mark.parametrize("name", ["ties", "dare_ties"])
def test_negative_weights_cannot_elect(name: str) -> None:
    base, tuned, _ = experts()
    message = rf"{name}: weights \[1\.0, -0\.5\] include a negative one$"
    with pytest.raises(MethodError, match=message):
        METHODS[name](base, tuned, float64(1, -0.5))


@pytest.mark.parametrize("name", ["ties", "dare_ties"])
def test_there_are_two_elections(name: str) -> None:
    with pytest.raises(MethodError, match=rf"{name}: election is 'mass', it must be 'sum' or 'count'"):
        METHODS[name](*experts(), election="mass")
