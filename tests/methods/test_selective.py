"""Consensus masks, PCB and SCE."""

from math import exp
from typing import Any

import pytest
import torch
from torch import Tensor

from langmerge.methods import METHODS, measures_of
from langmerge.methods.measures import measured
from langmerge.methods.selective import competition, variance

from .conftest import Experts, experts, float64, streamed
from .references_selection import consensus_by_its_authors, pcb_by_its_authors, sce_by_its_authors
from .test_sparse import DELTAS

consensus, pcb, sce = METHODS["consensus"], METHODS["pcb"], METHODS["sce"]
task_arithmetic, ties = METHODS["task_arithmetic"], METHODS["ties"]


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-13) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def merged(name: str, tau: Tensor, *weights: float, **parameters: Any) -> Tensor:
    """The merged task vector: the merge around a base of zeros."""
    given = torch.tensor(weights or [1.0] * len(tau), dtype=tau.dtype)
    return METHODS[name](torch.zeros_like(tau[0]), tau, given, **parameters)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [4, 0, 0, 0]),
        ({"k": 1}, [4, 2, 0, 0.5]),
        # Two is all the sources there are.
        ({"k": 7}, [4, 0, 0, 0]),
        ({"k": 1, "lambda_": 2.0}, [0, 2, 0, 0.5]),
        ({"lambda_": 0.3}, [4, 2, 0, 0]),
    ],
)
def test_consensus_by_hand(options: dict[str, Any], expected: list[float]) -> None:
    tau, base = float64([4, 1, -2, 0], [4, 3, 2, 1]), float64(9, 9, 9, 9)
    # w τ = [2, ½, −1, 0] and [2, 1½, 1, ½], so τ_m = [4, 2, 0, ½], and each has the other as the rest.
    # At λ = ½: 2 ≥ 1, ½ < ¾, 1 ≥ ½ and zero; 2 ≥ 1, 1½ ≥ ¼, 1 ≥ ½, ½ ≥ 0: used by 2, 1, 2, 1.
    # At λ = 2: 2 < 4, ½ < 3, 1 < 2 and zero; 2 < 4, 1½ ≥ 1, 1 < 2, ½ ≥ 0: by 0, 1, 0, 1. At λ = 0.3: ½ ≥ 0.45.
    found = consensus(base, base + tau, float64(0.5, 0.5), **{"lambda_": 0.5, "scale": 0.5} | options)
    close(found, 9 + 0.5 * float64(*expected))


@pytest.mark.parametrize("lambda_", [0.2, 0.4, 1.0])
@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_consensus_of_its_authors(k: int, lambda_: float) -> None:
    tau = experts((300,), 5).tuned
    expected = consensus_by_its_authors(tau.numpy(), k, lambda_)
    close(merged("consensus", tau, k=k, lambda_=lambda_), torch.as_tensor(expected))
    # Equal weights of any size make the same masks.
    close(merged("consensus", tau, *[0.2] * 5, k=k, lambda_=lambda_), torch.as_tensor(expected) / 5)


def test_where_every_entry_is_used_consensus_is_task_arithmetic() -> None:
    given = experts((6, 5), 3)
    close(consensus(*given, k=1, lambda_=0.0), task_arithmetic(*given))
    close(consensus(*given, k=3, lambda_=0.0), task_arithmetic(*given))
    assert not torch.allclose(consensus(*given), task_arithmetic(*given))


def test_deviation_an_unchanged_entry_is_not_used() -> None:
    tau = float64([1, 1], [0, 1], [0, 1])
    assert consensus_by_its_authors(tau.numpy(), 2, 0.0).tolist() == [1, 3]
    assert merged("consensus", tau, k=2, lambda_=0.0).tolist() == [0, 3]


