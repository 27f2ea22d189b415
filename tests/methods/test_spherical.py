"""Multi-slerp, the Karcher mean, Model Stock, and what all methods on a sphere share."""

from collections.abc import Mapping
from itertools import pairwise
from math import cos, pi, sin, sqrt
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from langmerge.errors import MethodError
from langmerge.methods import METHODS, checked_parameters, measures_of
from langmerge.methods.measures import measured

from .conftest import experts, float64, streamed
from .mergekit_vectors import BASE, TAU, result

slerp, nuslerp, multislerp, karcher, model_stock = (
    METHODS[name] for name in ("slerp", "nuslerp", "multislerp", "karcher", "model_stock")
)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-13) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_multislerp_by_hand() -> None:
    # Directions [1, 0] and [0, 1], norms 3 and 4: ¼·3 + ¾·4 along [¼, ¾].
    given = float64(7, 7), float64([3, 0], [0, 4])
    expected = 3.75 * float64(0.25, 0.75) / sqrt(0.625)
    close(multislerp(*given, float64(0.25, 0.75)), expected)
    close(multislerp(*given, float64(1, 3)), expected)
    # Undivided, Σ w n is 15.
    close(multislerp(*given, float64(1, 3), normalize=False), 4 * expected)


def test_karcher_by_hand() -> None:
    # Two directions at a right angle: their mean by ⅔ and ⅓ is at 30° from the first; norm ⅔·3 + ⅓·6.
    found = karcher(float64(7, 7), float64([3, 0], [0, 6]), float64(2, 1))
    close(found, float64(2 * sqrt(3), 2), 1e-9)


def test_a_zero_delta_makes_the_way_straight() -> None:
    # As where a source left a tensor as it was: half of the other's change, and not sin 45° of it.
    base, tuned, _ = experts((6, 5))
    tuned[0] = base
    for method in (slerp, nuslerp, multislerp, karcher):
        found = method(base, tuned, float64(0.5, 0.5), about="base")
        close(found, (base + tuned[1]) / 2)


def test_model_stock_by_hand() -> None:
    # cos φ = 15 / (5·5) = 0.6, t = 2·0.6 / 1.6 = ¾.
    base, tau = float64(10, 20), float64([5, 0], [3, 4])
    close(model_stock(base, base + tau, float64(1, 1)), base + 0.75 * float64(4, 2))
    close(model_stock(base, base + tau, float64(3, 1)), base + 0.75 * float64(4.5, 1))


def test_model_stock_by_rows_by_hand() -> None:
    # Row by row cos φ is 0.6, −1 and 1 / √2; so t is ¾, 0 and √2 / (1 + 1/√2) = 2√2 − 2.
    tau = float64([[5, 0], [1, 0], [1, 0]], [[3, 4], [-2, 0], [1, 1]])
    found = model_stock(torch.zeros_like(tau[0]), tau, float64(1, 1), filter_wise=True)
    t = 2 * sqrt(2) - 2
    close(found, float64([3, 1.5], [0, 0], [t, t / 2]))


@pytest.mark.parametrize("n", [2, 3, 5])
def test_model_stock_draws_back_by_the_angle(n: int) -> None:
    # Experts = centre + noise, all at right angles: cos φ = c² / (c² + 1).
    tau = torch.eye(n + 1, dtype=torch.float64)[:n] + torch.eye(n + 1, dtype=torch.float64)[n] * 2
    cosine = 4 / 5
    found = model_stock(torch.zeros(n + 1, dtype=torch.float64), tau, torch.ones(n, dtype=torch.float64))
    close(found, n * cosine / (1 + (n - 1) * cosine) * tau.mean(0))
    # Which is the point on the way to the mean that is nearest to the centre.
    centre, mean = 2 * torch.eye(n + 1, dtype=torch.float64)[n], tau.mean(0)
    close(found, (centre @ mean) / (mean @ mean) * mean)


def test_model_stock_takes_the_mean_of_all_pairs() -> None:
    # Cosines 1, 0, 0: the mean is ⅓, t = 3·⅓ / (1 + 2·⅓) = 0.6. A zero delta is at a right angle to all.
    tau = float64([3, 0], [1, 0], [0, 0])
    found = model_stock(float64(0, 0), tau, float64(1, 1, 1))
    close(found, 0.6 * float64(4 / 3, 0))


@pytest.mark.parametrize("filter_wise", [False, True])
def test_opposed_experts_leave_the_base(filter_wise: bool) -> None:
    base, tau = float64(1, 2, 3), float64([4, 0, 1], [-4, 1, -1])
    assert torch.equal(model_stock(base, base + tau, float64(1, 1), filter_wise=filter_wise), base)
    # The formula alone would say −46: past the base by as many times the mean.
    assert 2 * -17 / sqrt(17 * 18) / (1 - 17 / sqrt(17 * 18)) < -46


