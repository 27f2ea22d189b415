"""DARE, DELLA and Breadcrumbs."""

from math import sqrt
from typing import Any

import pytest
import torch
from torch import Tensor

from langmerge.errors import MethodError
from langmerge.methods import METHODS, checked_parameters, measures_of
from langmerge.methods.measures import measured
from langmerge.methods.sparse import keep_probabilities

from .conftest import Experts, experts, float64, streamed
from .references_selection import crumbs_by_rank

dare_linear, della_linear, della_ties = (METHODS[n] for n in ("dare_linear", "della_linear", "della_ties"))
breadcrumbs, breadcrumbs_ties = METHODS["breadcrumbs"], METHODS["breadcrumbs_ties"]
task_arithmetic, ties, dare_ties = (METHODS[n] for n in ("task_arithmetic", "ties", "dare_ties"))
ONE = float64(1.0)
KEYED = {"key": "k", "sources": ["de-DE", "fr-FR"]}
# Made with mergekit 0.1.5: a base of [[½, −1, 2, ¼, −¾, 1½], [−2, ⅛, 1, −½, ¾, −1¼]], these deltas and weights,
# merge_group() of the registered method with rescale off, float32; what is written out is result − base.
DELTAS = [
    [[1.0, -2.5, 0.5, 3.0, -0.25, 1.75], [-0.125, 2.0, -1.25, 0.75, -4.0, 2.25]],
    [[0.75, 1.5, -1.0, 2.75, 0.375, -3.5], [2.0, -0.5, -1.75, 0.25, -3.0, 1.25]],
    [[-1.5, 0.25, 2.25, -0.625, 3.25, 1.0], [-2.75, 0.875, -0.375, 1.125, 4.5, -2.0]],
]
WEIGHTS = [0.5, 0.25, 1.0]


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-13) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def left_of(name: str, tau: Tensor, **parameters: Any) -> Tensor:
    """What is left of one task vector: the merge of one source."""
    return METHODS[name](torch.zeros_like(tau), tau[None], ONE.to(tau), **parameters)


def by_mergekit(name: str, **parameters: Any) -> Tensor:
    """The method here on the example that mergekit merged."""
    tau = float64(*DELTAS)
    return METHODS[name](torch.zeros_like(tau[0]), tau, float64(*WEIGHTS), **parameters)


def test_dare_linear_by_hand() -> None:
    tau = float64([1, 1, -1, 2, 3, 1, 4, -1], [3, 2, 1, 1, -1, 5, -1, -3])
    # Masks of (0, "k", name) at p = 0.5: 00001011 for de-DE, 10111100 for fr-FR. Divided by p:
    #   [0, 0, 0, 0, 6, 0, 8, −2] and [6, 0, 2, 2, −2, 10, 0, 0]. Weights ½, 1½.
    base, weights = torch.ones(8, dtype=torch.float64), float64(0.5, 1.5)
    found = dare_linear(base, base + tau, weights, scale=0.5, **KEYED)
    close(found, 1 + 0.5 * float64(9, 0, 3, 3, 0, 15, 4, -1))
    normal = dare_linear(base, base + tau, weights, normalize=True, **KEYED)
    close(normal, 1 + float64(4.5, 0, 1.5, 1.5, 0, 7.5, 2, -0.5))


def test_dare_linear_has_the_masks_of_dare_ties() -> None:
    base, tuned, _ = experts((40,), 1)
    close(dare_linear(base, tuned, ONE, density=0.3), dare_ties(base, tuned, ONE, density=0.3))


def test_the_mean_over_seeds_is_task_arithmetic() -> None:
    given = experts((4, 10), 3)
    for parameters in ({"density": 0.5}, {"density": [0.9, 0.5, 0.3]}):
        runs = torch.stack([dare_linear(*given, seed=seed, **parameters) for seed in range(250)])
        error = runs.mean(0) - task_arithmetic(*given)
        assert bool((error.abs() < 5 * runs.std(0) / sqrt(250)).all())


@pytest.mark.parametrize("name", ["dare_linear", "della_linear", "breadcrumbs"])
def test_to_normalise_is_to_give_weights_that_sum_to_one(name: str) -> None:
    base, tuned, weights = experts((6, 5), 3)
    normal = METHODS[name](base, tuned, weights * 4, normalize=True)
    close(normal, METHODS[name](base, tuned, weights))
    opposed = float64(1, -1, 0)
    assert METHODS[name](base, tuned, opposed).isfinite().all()
    with pytest.raises(MethodError, match="sum to zero, so they cannot be normalised"):
        METHODS[name](base, tuned, opposed, normalize=True)


