"""Fisher averaging, RegMean and the Gram family."""

import pytest
import torch
from torch import Tensor

from langmerge.errors import MethodError
from langmerge.methods import METHODS, SPECS, statistics_of
from langmerge.methods.statistics import solved_by_gram

from .conftest import Experts, experts, float64

fisher, regmean, gram = METHODS["fisher"], METHODS["regmean"], METHODS["gram"]
linear, wudi = METHODS["linear"], METHODS["wudi"]


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def drawn(*shape: int, seed: int = 7) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def grams_of(inputs: Tensor) -> Tensor:
    """(N, rows, d) → (N, d, d)."""
    return inputs.transpose(1, 2) @ inputs / inputs.shape[1]


def test_fisher_by_hand() -> None:
    tuned = float64([1, 5, 3, 1], [3, 1, 7, 2])
    found = fisher(
        tuned[0] * 0,
        tuned,
        float64(2, 1),
        floor=0.0,
        # (2·1·1 + 1·2·3) / (2·1 + 1·2) = 2; only the first; only the second; neither: the weighted mean, 4/3.
        statistics=float64([1, 4, 0, 0], [2, 0, 1e-300, 0]),
    )
    close(found, float64(2, 5, 7, 4 / 3), 1e-14)


def test_the_floor_is_relative_to_the_largest_of_the_entry() -> None:
    tuned, weights = float64([0, 0, 0], [1, 1, 1]), float64(1, 1)
    certain = float64([8e-9, 2, 0], [0, 1, 0])
    found = fisher(tuned[0], tuned, weights, floor=0.25, statistics=certain)
    # F = (1, ¼), (1, ½), and where none has any the mean.
    close(found, float64(0.2, 1 / 3, 0.5), 1e-14)
    close(fisher(tuned[0], tuned, weights, floor=1.0, statistics=certain), float64(0.5, 0.5, 0.5), 1e-14)


def test_small_fishers_do_not_underflow() -> None:
    given = experts((40,), 3, dtype=torch.float32)
    certain = drawn(3, 40).square().float() + 0.1
    found = fisher(*given, statistics=certain)
    close(fisher(*given, statistics=certain * 1e-37), found, 1e-5)
    assert not torch.allclose(found, linear(*given), atol=1e-3)


