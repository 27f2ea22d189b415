"""WUDI."""

import time

import pytest
import torch
from torch import Tensor

from langmerge.errors import MethodError
from langmerge.methods import METHODS
from langmerge.methods.grams import own_gram

from .conftest import Experts, experts, float64

wudi, linear = METHODS["wudi"], METHODS["linear"]


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def pull(tau: Tensor, weights: Tensor, ridge: float) -> float:
    """L = ridge × mean diagonal of Σ w_i G_i / n_i; as tr G_i = n_i, the mean diagonal is Σ w_i / columns."""
    return ridge * float(weights.sum()) / tau.shape[2]


def objective(merged: Tensor, given: Experts, ridge: float) -> Tensor:
    """Σ w_i ‖(τ_m − τ_i) τ_iᵀ‖² / ‖τ_i‖² + L ‖τ_m − τ̄‖², with rows × rows products: the definition, not the solution."""
    tau = given.tuned - given.base
    mean = (given.weights.reshape(-1, 1, 1) * tau).sum(0)
    total = pull(tau, given.weights, ridge) * ((merged - mean) ** 2).sum()
    for weight, one in zip(given.weights, tau, strict=True):
        total = total + weight * (((merged - one) @ one.T) ** 2).sum() / (one**2).sum()
    return total


def test_by_hand() -> None:
    # τ_1 = [2, 0], τ_2 = [0, 1], weights ½: G_i / n_i = diag(1, 0) and diag(0, 1), Σ = ½ I, L = ¼·½ = ⅛.
    # Σ w_i τ_i G_i / n_i = [1, ½] = τ̄, so τ_m = [1 + ⅛·1, ½ + ⅛·½] / (½ + ⅛) = [1.8, 0.9].
    base = float64([10, 20])
    tuned = float64([[12, 20]], [[10, 21]])
    close(wudi(base, tuned, float64(1, 1), ridge=0.25), float64([11.8, 20.9]))


def test_sources_that_do_not_interfere_are_summed() -> None:
    # The same example as the ridge vanishes: each source's own direction is restored in full.
    base, tuned = float64([10, 20]), float64([[12, 20]], [[10, 21]])
    close(wudi(base, tuned, float64(1, 3), ridge=1e-12), float64([12, 21]), 1e-9)