@pytest.mark.parametrize(("name", "options"), [("consensus", {}), ("pcb", {}), ("sce", {"topk": 0.5})])
def test_a_source_of_weight_zero_has_no_say(name: str, options: dict[str, Any]) -> None:
    base, tuned, weights = experts((6, 5), 3)
    weights[1] = 0
    others = torch.tensor([0, 2])
    found = METHODS[name](base, tuned, weights, **options)
    close(found, METHODS[name](base, tuned[others], weights[others], **options))
    alone = METHODS["consensus"](base, tuned, float64(0, 1, 0))
    close(alone, tuned[1])


def test_pcb_by_hand() -> None:
    tau = float64([2, 1, 0], [3, -1, 4])
    # |τ_1| from 0 to 2 is 1, ½, 0; |τ_2| from 1 to 4 is ⅔, 0, 1; Σ τ = 5, 0, 4; tanh of 10 and more is 1.
    # β_1 = e², 0, 0 and β_2 = e^(8/9), 0, e². The smallest kept at ratio 1 are 0 and 0:
    # β̂_1 = 1, ~0, ~0 and β̂_2 = e^(−10/9), ~0, 1, with ~0 equal weights where nothing else is left. Weights 1, 3.
    other = 3 * exp(-10 / 9)
    expected = float64((2 + other * 3) / (1 + other), (1 - 3) / 4, 4)
    base = torch.ones_like(expected)
    close(pcb(base, base + tau, float64(1, 3), ratio=1.0, scale=0.5), 1 + 0.5 * expected, 1e-8)
    # A third is one entry of each: 2 of the first source, 4 of the second.
    close(pcb(base, base + tau, float64(1, 3), ratio=0.34), 1 + float64(2, 0, 4))


@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.5])
def test_pcb_of_its_authors(ratio: float) -> None:
    # 10,000 entries: the largest is clamped to the next one, and so is the smallest.
    tau = 0.1 * experts((100, 100), 3).tuned
    flat = tau.flatten(1).numpy()
    expected = pcb_by_its_authors(flat, ratio, last=int(10_000 * (1 - 1e-4) - 1))
    found = merged("pcb", tau, ratio=ratio).flatten()
    # Their weight of the entry at the threshold is 0, and its mean of one 0; here it is that entry.
    at_threshold = (found != 0) & (torch.as_tensor(expected) == 0)
    assert int(at_threshold.sum()) <= 3
    assert int((found != 0).sum()) > 10_000 * ratio
    close(torch.where(at_threshold, 0.0, found), torch.as_tensor(expected), 1e-9)
    quarters = merged("pcb", tau, 0.25, 0.25, 0.25, ratio=ratio).flatten()
    close(quarters, found)


def test_pcb_of_its_authors_on_few_entries() -> None:
    tau = 0.1 * experts((50,), 4).tuned
    expected = pcb_by_its_authors(tau.numpy(), 0.4, last=49)
    found = merged("pcb", tau, ratio=0.4)
    chosen = torch.as_tensor(expected != 0)
    close(found[chosen], torch.as_tensor(expected)[chosen], 1e-9)
    assert int(((found != 0) & ~chosen).sum()) <= 4


def test_deviation_pcb_clamps_no_entry_of_a_few() -> None:
    # Their place of the largest left is one lower: here 100 would be clamped to 3.
    tau = float64([1, 2, 3, 100])
    assert merged("pcb", tau, ratio=1.0).tolist() == [1, 2, 3, 100]
    theirs = pcb_by_its_authors(tau.numpy(), 1.0, last=int(4 * (1 - 1e-4) - 1))
    assert theirs.tolist() == [0, 2, 3, 3]


def test_pcb_clamps_one_entry_in_ten_thousand() -> None:
    tau = torch.linspace(0.1, 1, 20_000, dtype=torch.float64)
    tau[[3, 11]], tau[[7, 13]] = float64(-100, 50), float64(1e-9, -1e-12)
    rest = torch.cat([tau[:3], tau[4:7], tau[8:11], tau[12:13], tau[14:]])
    found = merged("pcb", tau[None], ratio=1.0)
    assert found[[3, 11]].tolist() == [-float(rest.max()), float(rest.max())]
    assert found[[7, 13]].tolist() == [float(rest.min()), -float(rest.min())]
    assert torch.equal(found[[0, 5, 19_999]], tau[[0, 5, 19_999]])


