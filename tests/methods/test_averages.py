"""Linear, task arithmetic, directional consensus."""

import pytest
import torch
from torch import Tensor

from langmerge.errors import MethodError
from langmerge.methods import METHODS

from .conftest import experts, float64

linear, task_arithmetic = METHODS["linear"], METHODS["task_arithmetic"]
directional_consensus = METHODS["directional_consensus"]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)


def test_linear_by_hand() -> None:
    # (1·[1, 2] + 3·[3, 6]) / (1 + 3) = [10, 20] / 4
    given = float64(9, 9), float64([1, 2], [3, 6]), float64(1, 3)
    close(linear(*given), float64(2.5, 5))
    close(linear(*given, normalize=False), float64(10, 20))


def test_task_arithmetic_by_hand() -> None:
    # τ_1 = [1, 0], τ_2 = [0, 4]: [1, 1] + 2·(0.5·τ_1 + 0.25·τ_2) = [1 + 2·0.5, 1 + 2·1]
    found = task_arithmetic(float64(1, 1), float64([2, 1], [1, 5]), float64(0.5, 0.25), scale=2.0)
    close(found, float64(2, 3))


def test_directional_consensus_by_hand() -> None:
    # τ_1 = [3, 0], τ_2 = [0, 4]: d = [3, 4] / 5, τ_1·d = 1.8, τ_2·d = 3.2
    # w = [1, 0], α = 0.5: 0.5·1.8·[0.6, 0.8] + 0.5·[3, 0] = [0.54 + 1.5, 0.72]
    base, tuned = float64(10, 20), float64([13, 20], [10, 24])
    close(directional_consensus(base, tuned, float64(1, 0), alpha=0.5), float64(12.04, 20.72))
    # w = [1, 2], α = 1: (1.8 + 2·3.2)·d = 8.2·[0.6, 0.8]
    close(directional_consensus(base, tuned, float64(1, 2)), float64(14.92, 26.56))


def test_linear_is_task_arithmetic_where_the_weights_sum_to_one() -> None:
    given = experts((6, 5), 4)
    close(linear(*given), task_arithmetic(*given))
    close(linear(*given), linear(*given, normalize=False))


def test_sums_run_in_the_order_of_the_sources() -> None:
    # torch's own sum groups fourteen terms by a column's place, so that shards or threads could change the last bit.
    base, tuned, weights = experts((101, 99), 14, dtype=torch.float32)
    total = torch.zeros_like(base)
    for weight, one in zip(weights, tuned, strict=True):
        total += weight * one
    assert torch.equal(linear(base, tuned, weights, normalize=False), total)
    assert not torch.equal((weights.reshape(-1, 1, 1) * tuned).sum(0), total)


def test_directional_consensus_of_equal_weights_is_the_average() -> None:
    base, tuned, _ = experts((6, 5), 4)
    close(directional_consensus(base, tuned, torch.full((4,), 0.25, dtype=torch.float64)), tuned.mean(0))


def test_directional_consensus_is_a_blend_with_task_arithmetic() -> None:
    given = experts((6, 5), 4)
    none, half, full = (directional_consensus(*given, alpha=alpha) for alpha in (0.0, 0.5, 1.0))
    close(none, task_arithmetic(*given))
    close(half, (none + full) / 2)


def test_directional_consensus_lies_on_the_line_of_the_sum() -> None:
    base, tuned, weights = experts((6, 5), 4)
    delta, total = directional_consensus(base, tuned, weights) - base, (tuned - base).sum(0)
    cosine = (delta * total).sum() / torch.linalg.vector_norm(delta) / torch.linalg.vector_norm(total)
    assert float(cosine) == pytest.approx(1, abs=1e-14)


def test_deltas_that_cancel_have_no_direction_and_are_summed() -> None:
    base, tau = float64(1, 1), float64(2, -4)
    found = directional_consensus(base, torch.stack([base + tau, base - tau]), float64(0.75, 0.25))
    close(found, base + 0.5 * tau)


@pytest.mark.parametrize("weights", [[0.0, 0.0, 0.0], [1.0, -1.0, 0.0], [0.1, 0.2, -0.3]])
@pytest.mark.parametrize("name", ["linear", "wudi"])
def test_weights_that_sum_to_zero_cannot_be_normalised(name: str, weights: list[float]) -> None:
    # 0.1 + 0.2 − 0.3 leaves 2.8e-17: dividing by that would be worse than an error.
    base, tuned, _ = experts((3, 4), 3)
    message = r"weights \[.*\] (sum to zero|include a negative one)"
    with pytest.raises(MethodError, match=message):
        METHODS[name](base, tuned, float64(*weights))


def test_small_weights_may_still_be_normalised() -> None:
    base, tuned, weights = experts((3, 4))
    close(linear(base, tuned, weights * 1e-30), linear(base, tuned, weights))


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan")])
def test_alpha_is_a_share(alpha: float) -> None:
    with pytest.raises(
        MethodError, match=rf"directional_consensus: alpha is {alpha}, it must lie in \[0, 1\]"
    ):
        directional_consensus(*experts(), alpha=alpha)