def test_keep_probabilities_by_hand() -> None:
    # Ranks 2, 1, 3 and, by position where magnitudes are equal, 1, 3, 2: ¼, ½, ¾ from the smallest to the largest.
    tau = float64([-2, 1, 3], [0.5, -4, 0.5])
    close(keep_probabilities(tau, 0.5, 0.25), float64([0.5, 0.25, 0.75], [0.25, 0.75, 0.5]))
    # A vector is one row, and so is what lies behind the first axis.
    close(keep_probabilities(tau[0], 0.5, 0.25), float64(0.5, 0.25, 0.75))
    pages = keep_probabilities(tau[:, :, None], 0.5, 0.25)
    close(pages[:, :, 0], keep_probabilities(tau, 0.5, 0.25))


@pytest.mark.parametrize("shape", [(), (1,), (3, 1), (2, 1, 1)], ids=str)
def test_a_row_of_one_entry_has_the_mean_probability(shape: tuple[int, ...]) -> None:
    assert keep_probabilities(torch.ones(shape), 0.4, 0.3).flatten().unique().tolist() == [0.4]


def test_keep_probabilities_of_mergekit() -> None:
    # The argument that della_magprune(DELTAS[0], 0.5, 0.25) gives to torch.bernoulli.
    expected = [[0.45, 0.65, 0.35, 0.75, 0.25, 0.55], [0.25, 0.55, 0.45, 0.35, 0.75, 0.65]]
    close(keep_probabilities(float64(*DELTAS[0]), 0.5, 0.25), float64(*expected))


TAU = [[[1, -3, 2, 4], [4, -1, 3, 2]], [[2, 1, -4, 3], [1, 2, 3, 4]]]


def test_della_by_hand() -> None:
    # p = 0.5, ε = 0.3: 0.2, 0.4, 0.6, 0.8 from the smallest to the largest of a row. Numbers drawn for (0, "k", name):
    #   de-DE 0.971 0.553 0.534 0.724, 0.111 0.904 0.004 0.422; fr-FR 0.452 0.595 0.456 0.115, 0.249 0.190 0.785 0.825
    # against de-DE 0.2 0.6 0.4 0.8, 0.8 0.2 0.6 0.4; fr-FR 0.4 0.2 0.8 0.6, 0.2 0.4 0.6 0.8:
    #   kept and divided, [0, −5, 0, 5], [5, 0, 5, 0] and [0, 0, −5, 5], [0, 5, 0, 0]. Weights ¼, ¾.
    tau = float64(*TAU)
    base = torch.ones_like(tau[0])
    given = base, base + tau, float64(0.25, 0.75)
    summed = della_linear(*given, epsilon=0.3, scale=0.5, **KEYED)
    close(summed, 1 + 0.5 * float64([0, -1.25, -3.75, 5], [1.25, 3.75, 1.25, 0]))
    # Over the weights of those whose τ has the elected sign: ¼, ¾, 1 in the first row, 1, ¾, 1 in the second.
    elected = della_ties(*given, epsilon=0.3, scale=0.5, **KEYED)
    close(elected, 1 + 0.5 * float64([0, -5, -5, 5], [1.25, 5, 1.25, 0]))
    undivided = della_ties(*given, epsilon=0.3, normalize=False, **KEYED)
    close(undivided, 1 + float64([0, -1.25, -3.75, 5], [1.25, 3.75, 1.25, 0]))


def test_without_a_window_della_is_dare() -> None:
    given = experts((6, 5), 3)
    for density in (0.3, [0.2, 0.5, 1.0]):
        close(della_linear(*given, density=density, epsilon=0.0), dare_linear(*given, density=density))
        close(della_ties(*given, density=density, epsilon=0.0), dare_ties(*given, density=density))


def test_each_source_may_have_its_own_window() -> None:
    base, tuned, weights = experts((6, 5), 2)
    options = {"density": [0.5, 0.8], "epsilon": [0.4, 0.1]}
    found = della_linear(base, tuned, weights, sources=["a", "b"], **options)
    alone = [
        della_linear(base, tuned[[i]], weights[[i]], density=p, epsilon=e, sources=[s]) - base
        for i, (p, e, s) in enumerate([(0.5, 0.4, "a"), (0.8, 0.1, "b")])
    ]
    close(found, base + alone[0] + alone[1])


@pytest.mark.parametrize("epsilon", [0.1, 0.45])
def test_the_mean_of_della_over_seeds_is_task_arithmetic(epsilon: float) -> None:
    given = experts((3, 8), 2)
    runs = torch.stack([della_linear(*given, epsilon=epsilon, seed=seed) for seed in range(400)])
    error = runs.mean(0) - task_arithmetic(*given)
    assert bool((error.abs() < 5 * runs.std(0) / sqrt(400)).all())


