"""TSV-Merge, Iso-C and Iso-CTS."""

from collections.abc import Callable
from math import sqrt
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from langmerge.errors import MethodError
from langmerge.methods import METHODS

from .conftest import Experts, experts, float64

tsv_m, iso_c, iso_cts, linear, wudi = (
    METHODS[name] for name in ("tsv_m", "iso_c", "iso_cts", "linear", "wudi")
)
SPECTRAL = [tsv_m, iso_c, iso_cts]
ZEROS = torch.zeros(3, 3, dtype=torch.float64)


def close(found: Any, expected: Any, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(
        torch.as_tensor(found), torch.as_tensor(expected), rtol=tolerance, atol=tolerance
    )


def rotation(size: int, seed: int = 0) -> Tensor:
    """A random orthogonal matrix."""
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]


# By hand. The matrix nearest to X = [[1, 0.6], [0, 0.8]] is the rotation with tan = −0.6 / (1 + 0.8): [[3, 1], [−1, 3]] / √10.


def test_tsv_m_by_hand() -> None:
    # One triplet each, of two: 4 e1 e1ᵀ and 2 u e2ᵀ with u = (0.6, 0.8), so U is X and V is already orthogonal.
    # Weights ¼, ¾, times N: Σ = diag(½·4, 3/2·2) = diag(2, 3).
    base, tau = float64([1, 1], [1, 1]), float64([[4, 0], [0, 1]], [[0, 1.2], [0, 1.6]])
    found = tsv_m(base, base + tau, float64(1, 3), scale=0.5)
    close(found, 1 + 0.5 * float64([6, 3], [-2, 9]) / sqrt(10))


def test_iso_c_by_hand() -> None:
    # ¼ [[0, −6], [−2, 0]] + ¾ [[0, −2], [2, 0]] = [[0, −3], [1, 0]]: singular values 3 and 1, their mean 2.
    base, tau = float64([1, 1], [1, 1]), float64([[0, -6], [-2, 0]], [[0, -2], [2, 0]])
    close(iso_c(base, base + tau, float64(1, 3), scale=0.5), 1 + 0.5 * float64([0, -2], [2, 0]))


def test_iso_cts_by_hand() -> None:
    # One common direction of three: e1 e1ᵀ with 6. Beside it ½ · 4 e2 e2ᵀ and ½ · 2 (0, 0.6, 0.8) e3ᵀ, whose U is X again.
    tau = float64([[6, 0, 0], [0, 4, 0], [0, 0, 0]], [[6, 0, 0], [0, 0, 1.2], [0, 0, 1.6]])
    expected = torch.eye(3, dtype=torch.float64)
    expected[1:, 1:] = float64([3, 1], [-1, 3]) / sqrt(10)
    # σ̄ = (6 + 2 + 1) / 3; the paper's sum is twice that.
    close(iso_cts(1 + ZEROS, 1 + tau, float64(1, 1), common_share=1 / 3, scale=2.0), 1 + 2 * 3 * expected)


# Against the authors' formulas, with full SVDs.

Array = np.ndarray


def whitened(x: Array) -> Array:
    left, _, right = np.linalg.svd(x, full_matrices=False)
    return np.asarray(left @ right)


def tsv_by_its_authors(tau: Array, kept: int) -> Array:
    parts = [np.linalg.svd(one, full_matrices=False) for one in tau]
    left = whitened(np.concatenate([u[:, :kept] for u, _, _ in parts], 1))
    right = whitened(np.concatenate([v[:kept] for _, _, v in parts]))
    return np.asarray(left @ np.diag(np.concatenate([s[:kept] for _, s, _ in parts])) @ right)


def iso_by_its_authors(tau: Array) -> Array:
    left, sigma, right = np.linalg.svd(tau.sum(0), full_matrices=False)
    return np.asarray(left @ np.diag(np.full_like(sigma, sigma.mean())) @ right)