def test_one_entry_in_ten_thousand_that_is_infinite_still_shows() -> None:
    tau = torch.linspace(0.1, 1, 20_000, dtype=torch.float64)
    tau[5] = torch.inf
    found = merged("pcb", torch.stack([tau, tau + 1]), ratio=0.5)
    assert not bool(found[5].isfinite())


def test_entries_that_disagree_lose_the_competition() -> None:
    tau = float64([1, 2, -3], [1, -2.5, -3])
    # At the second entry Σ τ is negative, so the first source's score is: it is the first to be dropped.
    scores = competition(tau[0] * 0, tau, float64(1, 1), {"bounds": float64([3, 1], [3, 1])})
    assert (scores > 0).tolist() == [[True, False, True], [True, True, True]]
    # So the second source's entry is merged alone.
    assert merged("pcb", tau, ratio=0.67).tolist() == [1, -2.5, -3]


@pytest.mark.parametrize(
    ("tau", "expected"),
    [
        ([[0.5]], [0.5]),
        ([[2], [1]], [1.5]),
        ([[2, 2, 2]], [2, 2, 2]),
        ([[3, -3]], [3, -3]),
        ([[0, 0]], [0, 0]),
    ],
    ids=str,
)
def test_equal_scores_are_no_division_by_zero(tau: list[list[float]], expected: list[float]) -> None:
    assert merged("pcb", float64(*tau)).tolist() == expected


def test_pcb_measures_once_and_streams() -> None:
    given = experts((210, 101), 3, dtype=torch.float32)
    measures = measures_of("pcb", {"ratio": 0.1})
    whole = measured(measures, *given, ratio=0.1)
    known = streamed(measures, given, 64, ratio=0.1)
    assert torch.equal(known["bounds"], whole["bounds"])
    assert torch.equal(known["scores"], whole["scores"])
    flat = given.base.flatten(), given.tuned.flatten(1)
    part = pcb(flat[0][5000:9000], flat[1][:, 5000:9000], given.weights, known=known)
    assert torch.equal(part, pcb(*given).flatten()[5000:9000])


def test_sce_by_hand() -> None:
    tau = float64([4, 1, 0, 1, -1], [1, 1, 4, 3, 2])
    # Variances 2¼, 0, 4, 1, 2¼ about the mean: of four above zero, half are two, and a tie is a third:
    # δ_1 = [4, 0, 0, 0, −1], δ_2 = [1, 0, 4, 0, 2], energies 17 and 21. Weights 2, 1: η = 34, 21.
    # Votes 9, 0, 4, 0, −2 + 2: (34·4 + 21·1) / 55, –, 4, –, cancelled.
    base = torch.ones(5, dtype=torch.float64)
    found = sce(base, base + tau, float64(2, 1), topk=0.5, scale=0.5)
    close(found, 1 + 0.5 * float64(157 / 55, 0, 4, 0, 0))
    # With the weights 1, 1 the last goes to the second source, whose mass is larger.
    close(sce(base, base + tau, float64(1, 1), topk=0.5), 1 + float64((17 * 4 + 21) / 38, 0, 4, 0, 2))


def test_the_minority_is_erased_by_mass_and_not_by_energy() -> None:
    # The first source has nearly all the energy, but not at the second entry.
    tau = float64([100, 1], [-1, -2], [-1, -2])
    close(merged("sce", tau, topk=1.0), float64(100, -2))


@pytest.mark.parametrize("topk", [0.1, 0.37, 1.0])
def test_sce_of_its_authors(topk: float) -> None:
    tau = experts((200,), 5).tuned
    expected = sce_by_its_authors(tau.numpy(), int(topk * 200))
    close(merged("sce", tau, topk=topk), torch.as_tensor(expected))
    close(merged("sce", tau, *[0.3] * 5, topk=topk), torch.as_tensor(expected))