def test_a_source_without_weight_leaves_the_mean_where_it_alone_is_certain() -> None:
    tuned = float64([1, 1], [5, 5])
    found = fisher(tuned[0], tuned, float64(1, 0), floor=0.0, statistics=float64([0, 3], [2, 0]))
    assert torch.equal(found, float64(1, 1))


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_fisher_in_chunks_is_fisher_at_once(rows: int) -> None:
    base, tuned, weights = experts((7, 5), 3, dtype=torch.float32)
    certain = drawn(3, 7, 5).square().float()
    whole = fisher(base, tuned, weights, statistics=certain)
    parts = [
        fisher(base[i : i + rows], tuned[:, i : i + rows], weights, statistics=certain[:, i : i + rows])
        for i in range(0, 7, rows)
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_regmean_is_least_squares() -> None:
    """The solution of `lstsq` on all sources' inputs, a row weighted by the root of w_i / n_i."""
    given, inputs = experts((5, 4), 3), drawn(3, 30, 4)
    outputs = torch.einsum("nrd,nod->nro", inputs, given.tuned)
    roots = given.weights.sqrt().reshape(-1, 1, 1)
    solved = torch.linalg.lstsq((roots * inputs).reshape(-1, 4), (roots * outputs).reshape(-1, 5)).solution
    found = regmean(*given, off_diagonal=1.0, ridge=1e-12, statistics=grams_of(inputs))
    close(found, solved.T, 1e-9)
    assert not torch.allclose(found, linear(*given), atol=1e-2)


def test_regmean_reproduces_every_source_where_it_can() -> None:
    """Sources whose inputs lie in different directions do not get in each other's way; the other axis would fail."""
    tuned = drawn(2, 3, 4)
    inputs = torch.zeros(2, 6, 4, dtype=torch.float64)
    inputs[0, :, :2], inputs[1, :, 2:] = drawn(6, 2), drawn(6, 2, seed=8)
    merged = regmean(
        tuned[0], tuned, float64(1, 3), off_diagonal=1.0, ridge=1e-13, statistics=grams_of(inputs)
    )
    for own, seen in zip(tuned, inputs, strict=True):
        close(seen @ merged.T, seen @ own.T, 1e-6)
    mean = linear(tuned[0], tuned, float64(1, 3))
    assert not torch.allclose(inputs[0] @ mean.T, inputs[0] @ tuned[0].T, atol=0.1)


def test_regmean_word_for_word() -> None:
    given, inputs = experts((5, 4), 3), drawn(3, 9, 4)
    shrunk = [0.9 * one + 0.1 * one.diagonal().diag() for one in grams_of(inputs)]
    total = sum(w * one for w, one in zip(given.weights, shrunk, strict=True))
    pull = 0.2 * total.diagonal().mean() * torch.eye(4).double()
    mean = linear(*given)
    right = sum(w * one @ g for w, one, g in zip(given.weights, given.tuned, shrunk, strict=True))
    expected = (right + mean @ pull) @ torch.linalg.inv(total + pull)
    close(regmean(*given, off_diagonal=0.9, ridge=0.2, statistics=grams_of(inputs)), expected)
    # Weights count as shares.
    thrice = Experts(given.base, given.tuned, 3 * given.weights)
    close(regmean(*thrice, off_diagonal=0.9, ridge=0.2, statistics=grams_of(inputs)), expected)


def test_without_off_diagonals_every_input_is_averaged_by_its_own_size() -> None:
    tuned = float64([[1, 1]], [[3, 3]])
    seen = float64([[3, 9], [9, 1]], [[1, 2], [2, 1]])
    found = regmean(tuned[0], tuned, float64(1, 1), off_diagonal=0.0, ridge=1e-12, statistics=seen)
    close(found, float64([1.5, 2.0]), 1e-9)


def test_regmean_of_equal_sources_is_that_source_to_the_last_bit() -> None:
    base, tuned, _ = experts((5, 4), 1, dtype=torch.float32)
    same = tuned.expand(3, 5, 4).contiguous()
    found = regmean(base, same, torch.ones(3), statistics=grams_of(drawn(3, 9, 4)).float())
    assert torch.equal(found, tuned[0])


def test_inputs_that_are_never_seen_get_the_mean() -> None:
    given = experts((5, 4), 3)
    seen = grams_of(drawn(3, 9, 4))
    seen[:, :, 2] = seen[:, 2] = 0
    found = regmean(*given, statistics=seen)
    close(found[:, 2], linear(*given)[:, 2])
    close(regmean(*given, statistics=0 * seen), linear(*given))


@pytest.mark.parametrize("shape", [(6, 5), (5, 6), (2, 9), (300, 257)], ids=str)
@pytest.mark.parametrize("ridge", [0.01, 0.1])
def test_gram_with_mix_0_is_wudi(shape: tuple[int, int], ridge: float) -> None:
    given = experts(shape, 3)
    found = gram(*given, mix=0.0, ridge=ridge, statistics=grams_of(drawn(3, 9, shape[1])))
    assert torch.equal(found, wudi(*given, ridge=ridge))
    # It is its limit, too: mix = 0 goes another way than the others.
    limit = gram(*given, mix=1e-12, ridge=ridge, statistics=grams_of(drawn(3, 9, shape[1])))
    close(limit, found, 1e-8)


@pytest.mark.parametrize("mix", [0.3, 1.0])
@pytest.mark.parametrize("shape", [(6, 5), (5, 6), (2, 9)], ids=str)
def test_gram_word_for_word(shape: tuple[int, int], mix: float) -> None:
    given, seen = experts(shape, 3), grams_of(drawn(3, 9, shape[1]))
    given.tuned[2] = given.base
    tau = given.tuned - given.base
    grams = []
    for one, own in zip(tau, seen, strict=True):
        shrunk = 0.8 * own + 0.2 * own.diagonal().diag()
        size = one.square().sum()
        grams.append(mix * shrunk / own.trace() + (1 - mix) * one.T @ one / (size if size > 0 else 1))
    total = sum(w * g for w, g in zip(given.weights, grams, strict=True))
    pull = 0.1 * total.diagonal().mean() * torch.eye(shape[1]).double()
    mean = (given.weights.reshape(-1, 1, 1) * tau).sum(0)
    right = sum(w * t @ g for w, t, g in zip(given.weights, tau, grams, strict=True)) + mean @ pull
    expected = given.base + right @ torch.linalg.inv(total + pull)
    close(gram(*given, mix=mix, off_diagonal=0.8, statistics=seen), expected)


def test_gram_with_mix_1_is_regmean_of_grams_of_trace_one() -> None:
    given, seen = experts((6, 5), 3), grams_of(drawn(3, 9, 5))
    seen[1] *= 100
    equal = seen / seen.diagonal(dim1=1, dim2=2).sum(1).reshape(-1, 1, 1)
    found = gram(*given, mix=1.0, ridge=0.01, statistics=seen)
    close(found, regmean(*given, ridge=0.01, statistics=equal), 1e-9)
    assert not torch.allclose(found, regmean(*given, ridge=0.01, statistics=seen), atol=1e-3)


def test_gram_of_nothing_is_the_mean() -> None:
    base, tuned, weights = experts((3, 4), 2)
    close(
        gram(base, tuned, weights, mix=1.0, statistics=torch.zeros(2, 4, 4).double()),
        linear(base, tuned, weights),
    )


@pytest.mark.parametrize("name", ["fisher", "regmean", "gram"])
def test_statistics_belong_to_their_source(name: str) -> None:
    base, tuned, weights = experts((4, 5), 3)
    own = drawn(3, 4, 5).square() if name == "fisher" else grams_of(drawn(3, 9, 5))
    order = torch.tensor([2, 0, 1])
    found = METHODS[name](base, tuned, weights, statistics=own)
    close(METHODS[name](base, tuned[order], weights[order], statistics=own[order]), found)
    assert not torch.allclose(METHODS[name](base, tuned, weights, statistics=own[order]), found, atol=1e-3)


@pytest.mark.parametrize("name", ["fisher", "regmean", "gram"])
def test_gradients_with_statistics(name: str) -> None:
    base, tuned, weights = experts((4, 3), 2)
    own = drawn(2, 4, 3).square() if name == "fisher" else grams_of(drawn(2, 9, 3))
    weights = (1.5 * weights).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: METHODS[name](base, tuned, w, statistics=own), (weights,))