@pytest.mark.parametrize("shape", [(7,), (1,), (4, 6), (3, 2, 4)], ids=str)
def test_model_stock_by_rows_is_model_stock_of_each_row(shape: tuple[int, ...]) -> None:
    base, tuned, weights = experts(shape, 3, seed=3)
    tuned = tuned + 2
    rows = range(shape[0]) if len(shape) > 1 else [slice(None)]
    by_hand = torch.stack([model_stock(base[row], tuned[:, row], weights) for row in rows])
    found = model_stock(base, tuned, weights, filter_wise=True)
    close(found, by_hand.reshape(shape))
    if shape != (1,):
        assert not torch.allclose(found, base)
        assert len(shape) == 1 or not torch.allclose(found, model_stock(base, tuned, weights))


def tangent_step(tuned: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Multi-slerp as its author describes it, tangent step and all; vectors (N, d)."""
    norms = np.linalg.norm(tuned, axis=1)
    units = tuned / norms[:, None]
    mean = weights @ units
    mean /= np.linalg.norm(mean)
    tangent = weights @ (units - np.outer(units @ mean, mean))
    length = np.linalg.norm(tangent) + 1e-8
    return (weights @ norms) * (mean * np.cos(length) + tangent * np.sin(length) / length)


def karcher_by_steps(tuned: np.ndarray, weights: np.ndarray, steps: int) -> np.ndarray:
    """Gradient descent on Σ a_i arccos²(m·u_i) over the sphere, on the vectors themselves; vectors (N, d)."""
    norms = np.linalg.norm(tuned, axis=1)
    units = tuned / norms[:, None]
    mean = weights @ units
    mean /= np.linalg.norm(mean)
    for _ in range(steps):
        cosines = units @ mean
        away = units - np.outer(cosines, mean)
        tangent = (weights * np.arccos(cosines) / np.linalg.norm(away, axis=1)) @ away
        length = np.linalg.norm(tangent)
        if length > 0:
            mean = np.cos(length) * mean + np.sin(length) * tangent / length
        mean /= np.linalg.norm(mean)
    return (weights @ norms) * mean


@pytest.mark.parametrize("about", ["origin", "base"])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_tangent_step_of_multislerp_changes_nothing(n: int, about: str) -> None:
    base, tuned, weights = experts((6, 5), n)
    centre = base if about == "base" else torch.zeros_like(base)
    vectors = (tuned - centre).flatten(1).numpy()
    expected = torch.from_numpy(tangent_step(vectors, weights.numpy())).reshape(6, 5)
    close(multislerp(base, tuned, weights, about=about), centre + expected)


@pytest.mark.parametrize("about", ["origin", "base"])
@pytest.mark.parametrize("n", [2, 3, 5])
def test_karcher_is_the_mean_on_the_sphere(n: int, about: str) -> None:
    base, tuned, weights = experts((6, 5), n)
    centre = base if about == "base" else torch.zeros_like(base)
    vectors = (tuned - centre).flatten(1).numpy()
    expected = torch.from_numpy(karcher_by_steps(vectors, weights.numpy(), 300)).reshape(6, 5)
    found = karcher(base, tuned, weights, about=about, max_iter=300, tol=1e-12)
    close(found, centre + expected, 1e-11)
    # Its defaults are near it, multi-slerp, which starts there, is not.
    close(karcher(base, tuned, weights, about=about), centre + expected, 1e-3)
    if n > 2:
        assert not torch.allclose(multislerp(base, tuned, weights, about=about), found, atol=1e-3)


def test_karcher_of_two_is_slerp_on_the_unit_sphere() -> None:
    base, tuned, weights = experts((6, 5))
    tuned = tuned / torch.linalg.vector_norm(tuned, dim=(1, 2), keepdim=True)
    close(karcher(base, tuned, weights, tol=1e-10), slerp(base, tuned, weights), 1e-9)


def test_karcher_stops_where_it_is_told() -> None:
    given = experts((6, 5), 5)
    runs = [karcher(*given, max_iter=count, tol=1e-12) for count in (1, 2, 60, 61)]
    steps = [float((a - b).norm()) for a, b in pairwise(runs)]
    assert steps[0] > 1e-4
    assert steps[2] < 1e-11
    # Half a radian is more than any step here.
    close(karcher(*given, tol=0.5), multislerp(*given))


@pytest.mark.parametrize("max_iter", [1, 10])
def test_a_zero_vector_has_no_direction_but_a_norm(max_iter: int) -> None:
    base, tuned, weights = experts((6, 5), 4)
    tuned[1] = 0
    others = torch.tensor([0, 2, 3])
    for method, own in ((multislerp, {}), (karcher, {"max_iter": max_iter, "tol": 1e-12})):
        without = method(base, tuned[others], weights[others], **own)
        close(method(base, tuned, weights, **own), (1 - weights[1]) * without)


@pytest.mark.parametrize("weights", [(0.25, 0.25, 0.5), (1.0, 1.0, 2.0)], ids=str)
@pytest.mark.parametrize("method", [multislerp, karcher])
def test_directions_that_cancel_go_straight(method: Any, weights: tuple[float, ...]) -> None:
    # Σ a_i u_i is 0, so no direction is the mean; the norms differ, so the straight line is not the origin.
    tuned = float64([1, 0], [2, 0], [-4, 0])
    close(method(float64(0, 0), tuned, float64(*weights)), float64(0.25 + 0.5 - 2, 0))


@pytest.mark.parametrize("tiny", [1e-8, 1e-12])
def test_rounding_is_no_direction(tiny: float) -> None:
    # Three directions at 120° cancel, but not in the last bit of their dot products.
    units = torch.stack([float64(cos(a), sin(a)) for a in (0.1, 0.1 + 2 * pi / 3, 0.1 + 4 * pi / 3)])
    tuned = units * float64([3], [1.7], [0.3])
    expected = tuned.mean(0)
    close(multislerp(float64(0, 0), tuned, float64(1, 1, 1), eps=tiny), expected, 1e-12)
    close(multislerp(float64(0, 0), tuned, float64(7, 7, 7), eps=tiny, normalize=False), 21 * expected, 1e-12)
    close(karcher(float64(0, 0), tuned, float64(1, 1, 1), tol=tiny), expected, 1e-12)


def test_a_source_opposite_the_mean_goes_straight() -> None:
    tuned = float64([1, 0], [-3, 0])
    close(karcher(float64(0, 0), tuned, float64(3, 1)), float64(0, 0))
    close(karcher(float64(0, 0), tuned, float64(2, 1)), float64(-1 / 3, 0))
    # Multi-slerp still has a direction there, with the mean norm.
    close(multislerp(float64(0, 0), tuned, float64(3, 1)), float64(1.5, 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("shape", "rows"), [((9, 5), 2), ((7, 3, 4), 1), ((40, 17), 13)], ids=str)
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("nuslerp", {"flatten": False}),
        ("nuslerp", {"flatten": False, "about": "base"}),
        ("nuslerp", {"flatten": False, "row_wise": True}),
        ("nuslerp", {"flatten": False, "row_wise": True, "about": "base"}),
        ("slerp", {"about": "base"}),
        ("model_stock", {"filter_wise": True}),
    ],
)
def test_chunks_are_the_whole_with_other_parameters(
    name: str, parameters: Mapping[str, Any], shape: tuple[int, ...], rows: int, dtype: torch.dtype
) -> None:
    given = experts(shape, seed=3, dtype=dtype)
    parameters = checked_parameters(name, parameters)
    measures = measures_of(name, parameters)
    known = measured(measures, *given, **parameters)
    in_parts = streamed(measures, given, rows, **parameters)
    assert known.keys() == in_parts.keys()
    for key, value in known.items():
        close(in_parts[key], value, 1e-12)
    parts = [
        METHODS[name](one, tuned, given.weights, **parameters, known=known)
        for one, tuned in zip(given.base.split(rows), given.tuned.split(rows, 1), strict=True)
    ]
    whole = METHODS[name](*given, **parameters)
    assert not torch.allclose(whole, METHODS["linear"](*given), atol=1e-3)
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize(
    ("parameters", "n"),
    [({"filter_wise": True}, 3), ({}, 3)],
    ids=str,
)
def test_gradients_reach_the_weights_of_model_stock(parameters: Mapping[str, Any], n: int) -> None:
    base, tuned, weights = experts((3, 4), n, seed=3)
    weights = weights.requires_grad_()
    assert torch.autograd.gradcheck(lambda w: model_stock(base, tuned + 2, w, **parameters), (weights,))


@pytest.mark.parametrize("name", ["karcher", "multislerp", "slerp"])
def test_gradients_are_finite_for_equal_sources(name: str) -> None:
    base, tuned, weights = experts((3, 4))
    tuned[1] = tuned[0]
    weights = weights.requires_grad_()
    METHODS[name](base, tuned, weights).sum().backward()
    assert weights.grad is not None
    assert bool(weights.grad.isfinite().all())


MERGED_BY_MERGEKIT: list[tuple[str, str, int, dict[str, Any], float]] = [
    ("karcher", "karcher", 3, {}, 1e-11),
    ("multislerp", "multislerp", 3, {}, 1e-7),
    ("multislerp about the base", "multislerp", 3, {"about": "base"}, 1e-7),
    ("model_stock", "model_stock", 3, {}, 1e-11),
    ("model_stock by rows", "model_stock", 3, {"filter_wise": True}, 1e-11),
    ("model_stock of two", "model_stock", 2, {}, 1e-11),
    ("nuslerp", "nuslerp", 2, {}, 1e-11),
    ("nuslerp by rows", "nuslerp", 2, {"flatten": False}, 1e-11),
    ("nuslerp by columns", "nuslerp", 2, {"flatten": False, "row_wise": True}, 1e-11),
    ("nuslerp about the base", "nuslerp", 2, {"about": "base"}, 1e-11),
    ("nuslerp by rows about the base", "nuslerp", 2, {"flatten": False, "about": "base"}, 1e-11),
    (
        "nuslerp by columns about the base",
        "nuslerp",
        2,
        {"flatten": False, "row_wise": True, "about": "base"},
        1e-11,
    ),
    ("slerp", "slerp", 2, {"t": 0.25}, 1e-11),
]


@pytest.mark.parametrize(
    ("key", "name", "n", "parameters", "tolerance"),
    MERGED_BY_MERGEKIT,
    ids=[key for key, *_ in MERGED_BY_MERGEKIT],
)
def test_as_mergekit(key: str, name: str, n: int, parameters: dict[str, Any], tolerance: float) -> None:
    weights = {"multislerp": (0.5, 0.2, 0.3), "nuslerp": (0.75, 0.25)}.get(name, (1.0,) * n)
    close(METHODS[name](BASE, (BASE + TAU)[:n], float64(*weights), **parameters), result(key), tolerance)


def test_as_mergekits_multislerp_of_undivided_weights() -> None:
    found = multislerp(BASE, BASE + TAU, float64(1, 0.4, 0.6), normalize=False, about="base")
    close(found, result("multislerp as they are"), 1e-7)


def test_deviation_model_stock_sees_the_angle_of_small_deltas() -> None:
    # mergekit divides by ‖τ_i‖‖τ_j‖ only where that is above 1e-6, so that deltas of norm 1e-4 look orthogonal (t ≈ 0).
    found = model_stock(BASE, BASE + TAU * 1e-4, float64(1, 1, 1)) - BASE
    close(found, 1e-4 * (result("model_stock") - BASE), 1e-11)


@pytest.mark.parametrize(
    ("name", "n", "parameters", "message"),
    [
        ("slerp", 2, {"t": 1.5}, r"slerp: t is 1.5, it must lie in \[0, 1\]"),
        ("slerp", 2, {"eps": -1.0}, "slerp: eps is -1.0, it must be at least 0 and finite"),
        ("slerp", 2, {"about": "mean"}, "slerp: about is 'mean', it must be 'origin' or 'base'"),
        ("nuslerp", 2, {"about": "mean"}, "nuslerp: about is 'mean', it must be 'origin' or 'base'"),
        ("nuslerp", 3, {}, "nuslerp merges exactly 2 sources, got 3"),
        ("multislerp", 2, {"eps": 0.0}, "multislerp: eps is 0.0, it must be above 0 and finite"),
        ("karcher", 2, {"max_iter": 0}, "karcher: max_iter is 0, it must be at least 1 and finite"),
        ("karcher", 2, {"tol": 0.0}, "karcher: tol is 0.0, it must be above 0 and finite"),
        ("model_stock", 1, {}, "model_stock merges at least 2 sources, got 1"),
    ],
)
def test_what_is_out_of_range(name: str, n: int, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=f"^{message}$"):
        METHODS[name](*experts((3, 4), n), **parameters)


@pytest.mark.parametrize("name", ["karcher", "model_stock", "multislerp", "nuslerp"])
def test_weights_that_do_not_sum_to_a_share(name: str) -> None:
    base, tuned, _ = experts((3, 4))
    with pytest.raises(MethodError, match=r"sum to zero, so they cannot|include a negative one"):
        METHODS[name](base, tuned, float64(1, -1))


def test_weights_without_a_sum_do_where_they_are_not_divided() -> None:
    # A single source of weight −2 is mirrored, and twice as long.
    close(multislerp(float64(0, 0), float64([[3, 4]])[0], float64(2), normalize=False), float64(6, 8))
    close(nuslerp(*experts((3, 4))[:2], float64(1, -1), t=0.5), nuslerp(*experts((3, 4))[:2], float64(1, 1)))