# Made with mergekit 0.1.5: the registered method's merge_group(), select_topk as given, float32; see test_sparse.
SCE = {
    1.0: [
        [0.882236, -2.5, 1.4316587, 2.882236, 1.9881394, -3.5],
        [-1.5224881, 1.4010766, -1.0681317, 0.7439414, -3.5289443, 1.7789444],
    ],
    0.5: [
        [0.0, -2.5, 0.0, 2.8795478, 0.0, -3.4999998],
        [-1.3268547, 0.0, 0.0, 0.0, -3.5181911, 1.7681912],
    ],
    0.2: [[0.0, 0.0, 0.0, 0.0, 0.0, -3.5], [0.0, 0.0, 0.0, 0.0, -3.4728682, 0.0]],
}


@pytest.mark.parametrize("topk", SCE)
def test_sce_of_mergekit(topk: float) -> None:
    close(merged("sce", float64(*DELTAS), topk=topk), float64(*SCE[topk]), 3e-7)


def test_deviation_mergekit_gives_small_deltas_equal_coefficients() -> None:
    # Deltas of a millionth: here the energies decide as before.
    tau = float64(*DELTAS)
    close(merged("sce", 1e-6 * tau, topk=0.5), 1e-6 * merged("sce", tau, topk=0.5), 1e-18)


@pytest.mark.parametrize(
    ("topk", "selected"), [(0.0, 0), (0.01, 1), (0.2, 1), (0.5, 4), (0.999, 7), (1.0, 10)]
)
def test_the_share_is_of_the_entries_that_vary(topk: float, selected: int) -> None:
    # Ten entries, of which the sources agree on two.
    tau = experts((10,), 3).tuned
    tau[:, [2, 5]] = 0.1
    assert int((merged("sce", tau, topk=topk) != 0).sum()) == selected


def test_equal_numbers_have_no_variance_to_the_bit() -> None:
    # The mean of n equal numbers is not always that number.
    tau = experts((500,), 1).tuned.expand(7, -1)
    assert bool((tau[0] != (tau / 7).sum(0)).any())
    assert not bool(variance(tau[0] * 0, tau, torch.ones(7, dtype=torch.float64), {}).any())


def test_what_does_not_vary_is_merged_only_as_a_whole() -> None:
    tau = float64([1, 2, 3], [1, 2, 3])
    assert merged("sce", tau, topk=0.9).tolist() == [0, 0, 0]
    assert merged("sce", tau, topk=1.0).tolist() == [1, 2, 3]
    assert merged("sce", tau[:1], topk=0.9).tolist() == [0, 0, 0]


def test_a_common_move_of_all_sources_has_no_variance() -> None:
    base, tuned, weights = experts((300,), 4)
    before = variance(base, tuned, weights, {})
    close(variance(base, tuned + 5, weights, {}), before, 1e-12)
    close(before[0], (tuned - base).var(0, correction=0))


def test_sce_measures_once_and_streams() -> None:
    given = experts((210, 101), 3, dtype=torch.float32)
    given.tuned[:, 3:50] = given.base[3:50]
    measures = measures_of("sce", {"topk": 0.1})
    whole = measured(measures, *given, topk=0.1)
    known = streamed(measures, given, 64, topk=0.1)
    assert int(known["varying"]) == int(whole["varying"]) == 163 * 101
    assert torch.equal(known["variance"], whole["variance"])
    close(known["energy"], whole["energy"])
    part = Experts(given.base[50:90], given.tuned[:, 50:90], given.weights)
    assert torch.equal(sce(*part, known=whole), sce(*given)[50:90])


def test_without_a_selection_only_energies_are_measured() -> None:
    assert len(measures_of("sce", {"topk": 0.5})) == 3
    assert len(measures_of("sce", {"topk": 1.0})) == 1