@pytest.mark.parametrize("ridge", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("shape", [(8, 5), (5, 8), (1, 6)], ids=str)
def test_the_result_minimises_the_objective(shape: tuple[int, int], ridge: float) -> None:
    given = experts(shape, 3)
    searched = (linear(*given) - given.base).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [searched], max_iter=500, tolerance_grad=1e-13, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = objective(searched, given, ridge)
        value.backward()
        return value

    start = float(objective(searched.detach(), given, ridge))
    optimizer.step(loss)
    solved, found = wudi(*given, ridge=ridge) - given.base, searched.detach()
    close(solved, found, 1e-6)
    assert float(objective(solved, given, ridge)) <= float(objective(found, given, ridge)) + 1e-12
    assert float(objective(solved, given, ridge)) < 0.9999 * start


@pytest.mark.parametrize("shape", [(8, 5), (5, 8)], ids=str)
def test_the_result_satisfies_the_normal_equation(shape: tuple[int, int]) -> None:
    given = experts(shape, 4)
    merged = (wudi(*given, ridge=0.1) - given.base).requires_grad_()
    objective(merged, given, 0.1).backward()
    assert merged.grad is not None
    assert float(merged.grad.abs().max()) < 1e-12


def test_an_endless_ridge_is_the_mean() -> None:
    given = experts((8, 5), 3)
    close(wudi(*given, ridge=1e12), linear(*given))
    assert not torch.allclose(wudi(*given, ridge=0.1), linear(*given))


@pytest.mark.parametrize("shape", [(), (6,), (0, 4), (4, 0), (2, 3, 4)], ids=str)
def test_what_is_no_matrix_is_the_mean(shape: tuple[int, ...]) -> None:
    given = experts(shape, 3)
    close(wudi(*given), linear(*given))


def test_a_source_without_a_delta_only_takes_part_in_the_mean() -> None:
    base, tuned, _ = experts((4, 3))
    tuned = torch.stack([tuned[0], base])
    # One Gram, G / n; weights ½: (½ τ G/n + L ½ τ)(½ G/n + L I)⁻¹ with L = 0.1·½/3
    tau = tuned[0] - base
    own, bound = tau.T @ tau / (tau**2).sum(), 0.05 / 3
    expected = (tau @ own + bound * tau) @ torch.linalg.inv(
        own + 2 * bound * torch.eye(3, dtype=torch.float64)
    )
    close(wudi(base, tuned, float64(1, 1)), base + expected)


def test_where_only_weightless_sources_moved_the_result_is_the_mean() -> None:
    base, tuned, _ = experts((4, 3))
    close(wudi(base, torch.stack([tuned[0], base]), float64(0, 1)), base)


def test_one_input_leaves_nothing_to_choose() -> None:
    # Every G_i / n_i is the number 1.
    given = experts((6, 1), 3)
    close(wudi(*given), linear(*given))


def test_rotating_the_outputs_rotates_the_result() -> None:
    base, tuned, weights = experts((5, 4), 3)
    rotation = torch.linalg.qr(experts((5, 5), 1).base).Q
    close(wudi(rotation @ base, rotation @ tuned, weights), rotation @ wudi(base, tuned, weights))


def test_grams_are_on_the_input_side() -> None:
    base, tuned, weights = experts((5, 5), 3)
    transposed = wudi(base.T.contiguous(), tuned.mT.contiguous(), weights).T
    assert not torch.allclose(transposed, wudi(base, tuned, weights), atol=1e-3)


def test_small_eigenvalues_are_solved_in_double_precision() -> None:
    # Nearly parallel columns: in float32 all through, the error is about a hundred times as large.
    base, tuned, weights = experts((40, 6), 3)
    tuned[:, :, 1:] = tuned[:, :, :1] + 1e-3 * tuned[:, :, 1:]
    single = Experts(base.float() * 0, (tuned - base).float(), weights.float())
    exact = wudi(*(one.double() for one in single), ridge=1e-6)
    found = wudi(*single, ridge=1e-6)
    assert found.dtype == torch.float32
    close(found.double(), exact, 1e-6)


def test_a_tall_matrix_needs_no_square_of_its_rows() -> None:
    # Rows × rows would be 320 GB.
    given = experts((200_000, 4), 2)
    started = time.perf_counter()
    found = wudi(*given)
    assert time.perf_counter() - started < 5
    tau, weights = given.tuned - given.base, given.weights
    grams = [weight * one.T @ one / (one**2).sum() for weight, one in zip(weights, tau, strict=True)]
    bound = pull(tau, weights, 0.1)
    residual = sum((found - given.base - one) @ gram for one, gram in zip(tau, grams, strict=True))
    residual = residual + bound * (found - linear(*given))
    assert float(residual.abs().max()) < 1e-12


@pytest.mark.parametrize("ridge", [0.0, -1.0, float("nan"), float("inf")])
def test_the_ridge_is_positive_and_finite(ridge: float) -> None:
    with pytest.raises(MethodError, match=rf"wudi: ridge is {ridge}, it must be above 0 and finite"):
        wudi(*experts(), ridge=ridge)


def test_negative_weights_are_refused() -> None:
    base, tuned, _ = experts()
    with pytest.raises(MethodError, match=r"wudi: weights \[1\.0, -0\.5\] include a negative one"):
        wudi(base, tuned, float64(1, -0.5))


@pytest.mark.parametrize("shape", [(3,), (3, 4)], ids=str)
def test_weights_of_zero_are_refused(shape: tuple[int, ...]) -> None:
    base, tuned, _ = experts(shape)
    with pytest.raises(
        MethodError, match=r"weights \[0\.0, 0\.0\] sum to zero, so they cannot be normalised"
    ):
        wudi(base, tuned, float64(0, 0))


def by_definition(given: Experts, ridge: float) -> Tensor:
    """The closed form, word for word."""
    tau, weights = given.tuned - given.base, given.weights / given.weights.sum()
    grams = [one.T @ one / (one**2).sum() if bool(one.any()) else one.T @ one for one in tau]
    gram = sum(weight * one for weight, one in zip(weights, grams, strict=True))
    right = sum(weight * (one @ own) for weight, one, own in zip(weights, tau, grams, strict=True))
    mean = (weights.reshape(-1, 1, 1) * tau).sum(0)
    shift = ridge * gram.diagonal().mean()
    return given.base + (right + shift * mean) @ torch.linalg.inv(
        gram + shift * torch.eye(len(gram)).double()
    )


# Taller, wider, so wide that the system is over the sources, at the edge of that, and over more than one panel.
@pytest.mark.parametrize(
    ("shape", "n"),
    [
        ((9, 7), 3), ((7, 9), 3), ((3, 40), 4), ((1, 5), 1), ((3, 12), 3), ((3, 12), 4), ((3, 12), 5),
        ((300, 257), 2), ((257, 300), 2), ((4, 600), 3),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("ridge", [0.01, 0.1, 3.0])
def test_every_way_gives_the_closed_form(shape: tuple[int, int], n: int, ridge: float) -> None:
    given = experts(shape, n)
    close(wudi(*given, ridge=ridge), by_definition(given, ridge))
    # A source without a delta is only in the mean.
    given.tuned[-1] = given.base
    close(wudi(*given, ridge=ridge), by_definition(given, ridge) if n > 1 else given.base)


@pytest.mark.parametrize("shape", [(6, 5), (5, 6), (2, 9)], ids=str)
def test_sources_of_very_different_size(shape: tuple[int, int]) -> None:
    base, tuned, weights = experts(shape, 3)
    tau = (tuned - base) * float64(1e-6, 1, 1e6).reshape(3, 1, 1)
    given = Experts(torch.zeros_like(base), tau, weights)
    found, expected = wudi(*given), by_definition(given, 0.1)
    assert float((found - expected).norm() / expected.norm()) < 1e-12


@pytest.mark.parametrize("shape", [(6, 5), (5, 6), (2, 9)], ids=str)
@pytest.mark.parametrize("last", [0.0, 0.7])
def test_gradients_also_where_a_weight_is_zero(shape: tuple[int, int], last: float) -> None:
    base, tuned, _ = experts(shape, 3)

    def merged(free: Tensor) -> Tensor:
        return wudi(base, tuned, torch.cat([free, free.new_tensor([last])]))

    assert torch.autograd.gradcheck(merged, (float64(0.5, 1.2).requires_grad_(),))
    weights = float64(1, 1, 0).requires_grad_()
    wudi(base, tuned, weights).sum().backward()
    step = 1e-6
    ahead = wudi(base, tuned, float64(1, 1, step)).sum()
    assert weights.grad is not None
    slope = float(ahead - wudi(base, tuned, float64(1, 1, 0)).sum()) / step
    assert float(weights.grad[2]) == pytest.approx(slope, rel=1e-3)


@pytest.mark.parametrize("shape", [(6, 5), (5, 6), (2, 9)], ids=str)
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_missing_and_infinite_numbers_show_everywhere(shape: tuple[int, int], wrong: float) -> None:
    base, tuned, weights = experts(shape, 3)
    tuned[1, 0, 2] = wrong
    assert bool(wudi(base, tuned, weights).isnan().all())


def test_a_ridge_lost_in_rounding_is_an_error() -> None:
    tuned = torch.ones(1, 4, 4, dtype=torch.float64)
    close(wudi(0 * tuned[0], tuned, float64(1), ridge=1e-9), tuned[0], 1e-6)
    with pytest.raises(
        MethodError, match="wudi: the ridge is lost in the rounding of float64, take at least 1e-9"
    ):
        wudi(0 * tuned[0], tuned, float64(1), ridge=1e-20)


@pytest.mark.parametrize("width", [1, 255, 256, 257, 700])
def test_the_gram_by_panels(width: int) -> None:
    x = experts((3, width), 1).base
    close(own_gram(x), x.T @ x, 1e-13)


@pytest.mark.parametrize("shape", [(6, 5), (5, 6)], ids=str)
def test_gradients_over_several_panels(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]) -> None:
    monkeypatch.setattr("langmerge.methods.grams._PANEL", 2)
    base, tuned, weights = experts(shape, 3)
    close(wudi(base, tuned, weights), by_definition(Experts(base, tuned, weights), 0.1))
    assert torch.autograd.gradcheck(lambda w: wudi(base, tuned, w), (weights.requires_grad_(),))