@pytest.mark.parametrize("name", ["fisher", "regmean", "gram"])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -1.0])
def test_broken_statistics_are_an_error(name: str, wrong: float) -> None:
    given = experts((4, 3), 2)
    own = drawn(2, 4, 3).square() if name == "fisher" else grams_of(drawn(2, 9, 3))
    own[1, 2, 2] = wrong
    with pytest.raises(MethodError, match=f"^{name}: the statistics hold NaN, infinity or a negative "):
        METHODS[name](*given, statistics=own)


@pytest.mark.parametrize("name", ["regmean", "gram"])
def test_a_singular_system_is_an_error(name: str) -> None:
    given = Experts(torch.zeros(4, 4).double(), torch.ones(1, 4, 4).double(), float64(1))
    with pytest.raises(MethodError, match=f"^{name}: the ridge is lost in rounding: take a larger one"):
        METHODS[name](*given, off_diagonal=1.0, ridge=1e-20, statistics=torch.ones(1, 4, 4).double())


def test_a_system_without_numbers_gives_none() -> None:
    assert bool(
        solved_by_gram("regmean", torch.ones(2, 3).double(), torch.full((3, 3), torch.nan).double())
        .isnan()
        .all()
    )


def test_who_reads_what() -> None:
    assert {name for name, spec in SPECS.items() if spec.statistics} == {"fisher", "gram", "regmean"}
    assert statistics_of("fisher", {}) == "fisher"
    assert (statistics_of("gram", {"mix": 0.0}), statistics_of("gram", {"mix": 0.1})) == (None, "grams")