def test_della_keeps_large_entries_more_often() -> None:
    tau = experts((400, 100), 1).tuned[0]
    left = left_of("della_linear", tau, density=0.5, epsilon=0.4)
    places = tau.abs().argsort(1).argsort(1)
    for low, high in ((0, 10), (45, 55), (90, 100)):
        chosen = (places >= low) & (places < high)
        expected = 0.1 + 0.8 * (low + high - 1) / 2 / 99
        assert float((left[chosen] != 0).double().mean()) == pytest.approx(expected, abs=0.04)
    assert float((left != 0).double().mean()) == pytest.approx(0.5, abs=0.02)


def test_a_chunk_of_rows_is_a_part_of_della() -> None:
    base, tuned, weights = experts((7, 5), 2)
    parts = [
        della_ties(base[i : i + 3], tuned[:, i : i + 3], weights, key="x", offset=5 * i)
        for i in range(0, 7, 3)
    ]
    assert torch.equal(torch.cat(parts), della_ties(base, tuned, weights, key="x"))
    assert not torch.equal(
        della_ties(base[3:], tuned[:, 3:], weights, key="x"), della_ties(base, tuned, weights, key="x")[3:]
    )


@pytest.mark.parametrize(
    ("density", "epsilon", "low", "high"),
    [
        (0.9, 0.15, 0.75, 1.05),
        (0.15, 0.15, 0, 0.3),
        (0.1, 0.15, -0.05, 0.25),
        ([0.5, 0.9], [0.1, 0.2], 0.7, 1.1),
    ],
)
@pytest.mark.parametrize("name", ["della_linear", "della_ties"])
def test_keep_probabilities_are_probabilities(
    name: str, density: Any, epsilon: Any, low: float, high: float
) -> None:
    p, half = (one[1] if isinstance(one, list) else one for one in (density, epsilon))
    message = (
        rf"^{name}: density {p} and epsilon {half} give keep probabilities from {low} to {high}, "
        r"they must lie in \(0, 1\]: lower epsilon$"
    )
    with pytest.raises(MethodError, match=message):
        METHODS[name](*experts(), density=density, epsilon=epsilon)
    with pytest.raises(MethodError, match=message):
        checked_parameters(name, {"density": density, "epsilon": epsilon})


def test_the_edge_of_the_window() -> None:
    assert checked_parameters("della_ties", {"density": 0.85})["epsilon"] == 0.15
    assert left_of("della_linear", float64(1, 2, 3), density=0.85, epsilon=0.15)[2] in (0.0, 3.0)


def test_breadcrumbs_by_hand() -> None:
    tau = float64([4, -1, 3, 0.5, 0], [2, -3, -1, 0, 0.5])
    # One outlier of five is dropped, then two are kept: [0, −1, 3, 0, 0], [2, 0, −1, 0, 0]. Weights 1, 2.
    base, weights = torch.ones(5, dtype=torch.float64), float64(1, 2)
    given = base, base + tau, weights
    found = breadcrumbs(*given, density=0.4, gamma=0.2, scale=0.5)
    close(found, 1 + 0.5 * float64(4, -1, 1, 0, 0))
    # Votes 4, −1, 3 − 2: each entry is of one source.
    elected = breadcrumbs_ties(*given, density=0.4, gamma=0.2)
    close(elected, 1 + float64(2, -1, 3, 0, 0))
    # Votes by weight: 2, −1, 1 − 2.
    counted = breadcrumbs_ties(*given, density=0.4, gamma=0.2, election="count", normalize=False)
    close(counted, 1 + float64(4, -1, -2, 0, 0))


@pytest.mark.parametrize("gamma", [0.0, 0.01, 0.3, 0.99])
@pytest.mark.parametrize("density", [0.01, 0.2, 0.5, 0.9, 0.995, 1.0])
@pytest.mark.parametrize("size", [1, 3, 60, 99, 100, 1000])
def test_the_share_is_kept_in_a_tensor_of_any_size(size: int, density: float, gamma: float) -> None:
    tau = experts((size,), 1).tuned[0]
    keep = max(1, int(density * size))
    outliers = min(int(gamma * size), size - keep)
    expected = crumbs_by_rank(tau.numpy(), keep, outliers)
    found = left_of("breadcrumbs", tau, density=density, gamma=gamma)
    assert found.tolist() == expected.tolist()
    assert int((found != 0).sum()) == keep


def test_without_outliers_breadcrumbs_trims() -> None:
    given = experts((6, 5), 3)
    assert torch.equal(breadcrumbs_ties(*given, density=0.3, gamma=0.0), ties(*given, density=0.3))
    assert not torch.equal(breadcrumbs_ties(*given, density=0.3, gamma=0.2), ties(*given, density=0.3))