def iso_cts_by_its_authors(tau: Array, share: float) -> Array:
    n, side = len(tau), min(tau.shape[1:])
    own = round((side - int(side * share)) / n)
    common = side - n * own
    parts = [
        [one[..., :common] if i < 2 else one[:common] for i, one in enumerate(np.linalg.svd(tau.sum(0)))]
    ]
    for one in tau:
        u, s, v = np.linalg.svd(one - parts[0][0] @ parts[0][0].T @ one)
        parts.append([u[:, :own], s[:own], v[:own]])
    left, right = (np.concatenate([part[i] for part in parts], axis) for i, axis in ((0, 1), (2, 0)))
    sigma = np.concatenate([part[1] for part in parts])
    return np.asarray(whitened(left) @ np.diag(np.full_like(sigma, sigma.mean())) @ whitened(right))


SHAPES = pytest.mark.parametrize("shape", [(12, 12), (13, 10), (10, 14)], ids=str)


def sources(shape: tuple[int, int], n: int) -> tuple[Experts, Array]:
    base, tuned, _ = experts(shape, n)
    return Experts(base, tuned, torch.ones(n, dtype=torch.float64)), (tuned - base).numpy()


@SHAPES
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_tsv_m_is_the_authors(shape: tuple[int, int], n: int) -> None:
    given, tau = sources(shape, n)
    close(tsv_m(*given) - given.base, tsv_by_its_authors(tau, min(shape) // n))


@SHAPES
@pytest.mark.parametrize(("share", "kept"), [(0.1, 1), (0.39, 3), (1.0, 10)])
def test_tsv_m_keeps_another_share(shape: tuple[int, int], share: float, kept: int) -> None:
    # With all of three sources there are more vectors than the shorter side has room for.
    given, tau = sources(shape, 3)
    kept = kept if kept < 10 else min(shape)
    if shape == (12, 12):
        kept += share == 0.39
    elif share == 1.0:
        # On the longer side, 13 or 14, thirty vectors are too many as well.
        assert max(shape) < 3 * kept
    close(tsv_m(*given, rank_share=share) - given.base, tsv_by_its_authors(tau, kept))


@SHAPES
@pytest.mark.parametrize("n", [1, 2, 5])
def test_iso_c_is_the_authors(shape: tuple[int, int], n: int) -> None:
    given, tau = sources(shape, n)
    close(iso_c(*given, scale=float(n)) - given.base, iso_by_its_authors(tau))


@SHAPES
@pytest.mark.parametrize(("n", "share"), [(1, 0.5), (2, 0.8), (3, 0.5), (4, 0.1), (5, 0.5)])
def test_iso_cts_is_the_authors(shape: tuple[int, int], n: int, share: float) -> None:
    given, tau = sources(shape, n)
    close(
        iso_cts(*given, common_share=share, scale=float(n)) - given.base, iso_cts_by_its_authors(tau, share)
    )
    if n > 1:
        assert not torch.allclose(iso_cts(*given, common_share=share), iso_c(*given))


def test_deviation_the_authors_share_out_more_than_there_is() -> None:
    # Of three directions none is common, and round(3 / 2) = 2 for each of two tasks would be four: one is, as at ⅓.
    given, tau = sources((3, 3), 2)
    assert 2 * round((3 - int(0.1 * 3)) / 2) > 3
    close(iso_cts(*given, common_share=0.1, scale=2.0) - given.base, iso_cts_by_its_authors(tau, 1 / 3))


def test_deviation_the_authors_keep_nothing_of_more_sources_than_directions() -> None:
    given, tau = sources((3, 4), 5)
    assert not tsv_by_its_authors(tau, int(3 / 5)).any()
    close(tsv_m(*given) - given.base, tsv_by_its_authors(tau, 1))


# Identities.


def test_equal_sources_give_what_is_kept_of_one() -> None:
    base, tuned, _ = experts((7, 6), 1)
    u, s, v = torch.linalg.svd(tuned[0] - base, full_matrices=False)
    kept = u[:, :2] * s[:2] @ v[:2]
    close(tsv_m(base, tuned[[0, 0, 0]], float64(1, 2, 5)) - base, kept)


def test_sources_that_share_nothing_are_summed() -> None:
    base, tuned, _ = experts((6, 8), 2)
    tuned = base + torch.stack(
        [torch.block_diag(tuned[0][:3, :4], ZEROS[:, :1].repeat(1, 4)), torch.block_diag(ZEROS[:, :1].repeat(1, 4), tuned[1][:3, :4])]
    )  # fmt: skip
    close(tsv_m(base, tuned, float64(1, 1)), tuned.sum(0) - base)
    close(tsv_m(base, tuned, float64(1, 3)), base + 0.5 * (tuned[0] - base) + 1.5 * (tuned[1] - base))


@pytest.mark.parametrize("method", [tsv_m, iso_c])
def test_transposed_sources_give_the_transposed_merge(method: Callable[..., Tensor]) -> None:
    base, tuned, weights = experts((6, 9), 3)
    close(method(base.T, tuned.mT, weights), method(base, tuned, weights).T)


@pytest.mark.parametrize("method", SPECTRAL)
def test_rotated_sources_give_the_rotated_merge(method: Callable[..., Tensor]) -> None:
    base, tuned, weights = experts((8, 10), 2)
    left, right = rotation(8), rotation(10, 1)
    close(
        method(left @ base @ right, left @ tuned @ right, weights),
        left @ method(base, tuned, weights) @ right,
    )


@pytest.mark.parametrize("shape", [(9, 7), (7, 9)], ids=str)
def test_isotropic_merges_keep_the_nuclear_norm(shape: tuple[int, int]) -> None:
    given = experts(shape, 3)
    found = torch.linalg.svdvals(iso_c(*given) - given.base)
    close(found, torch.linalg.svdvals(linear(*given) - given.base).mean().expand(7))
    spread = torch.linalg.svdvals(iso_cts(*given, common_share=0.3) - given.base)
    close(spread, spread[0].expand(7))


@pytest.mark.parametrize("shape", [(9, 7), (7, 9)], ids=str)
def test_iso_cts_where_nothing_is_specific_is_iso_c(shape: tuple[int, int]) -> None:
    given = experts(shape, 3)
    close(iso_cts(*given, common_share=1.0), iso_c(*given))
    base, tuned, _ = given
    close(iso_cts(base, tuned[:1], float64(1), common_share=0.4), iso_c(base, tuned[:1], float64(1)))
    # Nor with more sources than directions.
    many = experts((3, 4), 5)
    close(iso_cts(*many, common_share=0.4), iso_c(*many))


def test_the_common_space_is_taken_off_the_output_side() -> None:
    base, tuned, weights = experts((8, 8), 2)
    one, other = (iso_cts(*given, weights, common_share=0.5) for given in ((base, tuned), (base.T, tuned.mT)))
    assert not torch.allclose(other.T, one)


@pytest.mark.parametrize("method", SPECTRAL)
@pytest.mark.parametrize("shape", [(), (6,), (0, 4), (4, 0), (2, 3, 4)], ids=str)
def test_what_is_no_matrix_is_the_mean(method: Callable[..., Tensor], shape: tuple[int, ...]) -> None:
    given = experts(shape, 3)
    close(method(*given, scale=0.5), linear(*given), 1e-14)


def test_tsv_m_is_linear_in_the_weights() -> None:
    base, tuned, _ = experts((6, 5), 3)
    of = [tsv_m(base, tuned, weights) for weights in torch.eye(3, dtype=torch.float64)]
    close(tsv_m(base, tuned, float64(2, -1, 4)), (2 * of[0] - of[1] + 4 * of[2]) / 5)


def test_a_source_without_weight_has_no_direction_of_its_own_in_iso_cts() -> None:
    base, tuned, _ = experts((8, 8), 2)
    found = iso_cts(base, tuned, float64(1, 0), common_share=0.5)
    # Four common directions and two of the first source.
    u, s, v = torch.linalg.svd(tuned[0] - base)
    close(found - base, s[:6].mean() * u[:, :6] @ v[:6])


# Spectra with zeros or equal values.


def low_rank(shape: tuple[int, int], rank: int, seed: int) -> Tensor:
    base, tuned, _ = experts((shape[0] + shape[1], rank), 1, seed=seed)
    return tuned[0][: shape[0]] @ base[shape[0] :].T


@pytest.mark.parametrize("shape", [(9, 9), (12, 8), (8, 12)], ids=str)
def test_low_rank_experts_keep_their_directions_and_get_no_others(shape: tuple[int, int]) -> None:
    base = experts(shape, 1).base
    tau = torch.stack([low_rank(shape, 1, 1), low_rank(shape, 2, 2)])
    # What the common space leaves is rounding: directions of it must not come in.
    for method in (iso_c, iso_cts):
        found = torch.linalg.svdvals(method(base, base + tau, float64(1, 1)) - base)
        close(found[:3], torch.linalg.svdvals(tau.mean(0))[:3].mean().expand(3))
        close(found[3:], torch.zeros(len(found) - 3, dtype=torch.float64))
    merged = torch.linalg.svdvals(tsv_m(base, base + tau, float64(1, 1)) - base)
    assert int((merged > 1e-10).sum()) == 3


@pytest.mark.parametrize("method", SPECTRAL)
def test_a_source_without_a_delta_adds_nothing(method: Callable[..., Tensor]) -> None:
    base, tuned, _ = experts((8, 6), 2)
    found = method(base, torch.stack([tuned[0], base]), float64(1, 1)) - base
    assert bool(torch.isfinite(found).all())
    u, s, v = torch.linalg.svd(tuned[0] - base, full_matrices=False)
    expected = {
        tsv_m: u[:, :3] * s[:3] @ v[:3],
        iso_c: s.mean() / 2 * u @ v,
        # round((6 − 4) / 2) = 1 of its own beside four that are common.
        iso_cts: s[:5].mean() / 2 * u[:, :5] @ v[:5],
    }
    close(found, expected[method])


@pytest.mark.parametrize("method", SPECTRAL)
def test_sources_that_cancel(method: Callable[..., Tensor]) -> None:
    base, tuned, _ = experts((6, 6), 1)
    tau = tuned[0] - base
    found = method(
        base,
        torch.stack([base + tau, base - tau]),
        float64(1, 1),
        **{"common_share": 0.5} if method is iso_cts else {},
    )
    # τ and −τ: the mean has no direction, and what is taken of either cancels.
    close(found, base, 1e-9)


@pytest.mark.parametrize("method", SPECTRAL)
def test_equal_singular_values(method: Callable[..., Tensor]) -> None:
    base = experts((6, 6), 1).base
    tau = torch.stack([2 * rotation(6), 2 * rotation(6, 1)])
    found = method(base, base + tau, float64(1, 1)) - base
    assert bool(torch.isfinite(found).all())
    # One orthogonal source alone is already isotropic.
    close(method(base, (base + tau)[:1], float64(1)) - base, tau[0])


@pytest.mark.parametrize("method", SPECTRAL)
def test_infinite_and_missing_numbers_show_everywhere(method: Callable[..., Tensor]) -> None:
    base, tuned, weights = experts((6, 5), 2)
    for wrong in (torch.nan, torch.inf):
        given = tuned.clone()
        given[1, 2, 3] = wrong
        assert bool(method(base, given, weights).isnan().all())


# Gradients. The contract's matrices are too small to have directions of single tasks.


@pytest.mark.parametrize("shape", [(8, 6), (6, 8), (7, 7)], ids=str)
@pytest.mark.parametrize("share", [0.3, 0.7, 1.0])
def test_gradients_of_iso_cts(shape: tuple[int, int], share: float) -> None:
    base, tuned, weights = experts(shape, 2)
    weights = (weights * 1.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: iso_cts(base, tuned, w, common_share=share), (weights,))


@pytest.mark.parametrize("shape", [(8, 6), (6, 8)], ids=str)
@pytest.mark.parametrize("method", SPECTRAL)
def test_gradients_where_a_direction_is_missing(
    method: Callable[..., Tensor], shape: tuple[int, int]
) -> None:
    base, tuned, weights = experts(shape, 2)
    left, right = rotation(shape[0]), rotation(shape[1], 1)
    tau = tuned - base
    tau[:, 0, :], tau[:, :, 0] = 0, 0
    tuned = base + left @ tau @ right
    weights.requires_grad_()
    assert torch.autograd.gradcheck(lambda w: method(base, tuned, w), (weights,))


@pytest.mark.parametrize("method", [iso_c, iso_cts])
def test_gradients_where_singular_values_are_equal(method: Callable[..., Tensor]) -> None:
    # At weights ½, ½ the mean is orthogonal: torch's own derivative of eigenvectors would be NaN or noise here.
    base, tuned, _ = experts((6, 6), 1)
    tau = tuned[0] - base
    both = base + torch.stack([tau, 2 * rotation(6) - tau])
    weights = float64(0.5, 0.5).requires_grad_()
    options = {"common_share": 1.0} if method is iso_cts else {}
    assert torch.autograd.gradcheck(lambda w: method(base, both, w, **options), (weights,))


# Large matrices.


class Sizes(TorchFunctionMode):
    """Watches what torch is asked for: no SVD, and no tensor larger than all sources together."""

    def __init__(self, limit: int, side: int) -> None:
        super().__init__()
        self.limit, self.side, self.decomposed = limit, side, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        assert "svd" not in name
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple) else (result,):
            assert not isinstance(one, Tensor) or one.numel() <= self.limit, name
        if name in ("linalg_eigh", "linalg_cholesky_ex", "linalg_solve"):
            self.decomposed += 1
            assert max(args[0].shape) <= self.side
        return result


@pytest.mark.parametrize("shape", [(20_000, 64), (64, 20_000)], ids=str)
@pytest.mark.parametrize("method", [*SPECTRAL, wudi])
def test_nothing_is_ever_the_square_of_the_longer_side(
    method: Callable[..., Tensor], shape: tuple[int, int]
) -> None:
    given = experts(shape, 2, dtype=torch.float32)
    sizes = Sizes(given.tuned.numel(), 128 if method is wudi else 64)
    with sizes:
        found = method(*given)
    assert sizes.decomposed > 0
    assert found.shape == shape


def test_the_watch_over_sizes_can_fail() -> None:
    wide = torch.zeros(2, 3)
    with Sizes(5, 3), pytest.raises(AssertionError):
        wide.T @ wide
    with Sizes(9, 1), pytest.raises(AssertionError):
        torch.linalg.eigh(wide.T @ wide)
    with Sizes(9, 3), pytest.raises(AssertionError):
        torch.linalg.svd(wide)


@pytest.mark.parametrize("method", SPECTRAL)
def test_single_precision_is_as_good_as_its_input(method: Callable[..., Tensor]) -> None:
    base, tuned, weights = experts((40, 30), 3, dtype=torch.float32)
    # The same deltas, as float32 has them.
    tau = (tuned - base).double()
    expected = method(torch.zeros_like(tau[0]), tau, weights.double())
    found = method(torch.zeros_like(base), tau.float(), weights)
    assert found.dtype == torch.float32
    close(found.double(), expected, 1e-6)


# What is refused.


@pytest.mark.parametrize("value", [0.0, -0.1, 1.1, float("nan")])
@pytest.mark.parametrize(("method", "parameter"), [(tsv_m, "rank_share"), (iso_cts, "common_share")])
def test_shares_lie_above_zero_and_up_to_one(
    method: Callable[..., Tensor], parameter: str, value: float
) -> None:
    with pytest.raises(MethodError, match=rf"{parameter} is {value}, it must lie in \(0, 1\]"):
        method(*experts(), **{parameter: value})


@pytest.mark.parametrize("shape", [(3,), (3, 4)], ids=str)
@pytest.mark.parametrize("method", SPECTRAL)
def test_weights_that_cancel_are_refused(method: Callable[..., Tensor], shape: tuple[int, ...]) -> None:
    base, tuned, _ = experts(shape)
    # Exactly, or to a few float32 roundings, which division would blow up.
    for second in (-1.0, -1.00000005):
        with pytest.raises(
            MethodError, match=rf"weights \[1.0, {second}\] sum to zero, so they cannot be normalised"
        ):
            method(base, tuned, float64(1, second))
