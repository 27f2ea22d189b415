"""NeuroMerging."""

import numpy as np
import pytest
import torch
from torch import Tensor

from langmerge.errors import MethodError
from langmerge.methods import METHODS, checked_parameters, measures_of
from langmerge.methods.measures import measured

from .conftest import experts, float64, streamed

neuromerging, linear = METHODS["neuromerging"], METHODS["linear"]


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-13) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# A neuron along the first axis, and one without weights.
BASE = float64([2, 0], [0, 0])
TAU = float64([[3, 4], [1, -2]], [[-1, 2], [0.5, 4]])


def test_by_hand() -> None:
    # One entry of four goes: 1 of 10, and ½ of 7½, so σ = 0.1 and λ_2 = 1 / 0.9.
    # Along: [3, 0] and [−1, 0] elect +, so 3. Across: [0, 4] and [0, 2], mean 3; below, [0, −2] and [0, 4], so 4.
    given = BASE, BASE + TAU, float64(1, 1)
    across = float64([0, 3], [0, 4])
    close(neuromerging(*given, mask=0.25), BASE + across / 0.9)
    found = neuromerging(*given, mask=0.25, lambda_1=0.5, lambda_2=2.0)
    close(found, BASE + float64([1.5, 0], [0, 0]) + 2 * across)
    # Three to one: (3·4 + 2) / 4, and −6 + 4 elects −.
    found = neuromerging(BASE, BASE + TAU, float64(3, 1), mask=0.25, lambda_2=1.0)
    close(found, BASE + float64([0, 3.5], [0, -2]))


def test_a_vector_is_no_neuron() -> None:
    # Trimmed, elected, averaged and scaled up, but not split: 1 of 10 goes, ½ of 7½.
    tau = TAU.reshape(2, 4)
    found = neuromerging(float64(2, 0, 0, 0), float64(2, 0, 0, 0) + tau, float64(1, 1), mask=0.25)
    close(found, float64(2, 0, 0, 0) + float64(3, 3, 0, 4) / 0.9)


def test_the_mask_is_of_the_tensor_and_not_of_a_row() -> None:
    base = torch.eye(3, dtype=torch.float64)
    tau = float64([0, 5, 6], [1, 0, 2], [7, 8, 9])
    # A third of nine are the zeros and the 1: three entries, though none of the last row.
    kept = neuromerging(base, (base + tau)[None], float64(1), mask=1 / 3, lambda_1=1.0, lambda_2=1.0) - base
    close(kept, float64([0, 5, 6], [0, 0, 2], [7, 8, 9]))


def by_numpy(base: np.ndarray, tuned: np.ndarray, share: float, lambda_1: float) -> np.ndarray:
    """The equations, row by row, for equal weights and no ties; sources (N, rows, columns)."""
    tau = tuned - base
    gone = int(share * base.size)
    delta, lost = tau.copy(), []
    for one in delta:
        flat = one.reshape(-1)
        order = np.argsort(np.abs(flat))[:gone]
        lost.append(np.abs(flat[order]).sum() / np.abs(flat).sum())
        flat[order] = 0

    def elected(parts: np.ndarray) -> np.ndarray:
        agree = (np.sign(parts) == np.sign(parts.sum(0))) & (np.abs(parts) > 1e-14)
        return np.asarray((parts * agree).sum(0) / np.maximum(agree.sum(0), 1))

    merged = np.zeros_like(base)
    for row, weights in enumerate(base):
        along = np.outer(delta[:, row] @ weights / (weights @ weights), weights)
        across = delta[:, row] - along
        merged[row] = lambda_1 * elected(along) + elected(across) / (1 - max(lost))
    return base + merged


@pytest.mark.parametrize("lambda_1", [0.0, 0.7])
@pytest.mark.parametrize("share", [0.15, 0.5])
@pytest.mark.parametrize("n", [1, 3, 5])
def test_by_its_equations(n: int, share: float, lambda_1: float) -> None:
    base, tuned, _ = experts((7, 9), n)
    found = neuromerging(base, tuned, torch.ones(n, dtype=torch.float64), mask=share, lambda_1=lambda_1)
    close(found, torch.from_numpy(by_numpy(base.numpy(), tuned.numpy(), share, lambda_1)), 1e-12)


def test_what_is_along_the_weights_changes_nothing_by_default() -> None:
    base, _, weights = experts((6, 5), 3)
    gains = float64([0.5], [-2], [3])[:, :, None]
    close(neuromerging(base, base * (1 + gains), weights, mask=0.0), base, 1e-12)
    close(neuromerging(base, base * (1 + gains[:1]), weights[:1], mask=0.0, lambda_1=1.0), 1.5 * base, 1e-12)


@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 2)], ids=str)
def test_one_sources_change_is_across_every_row(shape: tuple[int, ...]) -> None:
    base, tuned, weights = experts(shape, 1)
    change = neuromerging(base, tuned, weights) - base
    along = (change * base).flatten(1).sum(1)
    close(along, torch.zeros_like(along), 1e-12)
    # With λ_1 = λ_2 = 1 the two parts are the whole again.
    close(neuromerging(base, tuned, weights, mask=0.0, lambda_1=1.0), tuned[0])


def test_the_mask_is_paid_back_in_full() -> None:
    # A source of which 10 % by L1 goes, and one of which nothing goes because all its entries tie.
    tau = float64([[9, 1, 0, 0]], [[2, 2, 2, 2]])
    base = float64([0, 0, 0, 0])
    found = neuromerging(base, base + tau, float64(1, 0), mask=0.75)
    close(found, float64([10, 0, 0, 0]))


@pytest.mark.parametrize("lambda_2", [None, 1.3])
@pytest.mark.parametrize("shape", [(9, 5), (5, 3, 4)], ids=str)
def test_in_chunks(shape: tuple[int, ...], lambda_2: float | None) -> None:
    given = experts(shape, 3, dtype=torch.float32)
    parameters = checked_parameters("neuromerging", {"lambda_1": 0.4, "lambda_2": lambda_2})
    measures = measures_of("neuromerging", parameters)
    assert [len(measures), len(measures_of("neuromerging", {"mask": 0.0}))] == [
        2 if lambda_2 is None else 1,
        0,
    ]
    known, in_parts = measured(measures, *given, **parameters), streamed(measures, given, 2, **parameters)
    assert torch.equal(known["thresholds"], in_parts["thresholds"])
    if lambda_2 is None:
        close(in_parts["masked"], known["masked"], 1e-12)
    parts = [
        neuromerging(base, tuned, given.weights, **parameters, known=known)
        for base, tuned in zip(given.base.split(2), given.tuned.split(2, 1), strict=True)
    ]
    assert torch.equal(torch.cat(parts), neuromerging(*given, **parameters))


def test_entries_that_tie_are_kept() -> None:
    base, tau = float64(0, 0, 0, 0), float64([1, -1, 1, 5])
    close(neuromerging(base, tau, float64(1), mask=0.5), tau[0])


@pytest.mark.parametrize("mask", [1.0, -0.1])
def test_the_mask_is_a_share(mask: float) -> None:
    with pytest.raises(MethodError, match=rf"neuromerging: mask is {mask}, it must lie in \[0, 1\)"):
        neuromerging(*experts(), mask=mask)


def test_negative_weights_cannot_elect() -> None:
    base, tuned, _ = experts()
    with pytest.raises(MethodError, match=r"neuromerging: weights \[1\.0, -0\.5\] include a negative one"):
        neuromerging(base, tuned, float64(1, -0.5))