def test_fewer_outliers_are_dropped_where_the_density_needs_them() -> None:
    tau = float64(1, 2, 3, 4, 5)
    assert left_of("breadcrumbs", tau, density=0.8, gamma=0.4).tolist() == [1, 2, 3, 4, 0]
    assert left_of("breadcrumbs", tau, density=1.0, gamma=0.4).tolist() == [1, 2, 3, 4, 5]


def test_entries_that_tie_with_a_threshold_are_kept() -> None:
    tau = float64(5, -4, 4, 3, 2, -2, 2, 1, 0, 0)
    # Two outliers and four kept would be 5, −4 | 4, 3, 2, −2 | 2, 1, 0, 0.
    assert left_of("breadcrumbs", tau, density=0.4, gamma=0.2).tolist() == [0, -4, 4, 3, 2, -2, 2, 0, 0, 0]
    assert left_of("breadcrumbs", torch.full((9,), 2.0), density=0.3, gamma=0.3).tolist() == [2] * 9


def test_an_outlier_that_is_infinite_or_nan_still_shows() -> None:
    tau = float64(1, 2, torch.inf, torch.nan, 3, 4, 5, 6)
    found = left_of("breadcrumbs", tau, density=0.5, gamma=0.4)
    assert found[:2].tolist() == [0, 2]
    assert not bool(found[2:4].isfinite().any())


def test_each_source_may_have_its_own_share() -> None:
    tau = float64([1, 2, 3, 4], [10, 20, 30, 40])
    base, weights = torch.zeros(4, dtype=torch.float64), float64(1, 1)
    found = breadcrumbs(base, tau, weights, density=[0.5, 1.0], gamma=[0.25, 0.75])
    assert found.tolist() == [10, 22, 33, 40]
    assert breadcrumbs(base, tau, weights, density=0.5, gamma=[0.0, 0.5]).tolist() == [10, 20, 3, 4]


@pytest.mark.parametrize("shape", [(70_001,), (300, 211)], ids=str)
def test_a_streamed_window_is_the_whole_one(shape: tuple[int, ...]) -> None:
    given = experts(shape, 2, dtype=torch.float32)
    options = {"density": [0.6, 0.3], "gamma": 0.02}
    measures = measures_of("breadcrumbs", options)
    known = streamed(measures, given, shape[0] // 3, **options)
    assert torch.equal(known["window"], measured(measures, *given, **options)["window"])
    half = Experts(given.base[:100], given.tuned[:, :100], given.weights)
    part = breadcrumbs_ties(*half, known=known, **options)
    assert torch.equal(part, breadcrumbs_ties(*given, **options)[:100])


def test_nothing_is_measured_where_nothing_is_dropped() -> None:
    for name in ("breadcrumbs", "breadcrumbs_ties"):
        assert measures_of(name, {"density": 1.0, "gamma": 0.5}) == ()
        assert len(measures_of(name, {"density": [1.0, 0.9], "gamma": 0.5})) == 1


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        (
            "breadcrumbs",
            {"density": 0.5, "gamma": 0.2},
            [[-1.0, -0.875, 2.0, 0.6875, 0.0, 1.875], [-2.25, 1.0, -1.0625, 1.125, 0.0, -0.5625]],
        ),
        (
            "breadcrumbs",
            {"density": 0.5, "gamma": 0.2, "normalize": True},
            [
                [-0.5714286, -0.5, 1.1428571, 0.3928571, 0.0, 1.0714285],
                [-1.2857141, 0.5714286, -0.6071429, 0.6428571, 0.0, -0.3214285],
            ],
        ),
        (
            "breadcrumbs",
            {"density": 0.8, "gamma": 0.5},
            [
                [-0.8125, 0.625, 2.25, -0.625, -0.03125, 1.875],
                [0.4375, 1.75, -1.4375, 1.5625, 0.0, -0.5625],
            ],
        ),
        (
            "breadcrumbs_ties",
            {"density": 0.5, "gamma": 0.2},
            [[-1.5, -2.5, 2.25, 2.75, 0.0, 1.25], [-2.75, 2.0, -1.4166666, 1.125, 0.0, -2.0]],
        ),
        (
            "breadcrumbs_ties",
            {"density": 0.5, "gamma": 0.2, "normalize": False},
            [[-1.5, -1.25, 2.25, 0.6875, 0.0, 1.875], [-2.75, 1.0, -1.0625, 1.125, 0.0, -2.0]],
        ),
    ],
)
def test_breadcrumbs_of_mergekit(name: str, options: dict[str, Any], expected: list[list[float]]) -> None:
    close(by_mergekit(name, **options), float64(*expected), 3e-7)
